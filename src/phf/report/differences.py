"""What two runs differ in: settings, and scores sample by sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from phf.intervals import CONFIDENCE, bootstrap_mean
from phf.records import Estimate
from phf.report.reading import RunFolder, read_scores
from phf.report.verdict import flatten
from phf.results import Judge

_NUM_BOOTSTRAP = 1000

_Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean score of one run's mode minus another's, in the judge's own unit.

    Attributes:
        is_paired: whether sample i of one was compared with sample i of the other, which had the same random numbers.
    """

    estimate: Estimate
    is_paired: bool


def list_settings(runs: Sequence[RunFolder]) -> dict[str, list[JsonValue]]:
    """Settings, data and versions in which runs differ: a value of each run by dotted name, None where it has none."""
    tables = [_flatten_run(run) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: [table.get(name) for table in tables] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _flatten_run(run: RunFolder) -> dict[str, JsonValue]:
    record = run.record
    return {
        **flatten(record.config),
        **{f"versions.{name}": value for name, value in record.versions.items()},
        "corpus id": record.corpus.id,
        "parameters": record.num_parameters,
        "precision used": record.precision,
        "threshold used": record.threshold.value if record.threshold else None,
        "epochs": record.epochs,
    }


def subtract_scores(
    run: RunFolder, mode: str, base: RunFolder, base_mode: str, judge: Judge, *, seed: int = 0
) -> Difference:
    """The difference of two modes by one judge, with a bootstrap interval over samples.

    Runs that were sampled with the same seed are compared sample by sample: pairs are resampled, which takes out what the
    shared random numbers do to both. Others are resampled apart. NaN where there are no scores to compare.

    Args:
        seed: of the bootstrap.
    """
    one, other = _read_mode(run, mode, judge), _read_mode(base, base_mode, judge)
    seeds = [folder.sampling.get("seed") for folder in (run, base)]
    if seeds[0] is not None and seeds[0] == seeds[1]:
        gaps = np.array([score - other[index] for index, score in one.items() if index in other])
        return Difference(bootstrap_mean(gaps, _NUM_BOOTSTRAP, seed), is_paired=True)
    apart = _subtract_means(_drop_missing(one), _drop_missing(other), seed)
    return Difference(apart, is_paired=False)


def _read_mode(run: RunFolder, mode: str, judge: Judge) -> dict[int, float]:
    """Scores of a mode's samples by their index."""
    table = run.sample_table(mode)
    if f"score:{judge.slug}" not in table.column_names:
        return {}
    return dict(zip(table["index"].to_pylist(), read_scores(table, judge).tolist(), strict=True))


def _drop_missing(scores: dict[int, float]) -> _Scores:
    values = np.array(list(scores.values()), np.float64)
    return values[~np.isnan(values)]


def _subtract_means(one: _Scores, other: _Scores, seed: int) -> Estimate:
    """Difference of two means of separate samples, with a percentile bootstrap interval."""
    if min(len(one), len(other)) < 2:
        return Estimate(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    gaps = _resample_means(one, rng) - _resample_means(other, rng)
    low, high = np.percentile(gaps, (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2))
    return Estimate(float(one.mean() - other.mean()), float(low), float(high), min(len(one), len(other)))


def _resample_means(values: _Scores, rng: np.random.Generator) -> _Scores:
    """Means of resamples, float64 [_NUM_BOOTSTRAP]."""
    return np.array([rng.choice(values, len(values)).mean() for _ in range(_NUM_BOOTSTRAP)])
