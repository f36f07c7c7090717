"""Segments: lossless for any Unicode, lines as pycodestyle counts them, sentences with their leading white space."""

import hashlib
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phf.corpus.segment import hash_segment_ends, segment_ends

NASTY = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(" \n\r\t\f\v\x1c\x85\u2028\u2029\ufeff\u200d\u0301.!?\"')DEa😀。"),
    ),
    max_size=80,
)


def split(text, kind):
    return [text[start:end] for start, end in pairwise([0, *segment_ends(text, kind)])]


@pytest.mark.parametrize("kind", ["lines", "sentences", "paragraphs", "document"])
@given(text=NASTY)
@example(text="")
@example(text="\n")
@example(text=" \n\n \t")
@example(text="a\r\n\x0cb\x1cc\u2028d\x85e")
@example(text="D\x85.")  # sentencex panics on it
@example(text="F\u2028. And E\u2029.\n\n\n")
def test_segments_join_to_the_document(kind, text):
    segments = split(text, kind)
    assert "".join(segments) == text
    assert all(segments)


def test_only_newline_ends_a_line():
    assert split("a\r\nb\x0cc\x1cd\u2028e\x85f\rg\n\nh", "lines") == [
        "a\r\n",
        "b\x0cc\x1cd\u2028e\x85f\rg\n",
        "\n",
        "h",
    ]


@given(text=NASTY)
def test_as_many_lines_as_a_file_has(text):
    # What pycodestyle numbers are the lines that a file gives, newlines untranslated.
    assert len(segment_ends(text, "lines")) == text.count("\n") + (text != "" and text[-1] != "\n")


def test_a_sentence_begins_with_its_leading_white_space():
    text = ' Dr. Smith paid 3.50 in the U.S. yesterday.  He said "No."\n\nThen he left. \n'
    assert split(text, "sentences") == [
        " Dr. Smith paid 3.50 in the U.S. yesterday.",
        '  He said "No."',
        "\n\nThen he left. \n",
    ]


def test_blank_lines_end_a_paragraph():
    assert split("\n\n  One\ntwo.\n \t\r\n\n    Three\r\n\r\nfour\n\n \n", "paragraphs") == [
        "\n\n  One\ntwo.\n \t\r\n\n",
        "    Three\r\n\r\n",
        "four\n\n \n",
    ]
    assert split(" \n\n ", "paragraphs") == [" \n\n "]
    assert split("a\x0c\u2028\x0cb\nc", "paragraphs") == ["a\x0c\u2028\x0cb\nc"]


@given(text=NASTY)
def test_every_paragraph_has_a_word(text):
    for paragraph in split(text, "paragraphs"):
        assert paragraph.strip() or not text.strip()


def test_a_document_is_one_segment():
    assert segment_ends("a. b\nc", "document") == [6]
    assert segment_ends("", "document") == segment_ends("", "lines") == segment_ends("", "sentences") == []


def test_long_text_is_cut_as_its_parts_are():
    # The splitter sees a window at a time; sentences that cross a window's end must not be cut there.
    sentence = " The quick brown fox (number one) jumps over the lazy dog."
    text = sentence * 2000
    assert segment_ends(text, "sentences") == list(range(len(sentence), len(text) + 1, len(sentence)))


def test_a_long_text_without_sentences_is_one_segment_and_quick():
    text = 'function(a,b){return "x"+(b["k"]||\'y\')};' * 20_000
    start = time.process_time()
    assert "".join(split(text, "sentences")) == text
    assert time.process_time() - start < 10  # 30 s and more without the window


def test_hash_of_ends_is_of_numbers_and_ends_in_order():
    expected = hashlib.sha256(np.array([2, 3, 7, 0, 1, 4], "<i8").tobytes()).hexdigest()
    assert hash_segment_ends(np.array([2, 0, 1]), np.array([3, 7, 4], np.int32)) == expected
    assert hash_segment_ends(np.array([1, 1, 1]), np.array([3, 7, 4], np.int32)) != expected
