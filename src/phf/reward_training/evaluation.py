"""evaluation.json of a reward model that was trained or distilled: its measurements, and what it was made from."""

from dataclasses import dataclass, replace
from pathlib import Path

from phf.errors import PHFError
from phf.records import Estimate, Identity, Number
from phf.results import (
    EVALUATION_FILE,
    HasMeasurements,
    Measure,
    Measurement,
    read_versioned,
    write_versioned,
)
from phf.reward_models.linear import MODEL_FILE, HeavyNGram
from phf.reward_models.trained import read_model_record
from phf.reward_training.check import RewardCheck
from phf.reward_training.labels import BadLine, LabelKind

REWARD_EVALUATION_VERSION = 3

AUROC = Measure(
    "auroc",
    "AUROC",
    note="how often a bad text gets a higher score than a good one: 0.5 is chance, 1 is perfect",
    lower_is_better=False,
)
PAIR_ACCURACY = Measure(
    "pair_accuracy",
    "pair accuracy",
    "%",
    "how often the chosen text gets the lower score: 50 % is chance",
    lower_is_better=False,
)
SPEARMAN_OF_RATINGS = Measure(
    "spearman",
    "Spearman correlation",
    note="of the order of scores with the ratings: 1 is the same order",
    lower_is_better=False,
)
SPEARMAN_OF_TEACHER = replace(
    SPEARMAN_OF_RATINGS, note="of the order of scores with the teacher: 1 is the same order"
)
ALPHA = Measure(
    "alpha",
    "Krippendorff's alpha",
    note="with the teacher, by squared differences: 1 = the same scores, 0 = as by chance",
    lower_is_better=False,
)
TEACHER_ANSWERS = Measure(
    "teacher_answers", "the teacher's answers", note="a call each, kept for ever", lower_is_better=None
)
TEACHER_TOKENS = Measure(
    "teacher_tokens", "tokens of these", note="read and written, as the engine counts", lower_is_better=None
)
TEACHER_MONEY = Measure("teacher_money", "price of these", note="in the engine's currency")
OF_PEOPLE = {
    who: (
        Measure(
            f"{who}_people_spearman",
            f"{who} and people: Spearman correlation",
            note="of the order of scores with what people said of the same texts",
            lower_is_better=False,
        ),
        Measure(
            f"{who}_people_alpha",
            f"{who} and people: Krippendorff's alpha",
            note="by squared differences; labels are 0 and 1, ratings go from 0, the best given, to 1",
            lower_is_better=False,
        ),
    )
    for who in ("teacher", "student")
}
"""Agreement with people, in order and on the scale."""
SEGMENTS_CHANGED = Measure(
    "segments_changed", "segments that change side", "%", "good to one of the two, bad to the other"
)
BAD_SEGMENTS_MISSED = Measure(
    "bad_segments_missed", "bad segments missed", "%", "of the segments that are bad to the teacher"
)
DOCUMENTS_CHANGED = Measure(
    "documents_changed",
    "documents that change side",
    "%",
    "by their mean segment score, as the objective filtering judges them",
)
CALIBRATION_ERROR = Measure(
    "calibration_error",
    "calibration error",
    note="how far scores lie from the share of bad texts: root mean square over ten bins, freed of what chance adds; 0 is perfect",
)
RELIABILITY = Measure("reliability", "share of bad texts", lower_is_better=None, at="mean score of the bin")


