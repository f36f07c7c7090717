"""Claims as inequalities between arms, and what the numbers say of each (docs/study.md has the equations).

A contrast `score[annotator] conditional/good < 0.5 mle` is tested as log a - log b - log 0.5 < 0, seed by seed. Three seeds say little
about their own variance. So it is shrunk towards that of all contrasts of the same measure (Smyth 2004), each in units of the squared error
that its texts leave; a contrast of one seed has none of its own and takes theirs.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtr, stdtrit

from phf.config.study import Claim
from phf.errors import PHFError
from phf.records import Estimate, Number
from phf.significance import ALPHA, holm, noncentrality
from phf.study.results import RunResults

_Values = npt.NDArray[np.float64]
Basis = Literal["seeds", "seeds of others", "texts"]
Answer = Literal["reproduced", "contradicted", "could not be told", "not testable here", "not run"]

_CONTRAST = re.compile(
    r"(?P<measure>\w+)(?:\[(?P<judge>[^\]]+)\])?(?:\((?P<of>[^)]*)\))?(?:@(?P<at>[\d.e+-]+))?\s+(?P<a>[^\s/]+)(?:/(?P<a_mode>\S+))?\s*"
    r"(?P<sign>[<>])\s*(?:(?P<ratio>[\d.]+)\s+)?(?P<b>[^\s/]+)(?:/(?P<b_mode>\S+))?"
)
_MOST_DEGREES = 1e6


@dataclass(frozen=True, slots=True)
class Contrast:
    """`MEASURE[JUDGE](OF)@AT ARM/MODE < RATIO ARM/MODE`.

    Attributes:
        modes: of both sides; None is the mode that asks for nothing, as for measures without modes.
        is_below: whether it says `<`.
    """

    text: str
    measure: str
    judge: str | None
    of: str | None
    at: float | None
    arms: tuple[str, str]
    modes: tuple[str | None, str | None]
    ratio: float
    is_below: bool

    @classmethod
    def parse(cls, text: str) -> "Contrast":
        """Read a contrast.

        Raises:
            PHFError: it has another form.
        """
        found = _CONTRAST.fullmatch(text.strip())
        if found is None or not float(found["ratio"] or 1) > 0:
            raise PHFError(
                f"contrast '{text}' is not of the form MEASURE[JUDGE](OF) ARM/MODE < NUMBER ARM/MODE, such as 'score[annotator] "
                "conditional/good < 0.5 mle'"
            )
        at = None if found["at"] is None else float(found["at"])
        arms, modes = (found["a"], found["b"]), (found["a_mode"], found["b_mode"])
        return cls(
            text,
            found["measure"],
            found["judge"],
            found["of"],
            at,
            arms,
            modes,
            float(found["ratio"] or 1),
            found["sign"] == "<",
        )

    def read(self, run: RunResults, side: int) -> Estimate:
        """The number of one side in a run.

        Raises:
            PHFError: the run has no such number.
        """
        judge = None if self.judge is None else run.find_judge(self.judge)
        if self.judge is None or judge is not None:
            rows = {
                _squeeze(row.mode): row.estimate
                for row in run.results.of(self.measure)
                if row.place[2:] == (judge, self.of, self.at)
            }
            for mode in [self.modes[side]] if self.modes[side] else [None, "none", "untagged"]:
                if mode in rows and not math.isnan(rows[mode].mean):
                    return rows[mode]
        raise PHFError(
            f"'{self.text}': {run.arm} with seed {run.seed} has no such number; {_list_near(run, self)}"
        )


def _squeeze(mode: str | None) -> str | None:
    """A mode as contrasts write it: `none + rejection` is `none+rejection`."""
    return mode and mode.replace(" ", "")


def _list_near(run: RunResults, contrast: Contrast) -> str:
    rows = run.results.of(contrast.measure)
    if not rows:
        return f"its measures are {', '.join(run.results.measures)}"
    names = {judge.slug: judge.name for judge in run.judges}
    places = [f"[{names.get(row.judge or '', row.judge)}]({row.of})@{row.at} {row.mode}" for row in rows[:8]]
    return f"it has {contrast.measure} {', '.join(places)}"


@dataclass(frozen=True, slots=True)
class Tested:
    """A contrast with its numbers.

    Attributes:
        ratio: of both sides, a / b, with its 95 % interval; `count` is of seeds.
        detectable: a ratio this far from the claimed one would have been seen with a probability of `POWER`, as a factor; NaN if unknown.
        p_for, p_against: one-sided.
        spread: standard deviation of the log ratio over seeds, before it was shrunk; NaN for one seed.
        degrees: of freedom behind the interval.
        basis: what the interval is over: seeds; the seeds of other contrasts (one seed); or texts alone.
    """

    contrast: str
    means: tuple[Number, Number]
    ratio: Estimate
    p_for: Number
    p_against: Number
    detectable: Number
    spread: Number
    degrees: Number
    basis: Basis


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the study says of a claim.

    Attributes:
        p: Holm-adjusted over all claims that were tested, two-sided; NaN where there is no test.
    """

    claim: Claim
    answer: Answer
    tested: list[Tested] = field(default_factory=list)
    p: Number = math.nan
    note: str = ""


