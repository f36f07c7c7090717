"""online.json and lemma.json: what rounds on own text did to a model, and the table of the lemma, as measurements (docs/loops.md)."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from phf.records import Mode
from phf.results import HasMeasurements, Judge, Measure, Measurement, ResultsFile

SCORE = Measure(
    "score",
    "score",
    "",
    "Mean score of the round's texts, each as a whole.",
    "The annotator's own falls also where the model has found what it overlooks: read it beside the held-out judge's.",
    is_headline=True,
    at="round",
)
JUDGE_DRIFT = Measure(
    "judge_drift",
    "judge drift",
    "",
    "How much further the annotator's mean has fallen since round 0 than the held-out judge's: above 0, the model pleases the annotator alone.",
    "It compares judges of one unit; both may be fooled alike.",
    at="round",
)
KL_FROM_START = Measure(
    "kl_from_start",
    "KL from the start",
    "nats a text",
    "KL(model || start model) on the model's own texts, both in the mode that is asked for; exact probabilities of texts.",
    "It grows with the length of the texts, and with training on human text too: read it beside the human control.",
    lower_is_better=None,
    is_headline=True,
    at="round",
)
BITS_PER_BYTE = Measure(
    "bits_per_byte",
    "bits per byte",
    "bits per byte",
    "Of held-out human text, in the mode that is asked for.",
    "Prediction is not skill at a task.",
    is_headline=True,
    of="text",
    at="round",
)
BITS_CHANGE = Measure(
    "bits_per_byte_change",
    "change of bits per byte",
    "bits per byte",
    "Since round 0, paired by document: what the rounds cost on held-out human text.",
    "Prediction is not skill at a task.",
    of="text",
    at="round",
)
DISTINCT_2 = Measure(
    "distinct_2",
    "distinct-2",
    "share",
    "Share of distinct two-word sequences in equal amounts of text; interval by the jackknife over 16 groups of texts.",
    "Varied nonsense passes; bits per byte does not let it.",
    lower_is_better=False,
    is_headline=True,
    at="round",
)
REPETITION = Measure(
    "repetition",
    "repetition",
    "share of 4-grams",
    "4-grams that came before in their text.",
    "Repeats between texts are not in it.",
    at="round",
)
MEAN_TOKENS = Measure(
    "mean_tokens",
    "length",
    "tokens",
    "Text tokens of a text.",
    "A text that was cut counts what it has.",
    lower_is_better=None,
    at="round",
)
ENDED_SHARE = Measure(
    "ended_share",
    "ended",
    "share of texts",
    "Texts that ended before the longest length. A cut text that is trained on is followed by an end that the model did not write.",
    "",
    lower_is_better=None,
    at="round",
)
DISTINCT_TEXTS = Measure(
    "distinct_texts",
    "distinct texts",
    "share of texts",
    "A text that was written twice is trained on once.",
    "",
    lower_is_better=False,
    at="round",
)
OWN_SHARE = Measure(
    "own_share",
    "own text",
    "share of all tokens",
    "Of the model inputs that the model has seen in all its training, those that models of this loop wrote.",
    "",
    lower_is_better=None,
    at="round",
)
MEASURES = [
    SCORE,
    JUDGE_DRIFT,
    KL_FROM_START,
    BITS_PER_BYTE,
    BITS_CHANGE,
    DISTINCT_2,
    REPETITION,
    MEAN_TOKENS,
    ENDED_SHARE,
    DISTINCT_TEXTS,
    OWN_SHARE,
]

EFFECT = Measure(
    "lemma_effect",
    "U",
    "squared norm of the mean gradient",
    "Unbiased estimate of |E g|^2; interval of 1.96 jackknife errors. 0 means that such samples teach nothing on average.",
    "Samples of one step: what many steps add up to is not in it.",
    lower_is_better=None,
    of="case",
)
P_VALUE = Measure(
    "lemma_p",
    "p",
    "",
    "Two-sided, by flipping the signs of the groups' gradients at random.",
    "A large p says that nothing was seen, not that there is nothing: read the least effect beside it.",
    lower_is_better=None,
    of="case",
)
LEAST_EFFECT = Measure(
    "lemma_least_effect",
    "least effect seen",
    "squared norm of the mean gradient",
    "The |E g|^2 that so many samples would find at p < .05 four times in five.",
    "It takes the scatter of this case for that of the alternative.",
    lower_is_better=None,
    of="case",
)
RELATIVE = Measure(
    "lemma_share",
    "share of a sample's gradient",
    "",
    "U over the mean squared norm of one sample's gradient: cases on one scale.",
    "A share of 1 would be samples that all teach the same.",
    lower_is_better=None,
    of="case",
)
LEMMA_MEASURES = [EFFECT, P_VALUE, LEAST_EFFECT, RELATIVE]


@dataclass(frozen=True)
class LoopResults(HasMeasurements):
    """The content of online.json: one loop.

    Attributes:
        settings: the `OnlineConfig`.
        run: name of the run that it started from.
        recipe: hash of what that run was trained with, but for its seed.
        seed: of that run's training.
        step: that it started at.
        mode: that is asked for.
        control: which kind of loop this is.
        judges: the annotator first.
        notes: what a reader must know.
    """

    settings: dict[str, JsonValue]
    run: str
    objective: str
    recipe: str
    seed: int
    step: int
    mode: Mode
    control: str
    judges: list[Judge]
    notes: list[str]
    measurements: list[Measurement]
    measures: list[Measure] = field(default_factory=lambda: list(MEASURES))

    @property
    def rounds(self) -> list[int]:
        """The rounds that were measured, from 0."""
        return sorted({int(row.at) for row in self.measurements if row.at is not None})


@dataclass(frozen=True)
class LemmaResults(HasMeasurements):
    """The content of lemma.json: the cases of one run.

    Attributes:
        settings: the `LemmaConfig`.
        run, objective, seed, step, mode: of the model that wrote.
        num_parameters: that the gradients are of.
        cases: those that were measured, in the order of the table.
        left_out: those that were not, and why.
    """

    settings: dict[str, JsonValue]
    run: str
    objective: str
    seed: int
    step: int
    mode: Mode
    num_parameters: int
    cases: list[str]
    left_out: dict[str, str]
    measurements: list[Measurement]
    measures: list[Measure] = field(default_factory=lambda: list(LEMMA_MEASURES))


LOOP = ResultsFile("online.json", LoopResults, 1, "phf online RUN -o FOLDER")
LEMMA = ResultsFile("lemma.json", LemmaResults, 1, "phf online --check-lemma RUN -o FOLDER")
