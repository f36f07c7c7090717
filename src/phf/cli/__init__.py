"""The verbs. Each is one call into the package; what computes is imported inside, so that `phf --help` is quick."""

import signal
import sys
import threading
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from phf import __version__
from phf.cli import (
    annotate,
    attack,
    cache,
    corpus,
    dynamics,
    evaluate,
    explore,
    finetune,
    infer,
    label,
    online,
    release,
    reward,
    runs,
    show,
    study,
    sweep,
    tokens,
)
from phf.cli.failures import check_memory_limit, explain_failure
from phf.cli.options import SETTINGS, InterruptedCommand, Quiet, examples
from phf.errors import PHFError
from phf.processes import stop_with_lifeline
from phf.terminal import be_quiet, printable, safe_streams

_STOPPED = 130
_MAX_LINE = 4000
"""Characters of an error."""

GROUPS = {
    "Start": ["demo", "cache"],
    "Data": ["corpus", "annotate", "tokenize", "tokens", "label", "reward"],
    "Train": ["train", "finetune", "online", "sweep", "study"],
    "Look": ["sample", "evaluate", "report", "show", "compare", "infer", "dynamics", "explore"],
    "Release": ["release", "attack", "push"],
}
"""The commands in the order of use."""


class _Commands(TyperGroup):
    """The commands, each under the heading of its group."""

    def list_commands(self, ctx: object) -> list[str]:
        """Names in the order of use."""
        return [name for names in GROUPS.values() for name in names]

    def format_commands(self, ctx: object, formatter: Any) -> None:
        """Names and what each is for; one width for the names of all groups."""
        width = max(map(len, self.commands))
        for title, names in GROUPS.items():
            with formatter.section(title):
                limit = formatter.width - width - 6
                formatter.write_dl(
                    [(name.ljust(width), self.commands[name].get_short_help_str(limit)) for name in names]
                )


app = typer.Typer(
    cls=_Commands,
    help="Pretrain language models with human feedback: score a corpus once, train on the scores, measure, report.",
    epilog=examples("phf demo -o demo", "phf train --help"),
    **{**SETTINGS, "add_completion": True},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"phf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    quiet: Quiet = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="The version of phf.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """What stands before a command."""
    check_memory_limit()


app.add_typer(corpus.app, name="corpus")
app.add_typer(reward.app, name="reward")
app.add_typer(cache.app, name="cache")
app.add_typer(tokens.app, name="tokens")
for verbs in (
    annotate,
    label,
    runs,
    evaluate,
    release,
    attack,
    show,
    explore,
    sweep,
    infer,
    online,
    finetune,
    dynamics,
    study,
):
    app.add_typer(verbs.app)


def main() -> None:
    """The `phf` command: user errors are one line on stderr and exit code 2; anything else is a bug and shows itself."""
    be_quiet(False)
    with safe_streams():
        _run()


def _run() -> None:
    # As Ctrl-C is: what is at work writes down what it has, and the user is told how to go on.
    terminated, remedy = [], "the same command begins again"

    def stop(number: int, _frame: FrameType | None) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
        stop_with_lifeline()
    try:
        code = app(standalone_mode=False)  # of an exit that a verb asked for; typer makes 130 of Ctrl-C
    except PHFError as error:
        _fail(str(error))
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # a bare `phf` or `phf corpus`: the help is the answer
            print(message)
            sys.exit(2)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "phf"
        _fail(f"{message.rstrip('.')}; see '{command} --help'")
    except InterruptedCommand as stopped:
        code, remedy = _STOPPED, str(stopped) or remedy
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    except Exception as error:
        if (failure := explain_failure(error)) is None:
            raise
        _fail(failure)
    if code == _STOPPED:
        print(f"stopped; {printable(remedy)}", file=sys.stderr)
        code = 128 + terminated[0] if terminated else code
    if code:
        sys.exit(code)


def _fail(message: str) -> None:
    line = printable(" ".join(message.split()))
    if len(line) > _MAX_LINE:  # a value of a million characters says no more than its ends
        line = f"{line[: _MAX_LINE // 2]} … {line[-_MAX_LINE // 2 :]}"
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
