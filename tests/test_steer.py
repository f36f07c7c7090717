"""Steering by subtraction and by choice, on models whose probabilities can be written down."""

from collections import Counter

import numpy as np
import pytest
import torch
from known_models import (
    BAD,
    END,
    GOOD,
    NUM_IDS,
    TEXTS,
    TinyTokenizer,
    create_bigram,
    create_llama,
    create_target,
    expected_probs,
    generate,
    p_value,
)

from phf.config.steer import BestOfN, Direction, Rejection, SteerConfig
from phf.config.train import SamplingConfig, parse_spec, write_spec
from phf.errors import PHFError
from phf.generate.target import REDRAW
from phf.model.residual import mean_differences, read_residual
from phf.steer.choose import choose_lowest
from phf.steer.directions import find_directions, subtract_directions
from phf.steer.steering import Aids, steer

TOKENIZER = TinyTokenizer()
SHORT = SamplingConfig(num_samples=6, max_new_tokens=8, min_new_tokens=2, temperature=1.0, top_p=1.0)


def score_letters(texts):
    """Share of `a` and `b`; no score for a text with a line feed."""
    return np.array([np.nan if "\n" in t else (t.count("a") + t.count("b")) / max(len(t), 1) for t in texts])


def create_flat():
    """Every token is as likely as any other: draws of one sample differ."""
    return create_bigram(torch.zeros(NUM_IDS, NUM_IDS))


def write(config, sampling=SHORT, *, model=None, mode="good", is_folded=False, **aids):
    aids = {"score": score_letters, "threshold": 0.0, **aids}
    target = create_target(model or create_flat(), mode, "lines", is_folded=is_folded)
    return steer(target, sampling, config, Aids(**aids))


def draw(indices, sampling=SHORT, **options):
    return generate(create_flat(), TOKENIZER, "good", sampling, indices=indices, **options)


def test_a_redraw_goes_on_from_the_same_prompt_with_numbers_of_its_own() -> None:
    prompts = [[1], [2, 3], [4]]
    plain = generate(create_flat(), TOKENIZER, "good", SHORT, prompts=prompts)
    assert draw([4, 1], prompts=prompts) == [plain[4], plain[1]]
    again = draw([1 + REDRAW, 1 + 2 * REDRAW], prompts=prompts)
    assert [sample.prompt for sample in again] == [plain[1].prompt] * 2
    assert len({sample.text for sample in [*again, *plain]}) == 8, "no two share their random numbers"


def test_best_of_n_takes_the_lowest_score_of_its_own_draws() -> None:
    steered = write(BestOfN(n=4))
    num_changed = 0
    for index, sample in enumerate(steered.samples):
        draws = [draw([index + j * REDRAW])[0] for j in range(4)]
        scores = score_letters([own.text for own in draws])
        best = 0 if np.isnan(scores).all() else int(np.nanargmin(scores))
        assert (sample.index, sample.text) == (index, draws[best].text)
        num_changed += best > 0
    assert steered.facts["changed"] == num_changed / 6 > 0
    assert steered.facts["n"] == 4


def test_best_of_n_depends_on_the_index_alone() -> None:
    whole = write(BestOfN(n=3)).samples
    other = SHORT.model_copy(update={"num_samples": 2, "batch_size": 1})
    assert write(BestOfN(n=3), other).samples == whole[:2]


def test_an_unscored_draw_is_chosen_only_where_all_are() -> None:
    nan = np.nan
    scores = np.array([[0.5, nan, 0.2, 0.2], [nan, nan, nan, nan], [nan, 0.9, nan, 0.95]])
    assert choose_lowest(scores).tolist() == [2, 0, 1]
    plain = generate(create_flat(), TOKENIZER, "good", SHORT)
    steered = write(BestOfN(n=2), score=lambda texts: np.full(len(texts), nan))
    assert steered.samples == plain
    assert (steered.facts["num_unscored"], steered.facts["num_unscored_draws"]) == (6, 12)


