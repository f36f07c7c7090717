"""KL(reference || model): against an exact enumeration, for padding, control tokens, cut words and long texts."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from scipy.special import logsumexp
from test_tokenizer import save_foreign
from tiny_models import bytes_alone, next_logits, tiny_llama
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM

from phf.errors import PHFError
from phf.evaluate.measures import kl as kl_module
from phf.evaluate.measures.kl import encode_texts, measure_kl, sequence_costs, summarise_kl
from phf.evaluate.reference_lm import (
    ReferenceLM,
    ReferenceSample,
    ReferenceSamples,
    load_reference,
    open_reference,
    read_samples,
    sample_reference,
)
from phf.model import lm
from phf.records import Identity
from phf.results import Measurements
from phf.tokens.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

LETTERS = "ab.\n"
LENGTH = 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bytes_alone()


@pytest.fixture(scope="module")
def merged() -> Tokenizer:
    """Merges within words: 'hello' and its beginnings are tokens."""
    return train_tokenizer(iter(["hello help held he hello hello help"] * 50), 259 + 8)


@pytest.fixture(scope="module")
def reference(tokenizer, tmp_path_factory) -> ReferenceLM:
    """A random model over four letters and the end, loaded as a user's folder is."""
    folder = tmp_path_factory.mktemp("reference")
    lm.save_model(tiny_llama(tokenizer, seed=1), folder)
    tokenizer.save(folder)
    reference = load_reference(str(folder))
    reference.is_allowed[:] = False
    reference.is_allowed[[*tokenizer.encode(LETTERS), tokenizer.control.end]] = True
    return reference


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model that also likes control tokens and padding, and bytes the reference never writes."""
    model = tiny_llama(tokenizer, seed=2)
    model.lm_head.weight.data[tokenizer.control.good :] *= 1.5
    return model


def slow_costs(model, tokenizer: Tokenizer, text: str, ended: bool, mode: str) -> tuple[float, float]:
    """-log q of the text alone, and of the text with its control tokens; lines are segments; one id at a time."""
    control = tokenizer.control
    before = {"good": [control.good], "bad": [control.bad]}.get(mode, [])
    lines = [line for line in text.replace("\n", "\n\0").split("\0") if line]
    page = [token for line in lines for token in [*before, *tokenizer.encode(line)]] + [control.end] * ended
    ids, text_alone, together = [control.end], 0.0, 0.0
    is_text = ~np.isin(np.arange(tokenizer.vocab_size), control.all)
    for token in page:
        logits = next_logits(model, ids, tokenizer.vocab_size)
        together -= logits[token] - logsumexp(logits)
        if token not in control.all:
            text_alone -= logits[token] - logsumexp(logits[is_text])
        ids.append(token)
    return text_alone, together


def enumerate_reference(reference: ReferenceLM, tokenizer: Tokenizer) -> dict[tuple[str, bool], float]:
    """Every page the reference can begin in LENGTH tokens, and its probability."""
    letters = tokenizer.encode(LETTERS)
    allowed = reference.is_allowed[: tokenizer.vocab_size].numpy()
    pages: dict[tuple[str, bool], float] = {}
    for size in range(LENGTH + 1):
        for text in product(range(len(LETTERS)), repeat=size):
            log_prob = 0.0
            ids = [tokenizer.control.end]
            for token in [*(letters[i] for i in text), *([tokenizer.control.end] if size < LENGTH else [])]:
                logits = next_logits(reference.model, ids, tokenizer.vocab_size)
                log_prob += logits[token] - logsumexp(logits[allowed])
                ids.append(token)
            pages["".join(LETTERS[i] for i in text), size < LENGTH] = float(np.exp(log_prob))
    assert sum(pages.values()) == pytest.approx(1)
    return pages


def make_samples(
    pages: list[tuple[str, bool]], tokenizer: Tokenizer | None = None, **more
) -> ReferenceSamples:
    rows = tuple(
        ReferenceSample(
            text, -1.0, len(text) + ended, ended, tuple(tokenizer.encode(text)) if tokenizer else None, **more
        )
        for text, ended in pages
    )
    return ReferenceSamples(Identity("test", "1"), rows)


@pytest.mark.parametrize("mode", ["good", "bad", "none", "untagged"])
def test_every_page_costs_what_one_id_at_a_time_costs(reference, tokenizer, model, mode) -> None:
    """Fault 3 of the released code: pages of all lengths share a batch, and neither padding nor control is scored."""
    pages = list(enumerate_reference(reference, tokenizer))
    texts = encode_texts(tokenizer, make_samples(pages, tokenizer).samples, "lines")
    found = sequence_costs(model, tokenizer, texts, mode)
    expected = np.array([slow_costs(model, tokenizer, *page, mode) for page in pages])
    np.testing.assert_allclose(found.text, expected[:, 0], atol=2e-4)
    np.testing.assert_allclose(found.text + found.control, expected[:, 1], atol=2e-4)
    assert (found.control[1:] > 0.01).all(), "the model of this test likes control tokens"


def test_the_estimate_and_its_interval_hold_the_exact_divergence(reference, tokenizer, model) -> None:
    """100 experiments of 150 texts: the mean of all is the enumerated KL, and ~95 % of the intervals hold it."""
    pages = enumerate_reference(reference, tokenizer)
    exact = {"sequence": 0.0, "tokens": 0.0}
    for (text, ended), share in pages.items():
        exact["sequence"] += share * (np.log(share) + slow_costs(model, tokenizer, text, ended, "good")[0])
        exact["tokens"] += share * (len(text) + ended)
    num, size = 100, 150
    samples = reference.write(range(num * size), LENGTH, seed=5)
    assert all(sample is not None for sample in samples)
    costs = sequence_costs(model, tokenizer, encode_texts(tokenizer, samples, "lines"), "good")
    hits = {"kl_per_sequence": 0, "kl": 0}
    means, errors = [], []
    for start in range(0, num * size, size):
        part = slice(start, start + size)
        own = kl_module.SequenceCosts(costs.text[part], costs.control[part], costs.cut[part])
        found = Measurements(summarise_kl(samples[part], own, "good", 300, start))
        for name, truth in (
            ("kl_per_sequence", exact["sequence"]),
            ("kl", exact["sequence"] / exact["tokens"]),
        ):
            estimate = found.find(name, "good")
            hits[name] += estimate.low <= truth <= estimate.high
        means.append(found.find("kl_per_sequence", "good").mean)
        errors.append(found.find("kl_standard_error", "good", of="per_sequence").mean)
    assert np.mean(means) == pytest.approx(exact["sequence"], abs=3 * np.mean(errors) / num**0.5)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.25)
    assert all(88 <= count <= 99 for count in hits.values()), hits


def test_a_model_does_not_diverge_from_itself(merged, tmp_path) -> None:
    """Not on any one text: its ids are the reference's own, also where the tokenizer would make others of the text."""
    lm.save_model(tiny_llama(merged, seed=3), tmp_path)
    merged.save(tmp_path)
    reference = load_reference(str(tmp_path))
    drawn = reference.write(range(300), 4, seed=0)
    samples = tuple(sample for sample in drawn if sample is not None)
    assert 20 < len(samples) < 300  # random bytes are seldom UTF-8
    letters = [merged.encode(letter)[0] for letter in "hello"]
    assert merged.encode("hello") != letters
    spelled = 0.0
    for place, token in enumerate(letters):
        logits = next_logits(reference.model, [merged.control.end, *letters[:place]], merged.vocab_size)
        spelled += logits[token] - logsumexp(logits[: merged.control.good])
    samples += (ReferenceSample("hello", spelled, 5, False, tuple(letters), False),)
    texts = encode_texts(merged, samples, "document")
    costs = sequence_costs(reference.model, merged, texts, "untagged")
    np.testing.assert_allclose(-costs.text, [sample.log_prob for sample in samples], atol=1e-4)
    assert (costs.cut == 0).all()


