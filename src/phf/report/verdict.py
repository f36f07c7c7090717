"""What the numbers allow one to say, by rules that were fixed before the numbers were seen.

*Below* means: the 95 % intervals are disjoint, and this one lies lower. Runs that differ by seed alone are pooled:
a t-interval over the means of the seeds. Other runs keep the bootstrap interval over their samples.

For an objective with a good and a bad mode, by each judge apart; the first rule that holds names the verdict:

1. a mode has no score or no interval                      -> Not measured
2. good and bad are both below MLE                         -> Artefact: bad mode shares good mode's gain
3. bad is below good                                       -> Reversed
4. good is not below bad                                   -> No control; In doubt if the control gain says that control is learned
5. there is no MLE run to compare with                     -> Modes differ, no MLE run
6. MLE is below good                                       -> Partial: good mode is worse than MLE
7. good is not below MLE                                   -> Partial: good mode is level with MLE
8. bad's mean is below MLE's                               -> In doubt: bad mode shares part of good mode's gain
9. a check did not pass                                    -> In doubt: names the check
10. otherwise (good below MLE and below bad)               -> Control: yes

For an objective without modes: *Better* if it is below MLE (in doubt under rule 9), *Worse* if MLE is below it, else
*No difference*. The checks are what a better score may have cost: variety (distinct-2 at least 0.8 x MLE's),
capability (joint cost on good text, in which no label is given away, at most 1.03 x MLE's, where good ends at the same score
for both; bits per byte of the target mode where an evaluation is older than the joint cost) and, with
modes, control gain: *control is learned* where its whole interval lies above 0 on good and on bad segments (`check_gain`, which
all that speak of it ask). A check that cannot be made has not passed: text that has collapsed has no distinct-2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import JsonValue

from phf.config.fields import flatten
from phf.intervals import pooled_t
from phf.objective_facts import is_baseline
from phf.records import Estimate
from phf.report.reading import RunFolder, sort_modes
from phf.results import Judge, Measurements
from phf.results import pool as pool_measurements

MIN_VARIETY = 0.8
MAX_BITS = 1.03

Tone = Literal["yes", "no", "unclear"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line on one judge's numbers. `tone` says how it is coloured."""

    tone: Tone
    headline: str
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """One question about what a better score cost; `passed` is None where a number is missing."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Group:
    """Runs whose configurations differ by seed alone."""

    label: str
    runs: tuple[RunFolder, ...]

    @property
    def objective(self) -> str:
        """The objective's kind."""
        return self.runs[0].objective

    @cached_property
    def results(self) -> Measurements:
        """What was measured of its runs, pooled over seeds place by place."""
        return pool_measurements([run.results for run in self.runs])

    @property
    def judges(self) -> list[Judge]:
        """The reward models that scored any of its runs."""
        return list({judge.slug: judge for run in self.runs for judge in run.judges}.values())

    @property
    def modes(self) -> list[str]:
        """The modes any of the runs was evaluated in."""
        return sort_modes(mode for run in self.runs for mode in run.modes)

    @property
    def has_control(self) -> bool:
        """Whether good and bad mode were both evaluated (MLE is the reference: its modes, if any, are not judged)."""
        return not is_baseline(self.objective) and {"good", "bad"} <= set(self.modes)

    @property
    def target_mode(self) -> str | None:
        """The mode whose text is wanted: good mode, or the only one."""
        return "good" if self.has_control else self.runs[0].base_mode

    @property
    def is_pooled(self) -> bool:
        """Whether numbers are means over seeds; else they are one run's own."""
        return len(self.runs) > 1

    def score(self, mode: str | None, judge: Judge) -> Estimate:
        """Score of a mode's unprompted samples, pooled over seeds, in the judge's own unit."""
        return self.results.find("score", mode, judge.slug)


def pool(estimates: list[Estimate]) -> Estimate:
    """One number of several seeds, by the rule of `phf.results.pool`."""
    return estimates[0] if len(estimates) == 1 else pooled_t([estimate.mean for estimate in estimates])


