"""What an evaluation is of: one checkpoint of a run, its data, its judges, and the samples drawn from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import JsonValue

from phf.config.evaluate import EvaluateConfig
from phf.config.train import SamplingConfig
from phf.evaluate.drawn import UNPROMPTED, Drawn
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.pages import Conditions, Labels, Page, PageReader
from phf.evaluate.parts import Parts
from phf.files import hash_json
from phf.generate.target import Target
from phf.items import name_item
from phf.model import lm
from phf.objectives import label_conditions, modes_of
from phf.records import FORMAT_VERSION, Mode, Number, Progress, Sample
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.tokens.tokenizer import Tokenizer
from phf.train.data import TrainingData
from phf.train.run import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedModel

PARTS_FOLDER = "evaluation"


@dataclass(frozen=True)
class Subject:
    """One checkpoint of a run under evaluation; the model is loaded when a metric first needs it."""

    run: Run
    step: int
    data: TrainingData
    judges: Sequence[LoadedJudge]
    config: EvaluateConfig
    progress: Progress | None = None
    load: Callable[[str], RewardModel] = load_reward_model

    @cached_property
    def parts(self) -> Parts:
        """The finished parts of this checkpoint's evaluation."""
        folder = self.run.folder / PARTS_FOLDER / f"step-{self.step:06d}"
        return Parts(folder, [self.run.id, self.step, FORMAT_VERSION, version("phf")])

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

    @property
    def attacked_modes(self) -> list[Mode]:
        """The mode that one would release, and the model without control tokens."""
        return [mode for mode in self.modes if mode == self.modes[0] or mode == "untagged"]

    @cached_property
    def reader(self) -> PageReader:
        """Reads held-out text."""
        return PageReader.of(self.data)

    @cached_property
    def pages(self) -> list[Page]:
        """Held-out documents."""
        documents = self.reader.held_out_documents(self.config.sampling.seed)
        return [self.reader.read(int(document)) for document in documents[: self.config.capability_documents]]

    def name_page(self, page: Page) -> str:
        """The name of a page's text, whatever the tokenizer (`phf.items`)."""
        return name_item(*map(self.data.tokens.tokenizer.decode, page.segments))

    @cached_property
    def page_names(self) -> list[str]:
        """The names of `pages`."""
        return [self.name_page(page) for page in self.pages]

    def label(self, scores: "npt.NDArray[np.float32]") -> Labels:
        """What the objective would tell the model of segments with these scores."""
        return self.data.objective.label_segments(scores, self.data.threshold.value)

    @property
    def conditions(self) -> Conditions | None:
        """For additive objectives, what each label adds to the inputs."""
        return label_conditions(self.run.config.objective)

    @cached_property
    def deleted_model(self) -> "PreTrainedModel":
        """The model from which the control tokens were removed."""
        return lm.delete_control_tokens(self.model, self.tokenizer.control)

    @property
    def drawing(self) -> dict[str, JsonValue]:
        """The settings that samples depend on (they do not on the batch, up to rounding)."""
        return self.config.sampling.model_dump(mode="json", exclude={"batch_size"})

    @property
    def attack_sampling(self) -> SamplingConfig:
        """The sampling settings, for as many samples as an attack has."""
        return self.config.sampling.model_copy(update={"num_samples": self.config.leak_samples})

    @property
    def attack_settings(self) -> list[JsonValue]:
        """What attacks depend on: they draw their own number of samples, and keep no texts apart from scores."""
        drawing: JsonValue = {key: value for key, value in self.drawing.items() if key != "num_samples"}
        return [drawing, self.config.num_bootstrap, [judge.slug for judge in self.judges]]

    def target(self, mode: Mode, model: "PreTrainedModel | None" = None) -> Target:
        """The model (or one made from it) in a mode, ready to write."""
        config = self.run.config
        return Target.create(
            mode, self.model if model is None else model, self.tokenizer, config.objective, config.segments
        )

    @cached_property
    def drawn(self) -> dict[Mode, Drawn]:
        """The samples of each mode."""
        return {mode: self.draw(mode) for mode in self.modes}

    def draw(self, mode: Mode) -> Drawn:
        """The samples of a mode with their scores, drawn and scored once."""
        samples = self.parts.measure(
            f"samples-{mode}",
            self.drawing,
            lambda: self.target(mode).write([()], self.config.sampling, self.progress),
            list[Sample],
        )
        return self.score_drawn(UNPROMPTED, mode, samples, mode)

    def score_drawn(
        self, scenario: str, mode: Mode, samples: list[Sample], name: str, texts: Sequence[str] | None = None
    ) -> Drawn:
        """Samples with their scores by every judge.

        Args:
            name: the parts of their scores are named after it.
            texts: what judges read, where that is not the samples' own text.
        """
        read = [sample.text for sample in samples] if texts is None else texts
        return Drawn(
            scenario, mode, samples, {judge.slug: self.score(judge, name, read) for judge in self.judges}
        )

    def score(self, judge: LoadedJudge, name: str, texts: Sequence[str]) -> list[float]:
        """The scores of texts by one judge, scored once (NaN = unscored).

        Args:
            name: what the texts are; a part is named after it.
        """
        return self.parts.measure(
            f"scores-{name}-{judge.slug}",
            hash_json(list(texts)),
            lambda: [float(score) for score in score_samples(judge.model, texts)],
            list[Number],
        )
