"""The one home of measured numbers: what is measured writes `Measurement`s, and pages, cards and tables select and pivot them.

A number that is missing is NaN in memory, null on disk and a dash on a page. This module alone converts the one into the other.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from phf.errors import PHFError
from phf.files import read_sealed, write_sealed
from phf.intervals import pooled_t
from phf.records import Estimate, Identity, JudgeRole, Number

EVALUATION_FILE, FINETUNE_FILE = "evaluation.json", "finetune.json"
FINETUNE_VERSION = 1
EVALUATION_VERSION = 3
"""Of evaluation.json; version 2 had no hash and no run id, version 1 a nesting of its own for each part."""

MODE_ORDER = ("good", "bad", "none", "untagged", "deleted", "labelled", "good-bad")
"""In tables. `labelled`: each held-out segment after its own label; `good-bad`: good mode minus bad mode, paired by text."""
MISSING = Estimate(math.nan, math.nan, math.nan, 0)

T = TypeVar("T")
Row = TypeVar("Row", bound=Hashable)
Column = TypeVar("Column", bound=Hashable)
Place = tuple[str, str | None, str | None, str | None, float | None]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number with its interval, and what it is of.

    Attributes:
        measure: the name of its `Measure`.
        mode: a mode, or `labelled` or `good-bad` (`MODE_ORDER`); None where modes play no part.
        judge: slug of the reward model that scored; None where none did.
        of: the text kind, field, probe, task, scenario or method; None where there is but one.
        at: where on an axis: shots, a round, a step, a number of directions; None off any axis.
    """

    measure: str
    estimate: Estimate
    mode: str | None = None
    judge: str | None = None
    of: str | None = None
    at: float | None = None

    @property
    def place(self) -> Place:
        """All but the number: measurements of two runs with one place can be compared."""
        return self.measure, self.mode, self.judge, self.of, self.at


@dataclass(frozen=True, slots=True)
class Measure:
    """How a measure is shown; declared once, in the file that computes it, and written beside its numbers.

    Attributes:
        title: what a table is headed with.
        unit: of the numbers, such as `nats per token`; a judge's own where `judge` of a measurement is set and this is empty.
        note: how to read it, in a sentence.
        blind_spot: what it cannot see, in a sentence.
        lower_is_better: None where neither end is better.
        group: the heading that tables of like measures share.
        is_headline: whether a short summary shows it.
        of, at: what these mean here, such as `text` and `round`; heads of columns.
    """

    name: str
    title: str
    unit: str = ""
    note: str = ""
    blind_spot: str = ""
    lower_is_better: bool | None = True
    group: str = "Other"
    is_headline: bool = False
    of: str = ""
    at: str = ""


@dataclass(frozen=True, slots=True)
class Judge:
    """A reward model that scored samples, and how its scores are shown.

    Attributes:
        slug: `name@id`, which names its measurements and its column of samples.parquet.
        display_scale: what a score is multiplied by before it is shown (1000 for scores per character).
    """

    slug: str
    role: JudgeRole
    unit: str
    display_scale: float
    hit_threshold: Number
    identity: Identity

    @property
    def name(self) -> str:
        """The reward model's name."""
        return self.identity.name

    @property
    def shown_unit(self) -> str:
        """The unit of the numbers on a page."""
        if self.display_scale == 1:
            return self.unit
        return self.unit.replace("per character", f"per {self.display_scale:,.0f} characters")


class Measurements:
    """Measurements in the order in which they were made, found by their place."""

    def __init__(self, rows: Iterable[Measurement] = ()) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._rows)

    @cached_property
    def _by_measure(self) -> dict[str, list[Measurement]]:
        found: dict[str, list[Measurement]] = {}
        for row in self._rows:
            found.setdefault(row.measure, []).append(row)
        return found

    @cached_property
    def _by_place(self) -> dict[Place, Estimate]:
        return {row.place: row.estimate for row in self._rows}

    @property
    def measures(self) -> list[str]:
        """Names of what was measured, each once."""
        return list(self._by_measure)

    def of(self, *measures: str) -> list[Measurement]:
        """All measurements of one or more measures."""
        return [row for measure in measures for row in self._by_measure.get(measure, [])]

    def find(
        self,
        measure: str,
        mode: str | None = None,
        judge: str | None = None,
        of: str | None = None,
        at: float | None = None,
    ) -> Estimate:
        """The number in one place; NaN if it was not measured."""
        return self._by_place.get((measure, mode, judge, of, at), MISSING)


