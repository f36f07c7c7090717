"""What runs differ in by their settings, data and versions."""

from collections.abc import Sequence

from pydantic import JsonValue

from phf.config.fields import flatten
from phf.report.reading import RunFolder


def list_settings(runs: Sequence[RunFolder]) -> dict[str, list[JsonValue]]:
    """Settings, data and versions in which runs differ: a value of each run by dotted name, None where it has none."""
    tables: list[dict[str, JsonValue]] = [
        {
            **flatten(run.record.config),
            **flatten({"finetune": run.record.finetune.list_settings() if run.record.finetune else {}}),
            **{f"versions.{name}": value for name, value in run.record.versions.items()},
            "corpus id": run.record.corpus.id if run.record.corpus else None,
            "parameters": run.record.num_parameters,
            "precision used": run.record.precision,
            "threshold used": run.record.threshold.value if run.record.threshold else None,
            "epochs": run.record.epochs,
        }
        for run in runs
    ]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: [table.get(name) for table in tables] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}
