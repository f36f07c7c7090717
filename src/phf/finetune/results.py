"""finetune.json: what finetuning did to a run, as measurements, beside run.json (docs/finetune.md)."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from phf.results import (
    FINETUNE_FILE,
    FINETUNE_VERSION,
    HasMeasurements,
    Judge,
    Measure,
    Measurement,
    ResultsFile,
)

_GROUP = "Finetuning"

SCORE = Measure(
    "finetune_score",
    "Score, start and result",
    note="Mean score of texts of the model that finetuning began from (start) and of what came out (result), drawn with the same random numbers.",
    blind_spot="The reward model that was learned from has been optimised; a judge that was held out has not.",
    group=_GROUP,
    of="policy",
)
KL_TEXT = Measure(
    "finetune_kl_text",
    "KL from the start, a text",
    "nats a text",
    "KL(result || start) on the result's own texts: what its score cost.",
    "It grows with the length of the texts.",
    group=_GROUP,
    is_headline=True,
)
KL_TOKEN = Measure(
    "finetune_kl_token",
    "KL from the start, a token",
    "nats a token",
    "The same sum over all texts, divided by all their tokens.",
    "Long texts count more.",
    group=_GROUP,
)
LENGTH = Measure(
    "finetune_length",
    "Length, start and result",
    "tokens",
    "Mean length of a text, the end of its page included; a shorter text has fewer chances of a bad score.",
    "Texts are cut at sampling.max_new_tokens.",
    lower_is_better=None,
    group=_GROUP,
    of="policy",
)
CALLS = Measure(
    "finetune_calls",
    "Reward calls",
    "texts",
    "Texts that the reward model scored for learning; those of measuring come on top.",
    "The corpus of the start run may have been scored as well.",
    group=_GROUP,
)
LABELS = Measure(
    "finetune_labels",
    "Labels of the gold judge",
    "texts",
    "Texts that the gold judge labelled to train the reward model that was learned from.",
    "",
    group=_GROUP,
)
WRITTEN = Measure(
    "finetune_written", "Tokens written to learn from", "tokens", "By the model itself.", "", group=_GROUP
)
BEST_SCORE = Measure(
    "best_of_score",
    "Score of the best of n",
    note="Of the start model's texts, by the reward model; from one pool, unbiased at every n.",
    blind_spot="By the reward model itself it falls with n whatever that model is worth.",
    group=_GROUP,
    at="n",
)
BEST_KL = Measure(
    "best_of_kl",
    "KL of the best of n",
    "nats a text",
    "From the start model, ties counted; log n - (n - 1) / n bounds it.",
    "",
    lower_is_better=None,
    group=_GROUP,
    at="n",
)
MEASURES = [SCORE, KL_TEXT, KL_TOKEN, LENGTH, CALLS, LABELS, WRITTEN, BEST_SCORE, BEST_KL]


@dataclass(frozen=True)
class FinetuneResults(HasMeasurements):
    """The content of finetune.json.

    Attributes:
        run_id: of the run that came out (`Run.id`).
        reward: slug of the reward model that was learned from; empty where it was preferences that people gave.
        judges: what scored, that one first; the role is as in an evaluation.
        notes: what a reader must know.
    """

    run_id: str
    reward: str
    judges: list[Judge]
    settings: dict[str, JsonValue]
    notes: list[str]
    measurements: list[Measurement]
    measures: list[Measure] = field(default_factory=lambda: list(MEASURES))


FINETUNE = ResultsFile(FINETUNE_FILE, FinetuneResults, FINETUNE_VERSION, "phf finetune ... -o FOLDER")
