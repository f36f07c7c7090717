"""What a tokenizer loses is counted and said, and no number divides by bytes that its ids do not say."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from tokenizer_families import FAMILIES
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from phf import cli
from phf.annotate.annotate import annotate
from phf.cli import app
from phf.config.evaluate import EvaluateConfig
from phf.config.train import TrainConfig, parse
from phf.corpus.store import Corpus, build_corpus
from phf.errors import PHFError
from phf.evaluate.measures import bits_per_byte, control_gain, joint, kl
from phf.evaluate.reference_lm import ReferenceSample, ReferenceSamples
from phf.evaluate.suite import measure_all
from phf.records import Identity
from phf.report.page import summary_rows, write_report
from phf.results import read_evaluation
from phf.tokens.recovery import MAX_LOST_SHARE, count_lost, explain_loss
from phf.tokens.tokenizer import Tokenizer, load_tokenizer
from phf.tokens.tokens import TokenCache, find_tokens, tokenize
from phf.train import loop

TEXTS = [
    f"Line {k}: the quick brown fox, then a lazy dog; fin.\nAnd a second line of no. {k}.\n"
    for k in range(60)
]
LETTERS = sorted({letter for text in TEXTS for letter in text})


def save(backend: tokenizers.Tokenizer, folder: Path, **special: str) -> str:
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def make_letters(
    letters: list[str], normalizer: normalizers.Normalizer | None = None
) -> tokenizers.Tokenizer:
    """One id a letter, and an unknown token for the others: what it knows, it gives back exactly."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<eos>", *letters])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_special_tokens(["<unk>", "<eos>"])
    return backend


def lose(tokenizer: Tokenizer, *texts: str) -> dict[str, int]:
    encoded = tokenizer.encode_documents(texts)
    return dict(count_lost(tokenizer, texts, np.split(encoded.ids, np.cumsum(encoded.num_tokens)[:-1])))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return build_corpus([str(source)], tmp_path / "corpus", validation_fraction=0.2)


def test_unknown_letters_are_counted_and_changed_ones_too(tmp_path: Path) -> None:
    plain = load_tokenizer(save(make_letters(LETTERS), tmp_path / "plain", eos_token="<eos>"))
    assert lose(plain, *TEXTS) == {}
    assert lose(plain, "a dog", "", "a ß dog ßé", "fin\tA") == {"ß": 2, "é": 1, "\t": 1}
    lower = make_letters(LETTERS, normalizers.Lowercase())
    assert lose(load_tokenizer(save(lower, tmp_path / "lower", eos_token="<eos>")), "Aa LL", "fin") == {
        "A": 1,
        "L": 2,
    }
    strip = make_letters(LETTERS, normalizers.Strip())
    assert lose(load_tokenizer(save(strip, tmp_path / "strip", eos_token="<eos>")), "fin \n", "fin") == {
        " ": 1,
        "\n": 1,
    }
    wide = make_letters([*LETTERS, "⁄"], normalizers.NFKC())
    assert lose(load_tokenizer(save(wide, tmp_path / "nfkc", eos_token="<eos>")), "½ fin") == {
        "1": 1,
        "⁄": 1,
        "2": 1,
    }


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_lose_what_their_make_loses(family: str, tmp_path: Path) -> None:
    make, special = FAMILIES[family]
    tokenizer = load_tokenizer(save(make(TEXTS), tmp_path / family, **special))
    lost = lose(tokenizer, *TEXTS, " x", "日本 e\u0301\r\n")
    assert bool(lost) == (family in ("bert", "t5")), lost
    assert (explain_loss(lost, sum(map(len, TEXTS)), family) is not None) == (family in ("bert", "t5"))


def test_a_space_put_before_a_text_takes_nothing_from_it(tmp_path: Path) -> None:
    pieces = [
        ("<unk>", 0.0),
        ("<eos>", 0.0),
        *((letter, -5.0) for letter in ("▁", *LETTERS) if letter != " "),
    ]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    assert lose(load_tokenizer(save(backend, tmp_path / "spm", eos_token="<eos>")), *TEXTS) == {}


def test_one_strange_letter_in_a_large_corpus_leaves_the_numbers() -> None:
    assert explain_loss({"☃": 1}, round(1 / MAX_LOST_SHARE), "t") is None
    assert "does not give back 2 of 10,000 characters" in explain_loss(
        {"☃": 2}, round(1 / MAX_LOST_SHARE), "t"
    )


def test_tokenize_counts_stores_and_says_what_is_lost(corpus: Corpus, tmp_path: Path, capsys) -> None:
    known = [letter for letter in LETTERS if letter not in "qx"]
    spec = save(make_letters(known), tmp_path / "lossy", eos_token="<eos>")
    app(["tokenize", str(corpus.path), "-t", spec, "-s", "lines", "--workers", "1"], standalone_mode=False)
    said = capsys.readouterr().err
    assert "does not give back 120 of" in said
    assert "'q' 60 times, 'x' 60 times" in said
    cache = find_tokens(corpus, spec, "lines")
    assert cache.lost == {"q": 60, "x": 60}
    assert cache.num_characters == sum(map(len, TEXTS))
    assert "train:4096" in cache.explain_loss()
    exact = tokenize(corpus, save(make_letters(LETTERS), tmp_path / "exact", eos_token="<eos>"), "lines")
    assert exact.lost == {}
    assert exact.explain_loss() is None
    assert tokenize(corpus, "train:300", "lines").explain_loss() is None