@pytest.mark.parametrize(("config", "factor"), [(Direction(of="bad", scale=0.0), 1), (BestOfN(n=3), 3)])
def test_cost_is_what_went_through_the_model_for_a_token_that_was_kept(config, factor) -> None:
    exact = SHORT.model_copy(update={"min_new_tokens": 8, "control": "prefix"})
    # Two ids of the page and seven of the eight new ones are read; the last is written alone.
    assert write(config, exact).passes_per_token == pytest.approx(factor * 9 / 8)


def test_rejection_draws_only_what_was_rejected_and_keeps_the_best_of_its_tries() -> None:
    sampling = SHORT.model_copy(update={"num_samples": 24, "max_new_tokens": 6})
    steered = write(Rejection(tries=3), sampling, threshold=0.1)
    num_tries, num_accepted = [], 0
    for index, sample in enumerate(steered.samples):
        draws = [draw([index + j * REDRAW], sampling)[0] for j in range(3)]
        scores = score_letters([own.text for own in draws])
        accepted = np.flatnonzero(scores <= 0.1)
        best = accepted[0] if len(accepted) else 0 if np.isnan(scores).all() else np.nanargmin(scores)
        assert (sample.index, sample.text) == (index, draws[best].text)
        num_tries.append(accepted[0] + 1 if len(accepted) else 3)
        num_accepted += len(accepted) > 0
    assert 0 < num_accepted < 24
    assert {1, 2, 3} == set(num_tries)
    assert steered.facts["accepted"] == pytest.approx(num_accepted / 24)
    assert steered.facts["mean_tries"] == pytest.approx(np.mean(num_tries))
    assert steered.facts["threshold"] == 0.1
    assert write(Rejection(tries=3, threshold=1.0), sampling).facts["threshold"] == 1.0, "its own goes first"


def test_accepted_samples_are_those_of_the_model_given_that_they_are_accepted() -> None:
    logits = torch.linspace(-1, 1, NUM_IDS * NUM_IDS).reshape(NUM_IDS, NUM_IDS)[
        torch.randperm(NUM_IDS, generator=torch.Generator().manual_seed(0))
    ]
    sampling = SHORT.model_copy(update={"num_samples": 1500, "max_new_tokens": 1, "min_new_tokens": 1})
    steered = write(
        Rejection(tries=40), sampling.model_copy(update={"control": "prefix"}), model=create_bigram(logits)
    )
    assert steered.facts["accepted"] == 1.0
    found = Counter(sample.text for sample in steered.samples)
    row = logits[GOOD].clone()
    row[[END, 1, 2, 8, GOOD, BAD, 12, 13, 14, 15]] = -torch.inf  # a, b and what has no score are rejected
    probs = expected_probs(row, 1.0, 1.0)
    counts = np.array([found[text] if probs[token] > 0 else 0 for token, text in enumerate(TEXTS)])
    assert counts.sum() == 1500
    assert p_value(counts, probs[: len(TEXTS)]) > 0.01


@pytest.mark.parametrize("of", ["bad", "difference"])
@pytest.mark.parametrize("layer", [0, 1, 2, "all"])
def test_directions_are_taken_from_the_stream_at_their_place(of, layer) -> None:
    model, texts = create_llama(), [[1, 2, 3], [4, 5]]
    config = Direction(of=of, layer=layer, scale=0.5)
    found = find_directions(model, TOKENIZER.control, config, texts)
    assert list(found) == ([0, 1, 2] if layer == "all" else [layer])
    means = mean_differences(model, TOKENIZER.control, texts)
    for place, vector in found.items():
        expected = model.get_input_embeddings().weight[BAD] if of == "bad" else means[place]
        torch.testing.assert_close(vector, expected.detach())
    ids = torch.tensor([[END, GOOD, 1, 2]])
    before, first = read_residual(model, ids), next(iter(found))
    with subtract_directions(model, found, config.scale):
        moved = read_residual(model, ids)
    torch.testing.assert_close(moved[first], before[first] - 0.5 * found[first])
    torch.testing.assert_close(moved[:first], before[:first])
    torch.testing.assert_close(read_residual(model, ids), before)


