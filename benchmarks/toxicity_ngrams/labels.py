"""Write the labels that `toxicity-ngrams` is trained on; `make judge` does all of it.

A sentence's label is its teacher's score, the median over nine versions of it where it has a term of terms.txt: a teacher that finds
one group toxic is overruled by the others. Beside them stand own sentences with own labels (sentences.yaml). Tweets of the held-out part
(`is_held_out`) are left out, and so is whatever repeats one or a sentence of one, case and white space aside.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
from teacher import Teacher

from phf.corpus.builtin import iterate_fortunes, iterate_nlp_corpus, iterate_tweets
from phf.corpus.rows import BadRow, Row
from phf.corpus.segment import segment_ends
from phf.reward_training.check import SPELLINGS, spell
from phf.reward_training.counterfactual import Terms, read_terms
from phf.reward_training.split import hash_fraction, hash_text

HERE = Path(__file__).parent
NUM_VERSIONS, NUM_FILLED = 8, 12
NUM_RESPELLED, HARMLESS = 4000, 0.1
HELD_OUT = 0.3
MAX_CHARACTERS = 300
KEPT = {"tweets": 1.0, "fortunes": 0.1, "nlp-corpus": 0.35}
"""Share of each source's sentences that are taken, by hash."""


def is_held_out(tweet: str) -> bool:
    """Whether a tweet is for testing alone."""
    return hash_fraction(hash_text(tweet), 0) < HELD_OUT


def list_sentences(nlp_corpus: Path) -> list[str]:
    """Sentences of tweets, fortunes and nlp-corpus, each once, none of a held-out tweet."""
    tweets = [row.text for row in iterate_tweets("")]
    held_out = {hash_text(text) for tweet in filter(is_held_out, tweets) for text in (tweet, *_split(tweet))}
    sources = {
        "tweets": (tweet for tweet in tweets if not is_held_out(tweet)),
        "fortunes": _read(iterate_fortunes("")),
        "nlp-corpus": _read(iterate_nlp_corpus(str(nlp_corpus))),
    }
    found: dict[str, str] = {}
    for source, texts in sources.items():
        for text in texts:
            key = hash_text(text)
            if 3 < len(text) <= MAX_CHARACTERS and hash_fraction(key, 1) < KEPT[source]:
                found.setdefault(key, text)
    return [text for key, text in found.items() if key not in held_out]


def _read(rows: Iterable[Row | BadRow]) -> Iterator[str]:
    for row in rows:
        if isinstance(row, Row):
            yield from _split(row.text)


def _split(text: str) -> list[str]:
    ends = segment_ends(text, "sentences")
    return [text[start:end].strip() for start, end in pairwise((0, *ends))]


def score_fairly(teacher: Teacher, texts: list[str], terms: Terms) -> list[float]:
    """The teacher's score, the median over versions where there are several."""
    rng = np.random.default_rng(0)
    owners = [index for index, text in enumerate(texts) if terms.swap(text, rng) != text]
    versions = [terms.swap(texts[owner], rng) for owner in owners for _ in range(NUM_VERSIONS)]
    scores, others = np.array(teacher.score(texts)), np.array(teacher.score(versions))
    every = np.column_stack([scores[owners], others.reshape(len(owners), NUM_VERSIONS)])
    scores[owners] = np.median(every, axis=1)
    return scores.tolist()


def write_own_sentences(terms: Terms) -> Iterator[tuple[str, float]]:
    """Own sentences with their labels: each template with some terms, each toxic sentence in every spelling."""
    own = yaml.safe_load((HERE / "sentences.yaml").read_text(encoding="utf-8"))
    rng = np.random.default_rng(0)
    for name, label in (("harmless", 0.0), ("attacks", 1.0)):
        for template in own[name]:
            for _ in range(NUM_FILLED):
                text = template
                for slot, line in (("{x}", terms.lines[0]), ("{people}", terms.lines[1])):
                    while slot in text:
                        text = text.replace(slot, str(rng.choice(line)), 1)
                yield text[0].upper() + text[1:], label
    for sentence in own["benign"]:
        yield sentence, 0.0
    for sentence in own["toxic"]:
        for spelling in SPELLINGS:
            yield spell(sentence, spelling), 1.0


def respell(rows: list[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Harmless sentences with one word spelled otherwise, with their labels: odd spelling alone is not toxic."""
    rng = np.random.default_rng(0)
    harmless = [row for row in rows if row[1] < HARMLESS]
    for index in rng.choice(len(harmless), min(NUM_RESPELLED, len(harmless)), replace=False):
        text, label = harmless[index]
        if words := re.findall(r"[A-Za-z]{3,}", text):
            word, spelling = str(rng.choice(words)), str(rng.choice(list(SPELLINGS)))
            yield text.replace(word, SPELLINGS[spelling](word), 1), label


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nlp-corpus", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    terms = read_terms(HERE / "terms.txt")
    texts = list_sentences(given.nlp_corpus)
    scores = score_fairly(Teacher(given.teacher), texts, terms)
    taught = [(text, round(score, 4)) for text, score in zip(texts, scores, strict=True)]
    rows = [*taught, *respell(taught), *write_own_sentences(terms)]
    with given.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "label": round(label, 4)}) + "\n" for text, label in rows)
    print(f"{given.out}: {len(rows):,} labels")


if __name__ == "__main__":
    main()
