"""A small real corpus for the tests of training and evaluation; shapes in annotations are enforced while tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from jaxtyping import install_import_hook

install_import_hook(
    ["phf.objectives", "phf.objective_resolution", "phf.objective_rewards", "phf.model.lm"],
    "beartype.beartype",
)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that at the end no worker has one left while the others have nothing."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory):
    """500 fortunes (offensive ones among them), scored by toxicity-svm as whole documents, tokenized with 512 ids."""
    from phf.annotate.annotate import annotate
    from phf.corpus.store import build_corpus
    from phf.tokens.tokens import tokenize

    folder = tmp_path_factory.mktemp("small") / "corpus"
    corpus = build_corpus(["fortunes:offensive"], folder, validation_fraction=0.1, max_documents=500)
    annotate(corpus, "toxicity-svm", "document", workers=1)
    tokenize(corpus, "train:512", "document", workers=1)
    return corpus


@pytest.fixture
def small_config(small_corpus):
    """Returns a function that makes a config of 12 quick steps over the small corpus, with dotted overrides."""
    from phf.config.recipes import apply_overrides
    from phf.config.train import TrainConfig, parse

    base = {
        "corpus": str(small_corpus.path),
        "reward_model": "toxicity-svm",
        "segments": "document",
        "tokenizer": "train:512",
        "objective": {"kind": "conditional", "good_fraction": 0.5},
        "good": {"good_fraction": 0.5},
        "model": {"preset": "1M", "layers": 1, "width": 32, "heads": 2},
        "data": {"context": 64},
        "optim": {"batch_blocks": 4, "learning_rate": 3e-3},
        "tokens": 12 * 4 * 64,
        "precision": "fp32",
        "validate_every": 5,
        "validation_blocks": 8,
        "log_every": 1,
        "checkpoint_every": 4,
    }
    return lambda *overrides: parse(TrainConfig, apply_overrides(base, list(overrides)), "test")