def pool(runs: Sequence[Iterable[Measurement]]) -> Measurements:
    """Numbers of runs that differ by seed alone, place by place: a t-interval over seeds; those of a single run are its own.

    Seeds without a number are left out, and `count` says how many are not. Of several seeds, a mean that stands on one
    has no interval: that seed's own interval is over samples, and would pass for one over seeds.
    """
    if len(runs) == 1:
        return Measurements(runs[0])
    means: dict[Place, list[float]] = {}
    for rows in runs:
        for row in rows:
            means.setdefault(row.place, []).append(row.estimate.mean)
    return Measurements(
        Measurement(measure, pooled_t(values), mode, judge, of, at)
        for (measure, mode, judge, of, at), values in means.items()
    )


def pivot(
    rows: Iterable[Measurement], index: Callable[[Measurement], Row], column: Callable[[Measurement], Column]
) -> dict[Row, dict[Column, Estimate]]:
    """A table: row -> column -> number, both in the order in which they come."""
    table: dict[Row, dict[Column, Estimate]] = {}
    for row in rows:
        table.setdefault(index(row), {})[column(row)] = row.estimate
    return table


class HasMeasurements:
    """What holds measurements."""

    measurements: list[Measurement]

    @cached_property
    def results(self) -> Measurements:
        """The measurements, found by place."""
        return Measurements(self.measurements)


