"""Each objective goes to its closed form: KL(target || model) on a source that can be enumerated (docs/exact_targets.md)."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import toy_source
from cpu import IS_MEASURED
from toy_source import ToySource, in_mode, kl, log_probabilities

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
)
from phf.tokens.splitter import cumulate

OBJECTIVES = {
    "mle": (MLE(), ("none",)),
    "filtering": (Filtering(keep_fraction=0.4), ("none",)),
    "conditional": (Conditional(good_fraction=0.4, drop_fraction=0.1), ("good", "bad")),
    "rwr": (RWR(beta=0.5), ("none",)),
    "rwr-rank": (RWR(beta=0.5, normalize="rank"), ("none",)),
    "awr": (AWR(beta=0.5, max_weight=1e4), ("none",)),
    "removal": (Removal(good_fraction=0.4), ("none",)),
    "masking": (Masking(good_fraction=0.4), ("none",)),
    "inverted": (Conditional(good_fraction=0.4, invert=True), ("good", "bad")),
    "meco": (Conditional(good_fraction=0.4, control_loss=False), ("good", "bad")),
    "quantile": (Quantile(levels=3), ("good", "bad")),
    "additive": (Additive(good_fraction=0.4), ("good", "bad")),
}
train = partial(toy_source.train, width=32, learning_rate=8e-3)
"""As in the benchmark, but sooner where it should be."""
CASES = [(name, 1, 240, 0.03) for name in OBJECTIVES]
CASES += [(name, 2, 360, 0.5) for name in ("mle", "filtering", "conditional", "rwr", "masking", "additive")]


def read(model, source, config, mode):
    folded, mode = in_mode(model, config, mode)
    return log_probabilities(folded, source, mode)


@pytest.fixture(scope="module")
def sources():
    torch.set_num_threads(1)
    return {num_segments: ToySource.make(num_segments) for num_segments in (1, 2)}


@pytest.mark.parametrize(("name", "num_segments", "num_steps", "limit"), CASES)
def test_the_model_goes_to_the_closed_form(sources, name, num_segments, num_steps, limit):
    config, modes = OBJECTIVES[name]
    source = sources[num_segments]
    objective = source.resolve(config)
    distances = {mode: [] for mode in modes}
    for _, model in train(source, objective, num_steps, look_every=num_steps // 3):
        for mode in modes:
            distances[mode].append(kl(source.target(objective, mode), read(model, source, config, mode)))
    for found in distances.values():
        assert found[0] > 3
        assert found[-1] == min(found)
        # Masking comes to 0.594 with AVX2's rounding.
        assert found[-1] < (limit if IS_MEASURED else 1.3 * limit), found
    for mode in modes if name != "mle" else ():
        away = kl(source.probabilities, read(model, source, config, mode))
        assert away > limit + 0.3, (
            "the source itself must be further away than the target, or nothing is shown"
        )


def test_the_first_segments_share_does_not_depend_on_what_follows():
    source = ToySource.make(2)
    objective = source.resolve(RWR(beta=1.0))
    target = source.target(objective)
    # E[w | s_1] is divided out, so only the first segment's own weight moves its share.
    first = [document[0] for document in source.documents]
    starts = cumulate([first.count(s) for s in sorted(set(first))])
    sums = [target[a:b].sum() for a, b in pairwise(starts)]
    assert sum(sums) == pytest.approx(1)
    weights = source.weigh(objective, torch.tensor(source.scores).numpy()[:, 0], "none")
    shares = [source.probabilities[a:b].sum() * weights[a] for a, b in pairwise(starts)]
    assert [s / sum(sums) for s in sums] == pytest.approx([s / sum(shares) for s in shares])


@pytest.mark.parametrize("poison", ["shuffle", "random"])
def test_poison_makes_bad_mode_useless_and_leaves_good_mode_its_target(sources, poison):
    source, config = sources[1], Conditional(good_fraction=0.4, poison=poison)
    objective = source.resolve(config)
    *_, (_, model) = train(source, objective, 240)
    good, bad = (
        kl(source.target(objective, mode), log_probabilities(model, source, mode)) for mode in ("good", "bad")
    )
    assert good < 0.03
    assert bad > 1


@pytest.mark.parametrize(
    ("num_segments", "normalize", "num_steps", "limit"), [(1, "rank", 240, 0.05), (2, "none", 450, 1.2)]
)
def test_each_reward_of_a_scalar_objective_goes_to_the_text_of_that_reward(
    num_segments, normalize, num_steps, limit
):
    source = ToySource.make(num_segments, num_levels=4)
    objective = source.resolve(Scalar(normalize=normalize))
    rewards = objective.reward_scale.rewards(torch.from_numpy(np.unique(source.all_scores))).tolist()
    assert min(map(abs, rewards)) > 0.1, "at 0 there is no vector: the source's own mixture"
    readings = [
        (source.resolve(Scalar(normalize=normalize, good_reward=abs(r))), "good" if r > 0 else "bad")
        for r in rewards
    ]
    if (
        num_segments == 1
    ):  # of pages of two, one in a hundred goes without both rewards: none is slow to be learned
        readings.append((objective, "none"))
    distances = []
    for _, model in train(source, objective, num_steps, look_every=num_steps // 3):
        distances.append(
            [
                kl(source.target(asked, mode), read(model, source, asked.config, mode))
                for asked, mode in readings
            ]
        )
    assert np.all(distances[-1] == np.min(distances, axis=0)), distances
    assert max(distances[-1]) < limit, distances
    for asked, mode in readings[:4]:
        assert kl(source.probabilities, read(model, source, asked.config, mode)) > limit + 0.3


@pytest.mark.parametrize(
    ("num_segments", "tag_fraction", "num_steps", "limit"), [(1, 0.5, 240, 0.04), (2, 0.3, 360, 0.4)]
)
def test_tags_tilt_untagged_text_and_what_follows_one_is_bad(
    sources, num_segments, tag_fraction, num_steps, limit
):
    source = sources[num_segments]
    objective = source.resolve(Tagging(good_fraction=0.4, tag_fraction=tag_fraction))
    pages = source.tagged_pages(objective)
    assert sum(pages.values()) == pytest.approx(1)
    targets = {mode: source.target(objective, mode) for mode in ("untagged", "tagged")}
    is_bad = np.array(source.scores)[:, 0] > objective.threshold.value
    assert targets["tagged"][~is_bad].sum() == 0
    assert targets["untagged"][is_bad].sum() < source.probabilities[is_bad].sum() - 0.05
    distances = {mode: [] for mode in targets}
    for _, model in train(source, objective, num_steps, look_every=num_steps // 3):
        for mode, target in targets.items():
            distances[mode].append(kl(target, log_probabilities(model, source, mode)))
    for found in distances.values():
        assert found[-1] == min(found)
        # Masking comes to 0.594 with AVX2's rounding.
        assert found[-1] < (limit if IS_MEASURED else 1.3 * limit), found
    # 0.622 was seen beside a limit of 0.4.
    gap = 0.3 if IS_MEASURED else 0.2
    assert kl(source.probabilities, log_probabilities(model, source, "tagged")) > limit + gap
    if num_segments == 1:  # with two, the tilt is smaller than what is still to be learned
        assert (
            kl(source.probabilities, log_probabilities(model, source, "untagged"))
            > 2 * distances["untagged"][-1]
        )