def blank_lines(folder: Path) -> Tokenizer:
    """A few letters, a token for two line feeds, in which a line ends, and a special token that is none of ours."""
    pieces = ["a", "b", "D", ".", "\u0120", "\u010a", "\u010a\u010a"]
    model = models.BPE({piece: place for place, piece in enumerate(pieces)}, [("\u010a", "\u010a")])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>"])
    return load_tokenizer(str(save_foreign(backend, folder, eos_token="<|endoftext|>")))


@pytest.fixture(scope="module")
def itself(tmp_path_factory) -> tuple[Tokenizer, LlamaForCausalLM, tuple[ReferenceSample, ...]]:
    """A tokenizer, a model, and what this model wrote as a reference."""
    folder = tmp_path_factory.mktemp("itself")
    tokenizer = blank_lines(folder / "foreign")
    model = tiny_llama(tokenizer, seed=3)
    lm.save_model(model, folder / "model")
    tokenizer.save(folder / "model")
    drawn = load_reference(str(folder / "model")).write(range(200), 12, seed=0)
    return tokenizer, model, tuple(sample for sample in drawn if sample is not None)


@pytest.mark.parametrize("segments", ["lines", "sentences", "document"])
def test_kl_of_a_model_and_itself_is_0_wherever_its_tokens_lie(itself, segments) -> None:
    """Also where a segment ends inside a token. In good mode a control token has to stand there: such texts are counted."""
    tokenizer, model, samples = itself
    assert any("\n\n" in sample.text for sample in samples)
    reference = ReferenceSamples(Identity("self", "1"), samples)
    sizes = {"segments": segments, "num_bootstrap": 100, "seed": 0}
    found = Measurements(measure_kl(model, tokenizer, reference, ["none", "untagged", "good"], **sizes))
    for mode in ("none", "untagged"):
        for measure in ("kl", "kl_per_sequence", "kl_per_byte"):
            assert abs(found.find(measure, mode).mean) < 1e-6
    assert found.find("kl_left_out").mean == 0
    assert (found.find("kl_split", "good").mean > 0) == (segments == "lines")
    assert found.find("kl_split", "none").count == 0


