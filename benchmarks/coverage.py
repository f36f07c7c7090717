"""How often intervals hold the truth, by simulation: expected maximum of 25, calibration error, and what `phf infer` estimates.

    python benchmarks/coverage.py maximum --trials 1000
    python benchmarks/coverage.py calibration --trials 1000
    python benchmarks/coverage.py ratings --trials 1000     # the calibration error of scores against numbers, alone and in clusters
    python benchmarks/coverage.py posterior --trials 200    # all that phf infer estimates, on sources of 800 texts
    python benchmarks/coverage.py control --trials 200      # promises and soft values, which are biased, against exact ones

A row per case: how often the interval holds the truth, how often the truth lies below and above it, and how often an end is refused
(an interval without an end is open there).
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, logit

from phf.calibration import estimate_error, find_error
from phf.intervals import expected_max
from phf.posterior.frontier import Frontier, estimate, measure_draws, place
from phf.records import Estimate
from phf.results import Measurement
from phf.soft_control.optimism import Draws, Game, compare_promises
from phf.soft_control.values import Truth, measure_value

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
MAX_OF = 25


def hits(share: float, sizes: Draw) -> Draw:
    """Scores that are 0 but for a share of hits."""
    return lambda rng, num: np.where(rng.random(num) < share, sizes(rng, num), 0.0)


def list_scores() -> dict[str, Draw]:
    """Distributions of samples' scores: rare hits of one size or many, a classifier's, and some of a textbook."""
    sizes: dict[str, Draw] = {
        "one size": lambda rng, num: np.ones(num),
        "exponential": lambda rng, num: rng.exponential(size=num),
        "lognormal": lambda rng, num: rng.lognormal(size=num),
    }
    rare = {
        f"{100 * share:g} % hits, {name}": hits(share, draw)
        for name, draw in sizes.items()
        for share in (0.005, 0.01, 0.02, 0.05)
    }
    return rare | {
        "classifier, beta(.1, 2)": lambda rng, num: rng.beta(0.1, 2, num),
        "classifier, beta(.3, 3)": lambda rng, num: rng.beta(0.3, 3, num),
        "exponential": sizes["exponential"],
        "normal": lambda rng, num: rng.normal(size=num),
        "uniform": lambda rng, num: rng.random(num),
    }


def simulate_maximum(trials: int, sizes: tuple[int, ...] = (128, 512)) -> None:
    """Coverage of `expected_max` for numbers of samples."""
    for num in sizes:
        for name, draw in list_scores().items():
            rng = np.random.default_rng(0)
            truth = float(
                np.mean(
                    [draw(rng, 25_000 * MAX_OF).reshape(-1, MAX_OF).max(axis=1).mean() for _ in range(20)]
                )
            )
            found = [
                expected_max(draw(np.random.default_rng([trial, num]), num), MAX_OF, 1000, trial)
                for trial in range(trials)
            ]
            print(f"{num:5} samples  {name:26} {describe(found, truth)}", flush=True)


def list_posteriors() -> dict[str, Draw]:
    """Distributions of posteriors: even, sure of itself, near a base rate, nearly all good."""
    return {
        "even": lambda rng, num: rng.random(num),
        "sure": lambda rng, num: rng.beta(0.4, 0.4, num),
        "base rate": lambda rng, num: rng.beta(8, 4, num),
        "mostly good": lambda rng, num: rng.beta(2, 0.3, num),
    }


def list_truths() -> dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]]:
    """What the judge says, given the posterior: exactly that, less by so much, less sure, or another share in one bin of ten."""
    return {
        "right": lambda p: p,
        ".03 less": lambda p: np.clip(p - 0.03, 0, 1),
        ".06 less": lambda p: np.clip(p - 0.06, 0, 1),
        ".12 less": lambda p: np.clip(p - 0.12, 0, 1),
        "logits x .7": lambda p: expit(0.7 * logit(p)),
        "logits x .4": lambda p: expit(0.4 * logit(p)),
        ".4 less in one bin": lambda p: np.where((p > 0.6) & (p < 0.7), p - 0.4, p),
    }


def simulate_calibration(trials: int, sizes: tuple[int, ...] = (300, 600)) -> None:
    """Coverage of the calibration error, and of its range by chance (where the posterior is right), for numbers of segments."""
    for num in sizes:
        for name, draw in list_posteriors().items():
            for kind, say in list_truths().items():
                many = draw(np.random.default_rng(0), 1_000_000)
                truth = find_error(many, say(many))
                found, inside = [], []
                for trial in range(trials):
                    rng = np.random.default_rng([trial, num])
                    posteriors = draw(rng, num)
                    verdicts = rng.random(num) < say(posteriors)
                    error, plain, (least, most) = estimate_error(posteriors, verdicts, 300, trial)
                    found.append(error)
                    inside.append(least <= plain <= most)
                chance = f"; by chance {np.mean(inside):.3f}" if kind == "right" else ""
                print(f"{num:5} segments  {name:11} {kind:18} {describe(found, truth)}{chance}", flush=True)


def simulate_ratings(trials: int, num: int = 600) -> None:
    """Coverage of the calibration error where people give numbers (the mean of three verdicts), alone and five to a document."""
    for name, draw in list_posteriors().items():
        for kind, say in list_truths().items():
            many = draw(np.random.default_rng(0), 1_000_000)
            truth = find_error(many, say(many))
            for size in (1, 5):
                found = []
                for trial in range(trials):
                    rng = np.random.default_rng([trial, size])
                    scores, of = draw(rng, num), np.arange(num) // size
                    # One uniform per document in the three of each segment: their errors hang together.
                    uniforms = np.stack([rng.random(num), rng.random(num), rng.random(num // size)[of]])
                    ratings = (uniforms < say(scores)).mean(axis=0)
                    found.append(estimate_error(scores, ratings, 300, trial, of if size > 1 else None)[0])
                print(f"{num:5} in {size}s  {name:11} {kind:18} {describe(found, truth)}", flush=True)


POSTERIOR_BETAS = (0.3, 0.1, 0.05)


def simulate_posterior(trials: int, sizes: tuple[int, ...] = (500, 2000), num_texts: int = 800) -> None:
    """Coverage of what `phf infer` estimates, where every text, its probability and its score by two judges are known."""
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.exp(1.5 * rng.normal(size=num_texts)))
    scores = np.stack([np.round(rng.beta(0.3, 1.5, num_texts), 2), rng.beta(0.5, 1.5, num_texts)])
    scores[1] = (scores[0] + scores[1]) / 2
    policies = {
        "near": base * np.exp(-scores[0] / 0.3 + 0.3 * rng.normal(size=num_texts)),
        "far": base * np.exp(-scores[0] / 0.1 + 1.5 * rng.normal(size=num_texts)),
        "worse": base * np.exp(scores[0] / 0.3 + 0.3 * rng.normal(size=num_texts)),
    }
    lambdas = np.geomspace(1e-3, 300, 20_000)
    curve = np.exp(-np.outer(lambdas, scores[0])) * base
    log_z = np.log(curve.sum(1))
    targets = curve / curve.sum(1, keepdims=True)
    kls = -lambdas * (targets @ scores[0]) - log_z
    for name, policy in policies.items():
        policy /= policy.sum()
        kl = float(policy @ np.log(policy / base))
        truths = {"KL": kl, "score": float(scores[0] @ policy)}
        for judge in range(2):
            reached = np.minimum.accumulate(targets @ scores[judge])
            least = np.interp(-float(scores[judge] @ policy), -reached, kls, left=0.0)
            truths[f"excess KL, judge {judge}"] = kl - float(least)
        for beta in POSTERIOR_BETAS:
            z = float(base @ np.exp(-scores[0] / beta))
            target = base * np.exp(-scores[0] / beta) / z
            truths[f"log Z, beta {beta}"] = float(np.log(z))
            truths[f"KL of p*, beta {beta}"] = float(target @ np.log(target / base))
            truths[f"score of p*, beta {beta}"] = float(target @ scores[0])
            truths[f"KL to p*, beta {beta}"] = float(policy @ np.log(policy / target))
        for num in sizes:
            found: dict[str, list[Estimate]] = {kind: [] for kind in truths}
            for trial in range(trials):
                for kind, values in _infer_once(base, policy, scores, num, trial).items():
                    found[kind].append(values)
            for kind, truth in truths.items():
                if name == "near" or (" of p*" not in kind and "log Z" not in kind):
                    print(f"{num:5} draws  {name:6} {kind:24} {describe(found[kind], truth)}", flush=True)


def _infer_once(
    base: npt.NDArray[np.float64],
    policy: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    num: int,
    trial: int,
) -> dict[str, Estimate]:
    rng = np.random.default_rng([trial, num])
    drawn, own = rng.choice(len(base), num, p=base), rng.choice(len(base), num, p=policy)
    frontier = Frontier(scores[:, drawn], num_bootstrap=300, seed=trial)
    whole, route = frontier.follow_whole(), frontier.follow([1 / beta for beta in POSTERIOR_BETAS])
    gaps = np.log(policy[own] / base[own])
    kl, means = measure_draws(scores[:, own], gaps, whole.base_share, num_bootstrap=300, seed=trial)
    standing = place(frontier, whole, kl, means, POSTERIOR_BETAS)
    found = {"KL": estimate(kl, num), "score": estimate(means[0], num)}
    found |= {f"excess KL, judge {judge}": estimate(standing.excess[judge], num) for judge in range(2)}
    for place_, beta in enumerate(POSTERIOR_BETAS):
        found[f"log Z, beta {beta}"] = estimate(frontier.correct_log_z(route)[:, place_], num)
        found[f"KL of p*, beta {beta}"] = estimate(route.kl[:, place_], num)
        found[f"score of p*, beta {beta}"] = estimate(route.scores[0, :, place_], num)
        found[f"KL to p*, beta {beta}"] = estimate(standing.to_target[place_], num)
    return found


CONTROL_BETA, THRESHOLD = 0.2, 0.5
RISK = 0.6
"""How often the other side spoils a risky beginning: its score is then 1, else 0; a safe one has .4 whatever follows."""


def solve_lottery() -> dict[tuple[str, str], float]:
    """What each recipe promises of a page that begins safe or risky at even odds, and gets: share of good texts, exactly."""
    gains = np.array([[-0.4, -0.4], [0.0, -1.0]]) / CONTROL_BETA
    odds = np.array([[1 - RISK, RISK], [1 - RISK, RISK]])
    is_good = np.array([[1.0, 1.0], [1.0, 0.0]])
    believed = odds * np.exp(gains)
    q = {
        "prior": np.zeros(2),
        "posterior": np.log(believed.sum(1)),
        "regularised": (odds * gains).sum(1),
    }
    found = {}
    for recipe, own in q.items():
        policy = np.exp(own) / np.exp(own).sum()
        tilted = believed / believed.sum(1, keepdims=True) if recipe == "posterior" else odds
        promised, realised = (float(policy @ (chances * is_good).sum(1)) for chances in (tilted, odds))
        found[recipe, "promised_good"], found[recipe, "realised_good"] = promised, realised
        found[recipe, "optimism"] = promised - realised
    return found


def simulate_control(trials: int) -> None:
    """Promises of few candidates and draws, and soft values against a truth of few continuations."""
    for size in (6, 24):
        game = Game(128, candidates=size, draws=size, endings=1, beta=CONTROL_BETA, threshold=THRESHOLD)
        rows = [
            {(row.of, row.measure): row.estimate for row in _play(game, trial)} for trial in range(trials)
        ]
        for (recipe, measure), truth in solve_lottery().items():
            found = [own[recipe, measure] for own in rows]
            print(f"{size:3} draws  {recipe:11} {measure:14} {describe(found, truth)}", flush=True)
    for beta in POSTERIOR_BETAS:
        for num in (16, 64):
            rows = [_hold_value(beta, num, trial) for trial in range(trials)]
            for measure, truth in (
                ("value_bias", 0.0),
                ("value_excess", 0.0),
                ("value_rank_correlation", 1.0),
            ):
                found = [own[measure] for own in rows]
                print(
                    f"{num:3} continuations  beta {beta:4} {measure:22} {describe(found, truth)}", flush=True
                )


def _play(game: Game, trial: int) -> list[Measurement]:
    rng = np.random.default_rng(trial)
    is_risky = rng.random(game.episodes * game.candidates) < 0.5

    def follow(rows: Sequence[int], draws: int) -> Draws:
        spoilt = rng.random((len(rows), draws, game.endings)) < RISK
        scores = np.where(is_risky[np.array(rows)][:, None, None], spoilt * 1.0, 0.4)
        return -scores / game.beta, scores <= game.threshold

    return compare_promises(follow, game, trial)


def _hold_value(beta: float, num: int, trial: int) -> dict[str, Estimate]:
    """The exact soft values of 50 prefixes against continuations: each text is good (a score below .1) or bad, at odds of its prefix."""
    rng = np.random.default_rng(trial)
    odds = rng.beta(0.7, 1.5, 50)
    sizes = np.array([[0.0, 0.1], [0.2, 1.0]])  # ranges of good and bad scores, uniform
    low, high = np.exp(-sizes / beta).T
    means = (low - high) / ((sizes[:, 1] - sizes[:, 0]) / beta)
    exact = np.log((1 - odds) * means[1] + odds * means[0])
    kinds = (rng.random((50, num)) >= odds[:, None]).astype(int)
    scores = sizes[kinds, 0] + rng.random((50, num)) * (sizes[:, 1] - sizes[:, 0])[kinds]
    truth = Truth(torch.arange(50)[:, None], 1, scores)
    rows = measure_value("exact", lambda ids: exact[ids[:, -1]], [truth], beta, trial)
    return {row.measure: row.estimate for row in rows if row.at is None and row.of == f"exact, beta {beta:g}"}


def describe(found: list[Estimate], truth: float) -> str:
    """`truth .398: .952 hold it, .021 lie above, .027 below; no low end .000, no high end .010`."""
    above = np.mean([one.low > truth for one in found])
    below = np.mean([one.high < truth for one in found])
    open_low, open_high = (np.mean([np.isnan(getattr(one, end)) for one in found]) for end in ("low", "high"))
    mean = np.nanmean([one.mean for one in found])
    return (
        f"truth {truth:.3f}, mean {mean:.3f}: {1 - above - below:.3f} hold it, {above:.3f} above, {below:.3f} below; "
        f"no low end {open_low:.3f}, no high end {open_high:.3f}"
    )


def main() -> None:
    """Print the table of one estimator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["maximum", "calibration", "ratings", "posterior", "control"])
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    simulate = {
        "maximum": simulate_maximum,
        "calibration": simulate_calibration,
        "ratings": simulate_ratings,
        "posterior": simulate_posterior,
        "control": simulate_control,
    }
    simulate[args.what](args.trials)


if __name__ == "__main__":
    main()