def judge_claims(claims: Sequence[Claim], runs: Sequence[RunResults]) -> list[Verdict]:
    """Say of each claim whether it is reproduced or contradicted, after Holm's correction over the claims.

    All contrasts of a claim must hold, so its p is the largest of theirs (an intersection-union test); it is contradicted where one of them is,
    corrected for their number.

    Raises:
        PHFError: a contrast has another form, or names an arm or a number that is not there.
    """
    parsed = [[Contrast.parse(text) for text in claim.contrasts] for claim in claims]
    by_arm: dict[str, dict[int, RunResults]] = defaultdict(dict)
    for run in runs:
        by_arm[run.arm][run.seed] = run
    ready = [
        bool(own) and all(by_arm[one.arms[0]].keys() & by_arm[one.arms[1]].keys() for one in own)
        for own in parsed
    ]
    chosen = list(
        dict.fromkeys(one for own, is_ready in zip(parsed, ready, strict=True) if is_ready for one in own)
    )
    tested = dict(zip(chosen, measure_contrasts(chosen, by_arm), strict=True))
    verdicts = [
        _judge(claim, own, tested, is_ready)
        for claim, own, is_ready in zip(claims, parsed, ready, strict=True)
    ]
    adjusted = holm([verdict.p for verdict in verdicts])
    return [_settle(verdict, float(p)) for verdict, p in zip(verdicts, adjusted, strict=True)]


def _judge(
    claim: Claim, contrasts: Sequence[Contrast], tested: Mapping[Contrast, Tested], is_ready: bool
) -> Verdict:
    if not contrasts:
        return Verdict(claim, "not testable here", note=claim.why_not)
    if not is_ready:
        return Verdict(claim, "not run", note="its arms have not run, or not with the same seed")
    own = [tested[one] for one in contrasts]
    p_for, p_against = max(one.p_for for one in own), min(1.0, len(own) * min(one.p_against for one in own))
    if math.isnan(p_for) or math.isnan(p_against):
        return Verdict(claim, "could not be told", own, note="its runs give no variance to test by")
    return Verdict(
        claim, "reproduced" if p_for < p_against else "contradicted", own, min(1.0, 2 * min(p_for, p_against))
    )


def _settle(verdict: Verdict, p: float) -> Verdict:
    is_told = verdict.answer not in ("reproduced", "contradicted") or p <= ALPHA
    return replace(verdict, p=p, answer=verdict.answer if is_told else "could not be told")


def measure_contrasts(
    contrasts: Sequence[Contrast], runs: Mapping[str, Mapping[int, RunResults]]
) -> Iterator[Tested]:
    """Each contrast, with its variance shrunk over all contrasts of its measure, in units of what their texts leave open."""
    gaps = [_list_gaps(contrast, runs) for contrast in contrasts]
    families: dict[str, list[tuple[Contrast, _Gaps]]] = defaultdict(list)
    for contrast, each in zip(contrasts, gaps, strict=True):
        families[contrast.measure].append((contrast, each))
    for contrast, each in zip(contrasts, gaps, strict=True):
        family = families[contrast.measure]
        have_errors = all(other.error > 0 for _, other in family)
        several = [(own, other) for own, other in family if len(other.values) > 1]
        prior, degrees = fit_variances(
            [float(other.values.var(ddof=1)) / (other.error if have_errors else 1) for _, other in several],
            [len(other.values) - 1 for _, other in several],
            # Two judges of the same texts know what one knows.
            most=sum({(own.arms, own.modes): len(other.values) - 1 for own, other in several}.values()) / 2,
        )
        yield _test(contrast, each, prior * (each.error if have_errors else 1), degrees)


@dataclass(frozen=True)
class _Gaps:
    """Of one contrast: means of both sides, log a - log b of each seed, and the mean squared error of one seed's by its texts.

    Attributes:
        is_paired: whether that is of the same texts, sample by sample; else it may be far too large, where both read one set of documents.
    """

    means: tuple[float, float]
    values: _Values
    error: float
    is_paired: bool


