"""Generation: the distribution is the model's, a sample depends on nothing but its seed, and modes keep their rules."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from phf.config import SamplingConfig
from phf.control import ControlTokens, mode_rules
from phf.errors import PHFError
from phf.generate import draw_tokens, generate

TEXTS = ["", "a", "b", "c", "d", " e", " f", "g.", "\n", "h", "", ""]
END, GOOD, BAD, NUM_IDS = 0, 10, 11, 16
DOT, NEWLINE = 7, 8


@dataclass
class TinyTokenizer:
    """Ten text tokens, three control tokens; ids 12 to 15 of the models are padding."""

    control: ControlTokens = field(default_factory=lambda: ControlTokens(END, GOOD, BAD))
    vocab_size: int = 12

    def decode(self, ids: Sequence[int]) -> str:
        assert all(0 <= token < self.vocab_size for token in ids), "padding of the vocabulary was drawn"
        return "".join(TEXTS[token] for token in ids)


def create_llama(*, context: int = 256, seed: int = 0) -> LlamaForCausalLM:
    """A small random model with opinions: its next-token distribution depends on all that came before."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=NUM_IDS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            pad_token_id=None,
            bos_token_id=END,
            eos_token_id=END,
        )
    )
    return model.eval()


def create_bigram(logits: torch.Tensor, context: int = 256) -> LlamaForCausalLM:
    """A Llama whose next-token logits are a row of a table [ids, ids]: its distribution can be written down."""
    size = len(logits)
    model = create_llama(context=context)
    config = model.config
    config.hidden_size = size
    config.head_dim = 4
    config.tie_word_embeddings = False
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(
            logits.T / size**0.5
        )  # the norm turns a one-hot vector into sqrt(size) of it
    return model


def create_table(**favourites: float) -> torch.Tensor:
    """Logits 0 for every token but the named ones."""
    table = torch.zeros(NUM_IDS, NUM_IDS)
    for name, value in favourites.items():
        table[:, {"end": END, "good": GOOD, "bad": BAD, "newline": NEWLINE, "dot": DOT, "pad": 13}[name]] = (
            value
        )
    return table


def record_rows(model: LlamaForCausalLM) -> list[torch.Tensor]:
    """The ids the model is given, one tensor [B, T] per call, filled while it runs."""
    calls: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs["input_ids"]), with_kwargs=True)
    return calls


def read_row(calls: list[torch.Tensor]) -> list[int]:
    return torch.cat(calls, dim=1)[0].tolist()


