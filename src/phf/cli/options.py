"""Options that several verbs share, and options that derive from the fields of a config."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer
from typer.core import TyperCommand

from phf.errors import PHFError
from phf.files import to_path
from phf.terminal import be_quiet, printable, say

if TYPE_CHECKING:
    from pydantic import BaseModel

    from phf.config.train import SegmentKind

Segments = Annotated[
    str,
    typer.Option(
        "--segments",
        "-s",
        help="What gets one score: lines, sentences, paragraphs, document, or imported (as the corpus came).",
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes; default: one per core. Never changes a byte.", min=1)
]
EngineName = Annotated[
    str, typer.Option(help="local: this machine; ray: a Ray cluster. Never changes a byte.")
]
RayAddress = Annotated[
    str | None, typer.Option(help="A running Ray cluster (auto, HOST:6379); default: start one here.")
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="What a language model as judge may cost: 5000calls, 2Mtokens or 3.50USD; what is answered is kept."
    ),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another phf that writes the same, instead of an error.")
]
CorpusFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", parser=to_path, help="A corpus folder made by 'phf corpus build', or its URL."
    ),
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders made by 'phf train'.")]


AsJSON = Annotated[
    bool, typer.Option("--json", help="Every number as JSON on stdout, and nothing else there; for scripts.")
]

SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


Function = TypeVar("Function", bound=Callable[..., Any])


class InterruptedCommand(Exception):
    """A Ctrl-C, or what it says of how to go on: typer would forget that."""


class Verb(TyperCommand):
    """A command, which takes --quiet beside its own options."""

    def invoke(self, ctx: Any) -> Any:
        """Run it.

        Raises:
            InterruptedCommand: it was asked to stop.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            raise InterruptedCommand(*stopped.args) from stopped

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does; `~` is the home folder in every path, and a number is one that can be counted with.

        Raises:
            PHFError: a number is NaN, infinite, or has more than 64 bits.
        """
        rest: list[str] = super().parse_args(ctx, args)
        for parameter in self.get_params(ctx):
            value = ctx.params.get(parameter.name)
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, int | float) and not abs(item) < 2**63:
                    raise PHFError(
                        f"{parameter.opts[0]} {item:.20g} is out of bounds; give a number that is finite and of 64 bits"
                    )
            if isinstance(value, Path):
                ctx.params[parameter.name] = value.expanduser()
        return rest

    def get_params(self, ctx: Any) -> list[Any]:
        """The function's parameters, then --quiet and --help."""
        *own, help_option = super().get_params(ctx)
        return [*own, *_make_quiet(), help_option]


class Verbs(typer.Typer):
    """Commands of one file."""

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = Verb, **settings: Any
    ) -> Callable[[Function], Function]:
        """As typer's, of `Verb`s."""
        return super().command(name, cls=cls, **settings)


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="Results and errors alone: no progress, remarks or hints.",
        is_eager=True,
        expose_value=False,
        callback=lambda given: be_quiet() if given else None,
    ),
]


def _make_quiet() -> list[Any]:
    def function(quiet: Quiet = False) -> None: ...

    return _read_parameters(function)


def _read_parameters(function: Callable[..., None]) -> list[Any]:
    """The parameters that typer makes of a function's."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return typer.main.get_command(app).params


def print_json(value: object) -> None:
    """A result on stdout, for scripts: dataclasses as objects, null for what is not known."""
    import json

    from phf.results import to_json

    print(json.dumps(to_json(value), indent=1))


def say_unchanged(out: Path, was_there: bool) -> None:
    """What a command says that was given before, and has found its own result."""
    if was_there:
        say(f"{out} was there already, just as this command makes it: nothing was changed")


def examples(*commands: str) -> str:
    """What ends the help of a command: each example on a line of its own, never wrapped."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> Any:
    """The value, if it is one of the choices.

    Raises:
        PHFError: it is not.
    """
    if value not in choices:
        raise PHFError(f"{name} '{value}' is not known; choose {', '.join(choices)}")
    return value


def warn_of_rewards(specs: Iterable[str]) -> None:
    """Say of each spec that sounds like a reward that scores are higher = worse."""
    from phf.reward_models.wording import find_good_word

    for spec in specs:
        if (word := find_good_word(spec)) is not None:
            say(
                f"warning: {printable(spec)} sounds as if higher were better ({printable(word)}), but a score is higher = worse; "
                f"a minus turns it round: {printable(f'-{spec}')}"
            )


def segment_kind(text: str) -> "SegmentKind":
    """The kind of segment that an option names."""
    from phf.config.train import SegmentKind

    kind: SegmentKind = check_choice("segments", text, get_args(SegmentKind))
    return kind


def derive_options(declare: Callable[[], "tuple[BaseModel, Mapping[str, str]]"]) -> type[Verb]:
    """A command that has, beside its own options, one for each chosen setting of a config.

    Type, help and default come from the setting's field. The function finds in `Context.obj` what was given, nested as
    the config is: what `parse` checks.

    Args:
        declare: gives the config whose values are the defaults, and the option of each setting by its dotted key. It is
            called when the command is, so that `phf --help` imports no pydantic.
    """

    class DerivedCommand(Verb):
        def get_params(self, ctx: Any) -> list[Any]:
            """The function's arguments, the derived options, then its own."""
            own = super().get_params(ctx)
            arguments = [parameter for parameter in own if parameter.param_type_name == "argument"]
            return [*arguments, *_make_options(*declare()), *own[len(arguments) :]]

        def invoke(self, ctx: Any) -> Any:
            """Call the function with its own parameters, and the others in `ctx.obj`."""
            ctx.obj = {}
            for key in declare()[1]:
                value = ctx.params.pop(_name_parameter(key))
                if value not in (None, [], ()):  # a repeatable option that was not given is empty
                    *parents, last = key.split(".")
                    group = ctx.obj
                    for parent in parents:
                        group = group.setdefault(parent, {})
                    group[last] = value
            return super().invoke(ctx)

    return DerivedCommand


def _make_options(defaults: "BaseModel", options: Mapping[str, str]) -> list[Any]:
    """Typer's options for settings of a config, as if a function had them."""
    from pydantic import BaseModel

    from phf.config.fields import find_field, read_setting
    from phf.config.train import write_spec

    def function() -> None: ...

    parameters = []
    for key, option in options.items():
        field, sentence = find_field(type(defaults), key)
        kind: Any = field.annotation
        default, shown = read_setting(defaults, key), ""
        if isinstance(default, tuple):
            item = get_args(kind)[0]
            kind = list[int] if int in (item, *get_args(item)) else list[str]
            shown = ", ".join(write_spec(own) if isinstance(own, BaseModel) else str(own) for own in default)
            default, sentence = None, f"{sentence.removesuffix('.')}; repeatable."
        info = typer.Option(option, help=sentence, show_default=shown or True)
        parameters.append(
            inspect.Parameter(
                _name_parameter(key),
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind | None, info],
            )
        )
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return _read_parameters(function)


def _name_parameter(key: str) -> str:
    return key.replace(".", "__")
