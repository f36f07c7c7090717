"""Options that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from phf.errors import PHFError
from phf.files import to_path

if TYPE_CHECKING:
    from phf.config import SegmentKind

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
CorpusFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", parser=to_path, help="A corpus folder made by 'phf corpus build', or its URL."
    ),
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders made by 'phf train'.")]


SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "add_completion": False}


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> Any:
    """The value, if it is one of the choices.

    Raises:
        PHFError: it is not.
    """
    if value not in choices:
        raise PHFError(f"{name} '{value}' is not known; choose {', '.join(choices)}")
    return value


def segment_kind(text: str) -> "SegmentKind":
    """The kind of segment that an option names."""
    from phf.config import SegmentKind

    kind: SegmentKind = check_choice("segments", text, get_args(SegmentKind))
    return kind
