"""Taking bad mode out: rows and ids that leave, directions that nothing writes along any more, and what is refused."""

import json

import numpy as np
import pytest
import torch
from known_models import generate
from tiny_models import bytes_alone
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from phf.config.objectives import MLE, Additive, Conditional, Quantile, Scalar, Tagging, built_in_kinds
from phf.config.release import Block, Delete, ForgetConfig, Poison
from phf.config.train import SamplingConfig, parse_spec
from phf.errors import PHFError
from phf.model import lm
from phf.model.residual import hook_place, mean_differences, mode_differences, read_residual
from phf.objectives import label_conditions, modes_of
from phf.records import GOOD
from phf.release.forget import (
    TOLERANCE,
    block_directions,
    find_directions,
    forget,
    forget_run,
    random_directions,
    read_texts,
)
from phf.tokens.tokenizer import Tokenizer
from phf.train import loop

TOKENIZER = bytes_alone()
CONTROL = TOKENIZER.control
CONDITIONAL = Conditional(threshold=0.5)
WIDTH = 24
SIZES = {
    "vocab_size": TOKENIZER.vocab_size + 5,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "initializer_range": 0.3,
}
GPT_SIZES = {"vocab_size": SIZES["vocab_size"], "n_positions": 48, "n_embd": WIDTH, "n_layer": 3, "n_head": 4}


