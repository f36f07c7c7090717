"""Hits of a user's own words and phrases per character: `lexicon:words.txt`."""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import regex  # unlike re, its \w holds combining marks, without which Hindi falls apart

from phf.errors import PHFError
from phf.files import hash_json, read_regular
from phf.records import Identity
from phf.reward_models.protocol import SegmentRewardModel, Unit

TOKEN = regex.compile(r"\w+|[^\w\s]")
_MAX_BYTES = 1 << 26
FORMAT = "an entry is a word or phrase, then perhaps a tab and a weight above 0; '#' starts a line of comment"


class Lexicon(SegmentRewardModel):
    """Sum of the weights of the entries found in a segment, per character.

    Entries are whole words or phrases, found in any case and with any white space between their words. Of entries that
    begin at one place the longest counts; hits do not overlap.
    """

    unit: Unit = "items per character"
    display_scale = 1000.0
    hit_threshold = 0.0

    def __init__(self, path: Path) -> None:
        """Read a word list.

        Raises:
            PHFError: the file is missing, is not UTF-8, holds no entry or a wrong weight (names the line).
        """
        self._weights = read_entries(path)
        # By their first token, the longest first.
        self._phrases: defaultdict[str, list[str]] = defaultdict(list)
        for entry in sorted(self._weights, key=len, reverse=True):
            self._phrases[TOKEN.match(entry)[0]].append(entry)
        # Compiled when first met: ten thousand at once would take seconds.
        self._patterns: dict[str, regex.Pattern[str]] = {}
        self.identity = Identity(
            f"lexicon-{path.stem}",
            "1",
            weights_hash=hash_json(self._weights),
            parameters={"num_entries": len(self._weights)},
        )

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Weight of the hits per character of each text."""
        return [self._sum_hits(_fold(text)) / len(text) for text in texts]

    def _sum_hits(self, text: str) -> float:
        if self._phrases.keys().isdisjoint(TOKEN.findall(text)):  # most texts, at the speed of C
            return 0.0
        total, end = 0.0, 0
        for token in TOKEN.finditer(text):
            if token.start() < end or token[0] not in self._phrases:
                continue
            if self._phrases[token[0]] == [token[0]]:
                total += self._weights[token[0]]
            elif match := self._find_pattern(token[0]).match(text, token.start()):
                total += self._weights[" ".join(match[0].split())]
                end = match.end()
        return total

    def _find_pattern(self, first_token: str) -> "regex.Pattern[str]":
        """What matches the entries that begin with a token, up to an end that splits no word."""
        if first_token not in self._patterns:
            entries = (r"\s+".join(map(regex.escape, entry.split())) for entry in self._phrases[first_token])
            self._patterns[first_token] = regex.compile(rf"(?:{'|'.join(entries)})(?<!\w(?=\w))")
        return self._patterns[first_token]


def read_entries(path: Path) -> dict[str, float]:
    """Entries of a word list, folded, with their weights.

    Raises:
        PHFError: as `Lexicon`.
    """
    try:
        if not path.exists():
            raise PHFError(f"no word list {path}; {FORMAT}")
        if path.is_dir():
            raise PHFError(f"{path} is a folder, no word list; give a text file; {FORMAT}")
        lines = read_regular(path, _MAX_BYTES, f"word list {path}").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise PHFError(f"word list {path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    weights: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        text, _, given = line.partition("\t")
        entry = " ".join(_fold(text).split())
        try:
            weight = float(given) if given.strip() else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0 and entry):
            raise PHFError(f"line {number} of {path} is no entry: {line.strip()!r}; {FORMAT}")
        if weights.setdefault(entry, weight) != weight:
            raise PHFError(
                f"line {number} of {path} gives {entry!r} the weight {weight:g}, an earlier line {weights[entry]:g}"
            )
    if not weights:
        raise PHFError(f"word list {path} holds no entry; {FORMAT}")
    return weights


def _fold(text: str) -> str:
    """One spelling for all cases, widths and ways to compose a letter."""
    return unicodedata.normalize("NFKC", text).casefold()
