"""A run: one training, a folder (docs/format.md)."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from phf.config.recipes import apply_overrides
from phf.config.train import TrainConfig, parse
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.files import Place, hash_json, write_sealed
from phf.folders import LOCK_FILE
from phf.model import lm
from phf.records import RUN_VERSION
from phf.tokens.tokenizer import Tokenizer
from phf.train.checkpoint import check_checkpoint, checkpoint_folder
from phf.train.data import StartRecord, TrainingData, open_data
from phf.train.folder import count_steps, list_checkpoints, name_objective, read_run_record
from phf.train.metrics import Line, read_metrics
from phf.train.moved import find_corpus, find_init, hash_init, is_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHANGEABLE = (
    "optim.micro_batch_blocks",
    "compile",
    "data_parallel",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "max_bad_steps",
    "trackers",
)
"""Settings that may be others when a run goes on: they change how it is trained, and at most the rounding of its numbers."""


class Run:
    """A run folder: its config, provenance, metrics and checkpoints."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record
        config = record["config"]
        if (
            "elsewhere" in record
        ):  # nobody knows its budget (`phf.train.elsewhere`), which only training asks for
            config = {"tokens": 1, **config}
        self.config = parse(TrainConfig, config, f"{folder}/run.json")

    @classmethod
    def create(
        cls,
        folder: Path,
        config: TrainConfig,
        data: TrainingData,
        *,
        parameters: int,
        precision: str,
        is_compiled: bool,
        start: StartRecord | None = None,
        revision: str | None = None,
    ) -> "Run":
        """Start a run folder: run.json with the whole config, versions, and the identities of data and judge.

        Args:
            start: the other run's checkpoint whose weights this one starts from (`resolve_start`).
            revision: the commit of the Hub's model that it starts from.

        Raises:
            PHFError: see `check_new`.
        """
        cls.check_new(folder)
        record = {
            "name": folder.name,
            "config": config.model_dump(mode="json"),
            **describe_run(data, parameters),
            "epochs": data.training_blocks(start).epochs(config.tokens),
            "precision": precision,
            "compiled": is_compiled,
            "start": start,
        }
        if (init_hash := hash_init(config.model.init)) is not None:
            record["init"] = init_hash
        if revision is not None:
            record["init_revision"] = revision
        run = cls(folder, record)
        run.write()
        return run

    def change(self, overrides: list[str]) -> "Run":
        """This run with other settings, which `write` stores.

        Raises:
            PHFError: an override is wrong, or would make it another run.
        """
        if "elsewhere" in self.record:
            raise PHFError(
                f"{self.folder} was trained elsewhere; train on from its weights with: phf train RECIPE --init "
                f"{self.record['elsewhere']['model']} -o NEW"
            )
        for override in overrides:
            key, _, value = override.partition("=")
            if key == "corpus":
                self._check_corpus(value)
            elif key not in CHANGEABLE:
                raise PHFError(
                    f"{key} cannot change when a run goes on, only {', '.join(CHANGEABLE)} can, and corpus where it has moved; train a new run with it, "
                    f"perhaps from this one's weights: phf train --init {self.folder} {override} -o NEW"
                )
        config = parse(
            TrainConfig, apply_overrides(self.record["config"], overrides), f"{self.folder}/run.json"
        )
        return Run(self.folder, {**self.record, "id": self.id, "config": config.model_dump(mode="json")})

    def _check_corpus(self, place: str) -> None:
        found, own = Corpus.open(place).id, self.corpus_id
        if found != own:
            raise PHFError(
                f"{place} is another corpus ({found}) than {self.folder} was trained on ({own}); give corpus= the place where that "
                "one lies now"
            )

    def check_config(self, config: TrainConfig) -> None:
        """Check that a config is this run's, but for what may change when it goes on.

        Raises:
            PHFError: it would be another run.
        """
        own, other = (_without_changeable(one.model_dump()) for one in (self.config, config))
        if is_corpus(Path(config.corpus), self.corpus_id):  # by whichever path
            own["corpus"] = config.corpus
        if own != other:
            raise PHFError(
                f"{self.folder} was trained with other settings; choose another -o, or delete that folder"
            )

    def write(self) -> None:
        """Store the record, with a hash of its own."""
        write_sealed(self.folder / "run.json", {**self.record, "format_version": RUN_VERSION})

    @staticmethod
    def check_new(folder: Path) -> None:
        """Refuse a folder that is not free for a new run.

        Raises:
            PHFError: it holds a run already, or something else.
        """
        if (folder / "run.json").exists():
            raise PHFError(
                f"{folder} holds a run already; go on with 'phf train --resume {folder}' or choose another -o"
            )
        if folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir()):
            raise PHFError(f"{folder} is not empty and is not a run; choose another -o")

    def __fspath__(self) -> str:
        """The folder: a run stands wherever its path does."""
        return os.fspath(self.folder)

    @classmethod
    def open(cls, folder: Place) -> "Run":
        """An existing run.

        Raises:
            PHFError: see `read_run_record`; or it has no config.
        """
        path = Path(folder)
        record = read_run_record(path)
        if not isinstance(record.get("config"), dict):
            raise PHFError(
                f"{path}/run.json has no config; it is damaged: restore it, or train the run again"
            )
        return cls(path, record)

    @property
    def id(self) -> str:
        """What tells this run from all others."""
        return str(self.record.get("id") or hash_json(self.record)[:16])

    @property
    def corpus_id(self) -> str:
        """The id of the corpus that it was trained on; empty if its record does not say."""
        return str(self.record.get("corpus", {}).get("id", ""))

    @property
    def objective(self) -> str:
        """What it was trained with, for tables: the objective's kind, and how it was finetuned."""
        return name_objective(self.record)

    @property
    def name(self) -> str:
        """The folder's name, used in tables."""
        return self.folder.name

    @property
    def tokens_per_step(self) -> int:
        """Model inputs in one optimizer step."""
        return self.config.optim.batch_blocks * self.config.data.context

    @property
    def num_steps(self) -> int:
        """Steps of the whole run: the budget rounded up to whole batches."""
        return count_steps(self.config.tokens, self.config.optim.batch_blocks, self.config.data.context)

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return list_checkpoints(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether the last step has its checkpoint."""
        return self.num_steps in self.steps

    def resolve_step(self, step: int | None) -> int:
        """A step that has a checkpoint: the one asked for, or the last.

        Raises:
            PHFError: there is none (at that step).
        """
        steps = self.steps
        if not steps:
            raise PHFError(
                f"{self.folder} has no checkpoint yet; go on with 'phf train --resume {self.folder}'"
            )
        if step is None:
            if lost := [
                path
                for path in (self.folder / "checkpoints").glob("step-*")
                if path > checkpoint_folder(self.folder, steps[-1])
            ]:
                raise PHFError(
                    f"{lost[0]} has no checkpoint.json: it is damaged; go on from step {steps[-1]} with 'phf train --resume "
                    f"{self.folder}', or name that step"
                )
            return steps[-1]
        if step not in steps:
            raise PHFError(
                f"{self.folder} has no checkpoint at step {step}; it has {', '.join(map(str, steps))}: choose one of these, or "
                "train with keep_checkpoints=all"
            )
        return step

    def load_model(self, step: int | None = None) -> "PreTrainedModel":
        """The model at a step (default: the last), in evaluation mode, float32.

        Raises:
            PHFError: no such checkpoint, or it is damaged.
        """
        step = self.resolve_step(step)
        check_checkpoint(self.folder, step)
        model = lm.load_model(checkpoint_folder(self.folder, step))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(device).eval()

    def load_tokenizer(self, step: int | None = None) -> Tokenizer:
        """The tokenizer saved beside the model."""
        return Tokenizer.load(checkpoint_folder(self.folder, self.resolve_step(step)))

    def find_corpus(self) -> Path:
        """Where the run's corpus lies; see `phf.train.moved.find_corpus`."""
        return find_corpus(self.folder, self.config.corpus, self.corpus_id)

    def data(self, *, to_train: bool = False) -> TrainingData:
        """The run's data, opened again; see `open_data`.

        Raises:
            PHFError: it is gone, damaged, or is not what the run was trained on.
        """
        model, init_hash = self.config.model, self.record.get("init")  # not of an older phf
        if to_train and model.init is not None and init_hash is not None:
            model = model.model_copy(update={"init": find_init(self.folder, model.init, init_hash)})
        config = self.config.model_copy(update={"corpus": str(self.find_corpus()), "model": model})
        if (mix := config.mix) is not None:
            found = [
                str(find_corpus(self.folder, named, known["corpus"]))
                for named, known in zip(mix.corpora, self.record["mix"], strict=True)
            ]
            config = config.model_copy(update={"mix": mix.model_copy(update={"corpora": tuple(found)})})
        data = open_data(config, to_train=to_train)
        for key, value in data.provenance().items():
            # A run of an older phf does not know the hash of its scores; its blocks had no windows.
            known = self.record.get(key, "none" if key == "window_rows" else value)
            if known != value:
                raise PHFError(
                    f"{self.folder} was trained on another {key}: {_brief(known)}, now {_brief(value)}; "
                    "put the old one back, or train a new run"
                )
        return data

    def read_metrics(self) -> list[Line]:
        """The lines of metrics.jsonl that are whole."""
        return read_metrics(self.folder, self.id).lines

    def read_last_validation(self) -> Line | None:
        """The validation losses of the last step; None if the run is not finished, or metrics.jsonl has lost them."""
        at_end = [
            line
            for line in self.read_metrics()
            if (line["kind"], line["step"]) == ("validation", self.num_steps)
        ]
        return at_end[-1] if at_end else None


def describe_run(data: TrainingData, num_parameters: int) -> dict[str, object]:
    """What run.json says of any run: versions, the identities of data and judge, thresholds, and the run's own id."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")
    return {
        "versions": {
            "phf": version("phf"),
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        **data.provenance(),
        "threshold": asdict(data.threshold),
        "objective_threshold": asdict(data.objective.threshold) if data.objective.threshold else None,
        "num_parameters": num_parameters,
        # Drawn, not derived: what is deleted and trained again with the same settings is another run.
        "id": uuid4().hex,
    }


def _without_changeable(config: dict[str, Any]) -> dict[str, Any]:
    rest = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for path in CHANGEABLE:
        *parents, last = path.split(".")
        node = rest
        for parent in parents:
            node = node[parent]
        del node[last]
    return rest


def _brief(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_brief, value))
    if isinstance(value, dict):
        return " ".join(
            str(value[key]) for key in ("name", "version", "id", "corpus", "annotation") if key in value
        )
    return str(value)[:40]