def group_runs(runs: list[RunFolder]) -> list[Group]:
    """Runs that differ by seed alone, together; MLE first, then in the order given.

    A label is the objective's kind, with the options that tell it from other groups of that kind.
    """
    groups: dict[tuple[str, str], list[RunFolder]] = {}
    for run in runs:
        members = groups.setdefault((run.objective, run.recipe), [])
        # The same seed twice is the same run twice: pooling both would shrink the interval for nothing.
        if (run.seed is None and members) or run.seed in [member.seed for member in members]:
            groups[(run.objective, run.label)] = [run]
        else:
            members.append(run)
    ordered = sorted(groups.values(), key=lambda members: not is_baseline(members[0].objective))
    return [
        Group(_label(members, [other for other in ordered if other is not members]), tuple(members))
        for members in ordered
    ]


def split_groups(groups: list[Group]) -> list[Group]:
    """Every run as a group of its own, named after the run."""
    return [Group(run.label, (run,)) for group in groups for run in group.runs]


def _label(members: list[RunFolder], others: list[list[RunFolder]]) -> str:
    first = members[0]
    rivals = [other[0] for other in others if other[0].objective == first.objective]
    if not rivals:
        return first.objective
    own = flatten(first.record.config)
    options = [
        f"{key.removeprefix('objective.')}={value}"
        for key, value in own.items()
        if key != "seed" and any(flatten(rival.record.config).get(key) != value for rival in rivals)
    ]
    return f"{first.objective} ({', '.join(options)})" if options else f"{first.objective} ({first.label})"


def find_mle(group: Group, groups: list[Group]) -> Group | None:
    """The MLE group that a group is compared with: the one with the same other settings, or the only one."""
    mles = [other for other in groups if is_baseline(other.objective)]

    def shared(candidate: Group) -> dict[str, JsonValue]:
        return {k: v for k, v in candidate.runs[0].record.config.items() if k not in ("objective", "seed")}

    alike = [mle for mle in mles if shared(mle) == shared(group)]
    if alike:
        return alike[0]
    return mles[0] if len(mles) == 1 else None


def judge_group(group: Group, mle: Group | None, judge: Judge) -> Verdict:
    """The verdict on a group by one judge (rules in the module's docstring)."""
    reference = mle.score(mle.target_mode, judge) if mle else None
    target = group.score(group.target_mode, judge)
    failed = [check.name for check in check_group(group, mle) if check.passed is not True]
    if group.has_control:
        is_learned = check_gain(group.results).passed
        bad = group.score("bad", judge)
        return judge_control(target, bad, reference, failed, judge.display_scale, is_learned=is_learned)
    return judge_plain(target, reference, failed, judge.display_scale)


_SHARES = {
    0.1: "a tenth", 0.2: "a fifth", 0.25: "a quarter", 1 / 3: "a third", 0.4: "two fifths", 0.5: "half", 0.6: "three fifths",
    2 / 3: "two thirds", 0.75: "three quarters", 0.8: "four fifths", 0.9: "nine tenths",
}  # fmt: skip


def describe_plainly(group: Group, mle: Group | None) -> str:
    """One sentence for a reader who knows none of the words: how bad the text is beside plain training's, and who says so.

    It says no more than the verdicts do: where they are not all `yes`, that this is not shown. Empty without an MLE run.
    """
    if mle is None:
        return ""
    judges = [judge for judge in group.judges if _measured(mle.score(mle.target_mode, judge))]
    if not judges:
        return ""
    mode = f"{group.label} in good mode" if group.has_control else group.label
    shown = [judge for judge in judges if judge_group(group, mle, judge).tone == "yes"]
    if len(shown) < len(judges):
        by = f"by {len(shown)} of {len(judges)} judges" if shown else "by no judge"
        return f"That text of {mode} is less bad than that of plain training is shown {by}; the verdicts say why."
    pairs = [
        (group.score(group.target_mode, judge).mean, mle.score(mle.target_mode, judge).mean)
        for judge in judges
    ]
    by = (
        "by its judge"
        if len(judges) == 1
        else f"by {'both' if len(judges) == 2 else 'all ' + str(len(judges))} judges"
    )
    if any(own < 0 or other <= 0 for own, other in pairs):  # a ratio has no meaning there
        return f"Text of {mode} is less bad than that of plain training, {by}."
    shares = sorted({min(_SHARES, key=lambda share: abs(share - own / other)) for own, other in pairs})
    words = " to ".join(_SHARES[share] for share in dict.fromkeys((shares[0], shares[-1])))
    return f"Text of {mode} is about {words} as bad as that of plain training, {by}."


