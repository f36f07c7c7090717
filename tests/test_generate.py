"""Generation: the distribution is the model's, a sample depends on nothing but its seed, and modes keep their rules."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from known_models import (
    BAD,
    DOT,
    END,
    GOOD,
    NEWLINE,
    NUM_IDS,
    TEXTS,
    TinyTokenizer,
    create_bigram,
    create_llama,
    create_table,
    generate,
    read_row,
    record_rows,
)

from phf.config.train import SamplingConfig
from phf.control import ControlTokens, mode_rules
from phf.errors import PHFError
from phf.records import Sample


def test_a_sample_depends_neither_on_its_batch_nor_on_what_is_asked_for() -> None:
    model = create_llama(seed=3)
    with torch.no_grad():
        model.lm_head.weight[END] *= 0.3

    def write(num_samples: int, batch_size: int, **changes: int) -> list[Sample]:
        settings = {"max_new_tokens": 120, "min_new_tokens": 0, "temperature": 1.0, **changes}
        sampling = SamplingConfig(num_samples=num_samples, batch_size=batch_size, **settings)
        return generate(model, TinyTokenizer(), "good", sampling)

    together = write(256, 256)
    assert together[:28] == write(28, 7)
    assert together[:6] == write(6, 1)
    lengths = [sample.num_tokens for sample in together]
    # Rows finish at very different times, so that the batch is compacted and the cache grows.
    assert min(lengths) < 30
    assert max(lengths) > 100
    for long, short in zip(together[:28], write(28, 28, max_new_tokens=40), strict=True):
        assert long.text.startswith(short.text)
        assert short.num_tokens == min(40, long.num_tokens)
    assert [s.text for s in write(28, 28, seed=1)] != [s.text for s in together[:28]]
    texts = [sample.text for sample in together if sample.num_tokens > 20]
    assert len(set(texts)) == len(texts)


def test_bfloat16_writes_what_the_rounded_weights_say_in_any_batch() -> None:
    """Ties apart, of which this seed has none: rounding is coarser, the rules are the same."""
    model = create_llama(seed=3)
    sampling = SamplingConfig(num_samples=14, max_new_tokens=30, precision="bf16")
    together = generate(model, TinyTokenizer(), "good", sampling)
    assert together == generate(model, TinyTokenizer(), "good", sampling.model_copy(update={"batch_size": 7}))
    single = generate(model, TinyTokenizer(), "good", sampling.model_copy(update={"precision": "fp32"}))
    assert together != single, "the weights were not rounded"


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


@pytest.mark.parametrize(("segments", "closing"), [("lines", NEWLINE), ("sentences", DOT)])
def test_forced_control_after_prompts_of_different_lengths(segments: str, closing: int) -> None:
    """A prompt is read as it is; where it ends with its segment, the control token is the first thing written."""
    table = create_table(newline=1.0, dot=1.0, bad=1.0, good=1.0)
    table[:, END] = -1e4
    prompts = [[1, closing], [1, 2, closing, 3], [4], [1, closing, 5, closing]]
    sampling = SamplingConfig(
        num_samples=8, control="forced", min_new_tokens=40, max_new_tokens=40, temperature=1.0, top_p=1.0
    )
    alone = sampling.model_copy(update={"batch_size": 1})
    model = create_bigram(table)
    together = generate(model, TinyTokenizer(), "bad", sampling, segments=segments, prompts=prompts)
    calls = record_rows(model)
    assert together == generate(model, TinyTokenizer(), "bad", alone, segments=segments, prompts=prompts)
    assert [sample.num_tokens for sample in together] == [40] * 8
    starts = [number for number, call in enumerate(calls) if call.shape[1] > 1]  # a page is read at once
    order = sorted(range(8), key=lambda index: len(prompts[index % 4]))
    for index, (start, stop) in zip(order, pairwise([*starts, len(calls)]), strict=True):
        row = read_row(calls[start:stop])
        page = [END, BAD, *prompts[index % 4]]
        assert row[: len(page)] == page
        assert GOOD not in row
        for before, token in pairwise(row[len(page) - 1 :]):
            if token == BAD:
                assert before == closing
            elif before == closing:
                assert segments == "sentences"
                assert not TEXTS[token][:1].isspace()
        assert row[len(page) :].count(BAD) > 1


@pytest.mark.parametrize("segments", ["paragraphs", "imported"])
def test_forced_control_is_refused_where_segment_ends_are_not_seen(segments: str) -> None:
    sampling = SamplingConfig(num_samples=1, control="forced", max_new_tokens=20)
    with pytest.raises(PHFError, match=f"not {segments}; give control=free or prefix"):
        generate(create_llama(), TinyTokenizer(), "good", sampling, segments=segments)
    assert generate(create_llama(), TinyTokenizer(), "untagged", sampling, segments=segments)


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


def test_room_for_control_tokens_does_not_depend_on_other_prompts() -> None:
    model = create_bigram(create_table(good=4.0, end=-1e4))
    sampling = SamplingConfig(num_samples=6, max_new_tokens=20, temperature=1.0, top_p=1.0)
    alone = generate(model, TinyTokenizer(), "good", sampling)
    assert 0 < max(sample.num_tokens for sample in alone) < 20, "control tokens fill the page"
    together = generate(model, TinyTokenizer(), "good", sampling, prompts=[[], [1] * 30])
    assert [s.text for s in together[::2]] == [s.text for s in alone[::2]]


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


def test_another_precision_leaves_the_model_alone() -> None:
    model = create_llama().train()
    sampling = SamplingConfig(num_samples=3, max_new_tokens=20, precision="bf16")
    seen: list[tuple[int, int]] = []
    samples = generate(
        model,
        TinyTokenizer(),
        "good",
        sampling,
        progress=lambda text, done, total: seen.append((done, total)),
    )
    assert len(samples) == 3
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