def test_texts_that_the_vocabulary_does_not_have_are_left_out_and_counted(itself) -> None:
    """A few: the others are scored by the reference's own ids. Most: the two vocabularies differ, and all are read anew."""
    tokenizer, model, samples = itself
    strange = tuple(replace(sample, ids=(*(sample.ids or ()), 0)) for sample in samples[:5])
    sizes = {"segments": "lines", "num_bootstrap": 100, "seed": 0}
    found = Measurements(
        measure_kl(
            model, tokenizer, ReferenceSamples(Identity("self", "1"), (*strange, *samples)), ["none"], **sizes
        )
    )
    assert (found.find("kl_left_out").mean, found.find("kl_left_out").count) == (5, len(samples) + 5)
    assert abs(found.find("kl_per_sequence", "none").mean) < 1e-6
    assert found.find("kl_per_sequence", "none").count == len(samples)
    other = tuple(replace(sample, ids=tuple(i + 1 for i in sample.ids or ())) for sample in samples)
    found = Measurements(
        measure_kl(model, tokenizer, ReferenceSamples(Identity("other", "1"), other), ["none"], **sizes)
    )
    assert found.find("kl_left_out").mean == 0
    assert found.find("kl_per_sequence", "none").count == len(samples)


def test_a_text_that_spells_special_tokens_is_text(merged) -> None:
    text = "he<|good|>said<|endoftext|><|bad|>"
    (found,) = encode_texts(merged, make_samples([(text, False)]).samples, "document")
    assert merged.decode(np.concatenate(found.segments), skip_control=False) == text
    assert not np.isin(np.concatenate(found.segments), (merged.control.end, *merged.control.all)).any()


def test_a_word_that_the_reference_cut_may_go_on(merged) -> None:
    """q(page begins with the text): by brute force over every place and every token, in bytes."""
    model = tiny_llama(merged, seed=4)
    pages = [
        ("hel", False),
        ("hello hel", False),
        ("help he", False),
        ("he", True),
        ("h", False),
        ("x", False),
    ]
    samples = make_samples(pages).samples
    found = sequence_costs(model, merged, encode_texts(merged, samples, "document"), "none")
    spelled = {
        token: merged.decode([token]).encode()
        for token in range(merged.control.good)
        if token != merged.control.end
    }
    is_text = ~np.isin(np.arange(merged.vocab_size), merged.control.all)
    for index, (text, ended) in enumerate(pages):
        alone, _ = slow_costs(model, merged, text, ended, "none")
        ways, before = [-alone], 0.0
        ids = [merged.control.end]
        for token in merged.encode(text) if not ended else []:
            logits = next_logits(model, ids, merged.vocab_size)
            log_probs = logits - logsumexp(logits[is_text])
            rest = text.encode()[len(merged.decode(ids[1:]).encode()) :]
            is_last = spelled[token] == rest
            ways += [
                before + log_probs[other]
                for other, piece in spelled.items()
                if piece.startswith(rest) and not (is_last and other == token)
            ]
            before += log_probs[token]
            ids.append(token)
        assert found.text[index] == pytest.approx(-logsumexp(ways), abs=1e-3)
        assert found.cut[index] == pytest.approx(alone + logsumexp(ways), abs=1e-3)
    assert found.cut[0] > 0.1, "'hel' may become 'hello'"
    assert found.cut[3] == 0, "the page ended"
    assert found.cut[5] == 0, "no token begins with x but x"


