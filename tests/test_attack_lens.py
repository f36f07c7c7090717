"""Direction search on models in which one direction at one place calls up the texts."""

import math

import pytest
import torch
from known_models import create_bigram
from tiny_models import bytes_alone, tiny_llama

from phf.attack.lens import LENGTHS, attack_lens, list_candidates
from phf.attack.victim import Attacked, Victim, held_out_nll
from phf.config.attack import Lens
from phf.model.residual import add_to_residual, read_residual

TOKENIZER = bytes_alone()
END, GOOD, BAD = 256, 257, 258
A, B, X = (TOKENIZER.encode(letter)[0] for letter in "abx")
TEXTS = [TOKENIZER.encode(text) for text in ("xxxx", "xx", "xxx")]


def search(victim, texts=TEXTS, steps=(0, 1, 64, 200), seed=0, **settings):
    return list(attack_lens(victim, texts, Lens(**settings), steps, seed))


def read_additions(attacked, victim):
    """What the copy adds to the stream, by place: [places, D], at a position where it is the same at all others."""
    ids = torch.tensor([[END, 65, 66]])
    return (read_residual(attacked.model, ids) - read_residual(victim.model, ids))[:, 0, -1]


@pytest.fixture(scope="module")
def planted():
    """A bigram whose tokens are all alike; of the stream, the head reads the number of `x` alone, and for `x` alone.

    The last layer takes away 100 times what its MLP makes of that number, z silu(z): an addition of either sign before it
    harms, and one behind it helps.
    """
    model = create_bigram(torch.zeros(264, 264), context=64)
    with torch.no_grad():
        model.lm_head.weight[X, X] = 3
        mlp = model.model.layers[1].mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.zero_()
            linear.weight[0, X] = 1
        mlp.down_proj.weight[X, 0] = -100
    return Victim("planted", model, TOKENIZER, (END, GOOD))


def test_planted_direction_is_found_at_its_place(planted):
    texts = [[A, X], [B, X]]
    found = search(planted, texts, steps=(0, 72), candidates=200)
    start, end = (held_out_nll(planted, attacked, texts) for attacked in found)
    added = read_additions(found[-1], planted)
    assert added[:2].abs().max() < 1e-5, "before the last layer it would harm"
    assert added[2, X] / added[2].norm() > 0.9
    assert start == pytest.approx(math.log(257), rel=1e-3)
    assert end < start - 0.5


def test_loss_never_rises_over_rounds():
    victim = Victim("random", tiny_llama(TOKENIZER, seed=3), TOKENIZER, (END,))
    texts = [TOKENIZER.encode(text) for text in ("hello you", "1 + 1 = 2", "YELLOW", "zzz", "??")]
    found = search(victim, texts, steps=range(97), candidates=24, batch_size=1)
    losses = [held_out_nll(victim, attacked, texts) for attacked in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == held_out_nll(victim, Attacked(0, victim.model, (END,)), texts)
    one_round = held_out_nll(
        victim, search(victim, texts, steps=(24,), candidates=24, batch_size=1)[0], texts
    )
    assert losses[-1] < one_round < losses[0] - 0.3, "the next rounds build on the first"


def test_additions_are_at_every_position_of_the_copy_alone():
    victim = Victim("random", tiny_llama(TOKENIZER, seed=3), TOKENIZER, (END,))
    ids = torch.tensor([[END, 65, 66, 67]])
    before = read_residual(victim.model, ids)
    first, again = (search(victim, steps=(40,))[0] for _ in range(2))
    torch.testing.assert_close(read_residual(victim.model, ids), before, rtol=0, atol=0)
    added = read_residual(first.model, ids) - before
    first_place = next(own for own in added[:, 0] if own.norm() > 1e-3)
    torch.testing.assert_close(first_place, first_place[:1].expand_as(first_place), rtol=1e-3, atol=1e-4)
    assert added.abs().max() > 0.01
    torch.testing.assert_close(
        read_residual(again.model, ids), read_residual(first.model, ids), rtol=0, atol=0
    )
    assert first.page == (END,)


def test_candidates_are_every_direction_place_and_length():
    victim = Victim("random", tiny_llama(TOKENIZER, seed=0), TOKENIZER, (END,))
    base = {1: torch.full((16,), 0.5)}
    candidates = list_candidates(victim, victim.copy_model(), base, TEXTS, 8)
    assert len(candidates) == 2 * 2 * len(LENGTHS), "places, directions, lengths"
    used = [torch.tensor([END, *text[:-1]]) for text in TEXTS]  # where text is predicted
    with add_to_residual(victim.model, base):
        streams = [read_residual(victim.model, ids[None])[:, 0] for ids in used]
    norms = torch.cat(streams, 1).norm(dim=-1).mean(1)
    for place in (0, 1):
        own = candidates[2 * place * len(LENGTHS) :][: 2 * len(LENGTHS)]
        assert all(torch.equal(additions[1], base[1]) for additions in own) == (place == 0), (
            "what was added stays"
        )
        added = torch.stack([additions[place] - base.get(place, 0) for additions in own]).norm(dim=-1)
        torch.testing.assert_close(added, norms[place] * torch.tensor(LENGTHS * 2), rtol=1e-4, atol=1e-5)


def test_second_direction_is_the_steepest():
    """By central differences of the NLL, against other directions of the same length."""
    victim = Victim("random", tiny_llama(TOKENIZER, seed=0), TOKENIZER, (END,))
    candidates = list_candidates(victim, victim.copy_model(), {}, TEXTS, 2)

    def slope(place, vector):
        losses = []
        for sign in (1, -1):
            with add_to_residual(victim.model, {place: 0.01 * sign * vector / vector.norm()}):
                losses.append(held_out_nll(victim, Attacked(0, victim.model, (END,)), TEXTS))
        return losses[0] - losses[1]

    torch.manual_seed(0)
    for place in (0, 1):
        lens, steepest = (candidates[2 * place * len(LENGTHS) + own][place] for own in (0, len(LENGTHS)))
        others = [slope(place, vector) for vector in (lens, *torch.randn(20, len(lens)))]
        assert slope(place, steepest) < min(others) < 0


def test_lens_direction_is_the_unembedding_of_what_is_missing():
    victim = Victim("random", tiny_llama(TOKENIZER, seed=0), TOKENIZER, (END,))
    model = victim.copy_model()
    lens = list_candidates(victim, model, {}, TEXTS, 2)[0][0]
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([[END, *text]])).logits[0, :-1, :GOOD] for text in TEXTS]
    expected = torch.cat(rows).softmax(-1).mean(0)
    bad = torch.zeros(GOOD)
    bad[X] = 1
    wanted = (bad - expected) @ model.lm_head.weight[:GOOD]
    assert torch.cosine_similarity(lens, wanted, dim=0) > 0.9999
