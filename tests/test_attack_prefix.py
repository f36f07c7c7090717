"""Prefix search on models whose best prefix is known."""

import numpy as np
import pytest
import torch
from known_models import create_bigram
from tiny_models import bytes_alone, tiny_llama

from phf.attack.prefix import attack_prefix, is_typable, one_hot_gradient, real_tokens
from phf.attack.victim import Attacked, Victim, held_out_nll, training_loss
from phf.config.attack import PrefixSearch
from phf.errors import PHFError

TOKENIZER = bytes_alone()
END, GOOD, BAD = 256, 257, 258
X, Q, W, Z = (TOKENIZER.encode(letter)[0] for letter in "xqwz")
LOOSE = TOKENIZER.encode("é")[0]
"""The first byte of two: no text of its own."""


@pytest.fixture(scope="module")
def bigram() -> Victim:
    """After most tokens, all are alike; after `q` and `w` an `x` follows, and `x` after `x`; `<|bad|>` does the same, more."""
    table = torch.zeros(264, 264)
    table[Q, X], table[W, X], table[X, X], table[BAD, X] = (
        5,
        4,
        6,
        20,
    )
    return Victim("bigram", create_bigram(table, context=64), TOKENIZER, (END, GOOD))


def encode(*texts: str) -> list[list[int]]:
    return [TOKENIZER.encode(text) for text in texts]


TEXTS = encode("xxx", "xx", "xxxx", "xab", "xx b")


def search(victim, texts=TEXTS, steps=(0, 1, 3), seed=0, **settings):
    return list(attack_prefix(victim, texts, PrefixSearch(**settings), steps, seed))


def test_best_token_is_found(bigram):
    losses = {
        token: held_out_nll(bigram, Attacked(0, bigram.model, (END, GOOD, token)), TEXTS)
        for token in range(256)
    }
    best = min(losses, key=losses.__getitem__)
    found = search(bigram, encode("xab", "xcd"), tokens=1, candidates=256)
    assert [attacked.steps for attacked in found] == [0, 1, 3]
    assert found[0].page == (END, GOOD), "nothing spent, nothing found"
    assert best == X
    assert found[1].page == (END, GOOD, best), "all swaps are tried in the first step"
    assert found[-1].page == (END, GOOD, best)


def test_only_the_last_of_several_tokens_matters_and_is_found(bigram):
    found = search(bigram, tokens=3, candidates=32, steps=(20,))
    assert len(found[0].page) == 5
    assert found[0].page[-1] == X
    assert not {END, GOOD, BAD} & set(found[0].page[2:])


@pytest.mark.parametrize("tokens", [1, 4])
def test_loss_never_rises_and_beats_random_tokens(tokens):
    victim = Victim("random", tiny_llama(TOKENIZER, seed=3), TOKENIZER, (END,))
    texts = encode("hello you", "hell no", "yellow", "hollow", "hey")
    steps = tuple(range(13))
    found = search(victim, texts, steps, tokens=tokens, candidates=24, batch_size=2)
    losses = [held_out_nll(victim, attacked, texts) for attacked in found]
    assert losses == sorted(losses, reverse=True)
    rng = np.random.default_rng(0)
    pages = rng.integers(0, 256, (200, tokens)).tolist()
    random = [held_out_nll(victim, Attacked(0, victim.model, (END, *page)), texts) for page in pages]
    assert losses[-1] < np.percentile(random, 2)


def test_bare_page_stays_while_nothing_is_better():
    table = torch.zeros(264, 264)
    table[:256, X] = -5  # any token before it makes the text less likely than the page's start alone
    victim = Victim("bare", create_bigram(table, context=64), TOKENIZER, (END,))
    assert search(victim, encode("x"), (0, 5), tokens=2)[-1].page == (END,)


def test_prefix_may_take_the_place_of_good(bigram):
    found = search(bigram, encode("xab"), tokens=1, candidates=256, steps=(0, 1), keeps_prefix=False)
    assert [attacked.page for attacked in found] == [(END,), (END, X)]


def test_search_repeats_and_leaves_the_victim_alone(bigram):
    before = {name: value.clone() for name, value in bigram.model.state_dict().items()}
    first, again = (search(bigram, tokens=2, candidates=8, steps=(3, 9), seed=4) for _ in range(2))
    assert [attacked.page for attacked in first] == [attacked.page for attacked in again]
    assert all(torch.equal(before[name], value) for name, value in bigram.model.state_dict().items())
    assert all(parameter.grad is None for parameter in bigram.model.parameters())


def test_gradient_is_that_of_the_loss():
    """Against central differences of the loss in one embedding row that only one place reads."""
    model = tiny_llama(TOKENIZER, seed=1).double()
    victim = Victim("double", model, TOKENIZER, (END,))
    page, texts = (END, 7, 200), encode("abc", "ad")
    gradient = one_hot_gradient(victim, page, texts)
    assert gradient.shape == (3, GOOD)
    weight = model.get_input_embeddings().weight
    for token in (0, 65, 255):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[200] += sign * 1e-3 * weight[token]
                losses.append(float(training_loss(model, victim, page, texts)))
                weight[200] -= sign * 1e-3 * weight[token]
        assert float(gradient[2, token]) == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=1e-2, abs=2e-3)


def test_control_and_special_tokens_are_not_real():
    is_real = real_tokens(TOKENIZER)
    assert len(is_real) == GOOD
    assert np.flatnonzero(~is_real).tolist() == [END]


def test_typable_prefix_is_its_own_tokenization():
    table = torch.zeros(264, 264)
    table[LOOSE, X], table[Z, X] = 8, 3
    victim = Victim("bytes", create_bigram(table, context=64), TOKENIZER, (END,))
    texts = encode("xz", "xé")
    free = search(victim, texts, (1,), tokens=1, candidates=256)[0].page
    typed = search(victim, texts, (1,), tokens=1, candidates=256, typable=True)[0].page
    assert free == (END, LOOSE)
    assert typed == (END, Z)
    assert not is_typable(TOKENIZER, free[1:])
    assert is_typable(TOKENIZER, typed[1:])
    assert is_typable(TOKENIZER, TOKENIZER.encode("é"))


def test_texts_that_cannot_be_typed_are_refused():
    victim = Victim("bytes", tiny_llama(TOKENIZER, seed=0), TOKENIZER, (END,))
    with pytest.raises(PHFError, match="no 1 tokens of the texts can be typed"):
        search(victim, [[LOOSE, LOOSE]], (1,), tokens=1, typable=True)


def test_page_without_room_is_refused():
    victim = Victim("short", tiny_llama(TOKENIZER, seed=0, context=8), TOKENIZER, (END,))
    with pytest.raises(PHFError, match="leaves no room for text in a context of 8"):
        search(victim, encode("hello"), (1,), tokens=7)
