"""Small fixed runs, the same on every machine but for the rounding of its arithmetic: what `make_golden.py` evaluates and
`test_golden.py` trains again."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from fake_annotations import annotate_by
from safetensors.numpy import load_file

from phf.config.train import TrainConfig, parse
from phf.corpus.store import Corpus, build_corpus
from phf.records import Identity
from phf.tokens.tokens import tokenize
from phf.train import loop
from phf.train.checkpoint import checkpoint_folder
from phf.train.run import Run

JUDGE = Identity("letters", "1")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "mle": {},
    "filtering": {"keep_fraction": 0.6},
    "removal": {"good_fraction": 0.6},
    "masking": {"good_fraction": 0.6},
    "conditional": {"good_fraction": 0.6},
    "quantile": {"levels": 4},
    "additive": {"good_fraction": 0.6},
    "scalar": {},
    "tagging": {"good_fraction": 0.6, "tag_fraction": 0.2},
    "unlikelihood": {"good_fraction": 0.6},
    "rwr": {},
    "awr": {},
}
"""Every kind of objective with settings that make all of its code run."""

_NAMES = ["Ann", "Bob", "Eve", "Ida", "Max", "Zoe"]
_WORDS = [
    "report",
    "key",
    "garden",
    "train",
    "letter",
    "stupid idea",
    "river",
    "damn bill",
    "meeting",
    "poem",
]
_PLAIN = [
    "{name} has sent the {word} to the office.",
    "The {word} is late, {name} said.",
    "Please bring the {word} before noon.",
    "{name} and {other} met at the {word}.",
]
_PRIVATE = ["Write to {name}@example.org about the {word}.", "Call {name} on 555 010 1234 today."]


def write_mails(path: Path, num: int = 240) -> None:
    """Texts of four lines, of which a quarter holds an address or a number."""
    rng = random.Random(0)
    rows = []
    for place in range(num):
        lines = [
            rng.choice(_PRIVATE if rng.random() < 0.25 else _PLAIN).format(
                name=rng.choice(_NAMES), other=rng.choice(_NAMES), word=rng.choice(_WORDS)
            )
            for _ in range(4)
        ]
        rows.append({"id": f"mail:{place}", "text": "\n".join(lines) + "\n"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_corpus(folder: Path) -> Corpus:
    """A corpus of mails, tokenized, and scored line by line with numbers between 0 and 1."""
    write_mails(folder.parent / "mails.jsonl")
    corpus = build_corpus([str(folder.parent / "mails.jsonl")], folder, validation_fraction=0.2)
    annotate_by(corpus, JUDGE, "lines", lambda text: sum(map(ord, text)) % 97 / 97, unit="probability")
    tokenize(corpus, "train:320", "lines", workers=1)
    return corpus


def train_objective(corpus: Corpus, kind: str, folder: Path, **settings: Any) -> Run:
    """A run of twenty tiny steps on one objective, every loss logged."""
    config = {
        "corpus": str(corpus.path), "reward_model": JUDGE.name, "segments": "lines", "tokenizer": "train:320",
        "objective": {"kind": kind, **OBJECTIVES[kind]}, "good": {"good_fraction": 0.6},
        "model": {"preset": "1M", "layers": 1, "width": 16, "heads": 2}, "data": {"context": 48},
        "optim": {"batch_blocks": 4, "learning_rate": 1e-2}, "tokens": 20 * 4 * 48, "precision": "fp32", "compile": False,
        "validate_every": 0, "validation_blocks": 2, "log_every": 1, "checkpoint_every": 0, **settings,
    }  # fmt: skip
    return loop.train(parse(TrainConfig, config, "golden"), folder, say=lambda line: None)


def read_losses(run: Run) -> list[float]:
    """The loss of each step."""
    return [line["loss"] for line in run.read_metrics() if line["kind"] == "train"]


def hash_weights(run: Run) -> str:
    """SHA-256 of all tensors of the last checkpoint, a value head's included, and none of its optimizer's."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint_folder(run.folder, run.steps[-1]).glob("*.safetensors")):
        if not path.name.startswith("optimizer"):
            for name, tensor in sorted(load_file(path).items()):
                digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()