def _list_gaps(contrast: Contrast, runs: Mapping[str, Mapping[int, RunResults]]) -> _Gaps:
    one, other = (runs[arm] for arm in contrast.arms)
    seeds = sorted(one.keys() & other.keys())
    pairs = [(contrast.read(one[seed], 0), contrast.read(other[seed], 1)) for seed in seeds]
    means = np.array([[own.mean, base.mean] for own, base in pairs])
    if not (means > 0).all():
        raise PHFError(
            f"'{contrast.text}' is a ratio, and {means.min():g} is not above 0; contrast another measure"
        )
    paired = [_find_paired_error(contrast, one[seed], other[seed]) for seed in seeds]
    apart = [_relative_error(own) ** 2 + _relative_error(base) ** 2 for own, base in pairs]
    is_paired = not np.isnan(paired).any()
    left, right = (float(side) for side in means.mean(0))
    values = np.log(means[:, 0]) - np.log(means[:, 1])
    return _Gaps((left, right), values, float(np.mean(paired if is_paired else apart)), is_paired)


def _find_paired_error(contrast: Contrast, one: RunResults, other: RunResults) -> float:
    """The squared error of log a - log b by the texts of one seed, from scores of the same samples; NaN where there are none."""
    if contrast.measure != "score" or contrast.of is not None or contrast.judge is None:
        return math.nan
    own, base = (_read_scores(run, contrast, side) for side, run in enumerate((one, other)))
    num = min(len(own), len(base))
    gaps = own[:num] / np.nanmean(own) - base[:num] / np.nanmean(base) if num else np.zeros(0)
    known = gaps[np.isfinite(gaps)]
    return float(known.var(ddof=1) / len(known)) if len(known) > 1 else math.nan


def _read_scores(run: RunResults, contrast: Contrast, side: int) -> _Values:
    slug, mode = run.find_judge(contrast.judge or "") or "", contrast.modes[side]
    modes = [mode] if mode else ["none", "untagged"]
    return np.array(
        next((run.scores[each][slug] for each in modes if slug in run.scores.get(each, {})), []), np.float64
    )


def _relative_error(estimate: Estimate) -> float:
    """The standard error of a log, from the interval over texts; 0 where there is none."""
    half = (estimate.high - estimate.low) / 2 / float(stdtrit(_MOST_DEGREES, 1 - ALPHA / 2))
    return half / estimate.mean if math.isfinite(half) else 0.0


def _test(contrast: Contrast, gaps: _Gaps, prior: float, prior_degrees: float) -> Tested:
    num = len(gaps.values)
    own = float(gaps.values.var(ddof=1)) if num > 1 else math.nan
    if num > 1:
        degrees = num - 1 + prior_degrees
        shrunk = ((num - 1) * own + (prior_degrees * prior if prior_degrees else 0.0)) / degrees
    elif prior_degrees:  # seeds differ by more than their texts do
        degrees, shrunk = prior_degrees, max(prior, gaps.error) if gaps.is_paired else prior
    else:
        degrees, shrunk = _MOST_DEGREES, gaps.error
    basis: Basis = "seeds" if num > 1 else "seeds of others" if prior_degrees else "texts"
    mean, claimed = float(gaps.values.mean()), math.log(contrast.ratio)
    error = math.sqrt(shrunk / num) if shrunk > 0 else math.nan
    if not (degrees > 0 and math.isfinite(error)):
        nothing = Estimate(math.exp(mean), math.nan, math.nan, num)
        return Tested(
            contrast.text, gaps.means, nothing, math.nan, math.nan, math.nan, math.sqrt(own), degrees, basis
        )
    half = float(stdtrit(degrees, 1 - ALPHA / 2)) * error
    below = float(stdtr(degrees, (mean - claimed) / error))
    p_for, p_against = (below, 1 - below) if contrast.is_below else (1 - below, below)
    seen = noncentrality(degrees) * error
    ratio = Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), num)
    return Tested(
        contrast.text, gaps.means, ratio, p_for, p_against, math.exp(seen), math.sqrt(own), degrees, basis
    )


def fit_variances(
    variances: Sequence[float], degrees: Sequence[int], most: float = math.inf
) -> tuple[float, float]:
    """The common variance s0^2 and its degrees of freedom d0 by which single variances are shrunk (Smyth 2004, doi 10.2202/1544-6115.1027).

    With one variance alone there is nothing to shrink by: d0 is 0.

    Args:
        degrees: of freedom of each.
        most: that d0 may have: contrasts share arms, so that all of them together know less than their number says.
    """
    known = [(own, num) for own, num in zip(variances, degrees, strict=True) if own > 0]
    if len(known) < 2:
        return math.nan, 0.0
    own, num = (np.array(part, np.float64) for part in zip(*known, strict=True))
    logs = np.log(own) - digamma(num / 2) + np.log(num / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, num / 2).mean())
    most = min(most, float(num.sum()) / 2)
    prior = min(2 * _invert_trigamma(excess), most) if excess > 0 else most
    return math.exp(float(logs.mean()) + float(digamma(prior / 2)) - math.log(prior / 2)), prior


def _invert_trigamma(value: float) -> float:
    return float(brentq(lambda x: float(polygamma(1, x)) - value, 1e-8, 1e8))
