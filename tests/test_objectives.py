"""Objectives: numbers worked by hand, identities between them, and the faults of the released code."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phf.config import AWR, MLE, RWR, Conditional, Filtering, Unlikelihood
from phf.errors import PHFError
from phf.objectives import (
    Objective,
    RewardScale,
    effective_sample_share,
    resolve_objective,
    token_loss,
    token_weights,
)
from phf.records import BAD, CONTROL, END, GOOD, NO_LABEL, PAD, TEXT, DataRule
from phf.thresholds import Threshold

RULE = DataRule(np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.uint8))
NAN = float("nan")


def tensors(nll, scores, kinds=None):
    kinds = kinds or [TEXT if not math.isnan(score) else END for score in scores]
    return torch.tensor([nll]), torch.tensor([scores]), torch.tensor([kinds], dtype=torch.uint8)


def objective(config, threshold=None, scale=None):
    limit = None if threshold is None else Threshold(threshold, 0.5, 0.5, "")
    return Objective(config, RULE, limit, scale)


RAW = RewardScale(0.0, 1.0)
LN2 = math.log(2)


def test_two_tokens_by_hand():
    # p = 1/2 on a good token (score 0.1) and p = 1/4 on a bad one (score 0.8).
    nll, scores, kinds = tensors([LN2, 2 * LN2], [0.1, 0.8])
    mle = token_loss(objective(MLE()), nll, scores, kinds)
    torch.testing.assert_close(mle, torch.tensor([[LN2, 2 * LN2]]))
    unlikely = token_loss(objective(Unlikelihood(threshold=0.5, alpha=0.5), 0.5), nll, scores, kinds)
    torch.testing.assert_close(unlikely, torch.tensor([[LN2, 0.5 * -math.log(1 - 0.25)]]))
    rwr = token_loss(objective(RWR(beta=0.5, normalize="none"), scale=RAW), nll, scores, kinds)
    torch.testing.assert_close(rwr, torch.tensor([[math.exp(-0.2) * LN2, math.exp(-1.6) * 2 * LN2]]))
    values = torch.tensor([[-0.3, -0.3]])
    awr = token_loss(
        objective(AWR(alpha=0.25, beta=0.5, normalize="none"), scale=RAW), nll, scores, kinds, values
    )
    by_hand = [
        0.25 * math.exp((-0.1 + 0.3) / 0.5) * LN2 + 0.75 * (-0.3 + 0.1) ** 2,
        0.25 * math.exp((-0.8 + 0.3) / 0.5) * 2 * LN2 + 0.75 * (-0.3 + 0.8) ** 2,
    ]
    torch.testing.assert_close(awr, torch.tensor([by_hand]))


nlls = st.floats(0.0, 12.0, width=32)
unit = st.floats(0.0, 1.0, width=32)


@given(st.lists(st.tuples(nlls, unit), min_size=1, max_size=8))
def test_identities(rows):
    nll, scores, kinds = tensors([row[0] for row in rows], [row[1] for row in rows])
    mle = token_loss(objective(MLE()), nll, scores, kinds)
    scale = RewardScale(-0.4, 0.3)
    far = token_loss(objective(RWR(beta=1e9), scale=scale), nll, scores, kinds)
    torch.testing.assert_close(far, mle)
    nothing_above = token_loss(objective(Unlikelihood(threshold=1.0), 1.0), nll, scores, kinds)
    torch.testing.assert_close(nothing_above, mle)
    rwr = token_loss(objective(RWR(beta=0.7), scale=scale), nll, scores, kinds)
    awr = token_loss(
        objective(AWR(alpha=1.0, beta=0.7), scale=scale), nll, scores, kinds, torch.zeros_like(nll)
    )
    torch.testing.assert_close(awr, rwr)
    assert torch.isfinite(token_loss(objective(Unlikelihood(threshold=-1.0), -1.0), nll, scores, kinds)).all()


def test_threshold_zero_is_a_threshold():
    # Fault 1 of the released code: `if self.score_threshold:` turned 0.0 into "no threshold".
    nll, scores, kinds = tensors([LN2, LN2], [0.0, 1e-6])
    loss = token_loss(objective(Unlikelihood(threshold=0.0, alpha=3.0), 0.0), nll, scores, kinds)
    torch.testing.assert_close(loss, torch.tensor([[LN2, 3 * LN2]]))  # -log(1 - 1/2) = log 2, times alpha


def test_a_score_at_the_threshold_is_good_in_float32_too():
    score = float(np.float32(0.1))
    nll, scores, kinds = tensors([2 * LN2], [score])
    for threshold in (score, 0.1):  # 0.1 as a float64 lies below its own float32 neighbour
        loss = token_loss(objective(Unlikelihood(threshold=threshold), threshold), nll, scores, kinds)
        torch.testing.assert_close(loss, nll)


def test_the_papers_beta_on_raw_scores_is_almost_mle_and_normalised_rewards_are_not():
    # Fault 2: RWR with beta = 10 on scores below 1.
    rng = np.random.default_rng(0)
    values = rng.beta(0.2, 2.0, 4_000).astype(np.float32)
    scores, kinds = torch.tensor(values)[None], torch.full((1, 4_000), TEXT, dtype=torch.uint8)
    raw = token_weights(objective(RWR(beta=10.0, normalize="none"), scale=RAW), scores, kinds, None)
    assert effective_sample_share(raw, kinds) > 0.999
    ones = np.ones(4_000, dtype=np.int64)
    resolved = resolve_objective(RWR(), values, ones, ones, ones.astype(bool))
    share = effective_sample_share(token_weights(resolved, scores, kinds, None), kinds)
    assert 0.05 < share < 0.9


def test_padding_weighs_nothing_and_other_targets_weigh_one():
    nll, scores, kinds = tensors([1.0, 2.0, 3.0, 4.0], [0.9, NAN, NAN, NAN], [TEXT, END, CONTROL, PAD])
    scale = RewardScale(-0.5, 0.1)
    for config, limit in ((MLE(), None), (Unlikelihood(threshold=0.5), 0.5), (RWR(), None)):
        loss = token_loss(objective(config, limit, scale), nll, scores, kinds)
        torch.testing.assert_close(loss[0, 1:], torch.tensor([2.0, 3.0, 0.0]))
        assert torch.isfinite(loss).all()
    awr = token_loss(objective(AWR(alpha=0.5), scale=scale), nll, scores, kinds, torch.ones(1, 4))
    torch.testing.assert_close(awr[0, 1:], torch.tensor([1.0, 1.5, 0.0]))


def test_a_masked_token_changes_nothing():
    nll, scores, kinds = tensors([1.0, 2.0], [0.9, NAN], [TEXT, PAD])
    for config in (MLE(), RWR(normalize="none")):
        short = token_loss(objective(config, scale=RAW), nll[:, :1], scores[:, :1], kinds[:, :1]).sum()
        torch.testing.assert_close(token_loss(objective(config, scale=RAW), nll, scores, kinds).sum(), short)


def test_gradient_flows_to_the_value_only_through_its_own_loss():
    nll, scores, kinds = tensors([1.0], [0.3])
    nll.requires_grad_()
    values = torch.tensor([[0.2]], requires_grad=True)
    config = AWR(alpha=0.5, normalize="none")
    token_loss(objective(config, scale=RAW), nll, scores, kinds, values).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.5 * 2 * (0.2 + 0.3)]]))
    torch.testing.assert_close(nll.grad, torch.tensor([[0.5 * math.exp(-0.3 - 0.2)]]))


def test_weights_are_clipped():
    scores, kinds = torch.tensor([[-50.0, 0.0]]), torch.full((1, 2), TEXT, dtype=torch.uint8)
    weights = token_weights(objective(RWR(normalize="none", max_weight=7.0), scale=RAW), scores, kinds, None)
    torch.testing.assert_close(weights, torch.tensor([[7.0, 1.0]]))


# Data rules: five documents of 2, 1, 0, 2 and 1 segments; the last document is validation.
SCORES = np.array([0.0, 0.6, 0.2, 0.9, 0.9, 0.4], dtype=np.float32)
TOKENS = np.array([10, 10, 20, 10, 10, 40], dtype=np.int64)
SEGMENTS = np.array([2, 1, 0, 2, 1], dtype=np.int64)
TRAIN = np.array([True, True, True, True, False])


def resolve(config, scores=SCORES):
    return resolve_objective(config, scores, TOKENS, SEGMENTS, TRAIN)


def test_conditional_labels_every_segment_of_both_splits():
    rule = resolve(Conditional(threshold=0.4, drop_fraction=0.0)).rule
    assert rule.labels.tolist() == [GOOD, BAD, GOOD, BAD, BAD, GOOD]
    assert rule.keep.tolist() == [True, True, False, True, True]


def test_threshold_zero_reaches_every_rule_as_a_threshold():
    # Fault 1 again, where a config becomes a rule: `if not config.threshold` would fall back to something else.
    assert resolve(Unlikelihood(threshold=0.0)).threshold.value == 0.0
    assert resolve(Conditional(threshold=0.0)).rule.labels.tolist() == [GOOD, BAD, BAD, BAD, BAD, BAD]
    clean = SCORES.copy()
    clean[2] = 0.0
    kept = resolve(Filtering(threshold=0.0), clean)
    assert kept.threshold.value == 0.0
    assert kept.rule.keep.tolist() == [False, True, False, False, True]


def test_good_fraction_is_a_share_of_training_tokens():
    # Training tokens by score: 0.0 -> 10, 0.2 -> 20, 0.6 -> 10, 0.9 -> 20; half of 60 is reached at 0.2.
    resolved = resolve(Conditional(good_fraction=0.5))
    assert resolved.threshold.value == pytest.approx(0.2)
    assert resolved.threshold.token_share == pytest.approx(0.5)


def test_filtering_drops_training_documents_by_mean_score_and_keeps_validation():
    rule = resolve(Filtering(threshold=0.3)).rule
    # Means: 0.3, 0.2, none, 0.9, 0.4 (validation, kept although above).
    assert rule.keep[[0, 1, 3, 4]].tolist() == [True, True, False, True]
    assert (rule.labels == NO_LABEL).all()


def test_filtering_that_keeps_everything_is_mle():
    assert (resolve(Filtering(keep_fraction=1.0)).rule.keep == resolve(MLE()).rule.keep).all()


def test_an_unscored_segment_drops_its_document_from_every_objective():
    scores = SCORES.copy()
    scores[1] = np.nan
    for config in (MLE(), Conditional(threshold=0.4), Filtering(threshold=0.5), RWR()):
        keep = resolve(config, scores).rule.keep
        assert not keep[0], "missing is never zero"
        assert keep[[1, 4]].all()


def test_rewards_are_normalised_over_training_tokens():
    scale = resolve(RWR()).reward_scale
    train = np.repeat(SCORES[:5], TOKENS[:5])
    assert scale.mean == pytest.approx(-train.mean())
    assert scale.deviation == pytest.approx(train.std())


def test_scores_that_do_not_vary_are_refused():
    with pytest.raises(PHFError, match=r"every training segment scores 0\.5"):
        resolve(RWR(), np.full(6, 0.5, dtype=np.float32))


def test_one_batch_of_four_is_two_of_two():
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(4, 6, generator=generator)
    scores = torch.rand(4, 6, generator=generator)
    kinds = torch.full((4, 6), TEXT, dtype=torch.uint8)
    kinds[1, 3:] = PAD
    config = objective(RWR(normalize="none"), scale=RAW)
    whole = token_loss(config, nll, scores, kinds).sum()
    halves = sum(
        token_loss(config, nll[i : i + 2], scores[i : i + 2], kinds[i : i + 2]).sum() for i in (0, 2)
    )
    torch.testing.assert_close(whole, halves)
