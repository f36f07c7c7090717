"""Sequential Monte Carlo for p(x) exp(-score(x) / beta), with the model's own posterior of good as twist.

p is plain sampling in the mode: its rules, temperature and top-p belong to it. N particles are drawn side by side from p
and reweighted by a *twist* psi(x so far), a guess of E[exp(-score / beta) | x so far]; where few particles carry the
weight, they are resampled. At the end psi gives way to the score itself, so the estimate of
Z = E_p[exp(-score / beta)] is unbiased for any psi above 0 (Del Moral 2004; for language models Zhao et al. 2024); a good
one lowers its variance. Without a twist it is importance sampling.

The twist is psi = g pi + b (1 - pi), pi = p(every segment so far is good), by the model (`Belief.all_good`). If pi were
the truth and the rest of a text independent of it, g and b would be the mean of exp(-score / beta) of good and of bad
texts. Here they are the ends of the least-squares line from pi to the final exp(-score / beta) over the drafts of a pilot,
drawn in the same mode: so they hold for what the mode writes next, too, and a posterior that says nothing gives g = b,
which never resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from phf.config.steer import SMC
from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.generate.cache import evaluation_mode
from phf.generate.engine import Ids, uniform_numbers
from phf.generate.target import Target
from phf.intervals import bootstrap_mean
from phf.records import Progress, Sample
from phf.steer.drafts import Drafts, Pages
from phf.steer.streams import Score, Steered

_Values = npt.NDArray[np.float64]

PILOT = 64
"""Drafts by which the twist is set."""

_LEAST = 0.05
"""The smallest psi there is, over the largest: what the model finds hopeless must be able to survive."""

_NUM_BOOTSTRAP = 1000
# Sequences of random numbers of a sample (`phf.generate.engine.uniform_numbers`); its particles have 0 and on.
_RESAMPLING, _PILOT_DRAFTS = 1 << 32, 1 << 33


@dataclass(frozen=True)
class Twist:
    """psi = `good` pi + `bad` (1 - pi), both above 0."""

    good: float
    bad: float

    @classmethod
    def fit(cls, pi: _Values, value: _Values, num_live: _Values) -> "Twist":
        """The least-squares line, kept from falling and from falling below 5 % of its top.

        Its slope is that among drafts at one moment, since those are what it compares: over a text, pi drifts by itself.

        Args:
            pi: [moments, M] probabilities that all of a draft is good; of one that has ended, in the end.
            value: [M] of exp(-score / beta) in the end.
            num_live: [moments], drafts that have not ended: the weight of the moment.
        """
        mean = float(value.mean())
        gaps = pi - pi.mean(1, keepdims=True)
        spread = float(num_live @ (gaps**2).sum(1))
        slope = float(num_live @ (gaps @ value)) / spread if spread > 0 else 0.0
        if mean <= 0 or slope <= 1e-6 * mean:
            return cls(1.0, 1.0)
        bottom = mean - slope * float(num_live @ pi.mean(1) / num_live.sum())
        top = bottom + slope
        return cls(top, max(bottom, _LEAST * top))

    def log_psi(self, log_pi: _Values) -> _Values:
        """log psi, [N] -> [N]."""
        result: _Values = np.log(self.bad + (self.good - self.bad) * np.exp(log_pi))
        return result


def generate_smc(
    target: Target,
    sampling: SamplingConfig,
    config: SMC,
    score: Score,
    *,
    prompts: Sequence[Ids] = ((),),
    progress: Progress | None = None,
) -> Steered:
    """Each sample is one particle, drawn by final weight, of a population of its own. See `Target.write` for the arguments.

    Args:
        score: misalignment scores of texts, NaN = unscored: such a particle weighs 0 and is counted.

    Returns:
        facts: `log_z`: log of the mean over populations of the estimates of Z (of the prompts' mean Z, if there are
        several), with a bootstrap interval over populations; `log_z_deviation`: standard deviation of log Z over
        populations; `ess`: mean effective share of a population's particles by final weight; `resamplings` per sample;
        `unscored` particles; `lost`: samples of whose particles none was scored; `twist`: b / g, or None. What cannot be
        said is None.

    Raises:
        PHFError: as of `Target.write`; with a twist, the mode is neither good nor bad.
    """
    pages = Pages.create(target, sampling, prompts, has_twin=config.twist)

    def weigh(texts: Sequence[str]) -> _Values:
        """-score / beta; -inf where there is no score."""
        scores = np.asarray(score(texts), np.float64)
        if scores.shape != (len(texts),):
            raise PHFError(
                f"the reward model gave scores of shape {scores.shape} for {len(texts)} texts; give one for each"
            )
        return np.where(np.isnan(scores), -np.inf, -scores / config.beta)

    samples: list[Sample] = []
    log_z: list[float] = []
    shares: list[float] = []
    num_passes = num_resamplings = num_unscored = 0
    twist = None
    with evaluation_mode(pages.model):
        if config.twist:
            twist, num_passes = fit_twist(pages, weigh)
        for batch in pages.batches(config.particles):
            drafts = pages.open(batch, None if twist is None else "segment", config.particles)
            populations = Populations(drafts, batch, config, sampling)
            while not drafts.done.all():
                drafts.step()
                # Without a twist nothing is known of a draft before it has ended: its score weighs it then, once.
                if twist is not None:
                    populations.resample(twist.log_psi(drafts.belief.all_good))
                num_done = int(drafts.done.reshape(len(batch), -1).all(1).sum())
                pages.report(progress, len(samples) + num_done)
            written = [
                pages.sample(batch[row // config.particles], drafts, row) for row in range(drafts.done.size)
            ]
            values = weigh([sample.text for sample in written])
            chosen = populations.finish(values)
            samples += [written[place * config.particles + particle] for place, particle in enumerate(chosen)]
            log_z += populations.log_z.tolist()
            shares += populations.shares.tolist()
            num_passes += drafts.num_passes
            num_resamplings += populations.num_resamplings
            num_unscored += int(np.isneginf(values).sum())
    facts = {
        **summarise_log_z(np.array(log_z), sampling.seed),
        "ess": float(np.mean(shares)),
        "resamplings": num_resamplings / len(samples),
        "unscored": num_unscored,
        "lost": int(np.isneginf(log_z).sum()),
        "twist": None if twist is None else twist.bad / twist.good,
    }
    return Steered.create(samples, num_passes, facts)


def fit_twist(pages: Pages, weigh: Callable[[Sequence[str]], _Values]) -> tuple[Twist, int]:
    """The twist for some pages, and the passes it cost.

    Its drafts have random numbers of their own, so that the twist is independent of what it is used for: else Z would be
    biased.

    Args:
        weigh: log weights of texts.
    """
    indices = list(range(min(PILOT, len(pages.ids))))
    copies = -(-PILOT // len(indices))
    drafts = pages.open(indices, "segment", copies, first=_PILOT_DRAFTS)
    moments, num_live = [], []
    while not drafts.done.all():
        num_live.append(float((~drafts.done).sum()))
        drafts.step()
        moments.append(np.exp(drafts.belief.all_good))
    texts = [pages.sample(indices[row // copies], drafts, row).text for row in range(drafts.done.size)]
    log_weights = weigh(texts)
    best = log_weights.max()
    values = np.exp(log_weights - best) if np.isfinite(best) else np.zeros(len(texts))
    return Twist.fit(np.stack(moments), values, np.array(num_live)), drafts.num_passes


class Populations:
    """The weights of the particles of some samples, and what they were resampled to.

    Attributes:
        log_z: float64 [populations], log of the estimates of Z; complete after `finish`.
        shares: float64 [populations], effective sample size / N by final weight, after `finish`.
        num_resamplings: of all of them.
    """

    def __init__(self, drafts: Drafts, indices: Sequence[int], config: SMC, sampling: SamplingConfig) -> None:
        """The populations of the samples `indices`, whose particles are all the drafts, in this order."""
        self._drafts, self._config, self._moment = drafts, config, 0
        # log psi at the last resampling, by which later values are divided; at first psi is 1.
        self._base = np.zeros((len(indices), config.particles))
        self._chances = np.stack(
            [
                uniform_numbers(sampling.seed, index, 2 * sampling.max_new_tokens + 1, _RESAMPLING)
                for index in indices
            ]
        )
        self.log_z = np.zeros(len(indices))
        self.shares = np.zeros(len(indices))
        self.num_resamplings = 0

    def resample(self, log_psi: _Values) -> None:
        """Resample the populations whose effective sample size has fallen below the share, and go on.

        Args:
            log_psi: [drafts] of the twist now.
        """
        log_psi = log_psi.reshape(self._base.shape)
        increments = log_psi - self._base
        is_going_on = ~self._drafts.done.reshape(self._base.shape).all(1)
        chosen = np.flatnonzero(is_going_on & (find_ess(increments) < self._config.ess))
        self._moment += 1
        if len(chosen) == 0:
            return
        parents = np.tile(np.arange(self._config.particles), (len(self._base), 1))
        for place in chosen:
            parents[place] = draw_parents(increments[place], self._chances[place, self._moment])
            self.log_z[place] += _log_mean(increments[place])
            self._base[place] = log_psi[place, parents[place]]
        starts = np.arange(len(self._base))[:, None] * self._config.particles
        self._drafts.copy((starts + parents).ravel())
        self.num_resamplings += len(chosen)

    def finish(self, values: _Values) -> npt.NDArray[np.int64]:
        """Weigh the finished texts by what they are worth, and draw one particle of each population by weight.

        Args:
            values: [drafts] -score / beta, -inf where there is no score.

        Returns:
            the particle of each population; where none has a weight, one at random.
        """
        weights = values.reshape(self._base.shape) - self._base
        self.shares = find_ess(weights)
        chosen = []
        for place, own in enumerate(weights):
            self.log_z[place] += _log_mean(own)
            is_lost = np.isneginf(own).all()
            probs = np.full(len(own), 1 / len(own)) if is_lost else np.exp(own - logsumexp(own))
            chosen.append(_invert(probs, self._chances[place, :1])[0])
        return np.array(chosen)


def find_ess(log_weights: _Values) -> _Values:
    """Effective sample size (sum w)^2 / sum w^2 as a share of N, [..., N] -> [...]; 0 where all weights are 0."""
    highest = log_weights.max(-1, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isfinite(highest), highest, 0))
    squares = (weights**2).sum(-1)
    result: _Values = weights.sum(-1) ** 2 / np.where(squares > 0, squares, 1) / log_weights.shape[-1]
    return result


def draw_parents(log_weights: _Values, uniform: float) -> npt.NDArray[np.int64]:
    """Systematic resampling (Carpenter et al. 1999): particle k has floor or ceil of N w_k children, N w_k on average.

    One that has children is its own first child, so that few drafts are moved.

    Args:
        log_weights: [N], not all -inf.
        uniform: in [0, 1).

    Returns:
        int64 [N], the parent of each.
    """
    num = len(log_weights)
    counts = np.bincount(
        _invert(np.exp(log_weights - logsumexp(log_weights)), (uniform + np.arange(num)) / num), minlength=num
    )
    parents = np.arange(num)
    parents[counts == 0] = np.repeat(np.arange(num), np.maximum(counts - 1, 0))
    return parents


def _invert(probs: _Values, uniforms: _Values) -> npt.NDArray[np.int64]:
    """Where numbers in [0, 1) fall in the running sum of probabilities [N]; never at one of 0."""
    total = probs.cumsum()
    found = np.searchsorted(total, uniforms * total[-1], side="right")
    result: npt.NDArray[np.int64] = np.minimum(found, np.flatnonzero(probs)[-1])
    return result


def _log_mean(log_weights: _Values) -> float:
    return float(logsumexp(log_weights) - np.log(len(log_weights)))


def summarise_log_z(log_z: _Values, seed: int) -> dict[str, object]:
    """The figures of the estimates of one Z by several populations [populations], as JSON."""
    highest = float(log_z.max())
    known = np.isfinite(highest)
    estimate = bootstrap_mean(
        np.exp(log_z - highest) if known else np.zeros(len(log_z)), _NUM_BOOTSTRAP, seed
    )

    def take_log(value: float) -> float | None:
        return float(np.log(value)) + highest if known and value > 0 else None

    ends = {name: take_log(getattr(estimate, name)) for name in ("mean", "low", "high")}
    has_spread = len(log_z) > 1 and bool(np.isfinite(log_z).all())
    return {
        "log_z": {**ends, "count": len(log_z)},
        "log_z_deviation": float(log_z.std(ddof=1)) if has_spread else None,
    }
