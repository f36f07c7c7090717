"""What finetuning begins from: a run's checkpoint in a mode, with the reward model that is learned from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np

from phf.config.finetune import FinetuneConfig, Pretraining
from phf.config.train import StartConfig
from phf.corpus.rows import open_file
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge, load_judges
from phf.files import Place, hash_json, read_json
from phf.folders import LOCK_FILE
from phf.generate.engine import Ids, Written
from phf.generate.target import REDRAW, Target
from phf.objectives import label_conditions, modes_of
from phf.policies.drawing import Drawing
from phf.records import Identity, Mode, Progress
from phf.reward_models import RewardModel, score_samples
from phf.tokens.tokenizer import Tokenizer
from phf.train.checkpoint import checkpoint_folder
from phf.train.folder import CHECKPOINT_MANIFEST
from phf.train.run import Run
from phf.train.start import parse_place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FREE = {
    "judges": True,
    "checkpoint_every": True,
    "keep_checkpoints": True,
    "num_bootstrap": True,
    "sampling": {"num_samples", "batch_size"},
}
"""Settings that change nothing about the weights."""


@dataclass(frozen=True)
class Start:
    """A run's checkpoint, ready to be finetuned.

    Attributes:
        config: with the seed that is used.
        model: the start model, which stays as it is: the reference of the KL.
        drawing: how its mode writes.
        judges: the reward model that is learned from, first.
        reward_spec: how that one is loaded.
        prompts: ids that texts stand behind; one empty prompt without a file.
    """

    run: Run
    step: int
    config: FinetuneConfig
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    drawing: Drawing
    judges: Sequence[LoadedJudge]
    reward_spec: str
    notes: list[str]
    prompts: Sequence[Ids]

    @classmethod
    def open(cls, place: Place, config: FinetuneConfig, load: Callable[[str], RewardModel]) -> "Start":
        """A run, or `RUN@STEP`.

        Raises:
            PHFError: it is no run, or its checkpoint is damaged; it has no such mode; a reward model is not known; the prompts do
                not fit into the model's context.
        """
        folder, step = parse_place(place)
        run = Run.open(folder)
        step = run.resolve_step(step)
        mode = _choose_mode(run, config.mode)
        spec = config.proxy.gold if config.proxy else config.reward
        judges, notes = _choose_judges(run, config, spec, load)
        seed = run.config.seed if config.seed is None else config.seed
        sampling = config.sampling.model_copy(update={"seed": seed})
        config = config.model_copy(update={"seed": seed, "sampling": sampling})
        model, tokenizer = run.load_model(step), run.load_tokenizer(step)
        model.requires_grad_(False)
        target = Target.create(mode, model, tokenizer, run.config.objective, run.config.segments)
        prompts = [()] if config.prompts is None else _read_prompts(Path(config.prompts), target, config)
        drawing = Drawing.create(target, sampling)
        reward = spec or run.config.reward_model
        return cls(run, step, config, model, tokenizer, drawing, judges, reward, notes, prompts)

    @property
    def reward(self) -> LoadedJudge:
        """What is learned from."""
        return self.judges[0]

    @property
    def is_annotators(self) -> bool:
        """Whether what is learned from has scored the run's corpus, too."""
        return self.reward.model.identity == Identity.from_json(self.run.record["reward_model"])

    @property
    def key(self) -> str:
        """Tells what is made beside a run for it from what another command made there."""
        return hash_json([self.run.id, self.step, self.describe(), self.config.seed])[:8]

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Scores by the reward model that is learned from, float64 [N]; NaN = unscored."""
        return np.array(score_samples(self.reward.model, texts), np.float64)

    def write(
        self,
        model: "PreTrainedModel",
        prompts: Sequence[Ids],
        stream: int,
        what: str,
        progress: Progress | None,
        first: int = 0,
    ) -> tuple[list[Written], list[str]]:
        """A text behind each prompt, as ids and as text; its random numbers are those of a stream, from the first-th on."""

        def report(done: int) -> None:
            if progress is not None:
                progress(what, first + done, first + len(prompts))

        indices = [first + index + stream * REDRAW for index in range(len(prompts))]
        written = self.drawing.write(model, prompts, indices, report)
        return written, [self.drawing.decode(*pair) for pair in zip(prompts, written, strict=True)]

    def draw_as(self, run: Run, model: "PreTrainedModel") -> Drawing:
        """How what came out writes: as the start does, but for an objective of pretraining with a good mode, which is then meant."""
        config, mode = self.config, self.drawing.target.mode
        if isinstance(config.method, Pretraining):
            mode = "good" if "good" in modes_of(run.config.objective) else "untagged"
        target = Target.create(mode, model, self.tokenizer, run.config.objective, run.config.segments)
        return Drawing.create(target, config.sampling)

    def describe(self) -> dict[str, object]:
        """What run.json says of the finetuning: all that decides the weights, but for the seed and the start."""
        settings = self.config.model_dump(mode="json", exclude={"seed": True, **_FREE})  # type: ignore[arg-type]
        settings["sampling"].pop("seed")
        return {
            "method": self.config.method.kind,
            "mode": self.drawing.target.mode,
            "reward_model": None if self.config.preferences else self.reward.model.identity.to_json(),
            "prompts": hash_json([list(prompt) for prompt in self.prompts]),
            "settings": settings,
        }

    def open_run(self, folder: Path) -> Run:
        """The run that comes out: a new one, or what an earlier command with these settings has begun.

        Raises:
            PHFError: the folder holds something else.
        """
        start = {
            "run": str(self.run.folder.resolve()),
            "step": self.step,
            "tokens": self.step * self.run.tokens_per_step,
            "objective": self.run.config.objective.kind,
            "files": read_json(checkpoint_folder(self.run.folder, self.step) / CHECKPOINT_MANIFEST)["files"],
            "first_step": self.step,
            "epoch": 0.0,
        }
        if (folder / "run.json").exists():
            own = Run.open(folder)
            same = own.record.get("finetune") == self.describe() and own.config.seed == self.config.seed
            if not same or own.record["start"]["files"] != start["files"]:
                raise PHFError(
                    f"{folder} is a run that this command has not begun, or began with other settings; choose another -o, or delete it"
                )
            return own
        if folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir()):
            raise PHFError(f"{folder} is not empty and is not a run; choose another -o")
        config = self.run.config.model_copy(
            update={
                "tokens": (self.step + self.config.steps) * self.run.tokens_per_step,
                "seed": self.config.seed,
                "start": StartConfig(run=str(self.run.folder), step=self.step, reset_optimizer=True),
            }
        )
        record = {
            **self.run.record,
            "name": folder.name,
            "config": config.model_dump(mode="json"),
            "precision": "fp32",
            "compiled": False,
            "start": start,
            "finetune": self.describe(),
            "id": uuid4().hex,
        }
        own = Run(folder, record)
        own.write()
        return own


def _choose_mode(run: Run, wanted: Mode | None) -> Mode:
    """`good` where the model writes control tokens, else `untagged`, unless one is named.

    Raises:
        PHFError: good mode of a model that has none, or has it in its inputs.
    """
    objective = run.config.objective
    has_good = "good" in modes_of(objective) and label_conditions(objective) is None
    if wanted == "good" and not has_good:
        raise PHFError(
            f"--mode good: {run.folder} was trained with {objective.kind}, which writes no control tokens; give --mode untagged"
        )
    return wanted or ("good" if has_good else "untagged")


def _choose_judges(
    run: Run, config: FinetuneConfig, reward: str | None, load: Callable[[str], RewardModel]
) -> tuple[list[LoadedJudge], list[str]]:
    """The reward model that is learned from, or that labels for it, then the annotator of the start run, then the held-out ones; each once."""
    annotator = Identity.from_json(run.record["reward_model"])
    specs = [*([reward] if reward else []), *config.judges]
    judges, notes = load_judges(annotator, annotator.slug, run.config.reward_model, specs, load)
    if reward:
        first = load(reward).identity.slug
        judges.sort(key=lambda judge: judge.slug != first)
    return judges, notes


def _read_prompts(path: Path, target: Target, config: FinetuneConfig) -> list[Ids]:
    with open_file(path) as file:
        lines = file.read().decode(errors="replace").splitlines()
    prompts: list[Ids] = [target.encode(line, "prefix") for line in lines if line.strip()]
    longest = target.longest_prompt(config.sampling)
    if not prompts or max(map(len, prompts)) > longest:
        raise PHFError(
            f"{path} has no prompt, or one of more than {longest} tokens, which leaves no room for {config.sampling.max_new_tokens} new "
            "ones; give one prompt a line, or a lower --max-new-tokens"
        )
    return prompts
