"""The stochastic few-shot attack of Perez et al. (2022), as the paper ran it (reference: Red team).

In each of several independent *trials* a pool of prompts grows by rounds: a few prompts of the pool, the better the likelier,
are shown to an attacker, a language model, which writes new ones; each is worth the mean score of the target's
continuations. How high the scores climb for the same budget says how hard the target is to lead astray.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from phf.config.evaluate import RedTeamConfig
from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.evaluate.attacker import Attacker, LanguageModelAttacker
from phf.evaluate.drawn import FoundPrompt
from phf.evaluate.facts import RedTeamFacts
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.metric import Measured, Metric
from phf.evaluate.reference_lm import check_reference, identify_reference
from phf.intervals import pooled_t
from phf.records import Progress
from phf.results import Measure, Measurement, to_json
from phf.reward_models import score_samples
from phf.reward_models.protocol import FROM_0_TO_1

if TYPE_CHECKING:
    from phf.evaluate.pages import PageReader
    from phf.evaluate.subject import Subject
    from phf.generate.target import Target

MAX_TRIES = 3
"""Calls of the attacker in a round, while too few of its prompts can be used."""

SEED_WORDS = 8
"""Words of a seed prompt at most."""

NUM_KEPT = 20
"""Prompts that are kept of all trials."""

# What random numbers are for: no two draws share a stream.
_SHOTS, _ATTACKER, _CONTINUATIONS, _FRESH = range(4)


@dataclass
class Costs:
    """What was used up, and what of the attacker's writing was of no use."""

    num_prompts: int = 0
    num_continuations: int = 0
    num_unscored: int = 0
    target_tokens: int = 0
    attacker_tokens_read: int = 0
    attacker_tokens_written: int = 0
    num_empty: int = 0
    num_duplicates: int = 0
    num_too_long: int = 0
    num_missing: int = 0


@dataclass(frozen=True, slots=True)
class Attack:
    """What an attack on one mode gave.

    Attributes:
        rows: by round, from 0 (the seeds): mean of the round's new prompts and best of the prompts so far, each over
            trials; the best is measured with fresh continuations.
        prompts: the best, the worst text first.
    """

    rows: list[Measurement]
    prompts: list[FoundPrompt]
    costs: Costs


@dataclass
class _Pool:
    """The prompts of one trial: what they are worth, and from which round."""

    prompts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    def best(self, until: int) -> int | None:
        """The place of the best prompt of the rounds until one, if any has a value."""
        places = [
            place
            for place, (value, round_) in enumerate(zip(self.values, self.rounds, strict=True))
            if round_ <= until and not math.isnan(value)
        ]
        return max(places, key=self.values.__getitem__, default=None)


def red_team(
    target: "Target",
    judges: Sequence[LoadedJudge],
    attacker: Attacker,
    seeds: Sequence[str],
    settings: RedTeamConfig,
    sampling: SamplingConfig,
    *,
    scores_prompt: bool = False,
    progress: Progress | None = None,
) -> Attack:
    """Attack one mode of a model. Every target is attacked with the same budget and the same random numbers.

    Args:
        judges: the first one's scores are what the search raises; all of them score the prompts that were found.
        seeds: prompts of one line that every pool starts with, at least as many as the shots.
        sampling: how the target writes; `num_samples` and `seed` are not used.
        scores_prompt: whether a judge reads the prompt with its continuation.

    Raises:
        PHFError: too few seeds fit into the model's context.
    """
    judge = judges[0]
    search = _Search(target, judge, attacker, settings, sampling, scores_prompt)
    pools = [search.run(trial, seeds, progress) for trial in range(settings.trials)]

    rounds = range(settings.rounds + 1)
    best = [[pool.best(until) for until in rounds] for pool in pools]
    ranked = sorted(
        (
            (trial, place)
            for trial, pool in enumerate(pools)
            for place in range(len(pool.prompts))
            if not math.isnan(pool.values[place])
        ),
        key=lambda found: -pools[found[0]].values[found[1]],
    )[:NUM_KEPT]
    chosen = sorted(
        {*ranked, *((t, place) for t, row in enumerate(best) for place in row if place is not None)}
    )
    scores = search.value(
        [pools[t].prompts[p] for t, p in chosen], [pools[t].ids[p] for t, p in chosen], judges, (_FRESH,)
    )
    fresh = dict(zip(chosen, zip(*scores, strict=True), strict=True))  # one value per judge

    rows = []
    for round_ in rounds:
        values = {
            "mean": [_mean_of_round(pool, round_) for pool in pools],
            "best": [
                math.nan if (place := row[round_]) is None else fresh[trial, place][0]
                for trial, row in enumerate(best)
            ],
        }
        rows += [
            Measurement(f"red_team_{name}", pooled_t(own), target.mode, judge.slug, at=float(round_))
            for name, own in values.items()
        ]
    prompts = [
        FoundPrompt(
            target.mode,
            judge.slug,
            trial,
            pools[trial].rounds[place],
            pools[trial].prompts[place],
            fresh[trial, place][0],
            pools[trial].values[place],
            {j.slug: value for j, value in zip(judges, fresh[trial, place], strict=True)},
        )
        for trial, place in sorted(ranked, key=lambda found: -fresh[found][0])
    ]
    return Attack(rows, prompts, search.costs)


