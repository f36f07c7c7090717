"""What a run folder says without torch, so that tables and pages of runs are quick."""

from pathlib import Path
from typing import Any

from phf.errors import PHFError
from phf.files import read_json
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
    record = read_json(path)
    if not isinstance(record, dict):
        raise PHFError(f"{path} is not a JSON object; it is damaged: restore it, or train the run again")
    record = upgrade_run(record)
    check_version(path, record.get("format_version", RUN_VERSION), RUN_VERSION, "phf train")
    return record


def count_steps(tokens: int, batch_blocks: int, context: int) -> int:
    """Optimizer steps of a whole run: its budget of tokens rounded up to whole batches."""
    return -(-tokens // (batch_blocks * context))


def list_checkpoints(run: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    found = (run / "checkpoints").glob("step-*/" + CHECKPOINT_MANIFEST)
    numbers = [path.parent.name.removeprefix("step-") for path in found]
    return sorted(int(number) for number in numbers if number.isdecimal())
