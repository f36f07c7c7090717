"""No text reaches a control token, texts come back whole, and a saved folder is one that transformers loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from phf.control import BAD_TOKEN, END_TOKEN, GOOD_TOKEN, ControlTokens
from phf.errors import PHFError
from phf.records import BAD
from phf.tokens.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

TEXTS = [
    path.read_text(encoding="utf-8") for path in sorted(Path(json.__file__).parent.parent.glob("email/*.py"))
]
TEXTS += [
    "<|good|> and <|bad|> and <|endoftext|>, <|bad|><|bad|> <|good|>\n" * 50
]  # so that merges would be learnt

HOSTILE = [
    "<|bad|>",
    "<|good|>",
    "<|endoftext|>",
    " <|bad|>",
    "<|bad|> ",
    "x<|bad|>y",
    "<|bad|><|good|><|endoftext|>",
    "\n<|bad|>\n",
    "<|BAD|>",
    "＜｜bad｜＞",  # NFKC makes the control token's string of it
    "<|b\u200bad|>",
    "<\u2009|bad|>",
    "Ġ<|bad|>",
    "▁<|bad|>",
    "<|bad|>" * 50,
    "<|<|bad|>bad|>",
    "",
    " ",
    "\x00",
    "e\u0301 é 日本語 👩‍👩‍👧 \u2028\r\n\t",
]


WHOLE_WORDS = pre_tokenizers.Split(tokenizers.Regex(r"\s+|\S+"), "isolated")


def save_foreign(backend: tokenizers.Tokenizer, folder: Path, **special: str) -> Path:
    """A folder as other people's tools write it."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def make_gpt2(
    ignore_merges: bool = False, words: pre_tokenizers.PreTokenizer | None = None
) -> tokenizers.Tokenizer:
    """GPT-2's make: byte-level BPE, its end token both in the vocabulary and added."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level]) if words else byte_level
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS[:3], trainer)
    return backend


def make_words() -> tokenizers.Tokenizer:
    """One id per word: its vocabulary is looked up, so any entry can be reached."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<eos>", "<", "|", "bad|>", "bad", "x"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def make_unigram() -> tokenizers.Tokenizer:
    """SentencePiece's make."""
    letters = sorted({letter for text in HOSTILE for letter in text.replace(" ", "▁")} | {"▁"})
    pieces = [("<unk>", 0.0), ("<eos>", 0.0), *((letter, -5.0) for letter in letters)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(iter(TEXTS), 700)


@pytest.fixture(scope="module")
def all_tokenizers(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("foreign")
    far = make_gpt2()
    far.add_special_tokens([f"<|far-{k}|>" for k in range(5)])  # as Llama 3: added beyond the vocabulary
    composing = make_gpt2()
    composing.normalizer = normalizers.NFC()  # as Qwen
    backends = {
        "gpt2-ignore-merges": (make_gpt2(ignore_merges=True), {"eos_token": END_TOKEN}),
        "whole-words": (make_gpt2(words=WHOLE_WORDS), {"eos_token": END_TOKEN}),
        "whole-words-ignore-merges": (make_gpt2(True, WHOLE_WORDS), {"eos_token": END_TOKEN}),
        "gpt2-nfc": (composing, {"eos_token": END_TOKEN}),
        "far-added": (far, {"eos_token": "<|far-2|>"}),
        "words": (make_words(), {"eos_token": "<eos>"}),
        "unigram": (make_unigram(), {"eos_token": "<eos>"}),
        **{name: (make(TEXTS), special) for name, (make, special) in FAMILIES.items()},
    }
    loaded = {
        name: load_tokenizer(str(save_foreign(backend, folder / name, **special)))
        for name, (backend, special) in backends.items()
    }
    return {"trained": trained, **loaded}


def assert_unreachable(tokenizer: Tokenizer, text: str) -> None:
    """By the raw backend, as another program would use it."""
    control = tokenizer.control
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert not {control.end, control.good, control.bad} & set(ids), (tokenizer.name, text, ids)


def test_no_hostile_string_becomes_a_control_token(all_tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in all_tokenizers.values():
        end = str(tokenizer.backend.id_to_token(tokenizer.control.end))
        for text in [*HOSTILE, end, f"x {end} y", end + BAD_TOKEN]:
            assert_unreachable(tokenizer, text)
            tokenizer.encode(text)


fragments = st.sampled_from(["<|", "|>", "good", "bad", "endoftext", "<", "|", ">", " ", "\n", "Ġ", *HOSTILE])


@settings(max_examples=150, deadline=None)
@given(st.lists(fragments | st.text(max_size=5), max_size=12).map("".join))
@example("<|bad|>")
def test_no_text_becomes_a_control_token(all_tokenizers: dict[str, Tokenizer], text: str) -> None:
    for name, tokenizer in all_tokenizers.items():
        assert_unreachable(tokenizer, text)
        if tokenizer.is_byte_level:
            assert tokenizer.decode(tokenizer.encode(text)) == text, name


def test_a_text_that_is_not_normalised_comes_back(all_tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = all_tokenizers["gpt2-nfc"]
    assert tokenizer.decode(tokenizer.encode("e\u0301 é")) == "e\u0301 é"


def remove_guard(guarded: Tokenizer) -> Tokenizer:
    """The same without the last step of its pre-tokenizer, which cuts words that spell a control token."""
    content = json.loads(guarded.backend.to_str())
    assert content["pre_tokenizer"]["pretokenizers"].pop()["type"] == "Split"
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), guarded.control, guarded.name)


def test_without_the_guard_the_hostile_strings_get_through(tmp_path: Path) -> None:
    """The test above can fail."""
    for name, backend, end in (
        ("words", make_words(), "<eos>"),
        ("unigram", make_unigram(), "<eos>"),
        ("gpt2", make_gpt2(True, WHOLE_WORDS), END_TOKEN),
    ):
        tokenizer = remove_guard(load_tokenizer(str(save_foreign(backend, tmp_path / name, eos_token=end))))
        assert tokenizer.control.bad in tokenizer.backend.encode(BAD_TOKEN, add_special_tokens=False).ids
        with pytest.raises(PHFError, match="made a control token from plain text"):
            tokenizer.encode(BAD_TOKEN)


def test_control_tokens_are_the_last_ids_and_not_added_tokens(all_tokenizers: dict[str, Tokenizer]) -> None:
    for name, tokenizer in all_tokenizers.items():
        backend, control = tokenizer.backend, tokenizer.control
        vocabulary = backend.get_vocab(with_added_tokens=True)
        assert vocabulary[GOOD_TOKEN] == control.good == max(vocabulary.values()) - 1, name
        assert vocabulary[BAD_TOKEN] == control.bad == tokenizer.vocab_size - 1
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        assert not added & {GOOD_TOKEN, BAD_TOKEN}
        assert tokenizer.padded_vocab_size() % 64 == 0
        assert 0 <= tokenizer.padded_vocab_size() - tokenizer.vocab_size < 64


def test_trained_vocabulary(trained: Tokenizer) -> None:
    assert (trained.vocab_size, trained.control.end, trained.control.good) == (700, 697, 698)
    assert trained.name == "train-700"
    assert trained.is_byte_level
    assert trained.decode(trained.encode("".join(map(chr, range(0x300))))) == "".join(map(chr, range(0x300)))
    words = trained.encode(" self return")
    assert len(words) == 2, "words keep their leading space"
    for newlines in ("\n", "    \n", "\r\n"):  # a line end is always a token's end
        ids = trained.encode(f"x{newlines}{newlines}    return 1")
        assert all("\n" not in trained.decode([index]).rstrip("\n") for index in ids)
    with pytest.raises(PHFError, match="the least is 259"):
        train_tokenizer(iter(TEXTS), 258)
    with pytest.raises(PHFError, match=r"choose train:\d+ or less"):
        train_tokenizer(iter(["too little"]), 4096)


def test_training_does_not_depend_on_threads(trained: Tokenizer) -> None:
    code = (
        "from pathlib import Path; import json, phf.tokens.tokenizer as m\n"
        "folder = Path(json.__file__).parent.parent\n"
        "texts = [p.read_text(encoding='utf-8') for p in sorted(folder.glob('email/*.py'))]\n"
        "texts += ['<|good|> and <|bad|> and <|endoftext|>, <|bad|><|bad|> <|good|>\\n' * 50]\n"
        "print(m.train_tokenizer(iter(texts), 700).identity.id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAYON_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == trained.identity.id


def test_decode_leaves_control_tokens_out(trained: Tokenizer) -> None:
    control = trained.control
    ids = [control.end, control.good, *trained.encode("a <|good|> b"), control.bad]
    assert trained.decode(ids) == "a <|good|> b"
    assert trained.decode(ids, skip_control=False) == "<|endoftext|><|good|>a <|good|> b<|bad|>"


def test_a_saved_tokenizer_loads_the_same_here_and_in_transformers(
    all_tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    text = "Some <|bad|> text.\n<|endoftext|> é 日本 and the end"
    for name, tokenizer in all_tokenizers.items():
        folder = tmp_path / name
        tokenizer.save(folder)
        for again in (Tokenizer.load(folder), load_tokenizer(str(folder))):
            assert again.identity == tokenizer.identity, name
            assert again.control == tokenizer.control
            assert again.encode(text) == tokenizer.encode(text)
        for model_type in (None, "llama", "gpt2", "qwen3"):
            if model_type is not None:
                (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
            loaded = AutoTokenizer.from_pretrained(folder)
            expected = [tokenizer.control.end, *tokenizer.encode(text)]
            assert loaded(text)["input_ids"] == expected, (name, model_type)
            assert len(loaded) == tokenizer.vocab_size
            assert loaded.convert_tokens_to_ids(BAD_TOKEN) == tokenizer.control.bad
            assert loaded.eos_token_id == tokenizer.control.end


def test_a_release_may_start_with_good(trained: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    trained.save(tmp_path / "release", start=(END_TOKEN, GOOD_TOKEN))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "release")
    first = [trained.control.end, trained.control.good]
    assert loaded("x <|bad|>")["input_ids"] == first + trained.encode("x <|bad|>")
    assert Tokenizer.load(tmp_path / "release").identity == trained.identity, (
        "the template decides no id of a text"
    )


def test_what_cannot_be_used_is_refused(tmp_path: Path, trained: Tokenizer) -> None:
    endless = save_foreign(make_words(), tmp_path / "endless")
    with pytest.raises(PHFError, match="has no end token"):
        load_tokenizer(str(endless))
    backend = make_gpt2()
    backend.add_tokens([GOOD_TOKEN, "more"])
    taken = save_foreign(backend, tmp_path / "taken", eos_token=END_TOKEN)
    with pytest.raises(PHFError, match=r"has a <\|good\|> of its own"):
        load_tokenizer(str(taken))
    lossy = make_gpt2(words=pre_tokenizers.WhitespaceSplit())
    whole = load_tokenizer(str(save_foreign(lossy, tmp_path / "lossy", eos_token=END_TOKEN)))
    with pytest.raises(PHFError, match=r"does not keep a text whole \(3 bytes in, 2 out\)"):
        whole.encode("a b")
    with pytest.raises(PHFError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(PHFError, match="the folder holds no tokenizer"):
        load_tokenizer(str(tmp_path / "bare"))
    with pytest.raises(PHFError, match="is trained on a corpus"):
        load_tokenizer("train:4096")
    trained.save(tmp_path / "damaged")
    (tmp_path / "damaged" / "tokenizer.json").write_text("{}")
    with pytest.raises(PHFError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path / "damaged")


def test_spans_of_encoded_documents(all_tokenizers: dict[str, Tokenizer]) -> None:
    texts = ["naïve 日本", "", "x"]
    encoded = all_tokenizers["trained"].encode_documents(texts)
    assert encoded.num_tokens.tolist()[1] == 0
    assert encoded.num_tokens.sum() == len(encoded.ids)
    assert encoded.ends[-1] == len("".join(texts).encode())
    np.testing.assert_array_equal(encoded.starts[1:], encoded.ends[:-1])
    encoded = all_tokenizers["words"].encode_documents(["x bad", "bad"])
    assert (encoded.starts.tolist(), encoded.ends.tolist()) == ([0, 2, 5], [1, 5, 8])


def test_levels_come_after_bad_out_of_the_reach_of_text(
    all_tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    for name, tokenizer in all_tokenizers.items():
        more = tokenizer.add_levels(3)
        names = ("<|level_1|>", "<|level_2|>", "<|level_3|>")
        bad = tokenizer.control.bad
        assert more.control == ControlTokens(tokenizer.control.end, tokenizer.control.good, bad, 3), name
        assert [more.backend.token_to_id(level) for level in names] == [bad + 1, bad + 2, bad + 3]
        assert more.vocab_size == tokenizer.vocab_size + 3
        assert more.control.all == tuple(range(bad - 1, bad + 4))
        assert more.control.of_label(BAD) == bad
        assert more.control.of_label(BAD + 2) == bad + 2
        for text in ("plain words x", "a <|level_1|> b", "<|level_2|>", "x<|good|>"):
            ids = more.encode(text)
            assert not set(ids) & set(more.control.all), (name, text)
            if "level" not in text:
                assert ids == tokenizer.encode(text), (name, text)
        assert more.decode([bad + 1, bad + 3]) == ""
        more.save(tmp_path / name)
        loaded = Tokenizer.load(tmp_path / name)
        assert loaded.control == more.control
        assert loaded.identity == more.identity != tokenizer.identity
        assert tokenizer.control.num_levels == 0, "the tokenizer itself is left alone"


def test_a_tokenizer_with_a_level_of_its_own_is_refused(tmp_path: Path) -> None:
    words = make_words()
    words.add_tokens(["<|level_1|>"])
    tokenizer = load_tokenizer(str(save_foreign(words, tmp_path / "words", eos_token="<eos>")))
    with pytest.raises(PHFError, match=r"has a <\|level_1\|> of its own"):
        tokenizer.add_levels(1)


@pytest.mark.parametrize("keep_good", [True, False])
def test_deleted_control_tokens_leave_every_other_id_as_it_was(
    all_tokenizers: dict[str, Tokenizer], tmp_path: Path, keep_good: bool
) -> None:
    from transformers import AutoTokenizer

    plain = ["Some text, é 日本 x", "<|bad|", "def f(x):\n    return <|endoftext|>"]
    for name, tokenizer in all_tokenizers.items():
        for whole in (tokenizer.add_levels(2), tokenizer):
            deleted = whole.delete_control_tokens(keep_good=keep_good)
            control = tokenizer.control
            assert deleted.control == control, "the ids that were theirs"
            assert deleted.vocab_size == (control.bad if keep_good else control.good), name
            gone = [BAD_TOKEN, "<|level_1|>", "<|level_2|>"]
            assert [deleted.backend.token_to_id(token) for token in gone] == [None] * 3
            assert (deleted.backend.token_to_id(GOOD_TOKEN) == control.good) == keep_good
            assert deleted.pieces == whole.pieces[: deleted.vocab_size]
            assert whole.backend.token_to_id(BAD_TOKEN) == control.bad, "the tokenizer itself is left alone"
            for text in [*plain, *HOSTILE]:
                assert deleted.encode(text) == whole.encode(text), (name, text)
                raw = deleted.backend.encode(text, add_special_tokens=False).ids
                assert all(index < control.good for index in raw)
        start = (END_TOKEN, GOOD_TOKEN) if keep_good else (END_TOKEN,)
        deleted.save(tmp_path / name, start=start)
        loaded = Tokenizer.load(tmp_path / name)
        assert (loaded.control, loaded.vocab_size) == (control, deleted.vocab_size), name
        assert loaded.identity == deleted.identity
        again = loaded.delete_control_tokens(keep_good=False)
        again.save(tmp_path / f"{name}-again")
        assert Tokenizer.load(tmp_path / f"{name}-again").vocab_size == control.good
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        first = [control.end, control.good] if keep_good else [control.end]
        assert theirs(BAD_TOKEN)["input_ids"] == first + whole.encode(BAD_TOKEN)
        assert len(theirs) == deleted.vocab_size
        if tokenizer.is_byte_level:
            assert theirs.decode(theirs(BAD_TOKEN, add_special_tokens=False)["input_ids"]) == BAD_TOKEN
        restored = load_tokenizer(str(tmp_path / name))
        assert restored.identity == tokenizer.identity, "to train with them again"
        assert (restored.control, restored.vocab_size) == (control, control.bad + 1)


def test_a_folder_that_claims_deleted_tokens_it_has_is_not_ours(trained: Tokenizer, tmp_path: Path) -> None:
    trained.delete_control_tokens(keep_good=True).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["control_tokens"] == [GOOD_TOKEN]
    for claim in ([], [BAD_TOKEN], "<|good|>", None):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "control_tokens": claim}))
        with pytest.raises(PHFError, match="is not a tokenizer saved by phf"):
            Tokenizer.load(tmp_path)


def test_a_tokenizer_that_transformers_has_saved_again_is_still_ours(
    trained: Tokenizer, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    trained.save(tmp_path)
    again = PreTrainedTokenizerFast(
        tokenizer_object=trained.backend, eos_token=trained.backend.id_to_token(trained.control.end)
    )
    again.save_pretrained(tmp_path / "again")
    found = load_tokenizer(str(tmp_path / "again"))
    assert (found.name, found.control) == ("again", trained.control)
    (tmp_path / "again" / "tokenizer_config.json").write_text("[]")
    with pytest.raises(PHFError, match=r"tokenizer_config.json is not a JSON object"):
        load_tokenizer(str(tmp_path / "again"))