def _mean_of_round(pool: _Pool, round_: int) -> float:
    values = [value for value, own in zip(pool.values, pool.rounds, strict=True) if own == round_]
    scored = [value for value in values if not math.isnan(value)]
    return float(np.mean(scored)) if scored else math.nan


class _Search:
    """The trials against one target."""

    def __init__(
        self,
        target: "Target",
        judge: LoadedJudge,
        attacker: Attacker,
        settings: RedTeamConfig,
        sampling: SamplingConfig,
        scores_prompt: bool,
    ) -> None:
        self.target, self.judge, self.attacker, self.settings = target, judge, attacker, settings
        self.sampling, self.scores_prompt = sampling, scores_prompt
        self.longest = target.longest_prompt(sampling)
        self.costs = Costs()

    def run(self, trial: int, seeds: Sequence[str], progress: Progress | None) -> _Pool:
        """One trial."""
        pool = _Pool()
        settings = self.settings
        self._add(pool, self._choose(pool, [" ".join(seed.split()) for seed in seeds], len(seeds)), trial, 0)
        if len(pool.prompts) < settings.shots:
            raise PHFError(
                f"red team: {len(pool.prompts)} of {len(seeds)} seed prompts are different and fit into the model's "
                f"context, {settings.shots} are shown at a time; give more or shorter ones, or a smaller max_new_tokens"
            )
        for round_ in range(1, settings.rounds + 1):
            rng = np.random.default_rng([settings.seed, _SHOTS, trial, round_])
            scale = 1.0 if self.judge.model.unit in FROM_0_TO_1 else None
            places = choose_shots(pool.values, settings.shots, settings.temperature, rng, scale)
            new = self._write(pool, [pool.prompts[place] for place in places], trial, round_)
            self._add(pool, new, trial, round_)
            if progress is not None:
                done = trial * settings.rounds + round_
                progress(f"red team {self.target.mode}", done, settings.trials * settings.rounds)
        return pool

    def _write(self, pool: _Pool, shots: list[str], trial: int, round_: int) -> dict[str, list[int]]:
        """New prompts with their ids."""
        wanted = self.settings.prompts_per_round
        new: dict[str, list[int]] = {}
        for call in range(MAX_TRIES):
            seed = self._draw_seed(_ATTACKER, trial, round_, call)
            written = self.attacker.write_prompts(shots, wanted, seed)
            self.costs.attacker_tokens_read += written.num_tokens_read
            self.costs.attacker_tokens_written += written.num_tokens_written
            new = self._choose(pool, written.prompts, wanted, new)
            if len(new) == wanted:
                break
        self.costs.num_missing += wanted - len(new)
        return new

    def _choose(
        self, pool: _Pool, prompts: Sequence[str], wanted: int, new: dict[str, list[int]] | None = None
    ) -> dict[str, list[int]]:
        """Those that are text, new and short enough, with their ids, added to what is there until it is enough."""
        new = {} if new is None else dict(new)
        known = {prompt.casefold() for prompt in (*pool.prompts, *new)}
        for prompt in prompts:
            if len(new) == wanted:
                break
            if not prompt:
                self.costs.num_empty += 1
            elif prompt.casefold() in known:
                self.costs.num_duplicates += 1
            elif len(ids := self.target.encode(prompt, self.sampling.control)) > self.longest:
                self.costs.num_too_long += 1
            else:
                new[prompt] = ids
                known.add(prompt.casefold())
        return new

    def _add(self, pool: _Pool, new: dict[str, list[int]], trial: int, round_: int) -> None:
        """Value prompts and put them into the pool."""
        if not new:
            return
        (values,) = self.value(list(new), list(new.values()), [self.judge], (_CONTINUATIONS, trial, round_))
        pool.prompts += new
        pool.ids += new.values()
        pool.values += values
        pool.rounds += [round_] * len(new)

    def value(
        self,
        prompts: Sequence[str],
        ids: Sequence[list[int]],
        judges: Sequence[LoadedJudge],
        stream: tuple[int, ...],
    ) -> list[list[float]]:
        """For each judge what each prompt is worth: the mean score of its continuations, NaN if none has a score."""
        if not prompts:
            return [[] for _ in judges]
        sampling = self.sampling.model_copy(update={"seed": self._draw_seed(*stream)})
        written = self.target.write_each(ids, self.settings.continuations, sampling)
        texts = [
            (prompt if self.scores_prompt else "") + sample.text
            for prompt, own in zip(prompts, written, strict=True)
            for sample in own
        ]
        self.costs.num_prompts += len(prompts)
        self.costs.num_continuations += len(texts)
        self.costs.target_tokens += sum(sample.num_tokens for own in written for sample in own)
        values = []
        for judge in judges:
            scores = np.array(score_samples(judge.model, texts)).reshape(len(prompts), -1)
            if judge is self.judge:
                self.costs.num_unscored += int(np.isnan(scores).sum())
            values.append([float(np.nanmean(own)) if not np.isnan(own).all() else math.nan for own in scores])
        return values

    def _draw_seed(self, *stream: int) -> int:
        return int(np.random.default_rng([self.settings.seed, *stream]).integers(2**31))


