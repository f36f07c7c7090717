"""Sequential Monte Carlo against a source whose every text can be enumerated, so that Z is known."""

import json
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from known_models import (
    BAD,
    END,
    GOOD,
    LabelledSource,
    TinyTokenizer,
    create_llama,
    create_target,
    expected_probs,
    generate,
)

from phf.config.steer import SMC
from phf.config.train import SamplingConfig
from phf.control import mode_rules
from phf.errors import PHFError
from phf.records import Mode
from phf.steer.smc import Twist, draw_parents, find_ess, generate_smc, summarise_log_z
from phf.steer.streams import Steered

SAMPLING = SamplingConfig(
    num_samples=500, min_new_tokens=1, max_new_tokens=7, temperature=0.8, top_p=0.95, batch_size=4_000
)
BETA = 0.2


def score_letters(texts: Sequence[str]) -> np.ndarray:
    """The share of "c", which bad segments have more of, and a little for every "b"."""
    return np.array([(text.count("c") + 0.1 * text.count("b")) / max(len(text), 1) for text in texts])


def enumerate_texts(
    model: LabelledSource, sampling: SamplingConfig, mode: Mode = "good"
) -> tuple[list[str], np.ndarray]:
    """Every text of a mode, with its probability under the sampling settings."""
    found: dict[str, float] = {}
    rules = mode_rules(mode, TinyTokenizer().control)

    @cache
    def find_probs(told: int, *, is_first: bool, is_short: bool) -> np.ndarray:
        logits = model.next_logits([told] if is_first else [told, 1])[:12].double()
        logits[list(rules.blocked)] = -torch.inf
        if is_short:
            logits[END] = -torch.inf
        return expected_probs(logits, sampling.temperature, sampling.top_p)

    def go_on(last: int, text: str, mass: float) -> None:
        if len(text) == sampling.max_new_tokens or last == END:
            found[text] = found.get(text, 0.0) + mass
            return
        is_first = last in (GOOD, BAD)
        probs = find_probs(rules.prefix[1], is_first=is_first, is_short=len(text) < sampling.min_new_tokens)
        for token in np.flatnonzero(probs):
            go_on(int(token), text + TinyTokenizer().decode([token]), mass * probs[token])

    go_on(rules.prefix[1], "", 1.0)
    assert sum(found.values()) == pytest.approx(1)
    return list(found), np.array(list(found.values()))


def exact_log_z(
    model: LabelledSource, sampling: SamplingConfig, mode: Mode = "good", beta: float = BETA
) -> float:
    texts, probs = enumerate_texts(model, sampling, mode)
    return float(np.log(probs @ np.exp(-score_letters(texts) / beta)))


def run(
    config: SMC,
    sampling: SamplingConfig = SAMPLING,
    score: Callable[..., np.ndarray] = score_letters,
    model: LabelledSource | None = None,
    mode: Mode = "good",
) -> Steered:
    return generate_smc(create_target(model or LabelledSource(), mode), sampling, config, score)


def check_log_z(found: Steered, log_z: float, largest_error: float) -> None:
    """Within 4 standard errors of the truth (a false alarm in 16,000), which are small."""
    estimate = found.facts["log_z"]
    error = (np.exp(estimate["high"] - log_z) - np.exp(estimate["low"] - log_z)) / 3.92
    assert np.exp(estimate["mean"] - log_z) == pytest.approx(1, abs=4 * error)
    assert error < largest_error