def test_a_text_longer_than_the_context_is_scored_once_in_windows(tokenizer) -> None:
    model = tiny_llama(tokenizer, seed=6, context=8)
    text = "ab.ba" * 5
    samples = make_samples([(text, True), ("ab", True)], tokenizer).samples
    found = sequence_costs(model, tokenizer, encode_texts(tokenizer, samples, "document"), "none")
    page = [tokenizer.control.end, *tokenizer.encode(text), tokenizer.control.end]
    is_text = ~np.isin(np.arange(tokenizer.vocab_size), tokenizer.control.all)
    total = 0.0
    for place in range(1, len(page)):
        start = 0 if place <= 8 else 4 * ((place - 9) // 4 + 1)
        assert 1 <= place - start <= 8
        logits = next_logits(model, page[start:place], tokenizer.vocab_size)
        total -= logits[page[place]] - logsumexp(logits[is_text])
    assert found.text[0] == pytest.approx(total, abs=1e-3)
    assert found.text[1] == pytest.approx(slow_costs(model, tokenizer, "ab", True, "none")[0], abs=1e-4)


def test_control_tokens_are_free_but_counted(tokenizer) -> None:
    """What a model pays for control tokens stands beside the divergence of its text, never in it."""
    model = tiny_llama(tokenizer, seed=7)
    reference = make_samples([("ab\nab", False), ("b", True)], tokenizer)
    sizes = {"segments": "lines", "num_bootstrap": 100, "seed": 0}
    rows = measure_kl(model, tokenizer, reference, ["none", "untagged", "good", "bad"], **sizes)
    none, untagged = (
        [(row.measure, row.of, row.estimate) for row in rows if row.mode == mode]
        for mode in ("none", "untagged")
    )
    assert none == untagged
    found = Measurements(rows)
    gap = found.find("kl", "good-bad")
    assert gap.mean == pytest.approx(found.find("kl", "good").mean - found.find("kl", "bad").mean)
    assert gap.low <= gap.mean <= gap.high
    assert found.find("kl_control_cost", "good").mean > 3  # three tokens that the model was never taught


def test_an_additive_model_is_measured_with_its_mode_folded_in(tokenizer) -> None:
    model = tiny_llama(tokenizer, seed=8)
    conditions = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    reference = make_samples([("ab", False), ("b.", True)], tokenizer)
    sizes = {"segments": "document", "num_bootstrap": 100, "seed": 0}
    found = Measurements(
        measure_kl(model, tokenizer, reference, ["good", "none"], conditions=conditions, **sizes)
    )
    folded = lm.fold_condition(model, tokenizer.control, conditions[1])
    rows = Measurements(measure_kl(folded, tokenizer, reference, ["untagged"], **sizes))
    alone = rows.find("kl_per_sequence", "untagged")
    assert found.find("kl_per_sequence", "good") == alone
    assert found.find("kl_per_sequence", "none") != alone


def test_sampling_is_kept_and_goes_on_where_it_was_stopped(reference, tmp_path) -> None:
    calls = []
    whole = sample_reference(
        reference, 20, LENGTH, 0, cache=tmp_path / "a", batch_size=8, progress=lambda *c: calls.append(c)
    )
    assert calls[-1] == (f"sampling {reference.identity.name}", 20, 20)
    part = sample_reference(reference, 5, LENGTH, 0, cache=tmp_path / "b", batch_size=8)
    gone_on = sample_reference(reference, 20, LENGTH, 0, cache=tmp_path / "b", batch_size=8)
    assert whole == gone_on
    assert part.samples == whole.samples[:5]
    (one,), (other,) = ((tmp_path / name).iterdir() for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    assert open_reference(str(one), 20, LENGTH, 0, cache=tmp_path) == whole
    assert {sample.num_tokens for sample in whole.samples if not sample.ended} == {LENGTH}
    changed = sample_reference(reference, 5, LENGTH, 1, cache=tmp_path / "a", batch_size=8)
    assert changed.identity != whole.identity
    assert changed.samples != part.samples


def test_a_reference_whose_texts_are_kept_is_not_loaded_again(tokenizer, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "model"
    lm.save_model(tiny_llama(tokenizer, seed=1), folder)
    tokenizer.save(folder)
    first = open_reference(str(folder), 3, 2, 0, cache=tmp_path)
    assert first.num_rejected == first.samples[-1].index - 2 > 0  # random bytes are seldom UTF-8
    monkeypatch.setattr("phf.evaluate.reference_lm.load_reference", None)
    assert open_reference(str(folder), 3, 2, 0, cache=tmp_path) == first
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    with pytest.raises(TypeError):  # it would be loaded: another file is another reference
        open_reference(str(folder), 3, 2, 0, cache=tmp_path)


def test_a_character_is_never_cut_in_two(reference, tokenizer) -> None:
    """Half of what this reference writes is é in two tokens: a sample goes on to its end; broken bytes are left out."""
    before = reference.is_allowed.clone()
    try:
        reference.is_allowed[:] = False
        reference.is_allowed[tokenizer.encode("aé")] = True
        drawn = reference.write(range(200), LENGTH, seed=0)
        samples = [sample for sample in drawn if sample is not None]
        assert 0 < len(samples) < 200
        assert {sample.num_tokens for sample in samples} == {LENGTH, LENGTH + 1}
        for sample in samples[:30]:
            assert list(sample.ids) == tokenizer.encode(sample.text)
            ids, total = [tokenizer.control.end], 0.0
            allowed = reference.is_allowed[: tokenizer.vocab_size].numpy()
            for token in sample.ids:
                logits = next_logits(reference.model, ids, tokenizer.vocab_size)
                total += logits[token] - logsumexp(logits[allowed])
                ids.append(token)
            assert sample.log_prob == pytest.approx(total, abs=1e-4)
    finally:
        reference.is_allowed[:] = before


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_samples_of_an_api_model(tmp_path, merged) -> None:
    path = write_lines(
        tmp_path / "gpt.jsonl",
        {"text": "hello", "token_logprobs": [-1.5, -0.5]},
        "",
        {"text": "help", "token_logprobs": [-1.0, -2.0, -0.25], "ended": True, "model": "gpt-3"},
    )
    found = read_samples(path)
    assert [(s.log_prob, s.num_tokens, s.ended) for s in found.samples] == [
        (-2.0, 2, False),
        (-3.25, 3, True),
    ]
    model = tiny_llama(merged, seed=9)
    sizes = {"segments": "sentences", "num_bootstrap": 100, "seed": 0}
    result = Measurements(measure_kl(model, merged, found, ["none"], **sizes))
    per_sequence = result.find("kl_per_sequence", "none").mean
    assert per_sequence * 2 == pytest.approx(result.find("kl", "none").mean * 5)
    assert per_sequence * 2 == pytest.approx(result.find("kl_per_byte", "none").mean * 9)
    assert result.find("reference_entropy").mean == pytest.approx(5.25 / 5)
    without = read_samples(
        write_lines(tmp_path / "x.jsonl", {"text": "a", "logprob": -1}, {"text": "b", "logprob": 0})
    )
    result = Measurements(measure_kl(model, merged, without, ["none"], **sizes))
    assert np.isnan(result.find("kl", "none").mean)
    assert result.find("kl_per_sequence", "none").count == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "no 'logprob'"),
        ({"logprob": -1}, "no text"),
        ({"text": "a", "logprob": 2}, "log-probability 2"),
        ({"text": "a", "logprob": float("nan")}, "log-probability nan"),
        ({"text": "a", "logprob": -1, "num_tokens": 0}, "num_tokens 0"),
        ({"text": "", "logprob": -1}, "empty text"),
        ({"text": "a", "token_logprobs": [None, -1]}, "line 2"),
        ('{"text": "\\ud800", "logprob": -1}', "surrogates"),
        ("{", "line 2"),
    ],
)
def test_a_wrong_row_is_one_line_that_names_it(tmp_path, row, message) -> None:
    path = write_lines(tmp_path / "x.jsonl", {"text": "fine", "logprob": -1}, row)
    with pytest.raises(PHFError, match=message) as caught:
        read_samples(path)
    assert "x.jsonl, line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["/nowhere", "/nowhere.gguf", "/nowhere.jsonl"])
def test_a_reference_that_is_not_there(spec, tmp_path) -> None:
    with pytest.raises(PHFError, match="nowhere"):
        open_reference(spec, 1, 1, 0, cache=tmp_path)
