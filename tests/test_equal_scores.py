"""A corpus whose scores are all equal: what needs no threshold is trained on it, and what needs one refuses in a line."""

import json

import pytest

from phf.annotate.annotate import annotate
from phf.config.train import TrainConfig, parse
from phf.corpus.store import Corpus, build_corpus
from phf.errors import PHFError
from phf.tokens.tokens import tokenize
from phf.train.data import open_data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("equal")
    rows = [{"text": f"the quick brown fox number {k} jumps over a lazy dog\n" * 3} for k in range(120)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = build_corpus([str(folder / "a.jsonl")], folder / "corpus", validation_fraction=0.2)
    annotate(corpus, "pii", "document", workers=1)
    tokenize(corpus, "train:300", "document", workers=1)
    return corpus


def open_with(corpus: Corpus, objective: dict[str, object], good: dict[str, float] | None = None):
    settings = {
        "corpus": str(corpus.path),
        "reward_model": "pii",
        "segments": "document",
        "tokenizer": "train:300",
        "objective": objective,
        "good": good or {"good_fraction": 0.5},
        "data": {"context": 64},
        "tokens": 10_000,
    }
    return open_data(parse(TrainConfig, settings, "test"))


@pytest.mark.parametrize(
    "objective",
    [{"kind": "mle"}, *({"kind": kind, "normalize": "none"} for kind in ("scalar", "rwr", "awr"))],
    ids=lambda objective: objective["kind"],
)
def test_what_needs_no_line_is_trained(corpus: Corpus, objective: dict[str, object]) -> None:
    data = open_with(corpus, objective)
    assert (data.threshold.value, data.threshold.token_share) == (0, 1)
    assert "100 % of the tokens are good (asked for 50 %" in data.threshold.message
    for value, share in ((-1, 0), (0, 1), (7, 1)):  # a line beyond all scores, on either side
        assert open_with(corpus, objective, {"threshold": value}).threshold.token_share == share


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "conditional", "good_fraction": 0.5},
        {"kind": "conditional", "threshold": 0.0},
        {"kind": "filtering", "keep_fraction": 0.5},
        {"kind": "unlikelihood", "good_fraction": 0.5},
        {"kind": "quantile", "levels": 3},
        {"kind": "rwr"},
        {"kind": "scalar"},
    ],
    ids=str,
)
def test_what_needs_one_refuses(corpus: Corpus, objective: dict[str, object]) -> None:
    with pytest.raises(PHFError, match="score"):
        open_with(corpus, objective)
