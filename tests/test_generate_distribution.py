"""What is drawn follows the model's truncated distribution: exactly where that can be said, else by a test that would see
1 % of mass in the wrong place.

The statistical tests reject at a p-value of 1e-4, their rate of false alarms. Each states its power against a bias that
moves 0.01 of probability mass from one token to another (above 0.99, from the noncentral chi-square distribution) and
then sees that bias, planted.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
import torch
from known_models import END, GOOD, NUM_IDS, TinyTokenizer, create_llama, expected_probs, generate, p_value
from scipy.stats import chi2, chisquare, kstest, ncx2
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

import phf.generate.engine
from phf.config.train import SamplingConfig
from phf.generate.engine import draw_tokens, uniform_numbers

FALSE_ALARMS = 1e-4
MOVED = 0.01

Draw = Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]


def move_mass(probs: np.ndarray, source: int, target: int) -> np.ndarray:
    """0.01 of the mass of one token given to another."""
    moved = probs.copy()
    moved[source] -= MOVED
    moved[target] += MOVED
    assert moved.min() >= 0
    return moved


def find_power(probs: np.ndarray, biased: np.ndarray, num: int) -> float:
    """The probability that the chi-square test of `num` draws from `biased` against `probs` rejects."""
    kept = probs > 0
    noncentrality = num * float(((biased - probs)[kept] ** 2 / probs[kept]).sum())
    degrees = int(kept.sum()) - 1
    return float(ncx2.sf(chi2.isf(FALSE_ALARMS, degrees), degrees, noncentrality))


def bias_draws(source: int, target: int, probs: np.ndarray) -> Draw:
    """`draw_tokens`, but 0.01 of probability mass is moved from one token to another."""
    rng = np.random.default_rng(99)

    def draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
        tokens = draw_tokens(logits, uniforms, temperature, top_p)
        moved = torch.from_numpy(rng.random(len(tokens)) < MOVED / probs[source])
        return torch.where((tokens == source) & moved, target, tokens)

    return draw


def count_draws(
    draw: Draw, logits: torch.Tensor, temperature: float, top_p: float, num: int, seed: int = 0
) -> np.ndarray:
    counts = np.zeros(len(logits), np.int64)
    rng = np.random.default_rng(seed)
    for _ in range(0, num, 50_000):
        uniforms = torch.from_numpy(rng.random(50_000))
        tokens = draw(logits.expand(50_000, -1), uniforms, temperature, top_p)
        counts += np.bincount(tokens.numpy(), minlength=len(logits))
    return counts


def create_logits(size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 1.5


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0)])
def test_draws_follow_the_truncated_distribution_and_one_percent_of_bias_is_seen(
    temperature: float, top_p: float
) -> None:
    logits = create_logits(70)  # not a multiple of the blocks in which masses are summed
    probs = expected_probs(logits, temperature, top_p)
    num = 500_000
    first, second = np.argsort(-probs)[:2]  # the two likeliest: where 1 % is hardest to see
    assert find_power(probs, move_mass(probs, first, second), num) > 0.99
    assert p_value(count_draws(draw_tokens, logits, temperature, top_p, num), probs) > FALSE_ALARMS
    biased = bias_draws(first, second, probs)
    assert p_value(count_draws(biased, logits, temperature, top_p, num), probs) < FALSE_ALARMS


def test_the_rate_of_false_alarms_is_what_it_says() -> None:
    probs = expected_probs(create_logits(70), 0.7, 0.9)
    counts = np.random.default_rng(0).multinomial(1_000_000, probs, size=20_000)
    kept = probs > 0
    p_values = chisquare(counts[:, kept], probs[kept] * 1_000_000, axis=1).pvalue
    assert kstest(p_values, "uniform").pvalue > FALSE_ALARMS
    assert (p_values < FALSE_ALARMS).sum() <= 8  # 2 expected


@pytest.mark.parametrize("size", [7, 64, 65, 4096])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0), (1.3, 0.5), (0.2, 0.99)])
def test_evenly_spread_numbers_give_each_token_its_mass(size: int, temperature: float, top_p: float) -> None:
    """No chance in it: of N numbers spread evenly over [0, 1) a token gets its mass times N, to within one."""
    num = 8_000
    logits = create_logits(size)
    uniforms = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    tokens = torch.cat(
        [
            draw_tokens(logits.expand(len(part), -1), part, temperature, top_p)
            for part in uniforms.split(2_000)
        ]
    )
    assert (tokens.diff() >= 0).all(), "a larger number gives a later token"
    counts = np.bincount(tokens.numpy(), minlength=size)
    np.testing.assert_allclose(counts, num * expected_probs(logits, temperature, top_p), atol=1.01)


def test_top_p_keeps_the_most_likely_token_and_ties_together() -> None:
    uniforms = torch.from_numpy(np.linspace(0, 1, 1000, endpoint=False))
    peaked = torch.tensor([0.0, 5.0, 1.0]).expand(1000, -1)
    assert set(draw_tokens(peaked, uniforms, 1.0, 0.01).tolist()) == {1}
    tied = torch.tensor([0.0, 2.0, 2.0, 0.0]).expand(1000, -1)
    assert set(draw_tokens(tied, uniforms, 1.0, 0.3).tolist()) == {1, 2}


@pytest.mark.parametrize("top_p", [1e-20, 0.5, 0.9, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("allowed", [[3999], [0], [63, 64], list(range(4000)), list(range(100, 4000, 7))])
def test_no_number_leads_to_a_blocked_token(allowed: list[int], top_p: float) -> None:
    """Not the largest, not the smallest, not one at the edge between two tokens or two blocks."""
    logits = torch.full((1, 4096), -torch.inf)
    logits[0, allowed] = create_logits(len(allowed))
    edges = np.cumsum(expected_probs(logits[0], 1.0, 1.0))
    numbers = np.concatenate([[0.0, np.nextafter(0, 1), np.nextafter(1, 0)], edges[edges < 1][::29]])
    numbers = np.concatenate([numbers, np.nextafter(numbers, 1)])
    uniforms = torch.from_numpy(numbers[numbers < 1])
    drawn = draw_tokens(logits.expand(len(uniforms), -1), uniforms, 1.0, top_p)
    assert set(drawn.tolist()) <= set(allowed)
    if top_p == 1:
        assert drawn[0].item() == min(allowed)
        assert drawn[2].item() == max(allowed)


def test_the_numbers_of_a_sample_are_words_of_a_counter() -> None:
    """Word j needs neither the words before it nor how many are asked for, and (seed, index) is the key as it is."""
    long = uniform_numbers(seed=7, index=3, count=200)
    np.testing.assert_array_equal(uniform_numbers(7, 3, 50), long[:50])
    for word in (0, 1, 77, 199):
        # Philox counts from 1 and gives four words of 64 bits a count, of which 53 bits make a number.
        words = np.random.Philox(key=[7, 3], counter=word // 4).random_raw(4)
        assert (int(words[word % 4]) >> 11) * 2.0**-53 == long[word]
    others = [(7, 4), (8, 3), (3, 7), (0, 0)]
    assert all(not np.isin(uniform_numbers(*other, 200), long).any() for other in others)


def test_the_numbers_are_uniform_along_samples_and_across_them() -> None:
    numbers = np.stack([uniform_numbers(0, index, 256) for index in range(4096)])
    for part in (numbers, numbers[:, :1], numbers[:1], numbers[:, 100:101], np.diff(numbers, axis=0) % 1):
        assert kstest(part.ravel(), "uniform").pvalue > FALSE_ALARMS
    neighbours = [np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]]
    neighbours.append(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1])
    assert np.abs(neighbours).max() < 4 / numbers.size**0.5


BLOCKED = [END, *range(GOOD, NUM_IDS)]


def warp(logits: torch.Tensor) -> torch.Tensor:
    """The next-token distribution that `generate` of transformers draws text from, float64 [B, V]."""
    processors = LogitsProcessorList(
        [SuppressTokensLogitsProcessor(BLOCKED), TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.9)]
    )
    return torch.softmax(processors(None, logits.double()), -1)


class IdText(TinyTokenizer):
    """Text is the ids themselves."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def write_ids(
    model: LlamaForCausalLM, sampling: SamplingConfig, prompts: Sequence[Sequence[int]] = ((),)
) -> np.ndarray:
    """The new ids of untagged texts, all of one length: int64 [num_samples, T]."""
    samples = generate(model, IdText(), "untagged", sampling, prompts=prompts)
    return np.array([[int(token) for token in sample.text.split()] for sample in samples])


