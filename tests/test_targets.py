"""Each objective goes to its closed form: KL(target || model) on a source that can be enumerated (contract: Objectives)."""

from itertools import pairwise

import pytest
import torch
from toy_source import ToySource, kl, log_probabilities, train

from phf.config import MLE, RWR, Conditional, Filtering
from phf.corpus.tokens import cumulate

OBJECTIVES = {
    "mle": (MLE(), ("none",)),
    "filtering": (Filtering(keep_fraction=0.4), ("none",)),
    "conditional": (Conditional(good_fraction=0.4, drop_fraction=0.1), ("good", "bad")),
    "rwr": (RWR(beta=0.5), ("none",)),
}


@pytest.fixture(scope="module")
def sources():
    torch.set_num_threads(1)
    return {num_segments: ToySource.make(num_segments) for num_segments in (1, 2)}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("num_segments", "num_steps", "limit"), [(1, 300, 0.03), (2, 450, 0.5)])
def test_the_model_goes_to_the_closed_form(sources, name, num_segments, num_steps, limit):
    config, modes = OBJECTIVES[name]
    source = sources[num_segments]
    objective = source.resolve(config)
    distances = {mode: [] for mode in modes}
    for _, model in train(source, objective, num_steps, look_every=num_steps // 3):
        for mode in modes:
            distances[mode].append(kl(source.target(objective, mode), log_probabilities(model, source, mode)))
    for found in distances.values():
        assert found[0] > 3
        assert found[-1] == min(found)
        assert found[-1] < limit, found
    for mode in modes if name != "mle" else ():
        away = kl(source.probabilities, log_probabilities(model, source, mode))
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
    weights = source._weights(objective, torch.tensor(source.scores).numpy()[:, 0], "none")
    shares = [source.probabilities[a:b].sum() * weights[a] for a, b in pairwise(starts)]
    assert [s / sum(sums) for s in sums] == pytest.approx([s / sum(shares) for s in shares])
