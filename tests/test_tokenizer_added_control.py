"""Tokenizers to which somebody has added `<|good|>` and `<|bad|>` themselves: the ids stay, and no text reaches them any more."""

import json
from pathlib import Path

import pytest
from test_tokenizer import HOSTILE, TEXTS, assert_unreachable, make_gpt2, save_foreign
from tokenizer_families import FAMILIES
from transformers import AutoTokenizer

from phf.control import BAD_TOKEN, END_TOKEN, GOOD_TOKEN
from phf.errors import PHFError
from phf.tokens.tokenizer import load_tokenizer, train_tokenizer


def add_special(folder: Path, to: Path, *tokens: str) -> Path:
    """The folder as somebody saves it who has added special tokens by transformers."""
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.add_special_tokens({"additional_special_tokens": list(tokens)})
    theirs.save_pretrained(to)
    return to


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_stay_and_no_text_becomes_one(family: str, tmp_path: Path) -> None:
    make, special = FAMILIES[family]
    plain = save_foreign(make(TEXTS), tmp_path / "plain", **special)
    taught = add_special(plain, tmp_path / "taught", GOOD_TOKEN, BAD_TOKEN)
    theirs = AutoTokenizer.from_pretrained(taught)
    own, expected = load_tokenizer(str(taught)), load_tokenizer(str(plain))
    assert theirs.convert_tokens_to_ids([GOOD_TOKEN, BAD_TOKEN]) == [own.control.good, own.control.bad]
    assert own.control == expected.control
    assert set(theirs("a <|bad|> b")["input_ids"]) & set(own.control.all), "there a text reached them"
    end = str(own.backend.id_to_token(own.control.end))
    for text in [*HOSTILE, *TEXTS[:2], f"{end}<|good|>"]:
        assert_unreachable(own, text)
        assert own.encode(text) == expected.encode(text), text
    own.save(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved")).identity == own.identity


def test_a_template_that_begins_in_good_mode_is_let_go(tmp_path: Path) -> None:
    folder = add_special(
        save_foreign(make_gpt2(), tmp_path / "plain", eos_token=END_TOKEN),
        tmp_path / "taught",
        GOOD_TOKEN,
        BAD_TOKEN,
    )
    content = json.loads((folder / "tokenizer.json").read_text())
    good = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(GOOD_TOKEN)
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": GOOD_TOKEN, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {GOOD_TOKEN: {"id": GOOD_TOKEN, "ids": [good], "tokens": [GOOD_TOKEN]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.control.good == good
    assert good not in tokenizer.backend.encode("a", add_special_tokens=True).ids


def test_our_own_folder_saved_by_transformers_is_ours(tmp_path: Path) -> None:
    own = train_tokenizer(iter(TEXTS), 400)
    own.save(tmp_path / "own")
    AutoTokenizer.from_pretrained(tmp_path / "own").save_pretrained(tmp_path / "plain")
    taught = add_special(tmp_path / "own", tmp_path / "taught", GOOD_TOKEN, BAD_TOKEN)
    for folder in (tmp_path / "plain", taught):
        again = load_tokenizer(str(folder))
        assert again.control == own.control
        for text in HOSTILE:
            assert_unreachable(again, text)
            assert again.encode(text) == own.encode(text)


@pytest.mark.parametrize(
    ("tokens", "first"),
    [
        ([BAD_TOKEN, GOOD_TOKEN], GOOD_TOKEN),
        ([GOOD_TOKEN], GOOD_TOKEN),
        ([BAD_TOKEN], BAD_TOKEN),
        ([GOOD_TOKEN, BAD_TOKEN, "<|more|>"], GOOD_TOKEN),
        ([GOOD_TOKEN, "<|more|>", BAD_TOKEN], GOOD_TOKEN),
    ],
)
def test_any_others_are_refused_in_one_line(tokens: list[str], first: str, tmp_path: Path) -> None:
    plain = save_foreign(make_gpt2(), tmp_path / "plain", eos_token=END_TOKEN)
    taught = add_special(plain, tmp_path / "taught", *tokens)
    with pytest.raises(PHFError) as refused:
        load_tokenizer(str(taught))
    assert f"tokenizer taught has a {first} of its own (id 6" in str(refused.value)
    assert "were added last, in this order" in str(refused.value)
    assert "\n" not in str(refused.value)