@pytest.mark.parametrize(
    ("twist", "ess", "largest_error"),
    [
        (None, 1.0, 0.013),
        (Twist(1.0, 0.05), 1.0, 0.013),
        (Twist(0.05, 1.0), 0.9, 0.04),
        (Twist(1.0, 1.0), 1.0, 0.013),
    ],
    ids=["fitted", "steep", "wrong", "flat"],
)
def test_the_estimate_of_z_is_unbiased_whatever_the_twist(
    twist: Twist | None, ess: float, largest_error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of several segments that end when they will, under temperature and top-p."""
    if twist is not None:
        monkeypatch.setattr(Twist, "fit", lambda *_: twist)
    found = run(SMC(beta=BETA, particles=8, ess=ess))
    check_log_z(found, exact_log_z(LabelledSource(), SAMPLING), largest_error)
    assert (found.facts["resamplings"] > 2) == (twist != Twist(1.0, 1.0))
    assert found.facts["log_z"]["count"] == 500
    assert found.facts["unscored"] == found.facts["lost"] == 0


def test_the_models_posterior_lowers_the_variance_of_log_z_below_importance_sampling() -> None:
    """From bad mode to texts of good score, which it seldom writes; as many particles each. A wrong twist raises it."""
    model = LabelledSource(good_share=0.5, segment_end=0.0, page_end=0.0)
    sampling = SAMPLING.model_copy(
        update={"min_new_tokens": 8, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0}
    )
    log_z = exact_log_z(model, sampling, "bad", beta=0.1)
    found = {}
    for name, twist in (("fitted", None), ("none", None), ("wrong", Twist(0.05, 1.0))):
        with pytest.MonkeyPatch.context() as patch:
            if twist is not None:
                patch.setattr(Twist, "fit", lambda *_, twist=twist: twist)
            config = SMC(beta=0.1, particles=8, ess=0.95, twist=name != "none")
            found[name] = run(config, sampling, model=model, mode="bad")
        if name != "wrong":  # of few, very different estimates an interval says little
            check_log_z(found[name], log_z, 0.08)
    variance = {name: one.facts["log_z_deviation"] ** 2 for name, one in found.items()}
    assert variance["fitted"] < 0.8 * variance["none"]
    assert variance["wrong"] > 1.1 * variance["none"]
    assert found["fitted"].facts["ess"] > found["none"].facts["ess"] + 0.1
    assert 0.04 < found["fitted"].facts["twist"] < 0.5
    assert found["none"].facts["twist"] is None
    # Two streams, and a pilot of 64 drafts on 4,000.
    costs = [found[name].passes_per_token for name in ("none", "fitted")]
    assert costs[1] == pytest.approx(2.032 * costs[0], rel=0.01)
    assert costs[0] == pytest.approx((4000 * 7 + 2) / 4000, rel=0.01)


def test_samples_lie_near_the_target_and_are_among_the_particles() -> None:
    texts, probs = enumerate_texts(LabelledSource(), SAMPLING)
    scores = score_letters(texts)
    weights = probs * np.exp(-scores / BETA)
    target, plain = float(weights @ scores / weights.sum()), float(probs @ scores)
    for twist in (True, False):
        found = run(SMC(beta=BETA, particles=8, ess=0.98, twist=twist))
        mean = score_letters([sample.text for sample in found.samples]).mean()
        assert target - 0.015 < mean < target + 0.25 * (plain - target)
        assert [sample.index for sample in found.samples] == list(range(500))


def test_without_a_score_each_particle_is_kept_as_often() -> None:
    """Particle 0 is the plain sample: it is kept once in eight times, and another may say the same."""
    sampling = SAMPLING.model_copy(update={"num_samples": 2000, "batch_size": 16_000})
    _texts, probs = enumerate_texts(LabelledSource(), sampling)
    expected = 1 / 8 + 7 / 8 * float((probs**2).sum())
    config = SMC(beta=BETA, particles=8, twist=False)
    found = run(config, sampling, lambda texts: np.zeros(len(texts))).samples
    plain = generate(LabelledSource(), TinyTokenizer(), "good", sampling)
    num_same = sum(one.text == other.text for one, other in zip(found, plain, strict=True))
    assert num_same / 2000 == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5)


def test_unscored_particles_weigh_nothing_and_are_counted() -> None:
    sampling = SAMPLING.model_copy(update={"num_samples": 400})

    def score(texts: Sequence[str]) -> np.ndarray:
        return np.array([np.nan if "c" in text else 0.0 for text in texts])

    texts, probs = enumerate_texts(LabelledSource(), sampling)
    share = float(probs @ np.array(["c" not in text for text in texts]))
    for twist in (True, False):
        one = run(SMC(beta=BETA, ess=0.98, twist=twist), sampling, score)
        assert np.exp(one.facts["log_z"]["mean"]) == pytest.approx(share, rel=0.1)
        with_c = [sample for sample in one.samples if "c" in sample.text]
        assert len(with_c) == one.facts["lost"] < 40
    assert one.facts["unscored"] / 3200 == pytest.approx(1 - share, abs=0.03)
    nothing = run(SMC(beta=BETA), sampling, lambda texts: np.full(len(texts), np.nan))
    assert nothing.facts["lost"] == len(nothing.samples) == 400
    assert nothing.facts["log_z"]["mean"] is nothing.facts["log_z_deviation"] is None
    assert nothing.facts["ess"] == 0
    json.dumps(nothing.facts, allow_nan=False)
    json.dumps(one.facts, allow_nan=False)


def test_a_score_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(PHFError, match=r"shape \(3,\) for .* texts; give one for each"):
        run(SMC(), SAMPLING.model_copy(update={"num_samples": 1}), lambda texts: np.zeros(3))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = create_llama(seed=3)
    sampling = SamplingConfig(num_samples=5, min_new_tokens=0, max_new_tokens=20, batch_size=64)
    config = SMC(beta=0.1, particles=4, ess=0.999)

    def score(texts: Sequence[str]) -> np.ndarray:
        return np.array([text.count("d") / 10 for text in texts])

    def write(batch_size: int) -> Steered:
        own = sampling.model_copy(update={"batch_size": batch_size})
        return generate_smc(create_target(model), own, config, score, prompts=[[], [1, 2, 3], [5]])

    together, alone = write(64), write(1)
    assert together.samples == alone.samples
    assert together.facts["log_z"] == pytest.approx(alone.facts["log_z"])
    assert together.facts["resamplings"] == alone.facts["resamplings"] > 1
    assert [sample.prompt for sample in together.samples][:3] == ["", "abc", " e"]


def test_resampling_gives_each_particle_its_share_of_children() -> None:
    weights = np.array([0.05, 0.45, 0.0, 0.3, 0.2])
    with np.errstate(divide="ignore"):
        draws = [draw_parents(np.log(weights), uniform) for uniform in (np.arange(1000) + 0.5) / 1000]
    counts = np.array([np.bincount(parents, minlength=5) for parents in draws])
    assert counts.mean(0) == pytest.approx(5 * weights, abs=2e-3)
    assert (np.abs(counts - 5 * weights) < 1).all()
    for parents, own in zip(draws, counts, strict=True):
        kept = np.flatnonzero(own)
        assert (parents[kept] == kept).all(), "who has children is its own first child"


def test_effective_sample_size_by_hand() -> None:
    weights = np.log(np.array([[1.0, 1, 1, 1], [1, 1, 1e-300, 1e-300], [3, 1, 1, 1]])) - 900
    assert find_ess(weights) == pytest.approx([1, 0.5, 36 / 12 / 4])
    assert find_ess(np.full(3, -np.inf)) == 0


def test_a_twist_is_the_line_through_the_pilot_and_never_falls() -> None:
    pi = np.array([[0.2, 0.4, 0.9, 0.9]])
    live = np.ones(1)
    line = Twist.fit(pi, 0.1 + 0.6 * pi[0], live)
    assert (line.good, line.bad) == pytest.approx((0.7, 0.1))
    assert np.exp(line.log_psi(np.log(pi[0]))) == pytest.approx(0.1 + 0.6 * pi[0])
    steep = Twist.fit(pi, np.array([0.0, 0.0, 1.0, 1.0]), live)
    assert steep.bad == pytest.approx(0.05 * steep.good), "no text may be given up for lost"
    for values in (1 - pi[0], np.full(4, 0.5), np.zeros(4)):
        assert Twist.fit(pi, values, live) == Twist(1.0, 1.0)
    assert Twist.fit(np.full((1, 4), 0.3), pi[0], live) == Twist(1.0, 1.0)


def test_a_twist_compares_drafts_at_one_moment() -> None:
    """pi rises by .4 for all while the texts go on: that says nothing of which of them is good."""
    value = np.array([0.2, 0.4, 0.6])
    drifting = np.stack([0.5 * value, 0.5 * value + 0.4])
    line = Twist.fit(drifting, value, np.ones(2))
    assert line.good == pytest.approx(0.4 + 2.0 * (1 - 0.4))
    late = Twist.fit(np.stack([drifting[0], drifting[1, ::-1]]), value, np.array([3.0, 1.0]))
    slope = (3 - 1) / (3 + 1) * 2.0
    assert late.good == pytest.approx(0.4 + slope * (1 - (3 * 0.2 + 0.6) / 4))


def test_the_mean_of_estimates_far_below_what_floats_hold() -> None:
    figures = summarise_log_z(np.log([1.0, 3.0]) - 2000, seed=0)
    assert figures["log_z"]["mean"] == pytest.approx(np.log(2) - 2000)
    assert figures["log_z_deviation"] == pytest.approx(np.log(3) / 2**0.5)
    lost = summarise_log_z(np.array([-np.inf, 0.0]), seed=0)
    assert lost["log_z"]["mean"] == pytest.approx(-np.log(2))
    assert lost["log_z_deviation"] is None
