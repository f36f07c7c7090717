"""Objectives: numbers worked by hand, identities between them, and the faults of the released code."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phf.config.objectives import (
    AWR,
    MLE,
    RWR,
    Additive,
    Conditional,
    Filtering,
    Masking,
    Quantile,
    Removal,
    Scalar,
    Tagging,
    Unlikelihood,
)
from phf.errors import PHFError
from phf.model import lm
from phf.objective_resolution import resolve_objective
from phf.objectives import (
    Objective,
    RewardScale,
    effective_sample_share,
    switch_conditions,
    target_conditions,
    token_loss,
    token_weights,
    warn_of_mle,
)
from phf.records import BAD, CONTROL, END, GOOD, NO_LABEL, PAD, TEXT, DataRule
from phf.thresholds import ResolvedThreshold

RULE = DataRule(np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.uint8))
NAN = float("nan")


def tensors(nll, scores, kinds=None):
    kinds = kinds or [TEXT if not math.isnan(score) else END for score in scores]
    return torch.tensor([nll]), torch.tensor([scores]), torch.tensor([kinds], dtype=torch.uint8)


def objective(config, threshold=None, scale=None):
    limit = None if threshold is None else ResolvedThreshold(threshold, 0.5, 0.5, "")
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
    unmasked = token_loss(objective(Masking(threshold=1.0), 1.0), nll, scores, kinds)
    torch.testing.assert_close(unmasked, mle)
    for data_rule in (
        Conditional(threshold=0.5),
        Additive(threshold=0.5),
        Removal(threshold=0.5),
        Quantile(),
    ):
        torch.testing.assert_close(token_loss(objective(data_rule, 0.5), nll, scores, kinds), mle)
    awr = token_loss(
        objective(AWR(alpha=1.0, beta=0.7), scale=scale), nll, scores, kinds, torch.zeros_like(nll)
    )
    torch.testing.assert_close(awr, rwr)
    assert torch.isfinite(token_loss(objective(Unlikelihood(threshold=-1.0), -1.0), nll, scores, kinds)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unlikelihood_unlearns_a_token_that_is_known_by_heart(dtype):
    # The target's log odds, from p = .27 to 1 - 1e-28, against float64, where the loss is log-sum-exp less that of the others.
    odds = torch.tensor([-1.0, 0.0, 5.0, 13.7, 15.0, 17.0, 27.6, 40.0, 64.0], dtype=torch.float64)
    others = torch.randn(len(odds), 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = torch.cat([odds[:, None] + others.logsumexp(1, keepdim=True), others], dim=1).to(dtype)
    wide = logits.double().requires_grad_()
    exact = wide.logsumexp(1) - wide[:, 1:].logsumexp(1)
    (slopes,) = torch.autograd.grad(exact.sum(), wide)
    unlikelihood = objective(Unlikelihood(threshold=0.5), 0.5)
    leaf, targets = logits.clone().requires_grad_(), torch.zeros(len(odds), dtype=torch.long)
    nll = lm.nll_of_chunk(torch.nn.Identity(), leaf, targets, unlikelihood.needs_exact_nll)
    _, scores, kinds = tensors(odds.tolist(), [0.8] * len(odds))
    loss = token_loss(unlikelihood, nll[None], scores, kinds)
    loss.sum().backward()
    torch.testing.assert_close(loss[0].detach().double(), exact.detach(), atol=1e-6, rtol=1e-5)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(leaf.grad.double(), slopes, atol=1e-7, rtol=max(2 * rounding, 3e-5))
    assert (leaf.grad[:, 0] > 0.2).all()
    mle = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    torch.testing.assert_close(nll.detach(), mle, atol=1e-5, rtol=1e-6)


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


def test_masking_takes_the_loss_of_bad_text_alone():
    nll, scores, kinds = tensors(
        [1.0, 2.0, 3.0, 4.0, 5.0], [0.1, 0.8, 0.5, NAN, NAN], [TEXT, TEXT, TEXT, END, CONTROL]
    )
    nll.requires_grad_()
    loss = token_loss(objective(Masking(threshold=0.5), 0.5), nll, scores, kinds)
    torch.testing.assert_close(loss, torch.tensor([[1.0, 0.0, 3.0, 4.0, 5.0]]))
    loss.sum().backward()
    assert nll.grad.tolist() == [[1, 0, 1, 1, 1]]


@pytest.mark.parametrize(
    "config", [Conditional(threshold=0.5, control_loss=False), Quantile(control_loss=False)]
)
def test_control_tokens_can_go_without_a_loss_of_their_own(config):
    nll, scores, kinds = tensors([1.0, 2.0, 3.0], [NAN, 0.8, NAN], [CONTROL, TEXT, END])
    loss = token_loss(objective(config, 0.5), nll, scores, kinds)
    torch.testing.assert_close(loss, torch.tensor([[0.0, 2.0, 3.0]]))
    paid = token_loss(objective(config.model_copy(update={"control_loss": True}), 0.5), nll, scores, kinds)
    torch.testing.assert_close(paid, nll)


def test_removal_takes_bad_segments_and_documents_without_good_ones_from_training():
    rule = resolve(Removal(threshold=0.3)).rule
    assert rule.keep_segments.tolist() == [True, False, True, False, False, False]
    # Document 3 holds bad segments alone; document 4 too, but is validation.
    assert rule.keep.tolist() == [True, True, False, False, True]
    assert resolve(Removal(threshold=0.3)).kept_share == pytest.approx(30 / 60)


def test_inverting_swaps_the_labels_and_nothing_else():
    plain, inverted = (resolve(Conditional(threshold=0.4, invert=invert)) for invert in (False, True))
    assert (plain.rule.labels + inverted.rule.labels == GOOD + BAD).all()
    assert plain.threshold == inverted.threshold
    assert (inverted.label_segments(SCORES, 0.4) == plain.rule.labels).all(), "the truth stays the truth"


def test_quantile_levels_are_equal_shares_of_training_tokens_best_first():
    scores = np.arange(12, dtype=np.float32)[::-1].copy()
    ones = np.ones(12, dtype=np.int64)
    resolved = resolve_objective(Quantile(levels=4), scores, ones, ones, ones.astype(bool))
    assert [level.value for level in resolved.levels] == [2, 5, 8]
    by_score = resolved.rule.labels[::-1].tolist()
    assert by_score == [GOOD] * 3 + [BAD + 1] * 3 + [BAD + 2] * 3 + [BAD] * 3
    assert resolved.label_segments(np.array([np.nan, 2.0, 2.1], np.float32), 0.0).tolist() == [
        NO_LABEL,
        GOOD,
        BAD + 1,
    ]
    with pytest.raises(PHFError, match=r"4 levels do not fit .* objective\.levels=2 or fewer"):
        resolve_objective(Quantile(levels=4), (scores > 5).astype(np.float32), ones, ones, ones.astype(bool))


def test_two_quantiles_are_conditional_at_one_half():
    quantile, conditional = resolve(Quantile(levels=2)), resolve(Conditional(good_fraction=0.5))
    assert (quantile.rule.labels == conditional.rule.labels).all()
    assert quantile.rule.drop_fraction == conditional.rule.drop_fraction


def test_tagging_labels_bad_segments_alone():
    rule = resolve(Tagging(threshold=0.4)).rule
    assert rule.labels.tolist() == [NO_LABEL, BAD, NO_LABEL, BAD, BAD, NO_LABEL]
    assert rule.tag_fraction == 0.05


def test_conditions_are_those_of_the_targets_segment():
    scores = torch.tensor([[-1.0, -1.0, NAN, 1.0, NAN]])
    kinds = torch.tensor([[TEXT, TEXT, END, TEXT, PAD]], dtype=torch.uint8)
    labels = torch.tensor([[GOOD, GOOD, GOOD, BAD, NO_LABEL]], dtype=torch.uint8)
    added = target_conditions(objective(Additive(threshold=0.0), 0.0), scores, kinds, labels)
    assert added[0].tolist() == [[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]]
    config = Scalar()
    scalar = target_conditions(objective(config, scale=RewardScale(0.0, 2.0)), scores, kinds, labels)
    assert scalar[0, :, 0].tolist() == [0.5, 0.5, 0.5, -0.5, 0]
    assert (scalar[0, :, 1] == 0).all()
    assert (switch_conditions(config, scalar) == -scalar).all()
    dropped = target_conditions(objective(config, scale=RAW), scores, kinds, torch.zeros_like(labels))
    assert (dropped == 0).all()
    assert target_conditions(objective(Conditional(threshold=0.0), 0.0), scores, kinds, labels) is None


def test_rank_rewards_are_standard_normal_over_tokens_with_ties_together():
    rng = np.random.default_rng(0)
    scores = np.concatenate([np.zeros(1000), rng.lognormal(0, 3, 9000)]).astype(np.float32)
    tokens = rng.integers(1, 30, 10_000)
    ones = np.ones(10_000, dtype=np.int64)
    resolved = resolve_objective(RWR(normalize="rank"), scores, tokens, ones, ones.astype(bool))
    rewards = resolved.reward_scale.rewards(torch.from_numpy(scores)).numpy()
    flat = np.repeat(rewards, tokens)
    assert flat.mean() == pytest.approx(0, abs=0.03)
    assert flat.std() == pytest.approx(1, abs=0.03)
    assert len(set(rewards[:1000].tolist())) == 1, "ties share a reward"
    order = np.argsort(scores, kind="stable")
    assert (np.diff(rewards[order]) <= 0).all(), "a higher score is never a higher reward"
    # For normal rewards, (E exp r)^2 / E exp 2r = 1 / e.
    untied = RWR(normalize="rank", max_weight=1e9)
    found = resolve_objective(
        untied, np.sort(rng.random(10_000)).astype(np.float32), tokens, ones, ones.astype(bool)
    )
    assert found.effective_share == pytest.approx(math.exp(-1), abs=0.03)
    # A monotone change of the score's unit changes nothing.
    squashed = resolve_objective(RWR(normalize="rank"), np.log1p(scores), tokens, ones, ones.astype(bool))
    again = squashed.reward_scale.rewards(torch.from_numpy(np.log1p(scores))).numpy()
    np.testing.assert_allclose(again, rewards, atol=0.02)
    far = resolved.reward_scale.rewards(torch.tensor([-1.0, 1e9])).numpy()
    assert far.tolist() == [rewards.max(), rewards.min()], (
        "held-out scores beyond the training split are clamped"
    )


def test_ranks_count_tokens_and_ties_half():
    scores, ones = np.array([0, 1, 1], np.float32), np.ones(3, np.int64)
    resolved = resolve_objective(RWR(normalize="rank"), scores, np.array([3, 2, 3]), ones, ones.astype(bool))
    # 5 of 8 tokens score higher than the first segment, whose own 3 count half; nothing is higher than the tied ones.
    expected = [NormalDist().inv_cdf((5 + 1.5) / 8), NormalDist().inv_cdf(2.5 / 8)]
    assert resolved.reward_scale.rewards(torch.tensor([0.0, 1.0])).tolist() == pytest.approx(expected)


def test_weights_that_make_mle_of_an_objective_are_warned_of():
    # Fault 2, said to the user: the paper's RWR.
    rng = np.random.default_rng(0)
    scores = rng.beta(0.2, 2.0, 400).astype(np.float32)
    ones = np.ones(400, dtype=np.int64)
    for config in (RWR(beta=10.0, normalize="none"), AWR(beta=10.0, normalize="none")):
        line = warn_of_mle(resolve_objective(config, scores, ones, ones, ones.astype(bool)))
        assert line.startswith(f"warning: {config.kind} with beta=10 and normalize=none is almost MLE")
        assert "share of its weights is 0.9996" in line or "0.999" in line
        assert "objective.beta or objective.normalize=zscore" in line
    for config in (RWR(), AWR(), RWR(normalize="rank"), MLE()):
        assert warn_of_mle(resolve_objective(config, scores, ones, ones, ones.astype(bool))) is None


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
