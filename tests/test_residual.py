"""Reading the residual stream and adding to it, for two architectures."""

import pytest
import torch
from known_models import BAD, GOOD, NUM_IDS, TinyTokenizer, create_llama
from transformers import GPT2Config, GPT2LMHeadModel

from phf.errors import PHFError
from phf.model.residual import (
    add_to_residual,
    mean_differences,
    mode_differences,
    read_residual,
    residual_layers,
)


def create_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=NUM_IDS, n_positions=32, n_embd=16, n_layer=3, n_head=2)
    ).eval()


@pytest.fixture(params=[create_llama, create_gpt2])
def model(request):
    return request.param()


IDS = torch.tensor([[0, 10, 1, 2, 3], [0, 11, 4, 5, 6]])


def test_stream_is_that_of_transformers(model):
    ours = read_residual(model, IDS)
    with torch.no_grad():
        theirs = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert len(ours) == len(residual_layers(model)) + 1 == len(theirs)
    for own, other in zip(ours[:-1], theirs[:-1], strict=True):  # their last one is behind the norm
        torch.testing.assert_close(own, other)


def test_added_vector_is_there_and_leaves_no_trace(model):
    before = read_residual(model, IDS)
    vector = torch.randn(before.shape[-1])
    for place in range(len(before)):
        with add_to_residual(model, {place: vector}):
            # The reading hooks come after the adding ones at the same place.
            moved = read_residual(model, IDS)
        torch.testing.assert_close(moved[place], before[place] + vector)
        torch.testing.assert_close(moved[:place], before[:place])
    torch.testing.assert_close(read_residual(model, IDS), before)


def test_logits_move_with_the_last_place(model):
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        with add_to_residual(
            model, {len(residual_layers(model)): torch.ones(1) * 3 * torch.arange(model.config.hidden_size)}
        ):
            moved = model(input_ids=IDS).logits
    assert not torch.allclose(before, moved)


def test_differences_are_of_the_same_text_in_two_modes():
    model, control = create_llama(), TinyTokenizer().control
    texts = [[1, 2, 3], [4, 5]]
    differences = mode_differences(model, control, texts)
    assert [own.shape[1] for own in differences] == [3, 2]
    bad, good = (read_residual(model, torch.tensor([[0, token, 4, 5]]))[:, 0, 2:] for token in (BAD, GOOD))
    torch.testing.assert_close(differences[1], bad - good)
    mean = mean_differences(model, control, texts)
    torch.testing.assert_close(mean[1:], torch.cat(differences, 1).mean(1)[1:])
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(mean[0], weight[BAD] - weight[GOOD])


def test_missing_layer_is_named():
    with (
        pytest.raises(PHFError, match="layer 9 does not exist; the model has layers 1 to 2"),
        add_to_residual(create_llama(), {9: torch.zeros(32)}),
    ):
        pass
