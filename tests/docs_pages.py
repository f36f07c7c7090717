"""The shell lines of a page of docs, and how they run at the size of a test.

A page shows lines as a reader types them. Here each gets options that make it small (`_SMALL`). What a test cannot run stands in the
page behind `<!-- not run: REASON -->`: of such a line only the command, its options and their values' form are checked.
"""

import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
import yaml

from phf.cli import app

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(
    r'(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<body>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
_MODEL = ["model.preset=1M", "model.layers=2", "model.width=32", "model.heads=2", "tokenizer=train:300"]
_TRAIN = ["data.context=64", "optim.batch_blocks=2", "tokens=1_000", "compile=off", "validation_blocks=2"]
_SMALL = {
    ("corpus", "build"): ["--max-documents", "1000"],
    ("annotate",): ["--workers", "1"],
    ("tokenize",): ["--workers", "1", "--tokenizer", "train:300"],
    ("train",): [*_MODEL, *_TRAIN, "checkpoint_every=2", "keep_checkpoints=9"],
    ("evaluate",): ["--num-samples", "8", "--max-new-tokens", "12", "--set", "capability_documents=8"],
    ("sample",): ["--num-samples", "1", "--max-new-tokens", "12"],
    ("attack",): [
        *("--attack", "few-shot", "--num-texts", "2", "--num-samples", "4", "--set", "steps=[1]"),
        *("--set", "sampling.max_new_tokens=12"),
    ],
    ("infer",): [
        *("--num-samples", "12", "--num-exact", "12", "--max-draws", "24", "--max-new-tokens", "8"),
        *("--set", "num_bootstrap=100", "--set", "populations=3", "--set", "particles=2"),
    ],
    ("online",): [
        *("--num-samples", "8", "--max-new-tokens", "8", "--steps", "2", "--rounds", "1"),
        *("--set", "num_bootstrap=100", "--set", "num_documents=8"),
    ],
    ("finetune",): [
        *("--steps", "4", "--texts", "4", "--pool", "200", "--num-samples", "8", "--max-new-tokens", "12"),
        *("--set", "num_bootstrap=100"),
    ],
    ("tokens", "export"): [*_MODEL, *_TRAIN],
    ("trainer.py",): [*_MODEL, *_TRAIN],
    ("reward", "distill"): ["--num-segments", "1500"],
    ("release", "verify"): ["--num-samples", "4"],
}
_PLACES = {"runs/mle@500": "runs/mle@4"}
"""A checkpoint that a small run has."""
_ONCE = ("release", "verify")
"""A command that takes a process of its own: the tutorial runs it, on other pages it is checked to exist."""
_OTHER_PROGRAMS = ("pip", "npm", "ray", "sbatch", "git")
"""What a marked line may call beside phf; nothing of it is checked."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: shell lines, or a file that the page tells to write.

    Attributes:
        reason: why a test cannot run it; None if it can.
        title: the file's name; None of shell lines.
    """

    language: str
    title: str | None
    reason: str | None
    body: str

    def lines(self) -> Iterator[list[str]]:
        """The words of each command, comments left out."""
        for line in self.body.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def guide_pages() -> list[Path]:
    """The pages of the Guide, in the order of the site."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    [guide] = [entry["Guide"] for entry in site["nav"] if "Guide" in entry]
    return [ROOT / "docs" / name for entry in guide for name in entry.values()]


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that are shell lines or files."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    blocks = [Block(match["language"], match["title"], match["reason"], match["body"]) for match in found]
    return [block for block in blocks if block.language == "sh" or block.title]


def run_page(page: Path) -> None:
    """Run a page's blocks in order in the current folder, at the size of a test."""
    for block in read_blocks(page):
        if block.title is not None:
            Path(block.title).write_text(block.body, encoding="utf-8")
        elif block.reason is not None:
            for words in block.lines():
                check_line(words)
        else:
            for words in block.lines():
                if page.stem != "tutorial" and tuple(words[1:3]) == _ONCE:
                    check_line(words)
                else:
                    run_line(words)


def check_line(words: list[str], files: Collection[str] = ()) -> None:
    """A line that is not run: its command exists, and takes these options.

    Args:
        files: what the page tells to write.

    Raises:
        Exception: of click's, that names the option or the command.
    """
    words = [word.replace("s3://", "memory://") for word in words]  # needs no package of its own
    while "=" in words[0]:  # an environment variable
        words = words[1:]
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    if words[0] == "python":
        assert words[1] in files or (ROOT / words[1]).is_file(), f"no such file: {words[1]}"
        return
    if words[0] in _OTHER_PROGRAMS:
        return
    assert words[0] == "phf", f"{words[0]} is no program that the docs may call: {words}"
    command, names, rest = _find_command(words[1:])
    command.make_context(" ".join(names), rest).close()


def run_line(words: list[str]) -> None:
    """Run one command in this process, small."""
    if words[0] == "python":
        before, sys.argv = sys.argv, [*words[1:], *_SMALL.get((words[1],), [])]
        try:
            runpy.run_path(words[1])
        finally:
            sys.argv = before
        _thin_written_lines()
        return
    assert words[0] == "phf", (
        f"mark it with '<!-- not run: REASON -->', or teach tests/docs_pages.py to run it: {words}"
    )
    words = [_PLACES.get(word, word) for word in words[1:]]
    words = [name for word in words for name in (_expand(word) if word.endswith("/*") else [word])]
    _, names, _ = _find_command(words)
    _remove_what_it_makes(words)
    small = _SMALL.get(tuple(names), [])
    if "--resume" in words:
        small = []  # the run's own settings
    elif "--dry-run" in words and names == ["train"]:
        small = _MODEL
    answers = {"rate": "1\n5\n", "pair": "1\n2\n"}
    keys = answers.get(words[words.index("--task") + 1] if "--task" in words else "", "g\nb\n") * 30
    stdin, sys.stdin = sys.stdin, io.StringIO(keys)
    try:
        code = app([*words, *small], standalone_mode=False)
    finally:
        sys.stdin = stdin
    assert not code, f"exit code {code} of {words}"


def _find_command(words: list[str]) -> tuple[Any, list[str], list[str]]:
    """The command that words call, its names, and the words behind them."""
    command, names, rest = typer.main.get_command(app), [], list(words)
    while hasattr(command, "commands"):
        if rest[0] not in command.commands and "make" in command.commands:  # `phf release RUN`
            rest.insert(0, "make")
        name = rest.pop(0)
        assert name in command.commands, f"no such command: phf {' '.join(words)}"
        command = command.commands[name]
        names.append(name)
    return command, names, rest


def _remove_what_it_makes(words: list[str]) -> None:
    """Pages begin in a folder in which all is there already; what a line makes it makes anew."""
    if "-o" in words and words[0] != "label":
        made = Path(words[words.index("-o") + 1])
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink(missing_ok=True)


def _expand(pattern: str) -> list[str]:
    return sorted(map(str, Path().glob(pattern)))


def _thin_written_lines() -> None:
    for file in Path().glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = 1000 if file.stem == "texts" else 300
        file.write_text("".join(lines[:: max(1, len(lines) // kept)]), encoding="utf-8")