@dataclass(frozen=True, slots=True)
class GoodBadHistogram:
    """Counts of held-out texts by score; one edge more than counts."""

    edges: list[float]
    good: list[int]
    bad: list[int]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How a reward model does on what was held out.

    Attributes:
        found: the number of each measure.
        reliability: mean score and mean target of each bin of scores (`measures.list_reliability`).
        num_unscored: texts (or pairs) that the model gave no score; they are left out.
    """

    found: dict[Measure, Estimate]
    reliability: list[tuple[float, Estimate]]
    histogram: GoodBadHistogram
    num_unscored: int = 0

    @property
    def measures(self) -> list[Measure]:
        """How each is shown."""
        return [*self.found, RELIABILITY]

    @property
    def measurements(self) -> list[Measurement]:
        """All numbers."""
        return [
            *(Measurement(measure.name, estimate) for measure, estimate in self.found.items()),
            *(Measurement(RELIABILITY.name, target, at=score) for score, target in self.reliability),
        ]


@dataclass(frozen=True, slots=True)
class TriedSettings:
    """Settings of a linear model that were tried: loss in nats on texts not fitted to, with its standard error."""

    features: str
    l2: float
    loss: Number
    standard_error: Number


@dataclass(frozen=True, slots=True)
class LinearFit:
    """What a linear model looks at: features, the settings that were tried, and the n-grams that weigh most."""

    features: str
    trials: list[TriedSettings]
    heaviest_bad: list[HeavyNGram]
    heaviest_good: list[HeavyNGram]


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """The feedback that a model was trained on; `conflicts` and `bad_rows` are the first of their kind.

    `num_counterfactuals`: versions of texts trained on, about another group, that were trained on as well.
    """

    kind: LabelKind
    file: str
    sha256: str
    held_out_file: str | None
    num_train: int
    num_held_out: int
    num_bad_train: int
    num_duplicates: int
    num_conflicts: int
    conflicts: list[str]
    num_bad_rows: int
    bad_rows: list[BadLine]
    num_counterfactuals: int = 0


@dataclass(frozen=True, slots=True)
class SpeedComparison:
    """Segments and UTF-8 bytes per CPU-second, of teacher and student on the same documents."""

    num_segments: int
    num_bytes: int
    teacher_segments: float
    teacher_bytes: float
    student_segments: float
    student_bytes: float

    @property
    def ratio(self) -> float:
        """How many times as fast as its teacher the student is."""
        return self.student_segments / self.teacher_segments


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs per token of annotating, beside the 6 N of pretraining a model of N parameters (`distill.measure_cost`).

    Attributes:
        counted: the student's arithmetic.
        student, teacher: CPU-seconds per token, times what a core of this machine reaches in a matrix product.
    """

    num_parameters: float
    bytes_per_token: float
    machine_flops_per_cpu_second: float
    counted: float
    student: float
    teacher: float

    @property
    def training(self) -> float:
        """FLOPs per token of pretraining."""
        return 6 * self.num_parameters


@dataclass(frozen=True, slots=True)
class Teaching:
    """What a student was distilled from, and how it was compared.

    Attributes:
        threshold: a segment is bad above it to the teacher, and above `student_threshold` to the student.
        target: what the student learns, a `probability` or `score above T`.
        num_known: held-out segments that also stand in documents trained on; they count for documents alone.
        num_labels: texts that people have labelled; `labels_sha256` is of their file.
    """

    teacher: Identity
    threshold: float
    student_threshold: float
    target: str
    segments: str
    num_documents: int
    num_held_out_documents: int
    num_train: int
    num_held_out: int
    num_known: int
    share_bad: float
    num_unscored: int
    documents_bad_to_teacher: int
    documents_bad_to_student: int
    speed: SpeedComparison
    cost: Cost
    num_labels: int = 0
    labels_sha256: str = ""


@dataclass(frozen=True)
class RewardEvaluation(HasMeasurements):
    """The content of evaluation.json.

    Attributes:
        base: the model that an encoder was finetuned from; None for a linear model.
        num_unscored: held-out texts that the model gave no score.
        linear: None for an encoder.
        labels, teaching: one of the two: from feedback, or from a teacher.
        check: what it makes of sentences about groups of people.
    """

    reward_model: Identity
    seed: int
    measures: list[Measure]
    measurements: list[Measurement]
    histogram: GoodBadHistogram
    num_unscored: int
    base: str | None = None
    linear: LinearFit | None = None
    labels: LabelFacts | None = None
    teaching: Teaching | None = None
    check: RewardCheck | None = None


def write_reward_evaluation(folder: Path, evaluation: RewardEvaluation) -> RewardEvaluation:
    """Write evaluation.json; gives the evaluation back."""
    write_versioned(folder / EVALUATION_FILE, evaluation, REWARD_EVALUATION_VERSION)
    return evaluation


def read_reward_evaluation(folder: Path) -> RewardEvaluation:
    """Read evaluation.json.

    Raises:
        PHFError: there is none, it is damaged, of another reward model, or of another format version.
    """
    path, remedy = folder / EVALUATION_FILE, "make the reward model again"
    evaluation = read_versioned(path, RewardEvaluation, REWARD_EVALUATION_VERSION, "phf reward train", remedy)
    if not (folder / MODEL_FILE).exists():  # an evaluation that was put aside
        return evaluation
    model = Identity.from_json(read_model_record(folder)["identity"])
    if evaluation.reward_model != model:
        raise PHFError(
            f"{path} is of another reward model ({evaluation.reward_model.slug}, this one is {model.slug}); {remedy}"
        )
    return evaluation