def test_text_is_drawn_from_the_distribution_without_the_direction() -> None:
    table = torch.randn(NUM_IDS, NUM_IDS, generator=torch.Generator().manual_seed(1))
    model = create_bigram(table)  # states are one-hot, and the head reads them behind the norm
    sampling = SHORT.model_copy(
        update={"num_samples": 2000, "max_new_tokens": 1, "min_new_tokens": 1, "control": "prefix"}
    )
    steered = write(Direction(scale=0.7), sampling, model=model, texts=[[1, 2]])
    state = torch.zeros(NUM_IDS)
    state[GOOD] += 1 + 0.7
    state[BAD] -= 0.7
    state = state / (state.square().mean() + model.config.rms_norm_eps).sqrt()
    row = (model.lm_head.weight @ state).detach()
    row[[END, GOOD, BAD, *range(12, NUM_IDS)]] = -torch.inf
    probs = expected_probs(row, 1.0, 1.0)[: len(TEXTS)]
    found = Counter(sample.text for sample in steered.samples)
    counts = np.array([found[text] if probs[token] > 0 else 0 for token, text in enumerate(TEXTS)])
    assert counts.sum() == 2000
    assert p_value(counts, probs) > 0.01
    assert steered.facts == {"layers": [0], "norms": [pytest.approx(0.7 * 2**0.5, abs=1e-4)], "num_texts": 1}


def test_scale_0_is_plain_sampling_and_nothing_stays_behind() -> None:
    model = create_llama()
    plain = generate(model, TOKENIZER, "good", SHORT)
    assert write(Direction(scale=0.0), model=model, texts=[[1, 2]]).samples == plain
    assert write(Direction(scale=2.0), model=model, texts=[[1, 2]]).samples != plain
    assert generate(model, TOKENIZER, "good", SHORT) == plain


def test_a_direction_acts_in_bf16_too() -> None:
    half = SHORT.model_copy(update={"precision": "bf16"})
    plain = generate(create_llama(), TOKENIZER, "good", half)
    assert write(Direction(scale=0.0), half, model=create_llama(), texts=[[1, 2]]).samples == plain
    steered = write(Direction(scale=4.0), half, model=create_llama(), texts=[[1, 2]])
    assert steered.samples != plain
    assert steered.passes_per_token > 1, "the copy is counted"


def test_control_is_generation_in_that_style() -> None:
    forced = SHORT.model_copy(update={"control": "forced"})
    expected = generate(create_llama(), TOKENIZER, "good", forced, segments="lines")
    assert expected != generate(create_llama(), TOKENIZER, "good", SHORT)
    config = parse_spec(SteerConfig, "control:style=forced", "--steer")
    assert write(config, model=create_llama()).samples == expected


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (Direction(layer=3), {}, "layer 3 does not exist; give layer=0 for the input, or 1 to 2"),
        (Direction(), {}, "needs held-out segments"),
        (Direction(of="bad"), {"mode": "deleted"}, "has none left; give best-of-n"),
        (Direction(of="bad"), {"is_folded": True}, "adds good and bad to its inputs"),
        (Rejection(), {"threshold": None}, "give rejection:threshold=NUMBER"),
        (parse_spec(SteerConfig, "control", "--steer"), {"mode": "none"}, "mode none has none"),
        (
            BestOfN(),
            {"sampling": SHORT.model_copy(update={"engine": "vllm"})},
            "needs the engine phf, not vllm",
        ),
    ],
)
def test_what_cannot_be_done_is_said(config, options, message) -> None:
    with pytest.raises(PHFError, match=message):
        write(config, **options)


@pytest.mark.parametrize(
    "spec", ["direction:layer=all", "direction:of=bad,layer=2", "rejection:threshold=0.0"]
)
def test_a_spec_is_read_back(spec) -> None:
    assert write_spec(parse_spec(SteerConfig, spec, "--steer")) == spec
