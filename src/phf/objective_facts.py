"""What is true of an objective by its kind: one row each. Reports, the explorer and the commands look here, so that a new
objective is its config, its case in `phf.objectives` and its row. No torch here.
"""

from dataclasses import dataclass
from typing import Literal

from phf.records import Mode

Telling = Literal["learned", "labels", "kept", "left", "pushed", "weights", "levels", "rewards", "tagged"]
"""What the explorer counts in one document (`phf.explore.scores`)."""

_PLAIN: tuple[Mode, ...] = ("none",)
_CONTROLLED: tuple[Mode, ...] = ("good", "bad", "none", "untagged")
_ADDED: tuple[Mode, ...] = ("good", "bad", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveFacts:
    """A row.

    Attributes:
        note: what the objective does, for a reader of the report page.
        light, dark: its colour on white and on black, for text and lines; no other row has it.
        colour_number: 1 to 255, of the colour that stands for it while a figure is drawn; no other row has it.
        corpus_line: what it would do with a training split, for the explorer; the numbers in braces are those of
            `phf.explore.scores.Verdicts`.
        document_line: what the explorer counts in one document; None if there is nothing to count before training.
        modes: in which a model trained with it is measured, the one to release first.
        is_additive: whether the embeddings of control tokens are added to the inputs, and do not stand between them.
        is_baseline: whether it is what the others are compared with.
        loan: when its colour is lent to a model that forgot, on the page of attacks: the first is 1; 0 for never.
    """

    note: str
    light: str
    dark: str
    colour_number: int
    corpus_line: str
    document_line: Telling | None
    modes: tuple[Mode, ...] = _PLAIN
    is_additive: bool = False
    is_baseline: bool = False
    loan: int = 0


OBJECTIVES: dict[str, ObjectiveFacts] = {
    "mle": ObjectiveFacts(
        note="plain training on all of the text, the scores unused: what the others are compared with.",
        light="#66707c",
        dark="#a3abb5",
        colour_number=1,
        corpus_line="learns to write all of it, whatever its score",
        document_line="learned",
        is_baseline=True,
    ),
    "filtering": ObjectiveFacts(
        note="the documents with the worst scores are left out.",
        light="#00795c",
        dark="#4fd0ab",
        colour_number=3,
        corpus_line="keeps the {part} of the documents with a mean score up to {threshold} and drops {rest}",
        document_line="kept",
    ),
    "removal": ObjectiveFacts(
        note="the segments with the worst scores are left out of their documents.",
        light="#007a8a",
        dark="#5cd0e0",
        colour_number=7,
        corpus_line="keeps {part} of the segments and cuts {rest} out of their documents",
        document_line="left",
        loan=4,
    ),
    "masking": ObjectiveFacts(
        note="bad segments are read as context, but never learned.",
        light="#6b3fa0",
        dark="#bf9cf0",
        colour_number=8,
        corpus_line="reads everything, learns to write {part} of the segments only",
        document_line="learned",
        loan=7,
    ),
    "conditional": ObjectiveFacts(
        note="each segment comes after a control token that says whether it is good or bad; one then asks for good text.",
        light="#0b66c3",
        dark="#6cb2ff",
        colour_number=2,
        corpus_line="puts <|good|> before {part} of the segments and <|bad|> before the other {rest}",
        document_line="labels",
        modes=_CONTROLLED,
    ),
    "quantile": ObjectiveFacts(
        note="each segment comes after one of several control tokens, from the best scores to the worst.",
        light="#a3224a",
        dark="#ff8fab",
        colour_number=9,
        corpus_line="has thresholds of its own: one of {num_levels} control tokens before each segment, <|good|> for scores "
        "up to {best_level}, <|bad|> above {worst_level}",
        document_line="levels",
        modes=_CONTROLLED,
        loan=2,
    ),
    "additive": ObjectiveFacts(
        note="a learned vector for good or bad is added to the inputs.",
        light="#4d6b00",
        dark="#b5d65a",
        colour_number=10,
        corpus_line="adds a learned vector for good to the inputs of {part} of the segments, and one for bad to the other {rest}",
        document_line="labels",
        modes=_ADDED,
        is_additive=True,
        loan=6,
    ),
    "scalar": ObjectiveFacts(
        note="the score itself, as a learned direction, is added to the inputs.",
        light="#8a4b1f",
        dark="#dba37a",
        colour_number=11,
        corpus_line="has no threshold: adds a learned vector, times {worst:.2g} for the worst segment, times {best:.2g} for the "
        "best",
        document_line="rewards",
        modes=_ADDED,
        is_additive=True,
        loan=8,
    ),
    "tagging": ObjectiveFacts(
        note="the token <|bad|> is strewn into bad text, and is not asked for when the model writes.",
        light="#44546a",
        dark="#b3c4dc",
        colour_number=12,
        corpus_line="leaves {part} of the segments as they are and strews <|bad|> into the other {rest}",
        document_line="tagged",
        modes=("untagged", "none"),
        loan=9,
    ),
    "unlikelihood": ObjectiveFacts(
        note="bad segments are made less likely.",
        light="#bf4a0a",
        dark="#ff9c5e",
        colour_number=4,
        corpus_line="learns to write {part} of the segments and not to write the other {rest}",
        document_line="pushed",
        loan=1,
    ),
    "rwr": ObjectiveFacts(
        note="text with better scores weighs more in the loss.",
        light="#9a4f88",
        dark="#e3a0d2",
        colour_number=5,
        corpus_line="has no threshold: weight {worst:.2g} for the worst segment, {best:.2g} for the best; effective sample: "
        "{effective} of the tokens",
        document_line="weights",
        loan=5,
    ),
    "awr": ObjectiveFacts(
        note="text that scores better than expected there weighs more in the loss.",
        light="#8a6d00",
        dark="#e0c14a",
        colour_number=6,
        corpus_line="has no threshold: begins with RWR's weights, then weighs how much better a segment is than its value head "
        "expects",
        document_line=None,
        loan=3,
    ),
    "custom": ObjectiveFacts(
        note="a loss of one's own: a Python function of the loss, scores and labels of the tokens.",
        light="#b0008e",
        dark="#ff80df",
        colour_number=13,
        corpus_line="weighs each token as a function of one's own says",
        document_line=None,
    ),
}
"""The rows, by kind, in the order of the documentation."""


def is_baseline(kind: str) -> bool:
    """Whether a kind is what the others are compared with; False for one that this version does not know."""
    return kind in OBJECTIVES and OBJECTIVES[kind].is_baseline
