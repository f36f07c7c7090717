"""Control as inference on models, as `phf infer` is asked for it: promises about a page whose middle another writes, levels that
runs are asked for, soft values of a base model's prefixes (docs/control_as_inference.md).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from phf.config.infer import InferConfig
from phf.errors import NotApplicableError
from phf.evaluate.held_out import HeldOutSegments
from phf.evaluate.pages import PageReader
from phf.generate.engine import Ids
from phf.intervals import pooled_t
from phf.policies.draws import Library
from phf.policies.policy import Policy
from phf.policies.sources import Source
from phf.posterior.sandwich import LogTwist, estimate_log_z
from phf.results import Measure, Measurement
from phf.reward_models import score_samples
from phf.soft_control import optimism, returns, values
from phf.train.run import Run

_Values = npt.NDArray[np.float64]

TWIST_LOG_Z = Measure(
    "twist_log_z",
    "log Z by sequential Monte Carlo with this twist",
    "nats",
    "Below log Z on average, whatever the twist; a twist that helps comes closer, so higher is better.",
    "It says nothing of the cost: a twist takes passes.",
    lower_is_better=False,
    group="Control as inference",
    of="twist",
)
MEASURES = (*optimism.MEASURES, *returns.MEASURES, *values.MEASURES, TWIST_LOG_Z)
_PREFIX_SHARE = 40
"""Soft values are held against the truth at one prefix, of each length, for so many texts that they are fitted to."""


@dataclass(frozen=True)
class Controlled:
    """A base model, the models beside it, and the annotator, of which more than scores and divergences is asked.

    Attributes:
        threshold: score <= threshold is good.
        bound: what no score lies below.
        notes: what could not be had is added, and why.
    """

    config: InferConfig
    library: Library
    base: Policy
    source: Source
    others: Sequence[Source]
    threshold: float
    bound: float
    notes: list[str]

    @property
    def beta(self) -> float:
        """The middle one of those that were given."""
        return self.config.betas[len(self.config.betas) // 2]

    def measure(self) -> list[Measurement]:
        """All that the settings ask for, kept like the rest of `phf infer`."""
        asked: list[tuple[bool, str, Callable[[], list[Measurement]]]] = [
            (self.config.optimism, "optimism", self._measure_optimism),
            (self.config.returns, "returns", self._measure_returns),
            (self.config.values, "values", self._measure_values),
        ]
        return [row for is_asked, _, compute in asked if is_asked for row in compute()]

    def _keep(self, name: str, compute: Callable[[], list[Measurement]], *key: str) -> list[Measurement]:
        """What is computed, or was; nothing and a note where a model or its data does not admit it."""
        used = self.config.model_dump(mode="json", include={"betas", "particles", "populations", "sampling"})
        settings = [used, self.library.slugs[0], self.threshold, self.bound, *key]
        try:
            rows = self.library.parts(self.source, self.base).measure(
                name, settings, compute, list[Measurement]
            )
        except NotApplicableError as error:
            self.notes.append(f"{name}: {error}")
            return []
        return [replace(row, mode=None, judge=None) for row in rows]

    def _score(self, texts: Sequence[str]) -> _Values:
        return np.array(score_samples(self.library.judges[0].model, texts), np.float64)

    def _measure_optimism(self) -> list[Measurement]:
        sampling = self.config.sampling
        size, threshold = sampling.max_new_tokens, self.threshold
        game = optimism.Game(
            episodes=max(4, sampling.num_samples // 16),
            first=max(1, size // 4),
            last=size // 8,
            beta=self.beta,
            threshold=threshold,
        )
        rows = []
        for name, key, open_other in self._list_others(game.first):

            def play(open_other: Callable[[], optimism.Other] = open_other) -> list[Measurement]:
                return optimism.measure_optimism(self.base.target, open_other(), self._score, game, sampling)

            found = self._keep(f"optimism, {name}", play, key)
            rows += [replace(row, of=f"{row.of}; {name} writes the middle") for row in found]
        return rows

    def _list_others(self, num_tokens: int) -> Iterator[tuple[str, str, Callable[[], optimism.Other]]]:
        """Who may write the middle of a page: each other model, in bad mode if it has one, and held-out text of the base model's run."""
        for source in self.others:
            target = source.writers.get("bad", source.plain)
            name = f"{source.name} {target.mode}" if target.mode == "bad" else source.name
            yield name, source.key, partial(optimism.let_write, target, num_tokens, self.config.sampling)
        if self.source.is_run:
            yield "held-out text", "", partial(self._fill_slots, num_tokens)

    @property
    def _seed(self) -> int:
        return self.config.sampling.seed

    def _fill_slots(self, num_tokens: int) -> optimism.Other:
        run = Run.open(self.source.folder)
        data = run.data()
        reader = PageReader.of(data)
        segments = HeldOutSegments.read(reader, data.threshold.value, self._seed)
        fillers = [segment[:num_tokens] for segment in (*segments.good, *segments.bad)]
        return optimism.fill_slots(fillers, self._seed)

    def _measure_returns(self) -> list[Measurement]:
        rows, num_notes = [], len(self.notes)
        for source in (self.source, *self.others):
            if not source.is_run or source.annotator != self.library.judges[0].model.identity:
                continue

            def ask(source: Source = source) -> list[Measurement]:
                return returns.measure_run(Run.open(source.folder), self._score, self.config.sampling)

            found = self._keep(f"returns, {source.name}", ask, source.key)
            rows += [replace(row, of=source.name) for row in found]
        if rows:  # of runs that have no levels there is nothing to say then
            del self.notes[num_notes:]
        return rows

    def _measure_values(self) -> list[Measurement]:
        return self._keep("soft values", self._fit_values)

    def _fit_values(self) -> list[Measurement]:
        sampling, target = self.config.sampling, self.base.target
        texts = values.draw_texts(target, self._score, sampling)
        size = sampling.max_new_tokens
        cuts = sorted({max(1, size // 8), max(1, size // 4), max(1, size // 2)})
        few = sampling.model_copy(update={"num_samples": max(8, sampling.num_samples // _PREFIX_SHARE)})
        truths = values.draw_truth(target, self._score, few, cuts)
        heads = {
            name: values.fit_value(target.model, texts, self.beta, trace=trace, seed=self._seed)
            for name, trace in (("head, Monte Carlo", 1.0), ("head, temporal difference", 0.0))
        }
        rows = [
            row
            for name, head in heads.items()
            for row in values.measure_value(name, head.log_psi, truths, self.beta, self._seed)
        ]
        twists: dict[str, LogTwist | None] = {
            "none": None,
            **{name: self._twist(head) for name, head in heads.items()},
        }
        return list(dict.fromkeys(rows)) + [self._estimate(name, twist) for name, twist in twists.items()]

    def _twist(self, head: values.SoftValue) -> LogTwist:
        """log psi of beginnings of any lengths."""
        prefix = self.base.drawer.rules.prefix

        def twist(beginnings: Sequence[Ids]) -> _Values:
            lengths = np.array([len(ids) for ids in beginnings])
            found = np.zeros(len(beginnings))
            for length in np.unique(lengths):
                places = np.flatnonzero(lengths == length).tolist()
                rows = [[*prefix, *beginnings[place]] for place in places]
                found[places] = head.log_psi(torch.tensor(rows))
            return found

        return twist

    def _estimate(self, name: str, twist: LogTwist | None) -> Measurement:
        found = estimate_log_z(
            self.base,
            lambda texts: self.library.weigh(self.base, texts, self.bound, self.beta),
            twist,
            num_particles=self.config.particles,
            num_populations=self.config.populations,
            progress=self.library.progress,
        )
        return Measurement(TWIST_LOG_Z.name, pooled_t(found.tolist()), of=f"{name}, beta {self.beta:g}")