def test_every_token_is_the_one_its_number_picks_from_the_exact_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No chance in it: caches, positions, blocking and truncation against one pass in float64 without a cache, where each
    token's number must lie within its part of [0, 1). One percent of moved mass puts one token in a hundred outside."""
    model, exact = create_llama(seed=5), create_llama(seed=5).double()
    sampling = SamplingConfig(num_samples=60, min_new_tokens=50, max_new_tokens=50, batch_size=40)
    prompts = [[], [1, 2, 3, 4], [5]]

    def count_outside(written: np.ndarray) -> int:
        num = 0
        for index, ids in enumerate(written):
            page = [END, *prompts[index % 3], *ids]
            with torch.no_grad():
                logits = exact(input_ids=torch.tensor([page])).logits[0, -51:-1]
            probs = warp(logits)
            drawn = torch.from_numpy(ids)[:, None]
            high = probs.cumsum(-1).gather(-1, drawn)[:, 0]
            low = high - probs.gather(-1, drawn)[:, 0]
            numbers = torch.from_numpy(uniform_numbers(0, index, 50))
            num += int(((numbers < low - 1e-5) | (numbers > high + 1e-5)).sum())
        return num

    written = write_ids(model, sampling, prompts)
    assert written.shape == (60, 50)
    assert count_outside(written) == 0
    monkeypatch.setattr(phf.generate.engine, "draw_tokens", bias_draws(7, 3, np.full(NUM_IDS, 0.25)))
    assert count_outside(write_ids(model, sampling, prompts)) > 5


