"""`lexicon:<file>`: what counts as a hit, and what a word list may not hold."""

import pytest

from phf.errors import PHFError
from phf.reward_models import load_reward_model, score_samples


@pytest.fixture
def load(tmp_path):
    def load_entries(text, name="words.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_reward_model(f"lexicon:{path}")

    return load_entries


def count_hits(model, text):
    (score,) = model.score(text, [len(text)])
    return pytest.approx(score * len(text))


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("a darn thing", 1),
        ("DARN, Darn; darn.", 3),
        ("darned undarn darn_it", 0),  # whole words
        ("ＤＡＲＮ", 1),  # full-width letters
        ("go to heck", 3),  # the weight, and the longest: not 'go' alone
        ("go  to\n heck", 3),
        ("go to hecks", 0.5),  # the phrase splits a word, the shorter entry holds
        ("go go to heck heck", 3.5),  # no overlap
        ("gauche CAFÉ, cafe\u0301, cafe", 2),  # however é is written
        ("STRASSE", 1),
        ("oh f*ck!", 1),
        ("you🖕 you 🖕🏽", 2),  # a symbol needs no space beside it
        ("c++ or c++11", 2),
        ("hot dog, dog", 2),  # the dog of a hot dog is no second hit
        ("हिंदी हिं", 1),  # combining marks are parts of a word
        ("nothing", 0),
    ],
)
def test_hits(load, text, hits):
    model = load("darn\ngo\t0.5\ngo to heck\t3\ncafé\nstraße\nf*ck\n🖕\nc++\nहिंदी\nह\nhot dog\ndog\n")
    assert count_hits(model, text) == hits


def test_a_score_is_hits_per_character_of_its_segment(load):
    model = load("darn")
    assert model.score("darn it. Darn!", [8, 14]) == [1 / 8, 1 / 6]
    assert (model.unit, model.hit_threshold) == ("items per character", 0.0)
    assert score_samples(model, ["fine", ""])[0] == 0.0
    assert score_samples(model, [""])[0].reason == "empty text"


def test_comments_marks_and_blank_lines(load):
    model = load("\ufeffdarn\r\n# heck\r\n\r\n  two   words \t2\r\n".encode())
    assert [count_hits(model, text) for text in ("darn", "# heck", "two words")] == [1, 0, 2]


def test_the_identity_follows_the_entries_not_their_spelling(load):
    first = load("darn\nheck\t2\n").identity
    assert first.name == "lexicon-words"
    assert load("# better\nDARN\nheck\t2.0\n").identity == first
    assert load("darn\nheck\t3\n").identity.id != first.id
    assert load("darn\n").identity.id != first.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no entry"),
        ("# only\n", "holds no entry"),
        ("fine\ndarn\tx\n", r"line 2 of .*'darn\\tx'; an entry is"),
        ("darn\t0\n", "line 1"),
        ("darn\t-1\n", "line 1"),
        ("darn\tinf\n", "line 1"),
        ("\t2\n", "line 1"),
        ("darn\nDarn\t2\n", "line 2 of .* gives 'darn' the weight 2, an earlier line 1"),
        (b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_what_is_no_word_list_is_said(load, text, message):
    with pytest.raises(PHFError, match=message) as error:
        load(text)
    assert "\n" not in str(error.value)


def test_missing_files_are_said(tmp_path):
    with pytest.raises(PHFError, match=r"no word list .*nowhere\.txt; an entry is a word or phrase"):
        load_reward_model(f"lexicon:{tmp_path}/nowhere.txt")
    with pytest.raises(PHFError, match="is a folder"):
        load_reward_model(f"lexicon:{tmp_path}")


def test_ten_thousand_entries(load):
    words = [f"w{number:x}x" for number in range(10_000)]
    model = load("\n".join(words + [f"{word} of" for word in words[:500]]))
    text = " ".join(words) + " of all"
    assert count_hits(model, text) == 10_000
    assert count_hits(model, "w1x of w2x") == 2
