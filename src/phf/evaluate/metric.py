"""What a metric is: one file of `phf.evaluate.measures` declares one, and `phf.evaluate.suite` lists them all."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import JsonValue

from phf.config.evaluate import EvaluateConfig
from phf.evaluate.drawn import Drawn
from phf.items import Items
from phf.records import Estimate
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from phf.evaluate.subject import Subject


@dataclass(frozen=True)
class Measured:
    """What a metric found.

    Attributes:
        facts: what is no number, such as settings or prompts that were found.
        drawn: samples for samples.parquet.
        left_out: what of it was not measured, and why.
        items: what measurements were made of, one by one, so that runs are compared on the same items.
    """

    measurements: Sequence[Measurement]
    facts: JsonValue = None
    drawn: Sequence[Drawn] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    items: Sequence[Items] = ()


def is_of_full_suite(config: EvaluateConfig) -> bool:
    """Only `suite=full` has it."""
    return config.suite == "full"


@dataclass(frozen=True)
class Metric:
    """Numbers that are computed together.

    Attributes:
        name: of its facts, and in `left_out`.
        measures: how each of its numbers is shown.
        compute: measures a checkpoint. What takes long is kept by `subject.parts`. It raises `NotApplicableError` where the
            run's data does not admit it: the evaluation goes on without it.
        is_wanted: whether the settings ask for it.
        option: what asks for it, such as `--blimp FILE`; the full suite names it where it was not asked for.
        check: finds what the settings name, before hours go into other metrics; raises `PHFError` if it is not there.
    """

    name: str
    measures: tuple[Measure, ...]
    compute: Callable[["Subject"], Measured]
    is_wanted: Callable[[EvaluateConfig], bool] = lambda config: True
    option: str = ""
    check: Callable[[EvaluateConfig], object] = lambda config: None


def bare(value: float, count: int = 0) -> Estimate:
    """A number without an interval."""
    return Estimate(float(value), math.nan, math.nan, count)


def negate(estimate: Estimate) -> Estimate:
    """What is known of -x by what is known of x."""
    return Estimate(-estimate.mean, -estimate.high, -estimate.low, estimate.count)