def judge_control(
    good: Estimate,
    bad: Estimate,
    mle: Estimate | None,
    failed: Sequence[str] = (),
    scale: float = 1.0,
    *,
    is_learned: bool | None = None,
) -> Verdict:
    """Rules 1 to 10 of the module's docstring.

    Args:
        failed: checks that did not pass.
        scale: of the numbers shown.
        is_learned: what `check_gain` says.
    """
    if not (_measured(good) and _measured(bad)):
        return Verdict(
            "unclear",
            "Not measured",
            "Good or bad mode has no score with an interval: too few samples differ from the rest. Draw more (--num-samples).",
        )
    if mle is not None and not _measured(mle):
        mle = None
    against = f", MLE {format_interval(mle, scale)}" if mle else ""
    numbers = f"Good mode {format_interval(good, scale)}, bad mode {format_interval(bad, scale)}{against}."
    ratio = f"bad mode scores {_compare(bad, good, 'good mode', scale)}"
    if mle and _below(good, mle) and _below(bad, mle):
        return Verdict("no", "Artefact: bad mode shares good mode’s gain", numbers)
    if _below(bad, good):
        return Verdict("no", "Reversed: bad mode scores below good mode", numbers)
    if not _below(good, bad):
        overlap = "the intervals of good and bad mode overlap"
        if is_learned:
            return Verdict(
                "unclear", f"In doubt: the control gain says that control is learned, but {overlap}", numbers
            )
        return Verdict("no", f"No control: {overlap}", numbers)
    if mle is None:
        return Verdict("unclear", f"Modes differ: {ratio}; no MLE run to compare with", numbers)
    if _below(mle, good):
        return Verdict("unclear", f"Partial: {ratio}, but good mode is worse than MLE", numbers)
    if not _below(good, mle):
        return Verdict("unclear", f"Partial: {ratio}, but good mode is level with MLE", numbers)
    if bad.mean < mle.mean:
        return Verdict("unclear", "In doubt: bad mode shares part of good mode’s gain over MLE", numbers)
    if failed:
        return Verdict("unclear", f"In doubt: not passed: {', '.join(failed)}", numbers)
    order = "good < MLE < bad, all intervals apart" if _below(mle, bad) else "good lies below both"
    return Verdict(
        "yes",
        f"Control: yes. Good mode scores {_compare(good, mle, 'MLE', scale)}; {ratio}",
        f"{numbers[:-1]} ({order}).",
    )


def judge_plain(
    target: Estimate, mle: Estimate | None, failed: Sequence[str] = (), scale: float = 1.0
) -> Verdict:
    """The verdict on an objective without modes (module's docstring)."""
    if not _measured(target):
        return Verdict(
            "unclear",
            "Not measured",
            "There is no score with an interval: too few samples differ from the rest. Draw more (--num-samples).",
        )
    if mle is None or not _measured(mle):
        return Verdict("unclear", "No MLE run to compare with", f"Score {format_interval(target, scale)}.")
    numbers = f"{format_interval(target, scale)}, MLE {format_interval(mle, scale)}."
    if _below(mle, target):
        return Verdict(
            "no", f"Worse: {_compare(target, mle, 'MLE', scale)}, and its interval lies above", numbers
        )
    if not _below(target, mle):
        return Verdict("unclear", "No difference: its interval overlaps MLE’s", numbers)
    if failed:
        return Verdict("unclear", f"In doubt: not passed: {', '.join(failed)}", numbers)
    return Verdict(
        "yes", f"Better: {_compare(target, mle, 'MLE', scale)}, and its interval lies below", numbers
    )


