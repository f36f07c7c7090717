"""What a level promises and what is written for it, where luck in the scores is known."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from known_models import BAD, END, GOOD, NUM_IDS, TinyTokenizer, create_bigram, create_target

from phf.config.objectives import MLE, Quantile
from phf.config.train import SamplingConfig
from phf.control import ControlTokens
from phf.errors import PHFError
from phf.objective_resolution import resolve_objective
from phf.results import Measurements
from phf.soft_control.returns import MEASURES, find_levels, measure_levels, measure_run
from phf.train.loop import train

SAMPLING = SamplingConfig(num_samples=400, temperature=1.0, top_p=1.0, min_new_tokens=0, max_new_tokens=4)
MIDDLE = 12
TOKENIZER = TinyTokenizer(ControlTokens(END, GOOD, BAD, num_levels=1), vocab_size=13)


def create_conditioned(shares: dict[int, Sequence[float]]) -> torch.nn.Module:
    """A model that writes one letter, "a" or "b", with the shares of the control token before it, and ends."""
    table = torch.full((NUM_IDS, NUM_IDS), -1e4)
    table[:, END] = 0
    for token, own in shares.items():
        table[token, END] = -1e4
        table[token, 1:3] = torch.tensor(own).log().clamp(min=-1e4)
    return create_bigram(table)


@pytest.mark.parametrize("luck", [0.0, 0.4])
def test_a_level_that_is_luck_in_part_is_not_reached(luck: float) -> None:
    """Half of the segments are "a", of score 0, and half "b", of score 1, but a share of the scores is changed: half of these are .5,
    half the other letter's. A model that has learned the levels draws P(letter | level)."""
    num = 4000
    flipped, blurred = round(num * luck / 2), round(num * luck / 2)
    scores = {}
    for letter, own in (("a", 0.0), ("b", 1.0)):
        rest = num - flipped - blurred
        scores[letter] = np.repeat([own, 0.5, 1 - own], [rest, blurred, flipped])
    whole = np.concatenate([scores["a"], scores["b"]]).astype(np.float32)
    ones = np.ones(len(whole), np.int64)
    levels = 3 if luck else 2
    objective = resolve_objective(Quantile(levels=levels), whole, ones, ones, ones.astype(bool))
    values = {GOOD: 0.0, MIDDLE: 0.5, BAD: 1.0}
    shares = {}
    for token, value in values.items():
        counts = np.array([np.count_nonzero(scores[letter] == value) for letter in "ab"], float)
        shares[token] = (counts / max(counts.sum(), 1)).tolist()
    tokenizer = TOKENIZER if luck else TinyTokenizer()
    target = create_target(create_conditioned(shares), "untagged", tokenizer=tokenizer)
    # Asked again, the annotator errs as it did.
    fresh = {letter: float(own.mean()) for letter, own in scores.items()}
    found = Measurements(
        measure_levels(
            find_levels(target, objective, whole, ones),
            lambda texts: np.array([fresh[text] for text in texts]),
            SAMPLING,
        )
    )
    assert set(found.measures) == {one.name for one in MEASURES}
    for place, token in enumerate((GOOD, MIDDLE, BAD) if luck else (GOOD, BAD)):
        assert found.find("promised_level", at=place).mean == values[token]
        truth = shares[token][0] * fresh["a"] + shares[token][1] * fresh["b"]
        realised = found.find("realised_level", at=place)
        assert realised.mean == pytest.approx(truth, abs=0.06)
        shortfall = found.find("level_shortfall", at=place)
        assert shortfall.mean == pytest.approx(realised.mean - values[token], abs=1e-9)
        if luck:
            assert realised.low - 0.01 < truth < realised.high + 0.01
    shortfall = found.find("level_shortfall", at=0)
    assert shortfall.mean == pytest.approx(0.41 if luck else 0.0, abs=0.06)
    assert (shortfall.low > 0.3) == (luck > 0)


@pytest.mark.parametrize(
    "objective",
    ["objective={kind: quantile, levels: 3}", "objective={kind: scalar}"],
)
def test_runs_are_asked_for_each_level(objective: str, small_config, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = train(small_config(objective), tmp_path / "run")
    sampling = SAMPLING.model_copy(update={"num_samples": 16, "max_new_tokens": 8})
    found = Measurements(
        measure_run(run, lambda texts: np.array([float(len(text)) for text in texts]), sampling)
    )
    promised = [row.estimate.mean for row in found.of("promised_level")]
    assert len(promised) == (3 if "quantile" in objective else 5)
    assert promised == sorted(promised)
    assert all(row.estimate.count > 8 for row in found.of("realised_level"))


def test_a_run_without_levels_is_refused() -> None:
    ones = np.ones(4, np.int64)
    objective = resolve_objective(MLE(), np.zeros(4, np.float32), ones, ones, ones.astype(bool))
    with pytest.raises(PHFError, match="mle is not asked for a return; give a run of quantile or scalar"):
        find_levels(
            create_target(create_conditioned({}), "untagged"), objective, np.zeros(4, np.float32), ones
        )