def test_tokens_of_a_phf_that_did_not_count_are_made_again(corpus: Corpus, tmp_path: Path) -> None:
    from phf.corpus.store import read_manifest, write_manifest

    spec = save(make_letters(LETTERS[:20]), tmp_path / "lossy", eos_token="<eos>")
    path = tokenize(corpus, spec, "lines").path
    before = (path / "manifest.json").read_bytes()
    manifest = read_manifest(path / "manifest.json", "")
    for key in ("manifest_hash", "format_version"):
        manifest.pop(key, None)
    for entry in manifest["shards"]:
        del entry["lost"], entry["num_characters"]
    write_manifest(path / "manifest.json", manifest)
    assert "does not say what its tokenizer lost" in TokenCache.open(path).explain_loss()
    tokenize(corpus, spec, "lines")
    assert (path / "manifest.json").read_bytes() == before


def test_nothing_is_divided_by_bytes_that_the_ids_do_not_say(corpus: Corpus, tmp_path: Path) -> None:
    tokens = tokenize(
        corpus, save(make_letters(LETTERS[:20]), tmp_path / "lossy", eos_token="<eos>"), "lines"
    )
    subject = SimpleNamespace(
        data=SimpleNamespace(tokens=tokens, objective=SimpleNamespace(has_control_tokens=True)),
        config=EvaluateConfig(),
        progress=None,
    )
    metrics = [bits_per_byte.METRIC, joint.METRIC, control_gain.METRIC]
    found, left_out = measure_all(subject, metrics)
    assert found == {}
    assert sorted(left_out) == ["bits_per_byte", "control_gain", "joint"]
    assert all("does not give back" in reason for reason in left_out.values())


def test_a_references_texts_must_come_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tuple(ReferenceSample(text, -9.0) for text in (*TEXTS[:3], "", "ß"))
    monkeypatch.setattr(kl, "_open_reference", lambda *_: ReferenceSamples(Identity("lm", "1"), samples))
    run = SimpleNamespace(config=SimpleNamespace(segments="lines"))

    def measure(letters: list[str]) -> kl.Measured:
        tokenizer = load_tokenizer(
            save(make_letters(letters), tmp_path / str(len(letters)), eos_token="<eos>")
        )
        parts = SimpleNamespace(measure=lambda *_: [])
        config = EvaluateConfig(kl={"reference": "lm"})
        subject = SimpleNamespace(tokenizer=tokenizer, run=run, parts=parts, config=config, progress=None)
        return kl.measure_modes(subject)

    assert "does not give back 1 of" in measure(LETTERS).left_out["kl"]
    assert measure([*LETTERS, "ß"]).left_out == {}


def test_a_byte_level_tokenizer_is_compared_byte_by_byte(tmp_path: Path) -> None:
    """Its unknown token has one letter, as the byte that it stands for: counting bytes would not show it."""
    letters = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter != "q"]
    vocabulary = {token: index for index, token in enumerate(["<eos>", *sorted(letters)])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="!"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    tokenizer = load_tokenizer(save(backend, tmp_path / "bytes", eos_token="<eos>"))
    assert tokenizer.is_byte_level
    assert tokenizer.decode(tokenizer.encode("brown fox!")) == "brown fox!"
    with pytest.raises(PHFError, match="does not keep a text whole"):
        tokenizer.encode("quick")


def test_a_run_of_a_tokenizer_that_loses_text_has_no_bits_per_byte_and_its_page_says_so(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = sorted(set(LETTERS) - {"q", "z"})
    spec = save(make_letters(known), tmp_path / "letters", eos_token="<eos>")
    annotate(corpus, "pii", "lines", workers=1)
    tokenize(corpus, spec, "lines", workers=1)
    settings = {
        "corpus": str(corpus.path),
        "reward_model": "pii",
        "segments": "lines",
        "tokenizer": spec,
        "objective": {"kind": "mle"},
        "model": {"preset": "1M", "layers": 1, "width": 32, "heads": 2},
        "data": {"context": 64},
        "optim": {"batch_blocks": 4},
        "tokens": 512,
        "precision": "fp32",
    }
    run = loop.train(parse(TrainConfig, settings, "test"), tmp_path / "run", say=lambda line: None)
    sizes = ["--num-samples", "8", "--max-new-tokens", "16"]
    monkeypatch.setattr(sys, "argv", ["phf", "evaluate", str(run.folder), *sizes])
    cli.main()
    assert "not measured: bits per byte: tokenizer letters does not give back" in capsys.readouterr().out
    result = read_evaluation(run.folder / "evaluation.json")
    assert {"bits_per_byte", "joint"} <= set(result.left_out)
    assert not result.results.of("bits_per_byte", "joint_bits_per_byte")
    page = write_report(run.folder, tmp_path / "page.html").read_text()
    assert re.search(r"run has no bits per byte, joint: tokenizer .* does not give back [\d,]+ of", page)
    assert summary_rows(run.folder)[0]["bits_per_byte"] is None
