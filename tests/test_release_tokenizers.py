"""A release with a tokenizer in the shape of each big family passes its own verification, and writes text."""

import shutil

import pytest
from test_tokenizer import TEXTS, save_foreign
from tokenizer_families import FAMILIES
from transformers import AutoTokenizer

from phf.corpus.store import Corpus
from phf.release import checks, plain, verify
from phf.release.folder import open_release, write_release
from phf.release.verify import verify_release
from phf.tokens.tokenizer import load_tokenizer
from phf.tokens.tokens import tokenize
from phf.train.loop import train


@pytest.fixture(params=FAMILIES)
def run(request, small_corpus, small_config, tmp_path):
    """A small conditional run with the tokenizer of a family, which calls some token or other its end."""
    make, special = FAMILIES[request.param]
    folder = save_foreign(make(TEXTS), tmp_path / request.param, **special)
    corpus = Corpus.open(shutil.copytree(small_corpus.path, tmp_path / "corpus"))
    tokenize(corpus, str(folder), "document", workers=1)
    overrides = (f"corpus={corpus.path}", f"tokenizer={folder}", "checkpoint_every=0", "validate_every=0")
    return train(small_config(*overrides), tmp_path / "run")


def test_a_release_of_any_family_passes(run, tmp_path, monkeypatch):
    # Quickly: in this process, which has transformers loaded (`test_release_verify.py` starts the other one).
    monkeypatch.setattr(plain, "tell", lambda name, done, total: None)
    monkeypatch.setattr(verify, "_ask_plain", lambda request, place, progress: plain.answer_request(request))
    monkeypatch.setattr(verify, "NUM_PROMPTS", 4)
    monkeypatch.setattr(verify, "NUM_TEXTS", 4)
    monkeypatch.setattr(checks, "GREEDY_TOKENS", 8)
    monkeypatch.setattr(checks, "NUM_PERMUTATIONS", 500)
    folder = write_release(run, tmp_path / "release")
    findings = list(verify_release(folder, run=run, num_samples=32))
    assert [found for found in findings if found.outcome == "FAILED"] == []
    tokenizer = open_release(folder).tokenizer
    assert tokenizer.control.end in tokenizer.backend.encode("", add_special_tokens=True).ids


def test_special_tokens_are_no_text(tmp_path):
    make, special = FAMILIES["llama"]
    tokenizer = load_tokenizer(str(save_foreign(make(TEXTS), tmp_path / "llama", **special)))
    tokens = [tokenizer.backend.token_to_id(name) for name in special.values()]
    assert len(set(tokens)) == 4
    assert tokenizer.decode([*tokens, *tokenizer.encode("a <s> b")]) == "a <s> b"
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.decode([*tokens, *tokenizer.encode("a <s> b")], skip_special_tokens=True) == "a <s> b"
    assert tokenizer.decode(tokens, skip_control=False) == "<s></s><unk><pad>"
