"""Guidance: at scale 1 it is plain sampling; at any scale each token is the one the written formula gives."""

import numpy as np
import pytest
import torch
from known_models import (
    BAD,
    END,
    GOOD,
    TEXTS,
    TinyTokenizer,
    create_bigram,
    create_llama,
    create_table,
    create_target,
    expected_probs,
    generate,
)

from phf.config.steer import Guidance
from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.generate.engine import uniform_numbers
from phf.records import Mode
from phf.steer.guidance import compare, generate_guided

EXCHANGE = {GOOD: BAD, BAD: GOOD}


class Letters(TinyTokenizer):
    """Text that can be read back: one letter for each id."""

    def decode(self, ids: object) -> str:
        return "".join(chr(ord("a") + token) for token in ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize("against", ["other", "none"])
@pytest.mark.parametrize("control", ["free", "prefix", "forced"])
@pytest.mark.parametrize("prompts", [[()], [[], [1, 2, 3], [7]]])
def test_scale_1_is_plain_sampling(against: str, control: str, prompts: list[list[int]]) -> None:
    model = create_llama(seed=3)
    sampling = SamplingConfig(num_samples=12, control=control, max_new_tokens=25, batch_size=8)
    plain = generate(model, TinyTokenizer(), "good", sampling, segments="sentences", prompts=prompts)
    config = Guidance(scale=1.0, against=against)
    found = generate_guided(create_target(model, "good", "sentences"), sampling, config, prompts=prompts)
    assert found.samples == plain
    assert 2 < found.passes_per_token < 3.5
    moved = generate_guided(
        create_target(model, "good", "sentences"),
        sampling,
        config.model_copy(update={"scale": 3.0}),
        prompts=prompts,
    )
    assert sum(one != other for one, other in zip(moved.samples, plain, strict=True)) > 6


@pytest.mark.parametrize("mode", ["good", "bad"])
@pytest.mark.parametrize("against", ["other", "none"])
def test_each_token_is_the_one_its_number_picks_from_the_formula(mode: Mode, against: str) -> None:
    """The formula with float64, log-softmax and no cache; control tokens, told by the text's numbers, by their total mass."""
    model, exact = create_llama(seed=3), create_llama(seed=3).double()
    sampling = SamplingConfig(num_samples=10, min_new_tokens=3, max_new_tokens=20, temperature=0.9)
    config = Guidance(scale=2.5, against=against)
    own = GOOD if mode == "good" else BAD
    num_drawn = num_control = 0
    for sample in generate_guided(create_target(model, mode, tokenizer=Letters()), sampling, config).samples:
        page, written = [END, own], [ord(letter) - ord("a") for letter in sample.text]
        numbers = iter(uniform_numbers(0, sample.index, 100))
        num_text = 0
        while num_text < len(written):
            told = [token for token in page if token not in EXCHANGE]
            if against == "other":
                told = [EXCHANGE.get(token, token) for token in page]
            with torch.no_grad():
                l_mode, l_other = (
                    exact(input_ids=torch.tensor([ids])).logits[0, -1, :12].log_softmax(0)
                    for ids in (page, told)
                )
            gap = l_mode - l_other
            gap[GOOD:] = l_mode[GOOD:].logsumexp(0) - l_other[GOOD:].logsumexp(0)
            guided = l_mode + 1.5 * gap
            guided[EXCHANGE[own]] = -torch.inf
            if num_text < 3:
                guided[END] = -torch.inf
            high = expected_probs(guided, 0.9, 0.9).cumsum()
            token = int(np.searchsorted(high, next(numbers), side="right"))
            page.append(token)
            num_control += token == own
            if token == own:
                continue
            assert token == written[num_text]
            num_text += 1
            num_drawn += 1
    assert num_drawn > 80
    assert num_control > 2


def test_guidance_does_not_reward_the_end_of_a_segment() -> None:
    """Good goes on with good and bad with bad: one by one the tokens differ, as a segment's end they do not."""
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.1, 0.2]])
    own, other = probs.log()[:1], probs.log()[1:] + 5
    assert torch.allclose(compare(own, other, 2), torch.full((1, 4), -5.0), atol=1e-5)
    longer = torch.tensor([[0.4, 0.1, 0.1, 0.4]]).log()
    assert torch.allclose(compare(own, longer, 2)[0].exp(), torch.tensor([1.0, 3.0, 0.6, 0.6]), atol=1e-5)


def test_it_moves_away_from_what_the_other_mode_likes() -> None:
    """In a bigram the control token decides the first token alone."""
    table = create_table(end=-1e4, good=-1e4, bad=-1e4)
    table[BAD, 1] = 2.0
    table[GOOD, 1] = 1.0
    model = create_bigram(table)
    sampling = SamplingConfig(num_samples=300, min_new_tokens=1, max_new_tokens=1, temperature=1.0, top_p=1.0)

    def share(mode: Mode, scale: float) -> float:
        found = generate_guided(create_target(model, mode), sampling, Guidance(scale=scale)).samples
        return float(np.mean([sample.text == TEXTS[1] for sample in found]))

    assert share("good", 4) < share("good", 1) - 0.1 < share("bad", 1) - 0.2 < share("bad", 4) - 0.3


def test_modes_without_a_token_of_their_own_are_refused() -> None:
    with pytest.raises(PHFError, match="choose good or bad"):
        generate_guided(create_target(create_llama(), "untagged"), SamplingConfig(num_samples=1), Guidance())
