"""`phf online --check-lemma RUN`: which kinds of own samples teach a model something on average, and which do not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.config.online import LemmaCase, LemmaConfig
from phf.config.train import SamplingConfig
from phf.evaluate.judges import choose_judges
from phf.evaluate.pages import PageReader
from phf.evaluate.parts import Parts
from phf.files import Place
from phf.finetune.rloo import find_advantages
from phf.folders import lock_folder
from phf.generate.cache import evaluation_mode
from phf.generate.target import Target
from phf.loops.lemma import Pages, find_effect, find_grams
from phf.loops.own_labels import write_ids
from phf.loops.results import LEMMA, LemmaResults
from phf.loops.rounds import check_mode
from phf.policies.draws import PARTS_FOLDER
from phf.records import FORMAT_VERSION, Mode, Progress
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.train.data import TrainingData
from phf.train.run import Run
from phf.train.start import parse_place

_Values = npt.NDArray[np.float64]
_Weights = dict[LemmaCase, Tensor]

_DRAWS: Mapping[str, tuple[LemmaCase, ...]] = {
    "plain": ("unfiltered", "length-normalised", "scored", "shuffled"),
    "cooled": ("temperature .7",),
    "top-p-90": ("top-p .9",),
    "top-p-95": ("top-p .95",),
    "top-p-99": ("top-p .99",),
    "stale": ("stale",),
    "prompted": ("data prompt in the loss", "data prompt masked"),
    "free": ("own token",),
}
"""Samples, and the cases that weigh the same ones."""
_FILTERS: Mapping[str, dict[str, object]] = {
    "cooled": {"temperature": 0.7},
    "top-p-90": {"top_p": 0.9},
    "top-p-95": {"top_p": 0.95},
    "top-p-99": {"top_p": 0.99},
    "free": {"control": "free"},
}
"""Settings of sampling in which they differ from the model's own distribution, or from the mode that is asked for."""


