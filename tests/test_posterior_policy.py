"""Probabilities of texts, against every text there is."""

from itertools import product

import numpy as np
import pytest
from known_models import END, GOOD, TinyTokenizer, create_llama, create_target, p_value

from phf.config.steer import Guidance
from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.generate.engine import Written
from phf.policies.policy import Policy

LETTERS = range(1, 10)
SAMPLING = SamplingConfig(
    num_samples=1,
    temperature=1.3,
    top_p=1,
    min_new_tokens=1,
    max_new_tokens=3,
    control="forced",
    batch_size=10_000,
)


def enumerate_texts(sampling: SamplingConfig) -> list[Written]:
    """Every text under some settings: those that end, and those that are cut."""
    longest = sampling.max_new_tokens
    ended = [
        (list(ids), True)
        for length in range(sampling.min_new_tokens, longest)
        for ids in product(LETTERS, repeat=length)
    ]
    return ended + [(list(ids), False) for ids in product(LETTERS, repeat=longest)]


def create_policy(mode: str, segments: str, control: str, scale: float | None = None) -> Policy:
    sampling = SAMPLING.model_copy(update={"control": control})
    guidance = None if scale is None else Guidance(scale=scale)
    return Policy("p", create_target(create_llama(), mode, segments), sampling, guidance)


CASES = [
    ("good", "lines", "forced", None),
    ("good", "sentences", "forced", None),
    ("bad", "sentences", "forced", None),
    ("good", "document", "forced", None),
    ("good", "sentences", "prefix", None),
    ("untagged", "sentences", "forced", None),
    ("good", "lines", "forced", 2.0),
    ("bad", "sentences", "forced", 2.0),
    ("good", "sentences", "prefix", 0.5),
]


@pytest.mark.parametrize(("mode", "segments", "control", "scale"), CASES)
def test_the_probabilities_of_all_texts_add_up_to_one(
    mode: str, segments: str, control: str, scale: float | None
) -> None:
    policy = create_policy(mode, segments, control, scale)
    texts = enumerate_texts(policy.sampling)
    assert len(texts) == 819
    assert np.exp(policy.log_probs(texts)).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("mode", "segments", "control", "scale"), CASES)
def test_a_text_is_drawn_with_its_probability(
    mode: str, segments: str, control: str, scale: float | None
) -> None:
    policy = create_policy(mode, segments, control, scale)
    texts = enumerate_texts(policy.sampling)
    probs = np.exp(policy.log_probs(texts))
    places = {(tuple(ids), ended): place for place, (ids, ended) in enumerate(texts)}
    drawn = policy.write(range(3000), stream=1)
    counts = np.bincount([places[tuple(ids), ended] for ids, ended in drawn], minlength=len(texts))
    common = probs > 1e-3  # rare texts together, as a chi-square test wants it
    merged = np.append(counts[common], counts[~common].sum()), np.append(probs[common], probs[~common].sum())
    assert p_value(*merged) > 1e-4


def test_a_control_token_stands_before_every_segment_and_costs_what_going_on_costs() -> None:
    """By hand, on the model's own logits: a line ends behind its second token, and the page goes on."""
    policy = create_policy("good", "lines", "forced")
    found = policy.token_log_probs([([1, 8, 2], False)])[0]
    model, temperature = policy.target.model, SAMPLING.temperature

    def probs(page: list[int], allowed: list[int]) -> dict[int, float]:
        import torch

        logits = model(input_ids=torch.tensor([page])).logits[0, -1].double() / temperature
        values = torch.softmax(logits[allowed], -1).tolist()
        return dict(zip(allowed, values, strict=True))

    text = list(LETTERS)
    first = probs([END, GOOD], text)[1]  # the page may not end yet
    second = probs([END, GOOD, 1], [END, *text])[8]
    ends = probs([END, GOOD, 1, 8], list(range(12)))[END]
    third = (1 - ends) * probs([END, GOOD, 1, 8, GOOD], text)[2]
    assert np.exp(found) == pytest.approx([first, second, third], rel=1e-5)


def test_streams_are_independent_and_repeat(tmp_path: object) -> None:
    policy = create_policy("good", "sentences", "forced")
    assert policy.write(range(50)) == policy.write(range(50))
    assert policy.write(range(50)) != policy.write(range(50), stream=1)
    assert policy.write([7, 3]) == [policy.write(range(50))[7], policy.write(range(50))[3]]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"top_p": 0.9}, "top_p 0.9 makes most texts impossible.*--set sampling.top_p=1"),
        ({"control": "free"}, "sum over all placements; give --control forced or prefix"),
        ({"engine": "vllm"}, "the engine vllm gives no probabilities"),
    ],
)
def test_settings_without_probabilities_are_refused(update: dict[str, object], message: str) -> None:
    target = create_target(create_llama())
    with pytest.raises(PHFError, match=message):
        Policy("p", target, SAMPLING.model_copy(update=update))
    with pytest.raises(PHFError, match="against=other"):
        Policy("p", target, SAMPLING, Guidance(against="none"))


def test_a_context_that_cuts_a_text_is_refused() -> None:
    sampling = SAMPLING.model_copy(update={"max_new_tokens": 10, "min_new_tokens": 10})
    target = create_target(create_llama(context=13), "good", "lines", tokenizer=TinyTokenizer())
    with pytest.raises(PHFError, match=r"cut a text after .* of 10 tokens.*--max-new-tokens"):
        Policy("p", target, sampling).write(range(200))
