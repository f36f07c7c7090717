"""The frontier of a base model, against a base whose every text is known."""

from itertools import product

import numpy as np
import pytest

from phf.posterior.frontier import (
    LEAST_DRAWS,
    Frontier,
    best_of,
    estimate,
    find_bound,
    measure_draws,
    place,
    reject,
)

NUM = 600
BETAS = (0.5, 0.1)


def create_source(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """As many texts as draws, each once, so that the draws are p0 itself: scores of two judges, with ties, [2, NUM]; and a policy [NUM]."""
    rng = np.random.default_rng(seed)
    first = np.round(rng.beta(0.4, 1.5, NUM), 2)
    second = np.clip(first + rng.normal(0, 0.2, NUM), 0, 1)
    policy = rng.dirichlet(np.exp(-first / 0.2) * 20 + 0.05)
    return np.stack([first, second]), policy


def create_frontier(scores: np.ndarray) -> Frontier:
    return Frontier(scores, num_bootstrap=100, seed=0)


def test_every_number_of_the_target_is_that_of_the_enumeration() -> None:
    scores, _ = create_source()
    route = create_frontier(scores).follow([1 / beta for beta in BETAS])
    p0 = np.full(NUM, 1 / NUM)
    for number, beta in enumerate(BETAS):
        z = p0 @ np.exp(-scores[0] / beta)
        target = p0 * np.exp(-scores[0] / beta) / z
        assert route.log_z[0, number] == pytest.approx(np.log(z), abs=1e-9)
        assert route.kl[0, number] == pytest.approx(target @ np.log(target / p0), abs=1e-9)
        assert route.scores[:, 0, number] == pytest.approx(scores @ target, abs=1e-9)
        assert route.ess[0, number] == pytest.approx(1 / (target @ (target / p0)), abs=1e-9)


def test_the_distance_to_the_target_is_what_the_identity_says() -> None:
    """KL(policy || p*) = KL(policy || p0) + score / beta + log Z, by enumeration; and its least is the excess at the same score."""
    scores, policy = create_source()
    frontier = create_frontier(scores)
    p0 = np.full(NUM, 1 / NUM)
    known = policy > 0
    kl = policy[known] @ np.log(policy[known] / p0[known])
    standing = place(
        frontier, frontier.follow_whole(), np.full(101, kl), np.tile((scores @ policy)[:, None], 101), BETAS
    )
    for number, beta in enumerate(BETAS):
        weights = np.exp(-scores[0] / beta)
        target = weights / weights.sum()
        exact = policy[known] @ np.log(policy[known] / target[known])
        bias = (NUM * (weights**2).sum() / weights.sum() ** 2 - 1) / (2 * NUM)  # which is taken off log Z
        assert standing.to_target[number, 0] == pytest.approx(exact + bias, abs=1e-9)
    lambdas = np.linspace(0.05, 40, 20_000)
    log_z = np.log(np.exp(-np.outer(lambdas, scores[0])).mean(1))
    least = (kl + lambdas * (scores[0] @ policy) + log_z).min()
    assert standing.excess[0, 0] == pytest.approx(least, abs=2e-3)
    assert 1 / standing.beta[0] == pytest.approx(
        lambdas[np.argmin(kl + lambdas * (scores[0] @ policy) + log_z)], rel=0.02
    )


def test_a_target_has_no_excess_and_a_worse_policy_owes_all_of_its_kl() -> None:
    scores, _ = create_source()
    frontier = create_frontier(scores)
    whole = frontier.follow_whole()
    target = frontier.weigh([1 / 0.2])[:, 0]
    target /= target.sum()
    kl = np.full(101, target @ np.log(target * NUM))
    on_it = place(frontier, whole, kl, np.tile((scores @ target)[:, None], 101), BETAS)
    assert on_it.excess[:, 0] == pytest.approx(0, abs=3e-3)
    assert on_it.beta[0] == pytest.approx(0.2, rel=0.02)
    worse = place(frontier, whole, np.full(101, 0.7), np.full((2, 101), 0.9), BETAS)
    assert worse.excess[:, 0] == pytest.approx(0.7)
    assert np.isnan(worse.beta[0])
    beyond = place(frontier, whole, np.full(101, 9.0), np.full((2, 101), -1.0), BETAS)
    assert np.isnan(beyond.excess).all()


def test_best_of_n_and_rejection_are_those_of_every_choice() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.beta(0.4, 1.5, (1, 40)), 1)
    frontier = create_frontier(scores)
    wins = np.zeros(40)
    for first, second in product(range(40), repeat=2):
        best = min(scores[0, first], scores[0, second])
        tied = [place for place in (first, second) if scores[0, place] == best]
        for winner in tied:
            wins[winner] += 1 / len(tied) / 1600
    found = best_of(frontier, 2)
    assert found.scores[0, 0] == pytest.approx(scores[0] @ wins, abs=1e-9)
    assert found.cost == 2
    rejected = reject(frontier, 0.2)
    kept = scores[0] <= 0.2
    assert rejected.kl[0] == pytest.approx(-np.log(kept.mean()), abs=1e-9)
    assert rejected.scores[0, 0] == pytest.approx(scores[0, kept].mean(), abs=1e-9)
    assert rejected.cost == pytest.approx(1 / kept.mean())