def check_group(group: Group, mle: Group | None) -> list[Check]:
    """Variety, capability and, for an objective with modes, control gain."""
    checks = [check_variety(group, mle), _check_capability(group, mle)]
    return [*checks, check_gain(group.results)] if group.has_control else checks


def check_gain(results: Measurements) -> Check:
    """Whether control is learned: the interval of the control gain lies above 0 on good and on bad segments.

    This is the one rule for it; the page, `phf evaluate`, the tables and the verdict all ask here.
    """
    good, bad = (results.find("control_gain", of=text) for text in ("good", "bad"))
    passed = _passes(good.low > 0 and bad.low > 0, good.low, bad.low)
    outcome = {
        True: "both intervals above 0: control is learned",
        False: "not both intervals above 0: control is not learned",
        None: "an interval is missing: not known whether control is learned",
    }[passed]
    detail = f"{format_interval(good)} nats per good segment, {format_interval(bad)} per bad one; {outcome}"
    return Check("Control gain", passed, detail)


def check_variety(group: Group, mle: Group | None) -> Check:
    """Whether distinct-2 is at least 0.8 x MLE's."""
    own = group.results.find("distinct_2", group.target_mode).mean
    other = mle.results.find("distinct_2", mle.target_mode).mean if mle else math.nan
    detail = f"distinct-2 {format_number(own)}, MLE {format_number(other)}; at least {MIN_VARIETY} × MLE"
    return Check("Varied text", _passes(own >= MIN_VARIETY * other, own, other), detail)


def _check_capability(group: Group, mle: Group | None) -> Check:
    """Whether prediction of good text costs at most 1.03 x MLE's, in like units: with all that a label says paid for."""
    pair = [group, mle] if mle else [group]
    costs = [one.results.find("joint_bits_per_byte", of="good").mean for one in pair]
    name = "joint bits per byte on good text, labels and boundaries paid for:"
    if not all(map(math.isfinite, costs)):
        costs = [one.results.find("bits_per_byte", one.target_mode, of="good").mean for one in pair]
        name = "bits per byte on good text, labels given for free (evaluate again for the joint cost):"
    own, other = costs if mle else (costs[0], math.nan)
    detail = f"{name} {format_number(own)}, MLE {format_number(other)}; at most {MAX_BITS} × MLE"
    thresholds = (
        {run.evaluation.threshold for run in (*group.runs, *mle.runs) if run.evaluation} if mle else ()
    )
    if len(thresholds) > 1:
        return Check("Capability kept", None, f"{detail}; good text ends at another score in each run")
    return Check("Capability kept", _passes(own <= MAX_BITS * other, own, other), detail)


def _passes(outcome: bool, *numbers: float) -> bool | None:
    return outcome if all(map(math.isfinite, numbers)) else None


def _measured(estimate: Estimate) -> bool:
    return all(map(math.isfinite, (estimate.mean, estimate.low, estimate.high)))


def _below(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low


def _compare(one: Estimate, other: Estimate, name: str, scale: float) -> str:
    """`0.41 × MLE`; a difference where a ratio has no meaning (scores at or below 0)."""
    if one.mean >= 0 and other.mean > 0:
        return f"{one.mean / other.mean:.2f} × {name}"
    difference = (one.mean - other.mean) * scale
    return f"{format_number(abs(difference))} {'above' if difference > 0 else 'below'} {name}"


def format_interval(estimate: Estimate, scale: float = 1.0) -> str:
    """`0.102 [0.0668, 0.137]`; the mean alone where there is no interval."""
    mean, low, high = (format_number(value * scale) for value in (estimate.mean, estimate.low, estimate.high))
    return mean if low == high == "–" else f"{mean} [{low}, {high}]"


def format_number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never in exponents for common sizes; `–` for NaN."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if decimals > 8:
        return f"{value:.1e}"
    return f"{value:,.{decimals}f}".replace("-", "−")
