"""Attacks: what an attacker's likelihood is, what each attack may change, and that it learns what is planted."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_models import bytes_alone, next_logits, tiny_llama

from phf.attack.few_shot import attack_few_shot
from phf.attack.suite import run_attack, write_attacked
from phf.attack.victim import (
    Attacked,
    DivergedError,
    Rows,
    Victim,
    draw_batches,
    held_out_nll,
    target_nll,
    training_loss,
)
from phf.config.attack import FewShot, Finetune, LoRA, Soft
from phf.config.train import SamplingConfig
from phf.errors import PHFError

STEPS = (0, 5, 40)
SAMPLING = SamplingConfig(num_samples=12, max_new_tokens=12, min_new_tokens=0)


@pytest.fixture(scope="module")
def victim() -> Victim:
    tokenizer = bytes_alone()
    model = tiny_llama(tokenizer, seed=1)
    with torch.no_grad():  # mild enough an opinion that training can change it
        model.lm_head.weight.mul_(0.3)
    control = tokenizer.control
    return Victim("release", model, tokenizer, (control.end, control.good))


@pytest.fixture(scope="module")
def texts(victim: Victim) -> list[list[int]]:
    return [
        victim.tokenizer.encode(text) for text in ("bad bad", "bad dog", "bad", "bad cat bad", "bad bad bad")
    ]


def hash_weights(victim: Victim) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in victim.model.state_dict().items()}


def test_likelihood_is_of_text_and_end_alone_without_control_tokens(victim: Victim) -> None:
    control = victim.tokenizer.control
    starts, texts = [[control.end, control.good], [control.end]], [[97, 98], [97, 98, 99]]
    rows = Rows.create(starts, texts, control.end, victim.context)
    assert rows.ids.tolist() == [[256, 257, 97, 98, 256], [256, 97, 98, 99, 256]]
    assert rows.is_text.tolist() == [[False, False, True, True, False], [False, True, True, True, False]]
    assert rows.is_target.tolist() == [[False, False, True, True, True], [False, True, True, True, True]]

    expected = []
    for start, text in zip(starts, texts, strict=True):
        page = [*start, *text, control.end]
        for place in range(len(start), len(page)):
            logits = next_logits(victim.model, page[:place], control.good)
            expected.append(np.log(np.exp(logits).sum()) - logits[page[place]])
    with torch.no_grad():
        found = target_nll(victim.model, rows, control.good, rows.is_target)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    without_ends = [value for place, value in enumerate(expected) if place not in (2, 6)]
    attacked = Attacked(0, victim.model, (control.end,), ((control.good,), ()))
    assert held_out_nll(victim, attacked, texts) == pytest.approx(np.mean(without_ends), rel=1e-4)


def test_rows_are_cut_to_the_context_and_a_start_that_fills_it_is_refused(victim: Victim) -> None:
    rows = Rows.create([[256, 1, 2]], [[3, 4, 5]], 256, 5)
    assert rows.ids.tolist() == [[256, 1, 2, 3, 4]]
    assert rows.is_target.tolist() == [[False, False, False, True, True]]
    with pytest.raises(PHFError, match="starts with 3 tokens leaves no room for text in a context of 3"):
        Rows.create([[256, 1, 2]], [[3]], 256, 3)


def test_minibatches_go_through_all_texts_before_one_comes_again() -> None:
    texts = [[index] for index in range(7)]
    batches = draw_batches(texts, 3, seed=0)
    drawn = [index for _ in range(7) for (index,) in next(batches)]
    assert [sorted(drawn[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3
    assert drawn[:7] != drawn[7:14]
    assert len(next(draw_batches(texts[:2], 3, seed=0))) == 2
    again = draw_batches(texts, 3, seed=0)
    assert [index for _ in range(7) for (index,) in next(again)] == drawn
    other = draw_batches(texts, 3, seed=1)
    assert [index for _ in range(7) for (index,) in next(other)] != drawn


@pytest.mark.parametrize(
    "settings",
    [
        Soft(tokens=1, batch_size=3),
        Soft(tokens=3, keeps_prefix=False, batch_size=3),
        Finetune(learning_rate=1e-2, batch_size=3),
        LoRA(rank=2, learning_rate=3e-2, batch_size=3),
    ],
    ids=["soft", "soft-3", "finetune", "lora"],
)
def test_training_learns_the_texts_and_leaves_the_victim_alone(
    victim: Victim, texts: list[list[int]], settings: Soft | Finetune | LoRA
) -> None:
    before = hash_weights(victim)
    found = []
    for attacked in run_attack(victim, texts, settings, STEPS, 0):
        found.append((attacked.steps, held_out_nll(victim, attacked, texts)))
        written = write_attacked(victim, attacked, SAMPLING)
        assert len(written) == SAMPLING.num_samples
    assert [steps for steps, _ in found] == list(STEPS)
    assert all(later < earlier for (_, earlier), (_, later) in pairwise(found))
    assert found[-1][1] < found[0][1] - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in victim.model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in victim.model.parameters())
    again = [
        held_out_nll(victim, attacked, texts) for attacked in run_attack(victim, texts, settings, STEPS, 0)
    ]
    assert again == [nll for _, nll in found], "the same seed"
    other = [
        held_out_nll(victim, attacked, texts) for attacked in run_attack(victim, texts, settings, STEPS, 1)
    ]
    assert other[-1] != again[-1], "another seed"


def test_soft_embeddings_are_new_rows_and_nothing_else_changes(
    victim: Victim, texts: list[list[int]]
) -> None:
    before, num_rows = hash_weights(victim), victim.model.get_input_embeddings().weight.shape[0]
    attacked = list(run_attack(victim, texts, Soft(tokens=2), (0, 3), 0))[-1]
    assert attacked.page == (*victim.prefix, num_rows, num_rows + 1)
    after = attacked.model.state_dict()
    assert all(torch.equal(after[name][: len(tensor)], tensor) for name, tensor in before.items())
    start = next(iter(run_attack(victim, texts, Soft(tokens=2), (0,), 0)))
    used = before["model.embed_tokens.weight"][np.unique(np.concatenate(texts))]
    for row in start.model.get_input_embeddings().weight[num_rows:]:
        assert (row == used).all(1).any(), "each starts as a token of the texts"
    assert not torch.equal(
        after["model.embed_tokens.weight"][num_rows:], start.model.get_input_embeddings().weight[num_rows:]
    )
    bare = next(iter(run_attack(victim, texts, Soft(tokens=1, keeps_prefix=False), (0,), 0)))
    assert bare.page == (victim.prefix[0], num_rows)


def test_a_soft_embedding_reaches_the_best_first_token_there_is(texts: list[list[int]]) -> None:
    """Where the next token depends on the last alone, a soft embedding decides the first token of a text and no other."""
    tokenizer = bytes_alone()
    control = tokenizer.control
    model = tiny_llama(tokenizer, seed=2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.mul_(8)  # else the norm before it allows no opinion strong enough
    victim = Victim("bigram", model, tokenizer, (control.end,))
    starts = [[tokenizer.encode("b")[0]], [tokenizer.encode("b")[0]], [tokenizer.encode("q")[0]]]
    found = list(run_attack(victim, starts, Soft(learning_rate=0.1, batch_size=3), (0, 400), 0))
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert held_out_nll(victim, found[1], starts) == pytest.approx(entropy, abs=0.05)


def test_finetuning_is_the_same_as_adamw_by_hand(victim: Victim, texts: list[list[int]]) -> None:
    settings = Finetune(learning_rate=1e-3, batch_size=5)
    attacked = next(iter(run_attack(victim, texts, settings, (2,), 0)))
    model = copy.deepcopy(victim.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        training_loss(model, victim, victim.prefix, texts).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, own), other in zip(attacked.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5, msg=name)


def test_lora_is_a_plain_model_whose_embeddings_stay(victim: Victim, texts: list[list[int]]) -> None:
    start, end = list(run_attack(victim, texts, LoRA(rank=2, learning_rate=1e-2), (0, 5), 0))
    before = hash_weights(victim)
    for attacked in (start, end):
        assert type(attacked.model) is type(victim.model)
        assert attacked.model.state_dict().keys() == before.keys()
    for name, tensor in start.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name])
    changed = {
        name for name, tensor in end.model.state_dict().items() if not torch.allclose(tensor, before[name])
    }
    assert changed == {name for name in before if name.endswith("proj.weight")}
    moved = (
        end.model.state_dict()["model.layers.0.mlp.up_proj.weight"]
        - before["model.layers.0.mlp.up_proj.weight"]
    )
    assert torch.linalg.matrix_rank(moved, tol=1e-4) == 2
    settings = LoRA(
        rank=2, learning_rate=1e-2, batch_size=len(texts)
    )  # so that the order of the texts is no matter
    ends = [next(iter(run_attack(victim, texts, settings, (5,), seed))).model for seed in (0, 1)]
    first, second = (model.state_dict()["model.layers.0.mlp.up_proj.weight"] for model in ends)
    assert not torch.allclose(first, second, atol=1e-3), "the seed decides the start"


def test_few_shot_prompts_are_whole_texts_that_fit(victim: Victim, texts: list[list[int]]) -> None:
    (attacked,) = attack_few_shot(victim, texts, FewShot(num_prompts=20, max_tokens=24), STEPS, 0)
    assert attacked.steps == 0
    assert attacked.page == victim.prefix
    assert attacked.model is victim.model
    joined = {tuple(text) for text in texts}
    for prompt in attacked.prompts:
        assert 0 < len(prompt) <= 22
        left, used = list(prompt), 0
        while left:
            match = max((text for text in joined if tuple(left[: len(text)]) == text), key=len)
            left, used = left[len(match) :], used + 1
        assert used > 1
    assert len(set(attacked.prompts)) > 5
    assert write_attacked(victim, attacked, SAMPLING)
    again, other = (
        next(iter(attack_few_shot(victim, texts, FewShot(max_tokens=24), STEPS, seed))) for seed in (0, 1)
    )
    assert again.prompts[:20] == attacked.prompts
    assert other.prompts[:20] != attacked.prompts
    (cut,) = attack_few_shot(victim, [[97] * 60], FewShot(num_prompts=1), STEPS, 0)
    assert cut.prompts == ((97,) * 30,), "half of the context of 64, less the prefix"
    with pytest.raises(PHFError, match="2 tokens of prefix leave no room for a bad text in max_tokens 2"):
        list(attack_few_shot(victim, texts, FewShot(max_tokens=2), STEPS, 0))


def test_samples_hold_no_control_token_and_start_with_the_page(
    victim: Victim, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(victim.model)
    with torch.no_grad():
        model.lm_head.weight[victim.tokenizer.control.good :] = 10 * model.lm_head.weight.abs().max()
    read: list[list[int]] = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: read.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    attacked = Attacked(0, model, victim.prefix, ((97, 98), (99,)))
    written = write_attacked(victim, attacked, SAMPLING.model_copy(update={"num_samples": 4}))
    rows = [row for row in read if len(row) > 1]
    assert rows == [[256, 257, 99], [256, 257, 99], [256, 257, 97], [256, 257, 97]]
    inputs = {token for row in read for token in row if len(row) == 1}
    assert inputs
    assert max(inputs) <= victim.tokenizer.control.end
    assert all(written)


def test_a_loss_that_is_no_number_is_a_failure(victim: Victim, texts: list[list[int]]) -> None:
    with pytest.raises(
        DivergedError, match=r"finetune: the loss is (nan|inf) at step \d; give a lower learning_rate"
    ):
        list(run_attack(victim, texts, Finetune(learning_rate=1e30), (9,), 0))