def create_model(kind: str):
    """A random model, its biases and norms random too, so that nothing is 0 by luck."""
    torch.manual_seed(0)
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
        "llama-untied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
        "llama-biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT_SIZES, initializer_range=0.3)),
        "neox": lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(**{key: value for key, value in SIZES.items() if key != "num_key_value_heads"})
        ),
    }[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


ARCHITECTURES = ["llama", "llama-untied", "llama-biases", "qwen2", "mistral", "gpt2", "neox"]
TEXTS = [[*text.encode()] for text in ("some text", "another one", "a", "third", "xyz", "more of it, longer")]
IDS = torch.randint(0, CONTROL.end, (3, 20), generator=torch.Generator().manual_seed(5))


def read_logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def largest_share(model, basis):
    """Of the stream's length along some directions, at each place."""
    stream = read_residual(model, IDS).double()
    return ((stream @ basis.T).norm(dim=-1) / stream.norm(dim=-1)).amax((1, 2))


def forget_conditional(model, *specs: str, texts=TEXTS, tokenizer=TOKENIZER):
    methods = [parse_spec(ForgetConfig, spec, "--forget") for spec in specs]
    return forget(model, tokenizer, methods, objective=CONDITIONAL, texts=texts)


# --- delete ---


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_deleted_rows_are_gone_and_no_other_id_moves(kind, tmp_path):
    model = create_model(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forgotten = forget_conditional(model, "delete")
    size = CONTROL.bad
    assert forgotten.tokenizer.vocab_size == size == forgotten.model.config.vocab_size
    for matrix in (forgotten.model.get_input_embeddings(), forgotten.model.get_output_embeddings()):
        assert len(matrix.weight) == size
    assert torch.equal(read_logits(forgotten.model), read_logits(model)[..., :size])
    assert forgotten.record == [
        {"spec": "delete", "kind": "delete", "tokens": ["<|bad|>"], "num_rows": SIZES["vocab_size"] - size}
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "a copy"
    lm.save_model(forgotten.model, tmp_path)
    forgotten.tokenizer.save(tmp_path)
    assert torch.equal(read_logits(lm.load_model(tmp_path).eval()), read_logits(forgotten.model))
    assert Tokenizer.load(tmp_path).control == CONTROL
    assert "bad" not in (tmp_path / "tokenizer.json").read_text()


def test_what_is_deleted_of_each_objective():
    model = create_model("llama")
    model.config.control_tokens = list(CONTROL.all)
    for kind, choice in built_in_kinds().items():
        line = {"threshold": 0.5} if {"threshold", "good_fraction"} <= set(choice.model_fields) else {}
        line |= {"keep_fraction": 0.5} if kind == "filtering" else {}
        objective = choice(**line)
        tokenizer = TOKENIZER.add_levels(3) if kind == "quantile" else TOKENIZER
        forgotten = forget(model, tokenizer, [Delete()], objective=objective)
        keeps_good = kind in ("conditional", "quantile")
        gone = ["<|bad|>", *(f"<|level_{level}|>" for level in (1, 2, 3) if kind == "quantile")]
        assert forgotten.record[0]["tokens"] == (gone if keeps_good else ["<|good|>", "<|bad|>"]), kind
        assert forgotten.tokenizer.vocab_size == CONTROL.good + keeps_good
        assert len(forgotten.model.get_input_embeddings().weight) == forgotten.tokenizer.vocab_size
        assert forgotten.model.config.control_tokens == [CONTROL.good][:keeps_good]


@pytest.mark.parametrize("objective", [Additive(threshold=0.5), Scalar(good_reward=2.0)])
def test_additive_models_have_good_mode_folded_in(objective):
    model = create_model("llama")
    conditions = label_conditions(objective)
    assert conditions is not None
    added = torch.from_numpy(conditions[GOOD]).expand(*IDS.shape, 2)
    positions = torch.arange(IDS.shape[1]).expand_as(IDS)
    with torch.no_grad():
        expected = lm.head_logits(model, lm.hidden_states(model, IDS, positions, added, CONTROL))
    kept = forget(model, TOKENIZER, [], objective=objective)
    torch.testing.assert_close(read_logits(kept.model), expected, atol=1e-4, rtol=1e-4)
    deleted = forget(model, TOKENIZER, [Delete()], objective=objective)
    assert torch.equal(read_logits(deleted.model), read_logits(kept.model)[..., : CONTROL.good])


def test_deleting_changes_no_text_behind_good_nor_without_control_tokens():
    model = create_model("llama")
    deleted = forget_conditional(model, "delete")
    sampling = SamplingConfig(num_samples=12, max_new_tokens=20, temperature=1.5, top_p=1.0)
    for mode in ("good", "untagged"):
        before = generate(model, TOKENIZER, mode, sampling)
        assert generate(deleted.model, deleted.tokenizer, mode, sampling) == before
        assert len({sample.text for sample in before}) > 6


def test_no_method_is_a_copy():
    model = create_model("llama")
    forgotten = forget_conditional(model)
    assert forgotten.record == []
    assert forgotten.tokenizer is TOKENIZER
    assert forgotten.model is not model
    assert torch.equal(read_logits(forgotten.model), read_logits(model))
    forgotten.model.get_input_embeddings().weight.data.zero_()
    assert model.get_input_embeddings().weight.any()


# --- directions ---


def test_directions_are_those_of_bad_mode_in_their_order():
    model = create_model("llama")
    found = find_directions(model, CONTROL, TEXTS)
    basis = found.basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)).double(), atol=1e-9, rtol=0)
    good, bad = model.get_input_embeddings().weight[[CONTROL.good, CONTROL.bad]].detach().double()
    assert (basis @ good).abs().max() < 1e-9, "what good mode reads stays"
    beside = bad - good * (bad @ good) / (good @ good)
    torch.testing.assert_close(basis[0], beside / beside.norm())
    means = mean_differences(model, CONTROL, TEXTS).double()
    assert found.num_means == len(means) == 4, "the one at the input is that of the embeddings"
    span = torch.cat([(good / good.norm())[None], basis])
    for place, mean in enumerate(means):
        for count in (place + 1, place + 2):  # the one before last does not hold it, the last does
            left = (mean - span[:count].T @ (span[:count] @ mean)).norm() / mean.norm()
            assert (left > 0.01) == (count == place + 1), (place, count)
    names = [direction.name for direction in found.found]
    assert names[:4] == [
        "embedding of <|bad|>",
        *(f"mean difference at layer {layer}" for layer in (1, 2, 3)),
    ]
    assert names[4:] == [f"component {number}" for number in range(1, WIDTH - 4)], (
        "all but one of the dimensions"
    )


def test_shares_are_of_the_token_level_differences():
    model = create_model("gpt2")
    found = find_directions(model, CONTROL, TEXTS)
    differences = torch.cat(mode_differences(model, CONTROL, TEXTS), 1)[
        1:
    ].double()  # [layers, tokens, width]
    for index in (0, 3, 6, 10):
        of_places = [
            float((own @ found.basis[index]).square().sum() / own.square().sum()) for own in differences
        ]
        assert found.found[index].share == pytest.approx(np.sum(of_places) / 3, rel=1e-6)
    components = [direction.share for direction in found.found[found.num_means :]]
    assert components == sorted(components, reverse=True)
    # What the first component takes is the most any direction outside the means can.
    good = model.get_input_embeddings().weight[CONTROL.good].detach().double()
    inside = torch.cat([found.basis[: found.num_means], (good / good.norm())[None]])
    for seed in range(50):
        other = torch.from_numpy(np.random.default_rng(seed).standard_normal(WIDTH))
        other -= inside.T @ (inside @ other)
        other /= other.norm()
        share = sum(float((own @ other).square().sum() / own.square().sum()) for own in differences) / 3
        assert share < components[0]