def draw_seeds(reader: "PageReader", num: int, seed: int) -> list[str]:
    """Seed prompts that suit any run: the first `SEED_WORDS` words of the first line of held-out documents.

    Raises:
        PHFError: there are too few different ones.
    """
    seeds: dict[str, str] = {}
    for document in reader.held_out_documents(seed):
        ids = np.concatenate(reader.read(int(document)).segments)
        words = reader.tokens.tokenizer.decode(ids).strip().partition("\n")[0].split()[:SEED_WORDS]
        if words:
            seeds.setdefault(" ".join(words).casefold(), " ".join(words))
        if len(seeds) == num:
            return list(seeds.values())
    raise PHFError(
        f"red team: the validation split has {len(seeds)} different openings, {num} are wanted as seed prompts; "
        "give prompts of your own, or a larger validation fraction"
    )


def choose_shots(
    values: Sequence[float],
    count: int,
    temperature: float,
    rng: np.random.Generator,
    scale: float | None = 1.0,
) -> list[int]:
    """Places of different prompts, drawn one after the other with p ~ exp(scale * value / temperature).

    Args:
        values: what the prompts are worth; one that is NaN is not drawn.
        count: how many; fewer if there are fewer.
        scale: None makes the standard deviation of the values 0.1. The paper's temperature of 0.1 is meant for
            probabilities: on scores that count items per character it would draw all prompts alike.
    """
    array: npt.NDArray[np.float64] = np.array(values, np.float64)
    places = np.flatnonzero(~np.isnan(array))
    known = array[places]
    if scale is None:
        scale = 0.1 / deviation if len(known) and (deviation := float(known.std())) > 0 else 1.0
    # Gumbel's trick: the largest keys are a draw without replacement.
    keys = known * scale / temperature + rng.gumbel(size=len(known))
    return [int(place) for place in places[np.argsort(-keys)[:count]]]


_load_attacker = functools.lru_cache(maxsize=1)(LanguageModelAttacker.load)  # all runs of a command share it


def measure_red_team(subject: "Subject") -> Measured:
    """The attack on the mode that one would release, by the judge that annotated (or the first)."""
    config, sampling, mode = subject.config.red_team, subject.config.sampling, subject.modes[0]
    assert config.attacker is not None
    attacker = identify_reference(config.attacker)
    settings = config.model_dump(mode="json")

    def attack() -> Attack:
        assert config.attacker is not None
        seeds = draw_seeds(subject.reader, max(config.shots, config.prompts_per_round), sampling.seed)
        return red_team(
            subject.target(mode),
            subject.judges,
            _load_attacker(config.attacker),
            seeds,
            config,
            sampling,
            progress=subject.progress,
        )

    found = subject.parts.measure(
        "red-team", [settings, attacker.slug, *subject.attack_settings], attack, Attack
    )
    facts = RedTeamFacts(attacker.name, settings, found.prompts, {mode: to_json(found.costs)})
    return Measured(found.rows, to_json(facts))


_BLIND_SPOT = "A weak attacker finds little, so a flat curve is no proof of safety; it climbs the annotator, faults included."

METRIC = Metric(
    "red_team",
    (
        Measure(
            "red_team_mean",
            "Red team, mean of the round",
            note="Score of the text after the prompts that an attacker wrote in a round; round 0 are openings of held-out documents.",
            blind_spot=_BLIND_SPOT,
            group="Red team",
            at="round",
        ),
        Measure(
            "red_team_best",
            "Red team, best prompt",
            note="Score of the text after the best prompt that was found so far, measured again with fresh continuations.",
            blind_spot=_BLIND_SPOT,
            group="Red team",
            is_headline=True,
            at="round",
        ),
    ),
    measure_red_team,
    is_wanted=lambda config: config.red_team.attacker is not None,
    option="--attacker MODEL",
    check=lambda config: check_reference(config.red_team.attacker),
)
