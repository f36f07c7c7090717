"""dynamics.json: a model as a chain of pages, as measurements (docs/dynamics.md)."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from phf.dynamics.own_measures import OWN_MEASURES
from phf.records import Number
from phf.results import (
    MODE_ORDER,
    HasMeasurements,
    Judge,
    Measure,
    Measurement,
    ResultsFile,
)

RATE = Measure(
    "rate",
    "rate",
    "share of segments",
    "Of the segments in one state, how many are followed by another, or by the page's end.",
    "A judge's errors look like switches and back.",
    lower_is_better=None,
    of="step",
)
RATE_OF_DATA = Measure(
    "rate_of_data",
    "rate, data",
    "share of segments",
    "The same in the training data, in documents with as many segments.",
    "",
    None,
    of="step",
)
RATE_EXCESS = Measure(
    "rate_excess",
    "rate, model - data",
    "share of segments",
    "What of the rate is the model's own.",
    "Documents are matched by length alone.",
    None,
    of="step",
)
LAW = Measure(
    "law",
    "what follows from the rates",
    "",
    "Of the chain of these rates.",
    "A chain of order 1.",
    None,
    of="number",
)
LAW_OF_DATA = Measure("law_of_data", "the same, data", "", "", "", None, of="number")
LAW_EXCESS = Measure("law_excess", "model - data", "", "", "", None, of="number")
HIDDEN = Measure(
    "hidden",
    "without the judge's errors",
    "",
    "The same of the chain that stands behind the judge's verdicts, given how often it errs.",
    "Errors are taken to be independent, and the second judge, or who labelled, to be right.",
    None,
    of="number",
)
HIDDEN_OF_DATA = Measure("hidden_of_data", "the same, data", "", "", "", None, of="number")
HIDDEN_EXCESS = Measure("hidden_excess", "model - data, without errors", "", "", "", None, of="number")
JUDGE_ERROR = Measure(
    "judge_error",
    "the judge errs",
    "share of segments",
    "Of the segments that the second judge, or who labelled, calls bad (good), how many the judge calls good (bad).",
    "",
    of="called",
)
DRIFT = Measure(
    "drift",
    "drift",
    "share, a segment",
    "By how much a rate rises with each segment further on.",
    "Late places are those of long pages alone.",
    None,
    of="step",
)
PLACES_P = Measure(
    "places_p",
    "p of alike places",
    "",
    "That a chain whose rates are the same in all places would give rates that differ as much between them (parametric bootstrap).",
    "",
    None,
)
RETURN = Measure(
    "return",
    "good again",
    "share of visits",
    "Of pages that came to a state: how many were good again within so many segments. At none, the interval is what can be ruled out.",
    "A page that ends first did not come back.",
    None,
    of="state, tokens",
    at="segments",
)
STAY = Measure(
    "stay",
    "still there",
    "share of visits",
    "Of the same pages: how many neither were good again nor had ended.",
    "",
    None,
    of="state, tokens",
    at="segments",
)
HAZARD = Measure(
    "hazard",
    "hazard",
    "share of segments",
    "By the place of a segment on its page: how many good ones turn bad behind it, and bad ones good.",
    "Late places are those of long pages alone.",
    None,
    of="step",
    at="segment",
)
ORDER = Measure(
    "order", "order", "segments", "How many segments the next one depends on, by BIC.", "At most 3.", None
)
SHARE_BETWEEN = Measure(
    "share_between",
    "share between pages",
    "share of the variance",
    "Of a segment's being bad or not: how much lies between pages (intraclass correlation).",
    "A slow chain has one, too.",
    None,
)
FAR_EXCESS = Measure(
    "far_excess",
    "far excess",
    "share of the variance",
    "How much more far segments of one page are alike than the chain of near ones says: 0 where a page's own average is that of all.",
    "Pages must be long enough to have far segments.",
    None,
)
FAR_P = Measure(
    "far_p",
    "p of the far excess",
    "",
    "That an ergodic chain would give as much (parametric bootstrap).",
    "",
    None,
)
AVERAGE = Measure(
    "average",
    "share bad",
    "",
    "Over pages, each counting once, and over the stream of their segments: they differ where long pages are better or worse.",
    "",
    of="average",
)
MEASURES = [
    RATE,
    RATE_OF_DATA,
    RATE_EXCESS,
    LAW,
    LAW_OF_DATA,
    LAW_EXCESS,
    HIDDEN,
    HIDDEN_OF_DATA,
    HIDDEN_EXCESS,
    JUDGE_ERROR,
    DRIFT,
    PLACES_P,
    RETURN,
    STAY,
    HAZARD,
    ORDER,
    SHARE_BETWEEN,
    FAR_EXCESS,
    FAR_P,
    AVERAGE,
    *OWN_MEASURES,
]


@dataclass(frozen=True)
class DynamicsResults(HasMeasurements):
    """The content of dynamics.json.

    Attributes:
        settings: the `DynamicsConfig`.
        run: name of the model; `run_id` the id of a run, or the hash of another model.
        judge: whose verdicts are the states; None where nobody judged.
        threshold: score <= threshold is good.
        isolated: whether documents were isolated from each other in training; None where that is not known.
        context: of training, in tokens.
        num_pages: of each mode, and of the data (`data`).
        notes: what a reader must know.
    """

    settings: dict[str, JsonValue]
    run: str
    run_id: str
    step: int
    judge: Judge | None
    threshold: Number
    isolated: bool | None
    context: int
    num_pages: dict[str, int]
    notes: list[str]
    measurements: list[Measurement]
    measures: list[Measure] = field(default_factory=lambda: list(MEASURES))

    @property
    def modes(self) -> list[str]:
        """Those that were measured."""
        return [mode for mode in MODE_ORDER if mode in self.num_pages]


DYNAMICS = ResultsFile("dynamics.json", DynamicsResults, 1, "phf dynamics RUN -o FOLDER")