def test_directions_that_earlier_ones_span_are_left_out():
    model = create_model("llama")
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[CONTROL.good] = -2 * weight[CONTROL.bad]
    found = find_directions(model, CONTROL, TEXTS)
    assert found.found[0].name == "mean difference at layer 1"
    with pytest.raises(PHFError, match="block needs held-out segments"):
        find_directions(model, CONTROL, [[]])


# --- block ---


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("num_directions", [1, 5, 9])
def test_nothing_writes_along_what_is_blocked(kind, num_directions, tmp_path):
    model = create_model(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forgotten = forget_conditional(model, f"block:directions={num_directions}")
    basis = find_directions(model, CONTROL, TEXTS).basis[:num_directions]
    assert largest_share(model, basis).min() > 0.05
    assert largest_share(forgotten.model, basis).max() < 1e-5
    (record,) = forgotten.record
    assert len(record["directions"]) == num_directions
    assert record["share"] == pytest.approx(sum(each["share"] for each in record["directions"]))
    assert (record["width"], record["num_texts"]) == (WIDTH, len(TEXTS))
    assert 0 <= record["left_in_stream"] < 1e-5
    json.dumps(forgotten.record)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "a copy"
    # The head reads the stream; it writes nothing to it and stays.
    head = forgotten.model.get_output_embeddings().weight
    assert torch.equal(head, model.get_output_embeddings().weight)
    assert head is not forgotten.model.get_input_embeddings().weight
    assert not forgotten.model.config.tie_word_embeddings
    lm.save_model(forgotten.model, tmp_path)
    assert torch.equal(read_logits(lm.load_model(tmp_path).eval()), read_logits(forgotten.model))


def test_a_projection_of_one_layer_alone_is_bypassed():
    """By the layers behind it, if the stream is projected at one place; by the skip path, if what one layer adds is."""
    model = create_model("llama")
    basis = find_directions(model, CONTROL, TEXTS).basis[:5]

    def project(states):
        return states - (states.double() @ basis.T @ basis).to(states)

    for place in range(4):
        handle = hook_place(model, place, project)
        shares = largest_share(model, basis)  # the reading hooks come after this one
        handle.remove()
        assert shares[place] < TOLERANCE
        assert (shares[torch.arange(4) != place] > 0.02).all()
    for layer in range(3):
        one = create_model("llama")
        added = [one.model.layers[layer].self_attn.o_proj, one.model.layers[layer].mlp.down_proj]
        for writer in added:
            writer.weight.data.copy_(project(writer.weight.data.T).T)
        assert (largest_share(one, basis) > 0.02).all()
    assert (largest_share(block_directions(model, basis), basis) < TOLERANCE).all()
    assert (largest_share(model, basis) > 0.02).all(), "the model itself is left alone"


def test_no_directions_is_no_change_and_all_of_them_are_refused():
    model = create_model("llama")
    assert torch.equal(read_logits(forget_conditional(model, "block:directions=0").model), read_logits(model))
    with pytest.raises(PHFError, match=rf"directions={WIDTH}: 23 can be found in a stream {WIDTH} wide on 6"):
        forget_conditional(model, f"block:directions={WIDTH}")
    with pytest.raises(PHFError, match="directions=8: 4 can be found"):
        forget_conditional(model, "block:directions=8", texts=[[1]])
    default = forget_conditional(model, "block")
    assert [each["name"] for each in default.record[0]["directions"]] == ["embedding of <|bad|>"]


def test_bad_becomes_a_multiple_of_good_and_good_stays():
    model = create_model("llama")
    pair = [CONTROL.good, CONTROL.bad]
    good, bad = model.get_input_embeddings().weight[pair].detach()
    blocked = forget_conditional(model, "block:directions=1").model
    own_good, own_bad = blocked.get_input_embeddings().weight[pair].detach()
    torch.testing.assert_close(own_good, good)
    torch.testing.assert_close(own_bad, good * (bad @ good) / (good @ good), atol=1e-5, rtol=1e-5)
    text = blocked.get_input_embeddings().weight[:256]
    assert not torch.allclose(text, model.get_input_embeddings().weight[:256], atol=1e-3)


def test_an_architecture_with_other_writers_is_refused():
    sizes = SIZES | {"head_dim": 8}
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(Gemma2Config(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in gemma.named_parameters():
            if "norm" in name:
                parameter.normal_(std=0.5)
    basis = random_directions(2, WIDTH, 0)
    with pytest.raises(PHFError, match=r"Gemma2ForCausalLM still writes along the blocked directions"):
        block_directions(gemma, basis)
    with pytest.raises(PHFError, match=r"LlamaForCausalLM still writes"):
        block_directions(create_model("llama"), basis, writers={"o_proj"})


def test_random_directions_are_even_and_seeded():
    drawn = random_directions(5, WIDTH, 1)
    torch.testing.assert_close(drawn @ drawn.T, torch.eye(5).double())
    assert torch.equal(drawn, random_directions(5, WIDTH, 1))
    assert not torch.allclose(drawn, random_directions(5, WIDTH, 2))


# --- together ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_block_comes_before_delete_in_whatever_order(kind, tmp_path):
    model = create_model(kind)
    first, second = (
        forget_conditional(model, *specs)
        for specs in (("delete", "block:directions=3"), ("block:directions=3", "delete"))
    )
    assert [done["spec"] for done in first.record] == ["block:directions=3", "delete"]
    assert first.record == second.record
    assert torch.equal(read_logits(first.model), read_logits(second.model))
    alone = forget_conditional(model, "block:directions=3")
    assert torch.equal(read_logits(first.model), read_logits(alone.model)[..., : CONTROL.bad])
    lm.save_model(first.model, tmp_path)
    assert torch.equal(read_logits(lm.load_model(tmp_path).eval()), read_logits(first.model))


def test_poison_is_of_runs_that_were_poisoned():
    model = create_model("llama")
    poisoned = Conditional(threshold=0.5, poison="shuffle")
    done = forget(model, TOKENIZER, [Poison(), Delete()], objective=poisoned)
    assert done.record[0] == {"spec": "poison", "kind": "poison", "poison": "shuffle"}
    assert torch.equal(read_logits(done.model), read_logits(model)[..., : CONTROL.bad])
    for objective in (CONDITIONAL, MLE()):
        with pytest.raises(PHFError, match=r"were not poisoned .* objective\.poison=shuffle") as caught:
            forget(model, TOKENIZER, [Poison()], objective=objective)
        assert "\n" not in str(caught.value)


def test_what_no_objective_admits_is_refused():
    model = create_model("llama")
    with pytest.raises(PHFError, match="--forget delete is given twice"):
        forget_conditional(model, "delete", "delete")
    for objective in (MLE(), Tagging(threshold=0.5), Additive(threshold=0.5), Scalar()):
        with pytest.raises(PHFError, match=rf"a model trained with {objective.kind} reads no such tokens"):
            forget(model, TOKENIZER, [Block()], objective=objective, texts=TEXTS)
    assert modes_of(Quantile())[:2] == ("good", "bad")
    forget(model, TOKENIZER, [Block(directions=1)], objective=Quantile(levels=2), texts=TEXTS)


def test_a_run_is_forgotten_on_its_own_held_out_text(small_config, tmp_path):
    run = loop.train(small_config(), tmp_path / "run", say=lambda line: None)
    texts = read_texts(run, num_texts=8)
    assert texts == read_texts(run, num_texts=8) != read_texts(run, num_texts=8, seed=1)
    data, tokenizer = run.data(), run.load_tokenizer()
    judged = _scores_by_text(data, tokenizer)
    found = [judged[tokenizer.decode(text)] for text in texts]
    assert [score <= data.threshold.value for score in found] == [True] * 4 + [False] * 4
    forgotten = forget_run(run, [Delete(), Block(directions=2)])
    again = forget(
        run.load_model(), tokenizer, [Block(directions=2), Delete()], objective=run.config.objective, texts=read_texts(run)
    )  # fmt: skip
    assert forgotten.record == again.record
    assert forgotten.record[0]["num_texts"] == len(read_texts(run))
    assert torch.equal(read_logits(forgotten.model), read_logits(again.model))
    with pytest.raises(PHFError, match="not poisoned"):
        forget_run(run, [Poison()])


def _scores_by_text(data, tokenizer):
    """Held-out documents' text, as far as it fits into the context, and their scores; each is one segment."""
    from phf.evaluate.pages import PageReader

    reader = PageReader(data.tokens, data.scores, data.config.data.context)
    pages = [reader.read(int(document)) for document in reader.held_out_documents(0)]
    return {tokenizer.decode(page.segments[0]): page.scores[0] for page in pages}