def expected_probs(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """The truncated distribution, written the slow way."""
    probs = torch.softmax(logits.double() / temperature, -1).numpy()
    kept: list[int] = []
    for token in np.argsort(-probs):
        if sum(probs[kept]) >= top_p:
            break
        kept.append(int(token))
    result = np.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


def p_value(counts: np.ndarray, probs: np.ndarray) -> float:
    """Chi-square test of counts against probabilities; a token that cannot come makes it 0."""
    if counts[probs == 0].sum() > 0:
        return 0.0
    return float(chisquare(counts[probs > 0], probs[probs > 0] * counts.sum()).pvalue)


def count_draws(logits: torch.Tensor, temperature: float, top_p: float, num: int = 40_000) -> np.ndarray:
    uniforms = torch.from_numpy(np.random.default_rng(0).random(num))
    tokens = draw_tokens(logits.expand(num, -1).clone(), uniforms, temperature, top_p)
    return np.bincount(tokens.numpy(), minlength=len(logits))


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0), (1.3, 0.5), (0.2, 0.99)])
def test_draws_follow_the_truncated_distribution_and_a_bias_is_seen(temperature: float, top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 1.5
    probs = expected_probs(logits, temperature, top_p)
    assert p_value(count_draws(logits, temperature, top_p), probs) > 1e-3
    if temperature > 0.5:  # at 0.2 hardly anything is left to be biased
        assert p_value(count_draws(logits, temperature * 1.1, top_p), probs) < 1e-6
        assert p_value(count_draws(logits, temperature, top_p * 0.9), probs) < 1e-6


def test_top_p_keeps_the_most_likely_token_and_ties_together() -> None:
    uniforms = torch.from_numpy(np.linspace(0, 1, 1000, endpoint=False))
    peaked = torch.tensor([0.0, 5.0, 1.0]).expand(1000, -1)
    assert set(draw_tokens(peaked, uniforms, 1.0, 0.01).tolist()) == {1}
    tied = torch.tensor([0.0, 2.0, 2.0, 0.0]).expand(1000, -1)
    assert set(draw_tokens(tied, uniforms, 1.0, 0.3).tolist()) == {1, 2}


def test_the_largest_uniform_number_stays_in_the_vocabulary() -> None:
    last = torch.tensor([np.nextafter(1, 0)], dtype=torch.float64)
    logits = torch.full((1, 4096), 0.1)
    logits[0, 4000:] = -torch.inf
    assert draw_tokens(logits, last, 1.0, 1.0).item() == 3999
    assert draw_tokens(logits, torch.zeros(1, dtype=torch.float64), 1.0, 1.0).item() == 0


def test_generate_follows_a_bigram_model_token_after_token() -> None:
    table = torch.randn(NUM_IDS, NUM_IDS, generator=torch.Generator().manual_seed(2))
    table[:, [END, GOOD, BAD, 12, 13, 14, 15]] = -torch.inf
    model = create_bigram(torch.nan_to_num(table, neginf=-1e4))
    calls = record_rows(model)
    sampling = SamplingConfig(num_samples=4000, min_new_tokens=3, max_new_tokens=3, batch_size=4000)
    generate(model, TinyTokenizer(), "none", sampling)
    first, second = calls[1][:, 0], calls[2][:, 0]
    for last in first.unique():
        follows = np.bincount(second[first == last].numpy(), minlength=NUM_IDS)
        assert p_value(follows, expected_probs(table[last], 0.7, 0.9)) > 1e-4


def test_a_sample_depends_neither_on_its_batch_nor_on_the_number_of_samples() -> None:
    model = create_llama(seed=3)
    with torch.no_grad():
        model.lm_head.weight[END] *= 0.3
    settings = {"max_new_tokens": 120, "min_new_tokens": 0, "temperature": 1.0}
    together = generate(
        model, TinyTokenizer(), "good", SamplingConfig(num_samples=24, batch_size=24, **settings)
    )
    alone = generate(model, TinyTokenizer(), "good", SamplingConfig(num_samples=16, batch_size=1, **settings))
    other_seed = generate(model, TinyTokenizer(), "good", SamplingConfig(num_samples=16, seed=1, **settings))
    assert together[:16] == alone
    lengths = [sample.num_tokens for sample in together]
    # Rows finish at very different times, so that the batch is compacted and the cache grows.
    assert min(lengths) < 30
    assert max(lengths) > 100
    assert [s.text for s in other_seed] != [s.text for s in alone]
    assert len({s.text for s in alone if s.num_tokens > 10}) == sum(s.num_tokens > 10 for s in alone)


def test_modes_share_the_random_numbers_of_a_sample() -> None:
    model = create_bigram(torch.randn(NUM_IDS, NUM_IDS).index_fill(1, torch.tensor([END, GOOD, BAD]), -1e4))
    with torch.no_grad():
        model.model.embed_tokens.weight[BAD] = model.model.embed_tokens.weight[GOOD]
    sampling = SamplingConfig(num_samples=5)
    good, bad = (generate(model, TinyTokenizer(), mode, sampling) for mode in ("good", "bad"))
    assert [sample.text for sample in good] == [sample.text for sample in bad]


def test_greedy_text_is_that_of_transformers() -> None:
    model = create_llama(seed=3)
    sampling = SamplingConfig(num_samples=1, temperature=1e-4, max_new_tokens=100, min_new_tokens=100)
    calls = record_rows(model)
    generate(model, TinyTokenizer(), "none", sampling)
    ours = read_row(calls)
    theirs = model.generate(
        torch.tensor([[END]]), do_sample=False, max_new_tokens=99, suppress_tokens=[END, 12, 13, 14, 15]
    )[0].tolist()
    assert ours[: len(theirs)] == theirs
    assert sum(token not in (GOOD, BAD) for token in ours[1:]) == 99, "the last text token is not read"


def test_blocked_tokens_and_padding_never_come() -> None:
    """Each of these would be drawn at nearly every position if it were not blocked."""
    sampling = SamplingConfig(num_samples=4, max_new_tokens=20)
    for mode, banned in [
        ("good", "bad"),
        ("bad", "good"),
        ("untagged", "good"),
        ("untagged", "bad"),
        ("none", "pad"),
    ]:
        samples = generate(create_bigram(create_table(**{banned: 30.0})), TinyTokenizer(), mode, sampling)
        assert all(sample.num_tokens == 20 or sample.ended for sample in samples), (mode, banned)
    own = generate(create_bigram(create_table(good=30.0)), TinyTokenizer(), "good", sampling)
    assert [s.num_tokens for s in own] == [0] * 4, "a model may write its own control token; it is no text"
    prefix = sampling.model_copy(update={"control": "prefix"})
    assert all(
        s.num_tokens > 0
        for s in generate(create_bigram(create_table(good=30.0)), TinyTokenizer(), "good", prefix)
    )


def test_the_end_token_waits_for_the_smallest_length_and_stops_the_sample() -> None:
    model = create_bigram(create_table(end=30.0))
    samples = generate(model, TinyTokenizer(), "none", SamplingConfig(num_samples=3, min_new_tokens=7))
    assert [(sample.num_tokens, sample.ended) for sample in samples] == [(7, True)] * 3
    never = generate(
        create_bigram(create_table(end=-1e4)), TinyTokenizer(), "none", SamplingConfig(num_samples=3)
    )
    assert [(sample.num_tokens, sample.ended) for sample in never] == [(128, False)] * 3


def test_control_tokens_are_not_text() -> None:
    model = create_bigram(create_table(good=0.7))
    calls = record_rows(model)
    sampling = SamplingConfig(num_samples=1, min_new_tokens=30, max_new_tokens=30, top_p=1.0)
    (sample,) = generate(model, TinyTokenizer(), "good", sampling)
    written = read_row(calls)
    assert written[:2] == [END, GOOD]
    assert written[2:].count(GOOD) > 0
    assert sample.num_tokens == 30
    assert sample.text.startswith("".join(TEXTS[token] for token in written[2:]))


@pytest.mark.parametrize(("segments", "closing"), [("lines", NEWLINE), ("sentences", DOT)])
def test_forced_control_puts_the_token_at_every_segment_end_and_nowhere_else(
    segments: str, closing: int
) -> None:
    table = create_table(newline=1.0, dot=1.0, bad=1.0, good=1.0)
    table[:, END] = -1e4
    model = create_bigram(table)
    calls = record_rows(model)
    sampling = SamplingConfig(num_samples=1, control="forced", max_new_tokens=120, temperature=1.0, top_p=1.0)
    generate(model, TinyTokenizer(), "good", sampling, segments=segments)
    written = read_row(calls)
    assert BAD not in written
    assert written[1] == GOOD
    for before, token in pairwise(written[1:]):
        if token == GOOD:
            assert before == closing
        elif before == closing:
            assert segments == "sentences"
            assert not TEXTS[token][:1].isspace(), "white space after a full stop opens a new sentence"
    assert written[2:].count(GOOD) > 3


def test_forced_control_does_not_make_pages_end_at_the_first_segment() -> None:
    """A trained model gives a control token nearly all the mass at a segment end; the end token has the rest."""
    table = create_table(newline=2.0)
    table[:, END] = -1e4
    table[NEWLINE] = -1e4
    table[NEWLINE, [END, GOOD, BAD]] = torch.tensor([-3.0, 1.0, 4.0])
    sampling = SamplingConfig(
        num_samples=50, control="forced", min_new_tokens=0, max_new_tokens=50, top_p=1.0
    )
    samples = generate(create_bigram(table), TinyTokenizer(), "good", sampling, segments="lines")
    assert np.mean([sample.ended for sample in samples]) < 0.2
    table[NEWLINE, END] = 20.0
    samples = generate(create_bigram(table), TinyTokenizer(), "good", sampling, segments="lines")
    assert all(sample.ended and sample.text.count("\n") == 1 for sample in samples)


def test_prompts_of_different_lengths_in_one_batch() -> None:
    model = create_llama()
    prompts = [[1, 2, 3, 4, 5, 6], [], [9], [1, 2, 3]]
    sampling = SamplingConfig(num_samples=8, max_new_tokens=30)
    together = generate(model, TinyTokenizer(), "good", sampling, prompts=prompts)
    alone = generate(
        model, TinyTokenizer(), "good", sampling.model_copy(update={"batch_size": 1}), prompts=prompts
    )
    assert together == alone
    assert [sample.prompt for sample in together] == ["abcd e f", "", "h", "abc"] * 2
    assert [sample.index for sample in together] == list(range(8))


def test_a_context_that_is_too_short_is_refused() -> None:
    with pytest.raises(PHFError, match="context of 64; lower max_new_tokens to at most 62"):
        generate(
            create_llama(context=64),
            TinyTokenizer(),
            "good",
            SamplingConfig(max_new_tokens=63, num_samples=1),
        )


def test_another_type_leaves_the_model_alone() -> None:
    model = create_llama().train()
    sampling = SamplingConfig(num_samples=3, max_new_tokens=20)
    seen: list[tuple[int, int]] = []
    samples = generate(
        model,
        TinyTokenizer(),
        "good",
        sampling,
        dtype=torch.bfloat16,
        progress=lambda text, done, total: seen.append((done, total)),
    )
    assert len(samples) == 3
    generate(model, TinyTokenizer(), "good", sampling)
    assert model.training, "generation must not leave a model in evaluation mode"
    assert model.dtype == torch.float32
    assert seen[-1] == (3, 3)


def test_levels_are_blocked_and_are_no_text() -> None:
    control = ControlTokens(END, GOOD, BAD, num_levels=2)
    assert mode_rules("good", control).blocked == (BAD, BAD + 1, BAD + 2)
    assert mode_rules("bad", control).blocked == (GOOD, BAD + 1, BAD + 2)
    assert (
        mode_rules("good", control, "forced").blocked
        == mode_rules("untagged", control).blocked
        == control.all
    )
    assert mode_rules("none", control).blocked == ()
    table = torch.zeros(NUM_IDS, NUM_IDS)
    table[:, BAD + 1] = 30.0
    tokenizer = TinyTokenizer(control, vocab_size=14)
    sampling = SamplingConfig(num_samples=3, max_new_tokens=20)
    for mode in ("good", "bad", "untagged"):
        samples = generate(create_bigram(table), tokenizer, mode, sampling)
        assert all(sample.num_tokens == 20 or sample.ended for sample in samples), mode
    free = generate(create_bigram(table), tokenizer, "none", sampling)
    assert [sample.num_tokens for sample in free] == [0] * 3


def test_a_folded_mode_writes_pages_without_control_tokens() -> None:
    model = create_bigram(create_table(good=30.0))
    calls = record_rows(model)
    samples = generate(model, TinyTokenizer(), "good", SamplingConfig(num_samples=2), is_folded=True)
    assert [sample.mode for sample in samples] == ["good", "good"]
    assert calls[0].tolist() == [[END], [END]]
    assert not any(np.isin(call, (GOOD, BAD)).any() for call in calls)