@dataclass(frozen=True)
class Evaluation(HasMeasurements):
    """The content of evaluation.json: all that was measured of one checkpoint.

    Attributes:
        config: the `EvaluateConfig` it was made with.
        threshold: good text ends at this score by the annotator.
        facts: what is no number, by the measure it belongs to (`read_facts`).
        left_out: what was not measured, and why.
        run_id: of the run (`Run.id`); None in one that an older phf wrote.
        items_sha256: of items.parquet (`phf.items`), which holds what measurements were made of; None in one that an older phf wrote.
    """

    run: str
    objective: str
    seed: int
    step: int
    tokens_seen: int
    num_parameters: int
    judges: list[Judge]
    config: dict[str, JsonValue]
    threshold: float
    notes: list[str]
    samples_sha256: str
    measures: list[Measure]
    measurements: list[Measurement]
    facts: dict[str, JsonValue] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    items_sha256: str | None = None

    def read_facts(self, name: str, kind: type[T]) -> T | None:
        """What belongs to a measure and is no number, as a dataclass (or another type pydantic reads); None if there is nothing.

        Raises:
            PHFError: they have another shape.
        """
        return parse_json(self.facts[name], kind, f"the facts of {name}") if name in self.facts else None


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json; the same evaluation gives the same bytes."""
    write_versioned(path, evaluation, EVALUATION_VERSION)


def encode(record: object) -> dict[str, JsonValue]:
    """A dataclass as a JSON object."""
    value = to_json(record)
    assert isinstance(value, dict)
    return value


def read_evaluation(path: Path, run_id: str | None = None) -> Evaluation:
    """Read evaluation.json.

    Args:
        run_id: of the run in whose folder it lies; None does not ask.

    Raises:
        PHFError: the file is missing, damaged, another run's, or of another format version.
    """
    command = f"phf evaluate {path.parent}"
    evaluation = read_versioned(path, Evaluation, EVALUATION_VERSION, command)
    check_owner(path, evaluation.run_id, run_id, f"run '{command}' to make its own")
    return evaluation


def check_owner(path: Path, found: str | None, run_id: str | None, remedy: str) -> None:
    """Refuse a file that lies in another run's folder than it was made for; one without an id is of an older phf.

    Raises:
        PHFError: names the two runs.
    """
    if None not in (found, run_id) and found != run_id:
        raise PHFError(f"{path} is of another run ({found:.8}…, this one is {run_id:.8}…); {remedy}")


def write_versioned(path: Path, record: object, version: int) -> None:
    """Write a dataclass, its format version and the hash of both as a JSON object."""
    write_sealed(path, {"format_version": version, **encode(record)})


def read_versioned(path: Path, kind: type[T], version: int, command: str, remedy: str | None = None) -> T:
    """Read what `write_versioned` wrote. The version before was the same without a hash, and is read too.

    Args:
        command: makes the file again.
        remedy: what to do about a damaged file, if it is more than to run the command.

    Raises:
        PHFError: the file is missing, damaged, or of another format version.
    """
    remedy = remedy or f"run '{command}' to make it again"
    value = read_sealed(path, remedy, sealed_in=version)
    found = value.pop("format_version", None)
    if found != version - 1:
        check_version(path, found, version, command)
    return parse_json(value, kind, str(path), remedy)


@dataclass(frozen=True)
class ResultsFile(Generic[T]):
    """The file in which a command keeps the results of a folder.

    Attributes:
        name: of the file.
        kind: the dataclass that is its content.
        version: of its format.
        command: makes it; FOLDER in it stands for the folder.
    """

    name: str
    kind: type[T]
    version: int
    command: str

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has one."""
        return (folder / self.name).is_file()

    def is_in_all(self, folders: Sequence[Path]) -> bool:
        """Whether folders all have one.

        Raises:
            PHFError: some have, and some have not.
        """
        found = [self.is_in(folder) for folder in folders]
        if any(found) and not all(found):
            other, kin = folders[found.index(False)], folders[found.index(True)]
            raise PHFError(f"{other} has no {self.name}, and {kin} has one; give folders of one kind")
        return all(found)

    def write(self, folder: Path, results: T) -> None:
        """Write it; the same results give the same bytes."""
        write_versioned(folder / self.name, results, self.version)

    def read(self, folder: Path) -> T:
        """Read it.

        Raises:
            PHFError: there is none, it is damaged, or it is of another format version.
        """
        command = self.command.replace("FOLDER", str(folder))
        if not self.is_in(folder):
            raise PHFError(f"{folder / self.name} does not exist; give a folder made by '{command}'")
        return read_versioned(folder / self.name, self.kind, self.version, command)


def check_version(path: Path, found: object, wanted: int, command: str) -> None:
    """Refuse a file of another format version.

    Raises:
        PHFError: names the command that makes it again, or says that this phf is too old.
    """
    if found == wanted:
        return
    if isinstance(found, int) and found > wanted:
        raise PHFError(
            f"{path} has format version {found}; this phf reads {wanted}; install the phf that wrote it"
        )
    raise PHFError(
        f"{path} has format version {found}; this phf reads {wanted}; run '{command}' to make it again"
    )


def parse_json(value: object, kind: type[T], where: str, remedy: str = "delete it and make it again") -> T:
    """A JSON value as a dataclass, every part of it checked; null is NaN where a `records.Number` is wanted.

    Raises:
        PHFError: names the place and what is wrong there.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        raise PHFError(
            f"{where} is damaged: {place}{first['msg']} (found {first['input']!r:.60}); {remedy}"
        ) from None


def to_json(value: object) -> JsonValue:
    """A result as JSON: dataclasses and configs as objects, tuples as lists, and null for NaN, which JSON has not.

    A measurement says only what it has.
    """
    if is_dataclass(value) and not isinstance(value, type):
        items = {one.name: getattr(value, one.name) for one in fields(value)}
        if isinstance(value, Measurement):
            items = {name: item for name, item in items.items() if item is not None}
        return to_json(items)
    if isinstance(value, BaseModel):
        return to_json(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    assert value is None or isinstance(value, bool | int | float | str), f"{type(value)} is not JSON"
    return value