def test_whole_texts_are_as_frequent_as_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of three tokens, ours and those of `transformers.generate`, against their exact probabilities; then 1 % of the
    mass of the likeliest first token is moved to the rarest."""
    num = 60_000
    model = create_llama(seed=5)
    texts = np.array(list(product(range(1, GOOD), repeat=3)))
    pages = torch.from_numpy(np.insert(texts, 0, END, axis=1))
    with torch.no_grad():
        logits = model(input_ids=pages).logits[:, :-1]
    probs = warp(logits.reshape(-1, NUM_IDS)).reshape(logits.shape).numpy()
    exact = np.take_along_axis(probs, texts[..., None], axis=-1)[..., 0].prod(1)
    assert exact.sum() == pytest.approx(1, abs=1e-6)
    rare = exact * num < 10  # in one bin with the likeliest, so that the test's approximation holds

    def merge(values: np.ndarray) -> np.ndarray:
        merged = np.where(rare, 0, values)
        merged[exact.argmax()] += values[rare].sum()
        return merged

    def test(written: np.ndarray) -> float:
        place = (written - 1) @ [81, 9, 1]
        return p_value(merge(np.bincount(place, minlength=len(texts))), merge(exact))

    first = probs[0, 0]
    source, target = first.argmax(), np.where(first > 0, first, 1).argmin()
    moved = exact * (move_mass(first, source, target) / np.maximum(first, 1e-9))[texts[:, 0]]
    assert find_power(merge(exact), merge(moved), num) > 0.99

    sampling = SamplingConfig(num_samples=num, min_new_tokens=3, max_new_tokens=3, batch_size=num)
    assert test(write_ids(model, sampling)) > FALSE_ALARMS
    torch.manual_seed(0)
    theirs = model.generate(
        torch.full((num, 1), END),
        attention_mask=torch.ones(num, 1, dtype=torch.long),
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        top_k=0,
        max_new_tokens=3,
        suppress_tokens=BLOCKED,
        pad_token_id=END,
    )
    assert test(theirs[:, 1:].numpy()) > FALSE_ALARMS
    steps = iter([bias_draws(source, target, first), draw_tokens, draw_tokens])
    monkeypatch.setattr(phf.generate.engine, "draw_tokens", lambda *args: next(steps)(*args))
    assert test(write_ids(model, sampling)) < FALSE_ALARMS
