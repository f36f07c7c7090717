"""What a run folder says without torch, so that tables and pages of runs are quick."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phf.errors import PHFError
from phf.files import hash_json, read_sealed
from phf.records import RUN_VERSION, upgrade_run
from phf.results import check_version

CHECKPOINT_MANIFEST = "checkpoint.json"


def read_run_record(folder: Path) -> dict[str, Any]:
    """The content of run.json, with today's names.

    Raises:
        PHFError: there is none, it is damaged, or of another format version.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise PHFError(
            f"{folder} is not a run: it has no run.json; make one with 'phf train RECIPE -o {folder}'"
        )
    remedy = (
        "restore it (settings are changed with 'phf train --resume RUN KEY=VALUE'), or train the run again"
    )
    record = read_sealed(path, remedy, sealed_in=RUN_VERSION)
    if (version := record.get("format_version")) not in (1, 2):
        check_version(path, version, RUN_VERSION, "phf train")
    return upgrade_run(record)


def read_run_id(folder: Path) -> str | None:
    """The id of a run, by which its other files know it; None of one that an older phf has begun, or without run.json."""
    if not (folder / "run.json").is_file():
        return None
    return read_run_record(folder).get("id")


def name_objective(record: Mapping[str, Any]) -> str:
    """What a run was trained with, by its run.json: the objective's kind, and how it was finetuned, such as `mle + rloo`;
    `elsewhere` where phf did not train it."""
    if "elsewhere" in record:
        return "elsewhere"
    kind = str(record["config"]["objective"]["kind"])
    return f"{kind} + {record['finetune']['method']}" if record.get("finetune") else kind


def hash_recipe(record: Mapping[str, Any]) -> str:
    """Hash of what a run was trained with but for its seed, by its run.json: runs that share it are seeds of one recipe.

    A finetuned run may have its own start for each seed.
    """
    config, corpus, finetune = record.get("config", {}), record.get("corpus") or {}, record.get("finetune")
    config = config | {"seed": None, "corpus": corpus.get("id", config.get("corpus"))}
    if finetune is not None:
        config["start"] = None
    known = {
        name: value for name, value in config.items() if value is not None
    }  # an older run has no word for a later option
    origin = [record["elsewhere"]["weights"]] if "elsewhere" in record else []
    return hash_json([known, record.get("objective_function"), finetune, *origin])


def count_steps(tokens: int, batch_blocks: int, context: int) -> int:
    """Optimizer steps of a whole run: its budget of tokens rounded up to whole batches."""
    return -(-tokens // (batch_blocks * context))


def list_checkpoints(run: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    found = (run / "checkpoints").glob("step-*/" + CHECKPOINT_MANIFEST)
    numbers = [path.parent.name.removeprefix("step-") for path in found]
    return sorted(int(number) for number in numbers if number.isdecimal())
