"""Rounds on own text where every text can be listed: what each objective's rule does to the distribution, in exact expectation."""

import numpy as np
import pytest
import torch
from test_lemma import ALLOWED, TEXTS, make_model, scores, text_gradients, text_probabilities

from phf.config.objectives import RWR, Conditional, Filtering
from phf.loops.lemma import Pages, find_gradients
from phf.objective_resolution import resolve_objective
from phf.objectives import apply_objective, segment_weights
from phf.records import GOOD

ONE = np.ones(len(TEXTS), np.int64)
IS_TRAIN = np.ones(len(TEXTS), bool)


def resolve(config, probabilities: np.ndarray, own_scores: np.ndarray):
    """An objective on the texts as a corpus in which each stands as often as it is written."""
    copies = np.round(probabilities * 1e12).astype(np.int64)
    return resolve_objective(config, own_scores.astype(np.float32), copies, ONE, IS_TRAIN)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


def test_rounds_of_rwr_are_the_posterior_at_beta_over_the_number_of_rounds() -> None:
    """A round trains on own samples, weighed: p_t = p_{t-1} w / E[w]. By the weights that training uses."""
    p0 = text_probabilities(make_model(0))
    objective = resolve(RWR(beta=0.5, normalize="none", max_weight=1e9), p0, scores())
    p = p0
    for number in range(1, 6):
        p = p * segment_weights(objective, scores().astype(np.float32))
        p /= p.sum()
        target = p0 * np.exp(-scores() * number / 0.5)
        assert 0.5 * np.abs(p - target / target.sum()).sum() < 1e-6


def test_rounds_of_filtering_at_one_threshold_are_idempotent() -> None:
    p = text_probabilities(make_model(0))
    objective = resolve(Filtering(threshold=0.4), p, scores())
    rounds = []
    for _ in range(3):
        p = p * apply_objective(objective, scores().astype(np.float32), ONE, IS_TRAIN).rule.keep
        p /= p.sum()
        rounds.append(p)
    assert np.array_equal(rounds[0], rounds[1])
    assert np.array_equal(rounds[1], rounds[2])
    assert kl(rounds[0], text_probabilities(make_model(0))) > 0.1


def test_conditioning_on_the_best_half_adds_log_2_a_round_until_scores_tie() -> None:
    p0 = text_probabilities(make_model(0, scale=0.02))  # no text has much of the mass
    own = np.floor(scores() * 64) / 64  # with ties
    own[0] = 1
    p, gains = p0, []
    while np.ptp(own[p > 0]) > 0:
        kept = p > 0  # texts that are gone are no documents any more
        copies, ones = np.round(p[kept] * 1e12).astype(np.int64), np.ones(kept.sum(), np.int64)
        objective = resolve_objective(
            Conditional(good_fraction=0.5), own[kept].astype(np.float32), copies, ones, ones > 0
        )
        following = np.zeros_like(p)
        following[kept] = p[kept] * (objective.rule.labels == GOOD)
        following /= following.sum()
        gains.append(kl(following, p0) - kl(p, p0))
        assert gains[-1] == pytest.approx(-np.log(objective.threshold.token_share))
        p = following
    assert gains[:4] == pytest.approx([np.log(2)] * 4, abs=0.1)
    assert len(gains) < 10  # then what is left ties


def step_kl(lr: float, size: int, num: int, weights: np.ndarray | None = None) -> tuple[float, float]:
    """E[KL(after || before)] and E[gain of the weights' reward] of one SGD step on `size` own samples, over `num` such steps."""
    model, gradients, rng = make_model(0), text_gradients(0), np.random.default_rng(5)
    before = [own.detach().clone() for own in model.parameters()]
    own = text_probabilities(model)
    rewards = np.ones(len(TEXTS)) if weights is None else weights
    kls, gains = [], []
    for _ in range(num):
        counts = rng.multinomial(size, own) / size
        move = torch.from_numpy(lr * (counts * rewards) @ gradients)
        place = 0
        with torch.no_grad():
            for parameter, old in zip(model.parameters(), before, strict=True):
                parameter.copy_(old + move[place : place + old.numel()].view_as(old))
                place += old.numel()
        after = text_probabilities(model)
        kls.append(kl(after, own))
        gains.append(float(after @ rewards - own @ rewards))
    return float(np.mean(kls)), float(np.mean(gains))


def slope(values: list[float], rates: list[float]) -> float:
    return float(np.polyfit(np.log(rates), np.log(values), 1)[0])


def test_own_samples_without_scores_change_nothing_to_first_order() -> None:
    """E[KL] grows as the square of the rate and falls with the samples; what scored samples gain grows as the rate itself."""
    rates = [0.001, 0.002, 0.004]
    few = [step_kl(rate, 8, 12)[0] for rate in rates]
    many = [step_kl(rate, 64, 12)[0] for rate in rates]
    assert slope(few, rates) == pytest.approx(2, abs=0.2)
    assert slope(many, rates) == pytest.approx(2, abs=0.2)
    assert 4 < few[0] / many[0] < 16  # 8 times the samples
    own = text_probabilities(make_model(0))
    rewards = own @ scores() - scores()
    gains = [step_kl(rate, 64, 12, rewards)[1] for rate in rates]
    assert slope(gains, rates) == pytest.approx(1, abs=0.2)


def test_a_step_on_the_exact_expectation_of_own_samples_is_none() -> None:
    model = make_model(0)
    pages = Pages(TEXTS, [1] * len(TEXTS))
    (found,) = find_gradients(model, pages, [pages.weigh(text_probabilities(model).tolist())], ALLOWED)
    assert float(found.abs().max()) < 1e-6