@pytest.mark.parametrize("n", [2, 8])
def test_the_kl_of_best_of_n_meets_the_bound_without_ties_and_lies_below_it_with_them(n: int) -> None:
    rng = np.random.default_rng(0)
    whole = best_of(create_frontier(rng.random((1, 2000))), n)
    assert whole.kl[0] == pytest.approx(find_bound(n), abs=0.01)
    tied = best_of(create_frontier((rng.random((1, 20_000)) < 0.3).astype(float)), n)
    good = 1 - 0.3**n  # the share of zeros among the best
    exact = good * np.log(good / 0.7) + (1 - good) * np.log((1 - good) / 0.3)
    assert tied.kl[0] == pytest.approx(exact, abs=0.02)
    assert tied.kl[0] < find_bound(n)


@pytest.mark.parametrize("kind", ["two scores", "zeros and others", "rounded"])
def test_the_kl_of_best_of_n_has_an_interval_where_scores_tie(kind: str) -> None:
    """The interval holds the KL of the whole source in 200 repeats as often as it says; without ties it has no width."""
    rng = np.random.default_rng(0)
    source = {
        "two scores": (rng.random(4000) < 0.3).astype(float),
        "zeros and others": np.where(rng.random(4000) < 0.5, 0.0, np.round(rng.beta(0.5, 1.5, 4000), 2)),
        "rounded": np.round(rng.beta(0.4, 1.5, 4000), 2),
    }[kind]
    _, counts = np.unique(source, return_counts=True)
    above = np.append(counts[::-1].cumsum()[::-1], 0) / len(source)
    chosen, own = above[:-1] ** 8 - above[1:] ** 8, counts / len(source)
    truth = float(chosen @ np.log(chosen / own))
    hits = 0
    for repeat in range(200):
        frontier = Frontier(rng.choice(source, (1, 500)), num_bootstrap=200, seed=repeat)
        found = estimate(best_of(frontier, 8).kl, 500)
        hits += found.low <= truth <= found.high
    assert 180 <= hits <= 198, hits
    alone = best_of(create_frontier(rng.random((1, 500))), 8).kl
    assert np.ptp(alone) < 1e-9


def test_what_rejection_keeps_is_the_target() -> None:
    rng = np.random.default_rng(1)
    scores = rng.beta(0.4, 1.5, (1, 40_000))
    frontier = create_frontier(scores)
    kept = frontier.keep(rng.random(40_000), 0.1)
    route = frontier.follow([10])
    assert kept.mean() == pytest.approx(np.exp(route.log_z[0, 0]), abs=0.01)
    assert scores[0, kept].mean() == pytest.approx(route.scores[0, 0, 0], abs=0.002)


