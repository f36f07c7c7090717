"""`phf infer`: the frontier of a base model, and where runs, modes and methods stand beside it (docs/posterior.md)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.config.infer import InferConfig
from phf.config.train import write_spec
from phf.errors import PHFError
from phf.evaluate.drawn import Drawn
from phf.evaluate.metric import bare
from phf.evaluate.rollouts import SAMPLES_FILE, encode_samples
from phf.files import Place, as_list, write_bytes
from phf.folders import lock_folder
from phf.generate.engine import Written
from phf.intervals import CONFIDENCE, bootstrap_mean, pooled_t
from phf.objective_facts import is_baseline
from phf.paths import hide_settings
from phf.policies.draws import Draws, Library
from phf.policies.policy import Policy
from phf.policies.sources import Source, check_sources, choose_judges, list_policies, open_source
from phf.posterior.control import MEASURES as CONTROL_MEASURES
from phf.posterior.control import Controlled
from phf.posterior.frontier import (
    Chosen,
    Frontier,
    Route,
    best_of,
    estimate,
    find_bound,
    measure_draws,
    place,
    reject,
)
from phf.posterior.results import MEASURES, POSTERIOR, PolicyResult, PosteriorResults
from phf.posterior.sandwich import estimate_log_z
from phf.records import Estimate, Progress
from phf.results import Measurement
from phf.reward_models import RewardModel, load_reward_model
from phf.reward_models.protocol import FROM_0_TO_1

_Values = npt.NDArray[np.float64]

RARE_Z = 0.05
"""Below this share of draws that rejection keeps it is dear, and sequential Monte Carlo bounds log Z."""
_BASE, _POLICIES = 0, 1
"""Streams of random numbers: draws of the base model and of the others are independent."""
_CHANCES = 3
_RESERVE = 1.1
"""Draws are planned by an estimate of Z, and so many times as many are made."""
_LEAST_HELD = 3
"""Exact draws without which there is no upper bound."""


def infer(
    base: Place,
    runs: Place | Sequence[Place] = (),
    out: Place = "posterior",
    config: InferConfig | None = None,
    *,
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> PosteriorResults:
    """Measure the frontier of a base model and where policies stand beside it; writes OUT/posterior.json and OUT/samples.parquet.

    What is finished is kept in OUT/parts: a stopped command goes on, and one that asks for more runs, judges or draws repeats nothing.

    Args:
        base: a run that was trained without feedback, or the folder of any causal language model: p0, without control tokens.
        runs: runs and releases over the same vocabulary, each in all its modes.

    Raises:
        PHFError: a folder is no model; the vocabularies differ; there is no judge; another process writes into `out`.
    """
    with lock_folder(Path(out), "inferring into"):
        inference = _Inference.open(base, as_list(runs), Path(out), config or InferConfig(), load, progress)
        results = inference.measure()
        for note in results.notes:
            say(note)
        drawn = inference.list_samples()
        samples = [(own.scenario, sample) for own in drawn for sample in own.samples]
        columns = {
            slug: [value for own in drawn for value in own.scores[slug]] for slug in inference.library.slugs
        }
        write_bytes(Path(out) / SAMPLES_FILE, encode_samples(samples, columns))
        POSTERIOR.write(Path(out), results)
    return results


@dataclass(frozen=True)
class _Inference:
    """One base model, its draws, and what stands beside it.

    Attributes:
        base: p0.
        policies: the others, each with its model.
        draws: of p0.
        kept: which of them are exact draws of the target, by beta: bool [N].
    """

    config: InferConfig
    library: Library
    source: Source
    base: Policy
    policies: Sequence[tuple[Source, Policy]]
    threshold: float
    notes: list[str]
    draws: Draws
    frontier: Frontier
    whole: Route
    kept: Mapping[float, npt.NDArray[np.bool_]]

    @classmethod
    def open(
        cls,
        base: Place,
        runs: Sequence[Place],
        out: Path,
        config: InferConfig,
        load: Callable[[str], RewardModel],
        progress: Progress | None,
    ) -> "_Inference":
        """Opens all models and draws from the base model."""
        source, others = open_source(base), [open_source(run) for run in runs]
        check_sources(source, others)
        judges, notes = choose_judges(source, others, config.judges, load)
        library = Library(out, judges, progress)
        p0 = Policy(source.name, source.plain, config.sampling)
        has_modes = len(source.list_targets()) > 1
        policies = list_policies([source, *others] if has_modes else others, config)
        draws = _draw_base(library, source, p0, config)
        frontier = Frontier(draws.scores, num_bootstrap=config.num_bootstrap, seed=config.sampling.seed)
        chances = np.random.default_rng([config.sampling.seed, _CHANCES]).random(len(draws))
        return cls(
            config,
            library,
            source,
            p0,
            [(own, policy) for own, policy in policies if (own, policy.target.mode) != (source, "untagged")],
            next((own.threshold for own in (source, *others) if not math.isnan(own.threshold)), math.nan),
            notes,
            draws,
            frontier,
            frontier.follow_whole(),
            {beta: frontier.keep(chances, beta) for beta in config.betas},
        )

    def measure(self) -> PosteriorResults:
        """All there is to measure."""
        policies = [self._place_base(), *(self._place_policy(*own) for own in self.policies)]
        policies += [self._place_chosen(*own) for own in self._list_chosen()]
        judge = self.library.judges[0].describe()
        threshold = judge.hit_threshold if math.isnan(self.threshold) else self.threshold
        others = list(
            {source.key: source for source, _ in self.policies if source is not self.source}.values()
        )
        controlled = Controlled(
            self.config,
            self.library,
            self.base,
            self.source,
            others,
            threshold,
            self.frontier.bound,
            self.notes,
        ).measure()
        measurements = [*self._describe_frontier(), *self._bound_rare(), *controlled]
        unscored = len(self.draws) - self.frontier.num_scored
        names = [judge.model.identity.name for judge in self.library.judges]
        return PosteriorResults(
            settings=hide_settings(self.config.model_dump(mode="json"), names),
            base=self.source.name,
            base_key=self.source.key,
            judges=[judge.describe() for judge in self.library.judges],
            bound=self.frontier.bound,
            threshold=self.threshold,
            num_draws=len(self.draws),
            num_unscored=unscored,
            num_exact={f"{beta:g}": int(own.sum()) for beta, own in self.kept.items()},
            notes=[*self.notes, *self._list_notes(unscored)],
            measurements=measurements,
            policies=policies,
            measures=[*MEASURES, *(CONTROL_MEASURES if controlled else ())],
        )

    def list_samples(self) -> list[Drawn]:
        """What samples.parquet holds: the first draws of every policy, and exact draws of the target."""
        num, slugs = self.config.sampling.num_samples, self.library.slugs
        found = [self.draws.take(range(min(num, len(self.draws)))).describe(self.base.name, self.base, slugs)]
        for source, policy in self.policies:
            own = self.library.draw(source, policy, num, _POLICIES)
            found.append(own.describe(policy.name, policy, slugs))
        for beta, kept in self.kept.items():
            exact = self.draws.take(np.flatnonzero(kept)[: self.config.num_exact])
            found.append(exact.describe(f"exact, beta={beta:g}", self.base, slugs))
        return found

    def _place_base(self) -> PolicyResult:
        """p0 itself."""
        rows = [
            self._score(slug, self.whole.scores[judge, :, 0], len(self.draws))
            for judge, slug in enumerate(self.library.slugs)
        ]
        rows += [Measurement("kl_from_base", Estimate(0.0, 0.0, 0.0, len(self.draws))), *_count_cost(1, 0)]
        unscored = len(self.draws) - self.frontier.num_scored
        return PolicyResult(
            self.base.name,
            self.source.name,
            self.source.objective,
            "untagged",
            "",
            unscored,
            rows,
            self.source.recipe,
        )

    def _place_policy(self, source: Source, policy: Policy) -> PolicyResult:
        """A policy by draws of its own, read by p0, and draws of p0, read by it."""
        own = self.library.draw(source, policy, self.config.sampling.num_samples, _POLICIES)
        gaps = own.log_probs - self.library.read(
            self.source, self.base, own, f"{source.key[:8]}-{policy.name}"
        )
        base = self.draws.take(range(min(len(own), len(self.draws))))
        reverse = base.log_probs - self.library.read(source, policy, base, self.source.key[:8])
        settings = (self.config.num_bootstrap, self.config.sampling.seed)
        kl, scores = measure_draws(
            own.scores, gaps, self.whole.base_share, num_bootstrap=settings[0], seed=settings[1]
        )
        passes = 1 if policy.guidance is None else 2
        rows = [
            *self._describe_place(kl, scores, len(own)),
            Measurement("kl_to_base", bootstrap_mean(reverse, *settings)),
            *_count_cost(passes, 0),
        ]
        method = "" if policy.guidance is None else write_spec(policy.guidance)
        unscored = int(np.isnan(own.scores[0]).sum())
        return PolicyResult(
            policy.name,
            source.name,
            source.objective,
            policy.target.mode,
            method,
            unscored,
            rows,
            source.recipe,
        )

    def _list_chosen(self) -> list[tuple[str, Chosen, float]]:
        """Methods that choose among draws of p0: name, what they are, and the bound of the KL that is often given."""
        found = [
            (f"best of {n}", best_of(self.frontier, n), find_bound(n)) for n in sorted(self.config.best_of)
        ]
        if not math.isnan(self.threshold):
            rejection = reject(self.frontier, self.threshold)
            found.append((f"rejection, score <= {self.threshold:.4g}", rejection, math.nan))
        return found

    def _place_chosen(self, name: str, chosen: Chosen, bound: float) -> PolicyResult:
        rows = [
            *self._describe_place(chosen.kl, chosen.scores, self.frontier.num_scored),
            *_count_cost(chosen.cost, chosen.cost),
        ]
        if not math.isnan(bound):
            rows.append(Measurement("kl_bound", bare(bound)))
        return PolicyResult(
            f"{self.base.name}, {name}",
            self.source.name,
            self.source.objective,
            "untagged",
            name,
            0,
            rows,
            self.source.recipe,
        )

    def _describe_place(self, kl: _Values, scores: _Values, count: int) -> list[Measurement]:
        standing = place(self.frontier, self.whole, kl, scores, self.config.betas)
        rows = [Measurement("kl_from_base", estimate(kl, count))]
        for judge, slug in enumerate(self.library.slugs):
            rows.append(self._score(slug, scores[judge], count))
            rows.append(Measurement("excess_kl", estimate(standing.excess[judge], count), judge=slug))
        rows.append(Measurement("closest_beta", estimate(standing.beta, count)))
        rows += [
            Measurement("kl_to_target", estimate(values, count), at=beta)
            for beta, values in zip(self.config.betas, standing.to_target, strict=True)
        ]
        return rows

    def _score(self, slug: str, values: _Values, count: int) -> Measurement:
        return Measurement("score", estimate(values, count), judge=slug)

    def _describe_frontier(self) -> list[Measurement]:
        """p* at every beta, and the line of the picture."""
        route = self.frontier.follow([1 / beta for beta in self.config.betas])
        rows = self._describe_route(
            route, list(self.config.betas), ("log_z", "target_kl", "ess"), "target_score"
        )
        for beta, kept in self.kept.items():
            for slug, score in zip(self.library.slugs, self.draws.scores, strict=True):
                found = bootstrap_mean(score[kept], self.config.num_bootstrap, self.config.sampling.seed)
                rows.append(Measurement("exact_score", found, judge=slug, at=beta))
        rows.append(Measurement("clipped_share", self._bound_clipped()))
        line = self._describe_route(self.whole, list(self.whole.lambdas), ("path_kl",), "path_score")
        return rows + line

    def _bound_clipped(self) -> Estimate:
        """The share of p0's scored texts below the bound, of which no draw was: the exact interval of 0 in so many."""
        num = self.frontier.num_scored
        if self.library.judges[0].model.unit in FROM_0_TO_1:
            return Estimate(0.0, 0.0, 0.0, num)
        return Estimate(1 / (num + 1), 0.0, 1 - (1 - CONFIDENCE) ** (1 / num), num)

    def _describe_route(
        self, route: Route, places: Sequence[float], measures: Sequence[str], score: str
    ) -> list[Measurement]:
        values = {
            "log_z": self.frontier.correct_log_z(route),
            "target_kl": route.kl,
            "path_kl": route.kl,
            "ess": route.ess,
        }
        num, rows = self.frontier.num_scored, []
        for column, at in enumerate(places):
            rows += [
                Measurement(measure, estimate(values[measure][:, column], num), at=float(at))
                for measure in measures
            ]
            rows += [
                Measurement(score, estimate(own[:, column], num), judge=slug, at=float(at))
                for slug, own in zip(self.library.slugs, route.scores, strict=True)
            ]
        return rows

    def _bound_rare(self) -> list[Measurement]:
        """Bounds on log Z from both sides, where rejection keeps few draws."""
        rows = []
        for number, (beta, kept) in enumerate(self.kept.items()):
            if self._find_z(beta) >= RARE_Z:
                continue
            low, high = self._bound(beta, np.flatnonzero(kept), number)
            rows.append(Measurement("log_z_lower", pooled_t(low.tolist()), at=beta))
            if len(high):
                rows.append(Measurement("log_z_upper", pooled_t(high.tolist()), at=beta))
        return rows

    def _find_z(self, beta: float) -> float:
        weights = self.frontier.weigh([1 / beta])
        return float(weights.sum() / self.frontier.num_scored)

    def _bound(self, beta: float, exact: npt.NDArray[np.int64], number: int) -> list[_Values]:
        """log Z by populations of particles, and by others that hold an exact draw each: two of [populations]."""

        def estimate_from(held: Sequence[Written], num: int) -> list[float]:
            found = estimate_log_z(
                self.base,
                lambda texts: self.library.weigh(self.base, texts, self.frontier.bound, beta),
                None,
                num_particles=self.config.particles,
                num_populations=num,
                held=held,
                stream=number,
                progress=self.library.progress,
            )
            # Z is of texts with a score.
            share = self.frontier.num_scored / len(self.draws)
            return [float(value) for value in found - math.log(share)]

        def measure() -> list[list[float]]:
            low = estimate_from((), self.config.populations)
            return [low, estimate_from(held, len(held)) if len(held) >= _LEAST_HELD else []]

        held = [self.draws.written[index] for index in exact[: self.config.populations]]
        settings = [
            self.config.particles,
            self.config.populations,
            number,
            self.library.slugs[0],
            len(self.draws),
        ]
        parts = self.library.parts(self.source, self.base)
        key = [*settings, self.frontier.bound, held]
        return [np.array(own) for own in parts.measure(f"bounds-{beta:g}", key, measure, list[list[float]])]

    def _list_notes(self, unscored: int) -> list[str]:
        notes = []
        if not any(is_baseline(source.objective) for source, _ in self.policies):
            notes.append(
                "no other run that was trained without feedback stands beside the base model: what training from other initial weights "
                "costs by itself is not known here, and every trained model pays for it; add such a run, with another seed"
            )
        if unscored:
            notes.append(
                f"{unscored:,} of {len(self.draws):,} draws of {self.source.name} have no score and are left out"
            )
        if self.frontier.bound < 0:
            notes.append(
                f"the least score among the draws, {self.frontier.bound:.4g}, is taken for the bound of all scores: at most "
                f"{self._bound_clipped().high:.2g} of the base model's texts lie below it (95 %), and would be drawn too seldom"
            )
        for beta, kept in self.kept.items():
            if kept.sum() < self.config.num_exact:
                is_rare = self._find_z(beta) < RARE_Z
                remedy = "sequential Monte Carlo bounds log Z" if is_rare else "give a higher --max-draws"
                notes.append(
                    f"beta {beta:g}: {int(kept.sum()):,} exact draws, not {self.config.num_exact:,}: rejection keeps one in "
                    f"{1 / max(self._find_z(beta), 1e-9):,.0f}, and there were {len(self.draws):,}; {remedy}"
                )
        return notes


def _draw_base(library: Library, source: Source, base: Policy, config: InferConfig) -> Draws:
    """Draws of p0, so many that rejection keeps enough at every beta where it keeps more than `RARE_Z`."""
    first = min(max(config.num_exact, config.sampling.num_samples), config.max_draws)
    draws = library.draw(source, base, first, _BASE)
    if np.isnan(draws.scores[0]).all():
        raise PHFError(
            f"{library.slugs[0]} gave none of {first:,} texts of {source.name} a score; give another --judge or --max-new-tokens"
        )
    pilot = Frontier(draws.scores, num_bootstrap=0, seed=0)
    shares = pilot.weigh([1 / beta for beta in config.betas]).mean(0)
    least = min((share for share in shares if share >= RARE_Z), default=1.0)
    # In whole multiples, so that another beta finds the same draws.
    wanted = min(first * math.ceil(_RESERVE * config.num_exact / least / first), config.max_draws)
    return draws + library.draw(source, base, wanted - first, _BASE, first) if wanted > first else draws


def _count_cost(passes: float, calls: float) -> list[Measurement]:
    return [Measurement("passes", bare(passes)), Measurement("judge_calls", bare(calls))]
