"""The soft-value head against a Markov chain whose soft values solve a linear system."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from known_models import END, NUM_IDS, TEXTS, create_bigram, create_target

from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.intervals import rank_correlation
from phf.results import Measurements
from phf.soft_control.values import (
    MEASURES,
    Texts,
    draw_texts,
    draw_truth,
    find_goals,
    fit_value,
    measure_value,
)

BETA = 0.4
CHAIN = np.array([[0.3, 0.3, 0.2, 0.2], [0.6, 0.2, 0.1, 0.1], [0.3, 0.2, 0.2, 0.3], [0.4, 0.1, 0.1, 0.4]])
"""Of the end, "a", "b" and "c": what comes after each; behind the end a page begins."""
SCORES = {"": 0.5, "a": 0.0, "b": 0.3, "c": 1.0}
SAMPLING = SamplingConfig(
    num_samples=800, temperature=1.0, top_p=1.0, min_new_tokens=0, max_new_tokens=16, batch_size=4000
)


def create_chain() -> torch.nn.Module:
    """A model whose last hidden state is the last token, so that a linear head can be right."""
    table = torch.full((NUM_IDS, NUM_IDS), -1e4)
    table[:4, :4] = torch.from_numpy(CHAIN).log().clamp(min=-1e4)
    return create_bigram(table)


def score_last(texts: Sequence[str]) -> np.ndarray:
    """A text is as bad as its last letter."""
    return np.array([SCORES[text[-1:]] for text in texts])


def solve_chain() -> np.ndarray:
    """V behind the end (an empty page), "a", "b" and "c": h(s) = P(s, end) w(s) + sum of P(s, t) h(t)."""
    weights = np.exp(-np.array([SCORES[text] for text in TEXTS[:4]]) / BETA)
    inner = CHAIN.copy()
    inner[:, END] = 0
    return np.log(np.linalg.solve(np.eye(4) - inner, CHAIN[:, END] * weights))


def walk_chain(num: int, longest: int = 12) -> Texts:
    """Texts of the chain, drawn without a model."""
    rng = np.random.default_rng(0)
    ids, num_states = np.full((num, longest + 1), END), np.full(num, longest)
    for step in range(longest):
        drawn = (rng.random(num)[:, None] > CHAIN[ids[:, step]].cumsum(1)).sum(1)
        alive = num_states == longest
        num_states[alive & (drawn == END)] = step + 1
        ids[:, step + 1] = np.where(alive, drawn, END)
    last = [TEXTS[row[row != END][-1]] if (row != END).any() else "" for row in ids]
    return Texts(torch.from_numpy(ids), 1, torch.from_numpy(num_states), score_last(last))


@pytest.mark.parametrize("trace", [1.0, 0.5, 0.0], ids=["monte-carlo", "between", "temporal-difference"])
def test_a_fitted_head_finds_the_soft_values_of_a_chain(trace: float) -> None:
    value = fit_value(create_chain(), walk_chain(6000), BETA, trace=trace)
    found = value.log_psi(torch.tensor([[END, 2, 0], [END, 0, 1], [END, 1, 2], [END, 2, 3]]))
    assert np.ptp(solve_chain()) > 0.3
    assert found == pytest.approx(solve_chain(), abs=0.06)
    assert value.log_psi(torch.tensor([[END]])) == pytest.approx(found[:1], abs=1e-5)


def test_texts_are_what_the_target_writes() -> None:
    sampling = SAMPLING.model_copy(update={"num_samples": 400, "max_new_tokens": 3})
    texts = draw_texts(create_target(create_chain(), "untagged"), score_last, sampling)
    expected = walk_chain(4000, 3)
    assert (texts.num_prefix, texts.ids.shape) == (1, (400, 4))
    assert texts.scores.mean() == pytest.approx(expected.scores.mean(), abs=0.06)
    mean, wanted = (float(one.num_states.double().mean()) for one in (texts, expected))
    assert mean == pytest.approx(wanted, abs=0.15)
    for ids, states, score in zip(texts.ids, texts.num_states, texts.scores, strict=True):
        text = [token for token in ids.tolist() if token != END]
        assert score == SCORES[TEXTS[text[-1]] if text else ""]
        assert states == min(len(text) + 1, 3)


def test_goals_are_the_text_s_weight_or_what_the_next_prefix_is_worth() -> None:
    values = torch.tensor([[0.2, 0.4, 0.8], [0.2, 0.4, 0.8]]).log()
    is_last = torch.tensor([[False, False, True], [False, True, False]])
    weights = torch.tensor([0.5, 0.1])
    assert find_goals(values, weights, is_last, 1.0).numpy() == pytest.approx(
        np.array([[0.5] * 3, [0.1] * 3])
    )
    own = is_last.cumsum(1) - is_last.long() == 0  # beyond the last prefix goals mean nothing
    one_step = find_goals(values, weights, is_last, 0.0)[own]
    assert one_step.tolist() == pytest.approx([0.4, 0.8, 0.5, 0.4, 0.1])
    between = find_goals(values, weights, is_last, 0.5)[own]
    assert between.tolist() == pytest.approx([0.5 * 0.4 + 0.5 * 0.65, 0.65, 0.5, 0.5 * 0.4 + 0.5 * 0.1, 0.1])


def test_the_truth_is_that_of_the_prefix_and_a_right_value_has_no_bias() -> None:
    target = create_target(create_chain(), "untagged")
    sampling = SAMPLING.model_copy(update={"num_samples": 60})
    truths = draw_truth(target, score_last, sampling, [1, 2], continuations=64)
    exact = solve_chain()
    for truth in truths:
        assert truth.ids.shape[1] == 1 + truth.num_tokens
        logs = np.log(np.exp(-truth.scores / BETA).mean(1))
        assert np.abs(logs - exact[truth.ids[:, -1]]).mean() < 0.1
    right = Measurements(measure_value("exact", lambda ids: exact[ids[:, -1]], truths, BETA))
    assert set(right.measures) == {one.name for one in MEASURES}
    for measure in ("value_bias", "value_excess"):
        estimate = right.find(measure, of="exact, beta 0.4")
        assert estimate.low - 0.01 < 0 < estimate.high + 0.01, measure
    assert right.find("value_rank_correlation", of="exact, beta 0.4").high > 0.8
    assert right.find("value_rank_correlation", of="truth by halves, beta 0.4").high > 0.8
    high = Measurements(measure_value("high", lambda ids: exact[ids[:, -1]] + np.log(2), truths, BETA))
    assert high.find("value_bias", of="high, beta 0.4", at=1).mean == pytest.approx(
        right.find("value_bias", of="exact, beta 0.4", at=1).mean + np.log(2)
    )
    assert high.find("value_excess", of="high, beta 0.4").mean == pytest.approx(
        1 + 2 * right.find("value_excess", of="exact, beta 0.4").mean
    )
    flat = Measurements(measure_value("flat", lambda ids: np.zeros(len(ids)), truths, BETA))
    assert np.isnan(flat.find("value_rank_correlation", of="flat, beta 0.4").mean)


def test_the_interval_of_a_rank_correlation_covers_as_often_as_it_says() -> None:
    """Normal pairs of correlation r have Spearman's rho 6 / pi asin(r / 2) (Pearson 1907)."""
    rng, r = np.random.default_rng(0), 0.6
    truth, hits = 6 / np.pi * np.arcsin(r / 2), 0
    for _ in range(400):
        first = rng.normal(size=80)
        estimate = rank_correlation(first, r * first + np.sqrt(1 - r**2) * rng.normal(size=80))
        hits += estimate.low < truth < estimate.high
    assert 0.92 < hits / 400 < 0.985


def test_what_cannot_be_measured_is_refused() -> None:
    target = create_target(create_chain(), "untagged")
    few = SAMPLING.model_copy(update={"num_samples": 4})
    with pytest.raises(PHFError, match="4 of 4 texts have no score"):
        draw_texts(target, lambda texts: np.full(len(texts), np.nan), few)
    with pytest.raises(PHFError, match="no text is longer than 16 tokens; give shorter prefixes"):
        draw_truth(target, score_last, few, [16])
