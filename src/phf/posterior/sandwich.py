"""Two bounds on log Z by sequential Monte Carlo from both sides (Grosse et al. 2015; for language models Zhao et al. 2024,
arXiv 2404.17546).

Particles are drawn from p0 a few tokens at a time, weighed by a twist psi(text so far), and resampled where few carry the weight. The
estimate of Z is unbiased whatever the twist, so the mean of its *logarithm* lies below log Z (Jensen). With one particle held to an
exact draw of p*, which is never resampled away, the mean lies above it. The better the twist, the closer the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from phf.generate.engine import Ids, Written, write_pages
from phf.generate.target import REDRAW
from phf.policies.policy import Policy
from phf.records import Progress
from phf.steer.smc import find_ess

_Values = npt.NDArray[np.float64]

LogTwist = Callable[[Sequence[Ids]], _Values]
"""log psi of beginnings of texts, [N]; any numbers will do, good ones lower the variance."""
LogWeight = Callable[[Sequence[Written]], _Values]
"""-score / beta of whole texts, [N]; -inf without a score."""

STRIDE = 8
"""Tokens between two looks at the twist."""
_ESS = 0.5
_STREAM = 1 << 20
"""The first of the streams of random numbers that belong to particles."""


@dataclass
class _Population:
    """Particles of one estimate; `held`: the exact draw that the first one is."""

    texts: list[Written]
    base: _Values
    held: Written | None
    log_z: float = 0.0


def estimate_log_z(
    policy: Policy,
    weigh: LogWeight,
    twist: LogTwist | None,
    *,
    num_particles: int,
    num_populations: int,
    held: Sequence[Written] = (),
    stream: int = 0,
    progress: Progress | None = None,
) -> _Values:
    """log of independent estimates of Z, [populations].

    Args:
        policy: p0, without control tokens.
        held: an exact draw of p* for each population, which its first particle is; none of them for plain SMC.
        stream: of random numbers.
    """
    held_texts: list[Written | None] = list(held) if held else [None] * num_populations
    rng = np.random.default_rng([policy.sampling.seed, stream, bool(held)])
    populations = [
        _Population([([], False)] * num_particles, np.zeros(num_particles), text) for text in held_texts
    ]
    longest = policy.sampling.max_new_tokens
    for start in range(0, longest, STRIDE):
        _extend(policy, populations, min(STRIDE, longest - start), start, _STREAM + 2 * stream + bool(held))
        if twist is not None and start + STRIDE < longest:
            _resample(populations, twist, rng)
        if progress is not None:
            progress("sequential Monte Carlo", min(start + STRIDE, longest), longest)
    weights = weigh([text for own in populations for text in own.texts]).reshape(len(populations), -1)
    for own, final in zip(populations, weights, strict=True):
        own.log_z += _log_mean(final - own.base)
    return np.array([own.log_z for own in populations])


def _extend(policy: Policy, populations: Sequence[_Population], size: int, start: int, stream: int) -> None:
    """Let every particle that has not ended write some tokens; one that is held follows its text."""
    longest, drawer = policy.sampling.max_new_tokens, policy.drawer
    least = max(policy.sampling.min_new_tokens - start, 0)
    settings = {"max_new_tokens": size, "min_new_tokens": min(least, size)}
    drawer = replace(drawer, sampling=policy.sampling.model_copy(update=settings))
    places, pages, indices = [], [], []
    for number, own in enumerate(populations):
        for particle, (ids, ended) in enumerate(own.texts):
            if own.held is not None and particle == 0:
                ids, ended = own.held
                is_whole = start + size >= len(ids) + ended
                own.texts[0] = (ids[: start + size], ended and is_whole)
            elif not ended and len(ids) == start:
                places.append((own, particle))
                pages.append([*drawer.rules.prefix, *ids])
                indices.append(((number * len(own.texts) + particle) * longest + start) + stream * REDRAW)
    if not pages:
        return
    written = write_pages(policy.target.model, drawer, pages, indices, lambda done: None)
    for (own, particle), (ids, ended) in zip(places, written, strict=True):
        own.texts[particle] = ([*own.texts[particle][0], *ids], ended)


def _resample(populations: Sequence[_Population], twist: LogTwist, rng: np.random.Generator) -> None:
    """Resample the populations in which few particles carry the weight; what is held stays."""
    values = twist([ids for own in populations for ids, _ in own.texts]).reshape(len(populations), -1)
    for own, value in zip(populations, values, strict=True):
        weights = value - own.base
        if find_ess(weights) >= _ESS:
            continue
        own.log_z += _log_mean(weights)
        parents = rng.choice(len(weights), size=len(weights), p=np.exp(weights - logsumexp(weights)))
        if own.held is not None:
            parents[0] = 0
        own.texts = [own.texts[parent] for parent in parents]
        own.base = value[parents]


def _log_mean(log_weights: _Values) -> float:
    return float(logsumexp(log_weights) - np.log(len(log_weights)))
