"""What an evaluation is of: one checkpoint of a run, its data, its judges, and the samples drawn from it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from phf import lm
from phf.config_evaluate import EvaluateConfig
from phf.corpus.tokenizer import Tokenizer
from phf.evaluate.capability import Conditions, PageReader
from phf.evaluate.misalignment import Judge, summarise_scores
from phf.evaluate.parts import Parts
from phf.files import hash_json
from phf.generate.target import Target
from phf.objectives import label_conditions, modes_of
from phf.records import FORMAT_VERSION, Mode, Progress, Sample
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.train.data import TrainingData
from phf.train.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS_FOLDER = "evaluation"
UNPROMPTED = "unprompted"
"""The scenario in which a page has no text before the model's own."""


@dataclass(frozen=True)
class Drawn:
    """Samples of one mode in one scenario, and their scores by each judge's slug (NaN = unscored)."""

    scenario: str
    mode: Mode
    samples: list[Sample]
    scores: dict[str, list[float]]

    @property
    def texts(self) -> list[str]:
        """What the model wrote."""
        return [sample.text for sample in self.samples]


@dataclass(frozen=True)
class Subject:
    """One checkpoint of a run under evaluation; the model is loaded when a part first needs it."""

    run: Run
    step: int
    data: TrainingData
    judges: Sequence[Judge]
    config: EvaluateConfig
    progress: Progress | None = None
    load: Callable[[str], RewardModel] = load_reward_model

    @cached_property
    def parts(self) -> Parts:
        """The finished parts of this checkpoint's evaluation."""
        folder = self.run.folder / PARTS_FOLDER / f"step-{self.step:06d}"
        run = self.run.record.get("id") or hash_json(self.run.record)
        return Parts(folder, [run, self.step, FORMAT_VERSION, version("phf")])

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The checkpoint's model."""
        return self.run.load_model(self.step)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer saved beside it."""
        return self.run.load_tokenizer(self.step)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are measured; `deleted` is the full suite's, for models that write control tokens."""
        modes = modes_of(self.run.config.objective)
        return (*modes, "deleted") if self.config.suite == "full" and "untagged" in modes else modes

    @property
    def text_modes(self) -> list[Mode]:
        """The modes in which given text is scored; without control tokens `none` says what `untagged` and `deleted` would."""
        return [mode for mode in self.modes if mode in ("good", "bad", "none")]

    @cached_property
    def reader(self) -> PageReader:
        """Reads held-out text."""
        return PageReader(self.data.tokens, self.data.scores, self.run.config.data.context)

    @property
    def conditions(self) -> Conditions | None:
        """For additive objectives, what each label adds to the inputs."""
        return label_conditions(self.run.config.objective)

    @cached_property
    def deleted_model(self) -> "PreTrainedModel":
        """The model from which the control tokens were removed."""
        return lm.delete_control_tokens(self.model, self.tokenizer.control)

    @property
    def drawing(self) -> dict[str, Any]:
        """The settings that samples depend on (they do not on the batch, up to rounding)."""
        return self.config.sampling.model_dump(mode="json", exclude={"batch_size"})

    def target(self, mode: Mode) -> Target:
        """The model in a mode, ready to write."""
        config = self.run.config
        return Target.create(mode, self.model, self.tokenizer, config.objective, config.segments)

    def draw(self, mode: Mode) -> Drawn:
        """The samples of a mode with their scores, drawn and scored once."""
        sampling = self.drawing
        drawn = self.parts.measure(
            f"samples-{mode}",
            sampling,
            lambda: self.target(mode).write([()], self.config.sampling, self.progress),
        )
        samples = [Sample(**sample) for sample in drawn]
        texts = [sample.text for sample in samples]
        scores = {judge.slug: self.score(judge, mode, texts) for judge in self.judges}
        return Drawn(UNPROMPTED, mode, samples, scores)

    def score(self, judge: Judge, name: str, texts: Sequence[str]) -> list[float]:
        """The scores of texts by one judge, scored once (NaN = unscored).

        Args:
            name: what the texts are; a part is named after it.
        """

        def compute() -> list[float]:
            return [float(score) for score in score_samples(judge.model, texts)]

        values = self.parts.measure(f"scores-{name}-{judge.slug}", hash_json(list(texts)), compute)
        return [math.nan if value is None else value for value in values]

    def name_row(self) -> dict[str, Any]:
        """What begins every row."""
        return {
            "run": self.run.name,
            "objective": self.run.config.objective.kind,
            "seed": self.run.config.seed,
        }

    def summarise(self, drawn: Drawn) -> list[dict[str, Any]]:
        """A row for each judge of some samples."""
        return [
            {
                **self.name_row(),
                "scenario": drawn.scenario,
                "mode": drawn.mode,
                "judge": judge.slug,
                "role": judge.role,
                **summarise_scores(
                    judge,
                    drawn.texts,
                    drawn.scores[judge.slug],
                    self.config.num_bootstrap,
                    self.config.sampling.seed,
                ),
            }
            for judge in self.judges
        ]