def test_texts_without_a_score_have_no_place() -> None:
    """All is given that a text is scored: as if the others had never been drawn, but for the share."""
    scores, _ = create_source()
    holes = np.concatenate([scores, np.full((2, 200), np.nan)], 1)
    known, found = (create_frontier(own).follow([5.0]) for own in (scores, holes))
    for name in ("log_z", "kl", "scores", "ess"):
        assert getattr(found, name)[..., 0, :] == pytest.approx(getattr(known, name)[..., 0, :])
    assert found.base_share[0] == 0.75
    gaps = np.array([1.0, 3.0, 99.0])
    kl, means = measure_draws(
        np.array([[0.2, 0.4, np.nan]]), gaps, np.full(101, 0.5), num_bootstrap=100, seed=0
    )
    assert kl[0] == pytest.approx(2.0 - np.log(2 / 3) + np.log(0.5))
    assert means[0, 0] == pytest.approx(0.3)


def test_scores_below_zero_have_their_least_for_a_bound() -> None:
    scores, _ = create_source()
    frontier, moved = create_frontier(scores), create_frontier(scores - 2)
    assert moved.bound == pytest.approx(scores[0].min() - 2)
    assert moved.follow([5.0]).kl[0] == pytest.approx(frontier.follow([5.0]).kl[0])


def test_the_frontier_ends_where_few_draws_carry_it() -> None:
    scores, _ = create_source()
    whole = create_frontier(scores).follow_whole()
    assert whole.lambdas[0] == 0
    assert whole.kl[0, 0] == 0
    assert whole.ess[0, -1] * NUM > LEAST_DRAWS
    assert (np.diff(whole.kl[0]) >= -1e-12).all()
    assert (np.diff(whole.scores[0, 0]) <= 1e-12).all()


def test_an_interval_without_a_lower_end_says_so() -> None:
    found = estimate(np.array([1.0, *np.linspace(0.5, 1.5, 96), *[np.nan] * 4]), 7)
    assert np.isnan(found.low)
    assert found.high > 1.4
    assert found.count == 7
    assert np.isnan(estimate(np.array([np.nan, 1.0, 2.0]), 7).low)
    rare = estimate(np.array([2.5, *[1.5] * 90, *[np.inf] * 10]), 7)  # resamples in which nothing was kept
    assert np.isnan(rare.high)
    assert rare.low == 1.5


def test_equal_scores_have_a_frontier_of_one_point() -> None:
    whole = create_frontier(np.full((1, 50), 0.2)).follow_whole()
    assert whole.kl == pytest.approx(0, abs=1e-12)
    assert whole.scores == pytest.approx(0.2)


def test_intervals_hold_the_truth() -> None:
    """A hundred repeats at small size; `benchmarks/coverage.py posterior` has more, and more kinds."""
    rng = np.random.default_rng(0)
    scores, policy = create_source()
    p0 = np.full(NUM, 1 / NUM)
    known = policy > 0
    kl = float(policy[known] @ np.log(policy[known] / p0[known]))
    weights = np.exp(-scores[0] / 0.1)
    to_target = kl + float(scores[0] @ policy) / 0.1 + np.log(weights.mean())
    hits = {"kl": 0, "target": 0, "log_z": 0}
    for repeat in range(100):
        drawn, own = rng.integers(NUM, size=400), rng.choice(NUM, 400, p=policy)
        frontier = Frontier(scores[:, drawn], num_bootstrap=200, seed=repeat)
        route = frontier.follow([0.0, 10.0])
        gaps = np.log(policy[own] / p0[own])
        found, means = measure_draws(scores[:, own], gaps, route.base_share, num_bootstrap=200, seed=repeat)
        standing = place(frontier, route, found, means, (0.1,))
        for name, values, truth in (
            ("kl", found, kl),
            ("target", standing.to_target[0], to_target),
            ("log_z", frontier.correct_log_z(route)[:, 1], np.log(weights.mean())),
        ):
            interval = estimate(values, 400)
            hits[name] += interval.low <= truth <= interval.high
    assert all(88 <= count <= 100 for count in hits.values()), hits