def check_lemma(
    run: Place,
    out: Place,
    config: LemmaConfig | None = None,
    *,
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> LemmaResults:
    """Test whether the mean gradient of log p over the own samples of a run (or `RUN@STEP`) is 0, in each case; writes OUT/lemma.json.

    What is finished is kept in OUT/parts: a stopped call goes on.

    Raises:
        PHFError: `run` is no run or has no checkpoint; it has no such mode; another process writes into `out`.
    """
    config = config or LemmaConfig()
    with lock_folder(Path(out), "checking the lemma into"):
        check = _Check.open(run, Path(out), config, load, progress)
        results = check.measure()
        for case, why in results.left_out.items():
            say(f"{case} is left out: {why}")
        LEMMA.write(Path(out), results)
    return results


@dataclass(frozen=True)
class _Check:
    """A run, and how its gradients are looked at."""

    run: Run
    step: int
    mode: Mode
    data: TrainingData
    config: LemmaConfig
    parts: Parts
    load: Callable[[str], RewardModel]
    progress: Progress | None

    @classmethod
    def open(
        cls,
        place: Place,
        out: Path,
        config: LemmaConfig,
        load: Callable[[str], RewardModel],
        progress: Progress | None,
    ) -> "_Check":
        folder, given = parse_place(place)
        run = Run.open(folder)
        step, mode = run.resolve_step(given), check_mode(run, config.mode)
        settings = config.model_dump(mode="json", exclude={"cases", "flips"})
        parts = Parts(out / PARTS_FOLDER, [run.id, step, mode, settings, FORMAT_VERSION])
        return cls(run, step, mode, run.data(), config, parts, load, progress)

    def measure(self) -> LemmaResults:
        """All cases that can be had."""
        config = self.config
        left_out = {str(case): why for case in config.cases if (why := self.find_obstacle(case))}
        grams: dict[str, _Values] = {}
        for draw, cases in _DRAWS.items():
            wanted = [case for case in cases if case in config.cases and case not in left_out]
            if wanted:
                kept = self.parts.measure(
                    draw, list(wanted), partial(self.compare, draw, wanted), dict[str, list[list[float]]]
                )
                grams |= {case: np.array(gram) for case, gram in kept.items()}
        measured = [case for case in config.cases if case in grams]
        return LemmaResults(
            settings=config.model_dump(mode="json"),
            run=self.run.name,
            objective=self.run.config.objective.kind,
            seed=self.run.config.seed,
            step=self.step,
            mode=self.mode,
            num_parameters=int(self.run.record["num_parameters"]),
            cases=list(measured),
            left_out=left_out,
            measurements=[
                row
                for case in measured
                for row in find_effect(grams[case], config.group_size, config.flips, config.seed).describe(
                    case
                )
            ],
        )

    def find_obstacle(self, case: LemmaCase) -> str | None:
        """Why a case cannot be had of this run; None if it can."""
        if case == "stale" and not self.earlier_steps:
            return "the run has no earlier checkpoint; train with keep_checkpoints=2 or more"
        if case == "own token" and not self.data.objective.writes_control_tokens:
            return f"a model of {self.run.config.objective.kind} writes no control tokens"
        if case in ("scored", "shuffled") and self.data.annotation.identity.version == "imported":
            return "the scores of the run's corpus were imported, and what made them cannot be run here"
        return None

    @property
    def earlier_steps(self) -> list[int]:
        """Of checkpoints before the one that is looked at."""
        return [step for step in self.run.steps if step < self.step]

    @cached_property
    def target(self) -> Target:
        """The model whose gradients are taken, in the mode that is asked for."""
        return self.find_target(self.step, self.mode)

    def find_target(self, step: int, mode: Mode) -> Target:
        """The run's model at a step."""
        config, tokenizer = self.run.config, self.run.load_tokenizer(step)
        return Target.create(mode, self.run.load_model(step), tokenizer, config.objective, config.segments)

    def sampling(self, draw: str) -> SamplingConfig:
        """How samples are drawn: as the model has them, unless the draw is a filter."""
        config = self.config
        plain = SamplingConfig(
            num_samples=config.groups * config.group_size,
            temperature=1,
            top_p=1,
            min_new_tokens=0,
            max_new_tokens=config.max_new_tokens,
            control="prefix",
            seed=config.seed,
        )
        return plain.model_copy(update=_FILTERS.get(draw, {}))

    def compare(self, draw: str, cases: list[LemmaCase]) -> dict[str, list[list[float]]]:
        """The Gram matrix of each case of a draw."""
        writer, reader, sampling = self.target, self.target, self.sampling(draw)
        if draw == "stale":
            writer = self.find_target(self.earlier_steps[-1], self.mode)
        elif draw == "free":
            writer = reader = self.find_target(self.step, "none")
        drawer = writer.drawer(sampling)
        prompts = self.draw_prompts() if draw == "prompted" else [[]] * sampling.num_samples
        before = [[*drawer.rules.prefix, *prompt] for prompt in prompts]
        written = write_ids(writer, sampling, before)
        pages = Pages(
            [[*start, *ids] for start, ids in zip(before, written, strict=True)],
            [len(start) for start in before],
        )
        weights = self.weigh(pages, written, len(drawer.rules.prefix))
        allowed = np.ones(drawer.vocab_size, bool)
        allowed[list(drawer.rules.blocked)] = False

        def report(done: int) -> None:
            if self.progress is not None:
                self.progress(f"gradients of {draw}", done, self.config.groups)

        with evaluation_mode(reader.model):
            grams = find_grams(
                reader.model,
                pages,
                [weights(case) for case in cases],
                allowed,
                self.config.group_size,
                self.config.max_numbers,
                report,
            )
        return {case: gram.tolist() for case, gram in zip(cases, grams, strict=True)}

    def weigh(self, pages: Pages, written: list[list[int]], prefix: int) -> Callable[[LemmaCase], Tensor]:
        """What each case multiplies the log-probabilities of the samples' ids by.

        Args:
            written: what the model wrote of each page.
            prefix: ids of a page before prompt and text.
        """
        ones = [1.0] * len(written)

        def find(case: LemmaCase) -> Tensor:
            match case:
                case "length-normalised":
                    return pages.weigh([1 / max(len(ids), 1) for ids in written])
                case "scored":
                    return pages.weigh(self.find_advantages(written).flatten().tolist())
                case "shuffled":  # another group's scores: those of this one hang together with its texts
                    return pages.weigh(np.roll(self.find_advantages(written), 1, 0).flatten().tolist())
                case "data prompt in the loss":
                    return pages.weigh(ones, [prefix] * len(written))
            return pages.weigh(ones)

        return find

    def find_advantages(self, written: list[list[int]]) -> _Values:
        """What each text's reward (-score) is above the mean of the others in its group: [groups, samples]; 0 without a score."""
        (judge, *_), _ = choose_judges(self.data.annotation, (), self.load)
        texts = [self.target.sample(0, (), (ids, True)).text for ids in self._drop_ends(written)]
        rewards = -torch.tensor(score_samples(judge.model, texts), dtype=torch.float64)
        found: _Values = find_advantages(rewards, self.config.group_size).numpy()
        return found.reshape(self.config.groups, -1)

    def _drop_ends(self, written: list[list[int]]) -> list[list[int]]:
        end = self.target.tokenizer.control.end
        return [ids[:-1] if ids[-1:] == [end] else ids for ids in written]

    def draw_prompts(self) -> list[list[int]]:
        """The beginning of a held-out document for each sample. No document is in two groups, which would hang together."""
        reader = PageReader.of(self.data)
        documents = reader.held_out_documents(self.config.seed)
        groups, size = self.config.groups, self.config.group_size
        found = []
        for group in range(groups):
            own = documents[group::groups] if len(documents) >= groups else documents
            for sample in range(size):
                page = reader.read(int(own[sample % len(own)]))
                found.append(np.concatenate(page.segments)[: self.config.prompt_tokens].tolist())
        return found
