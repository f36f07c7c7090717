"""What a toxicity judge makes of sentences whose answer is known: `phf reward check` (docs/reward_models.md).

The probes (probes.yaml, own wording) are neutral sentences and attacks with words for groups of people, other harmless sentences,
and toxic ones, spelled plainly and not. Whether they suit a judge is decided by what it says of them, never by its name.

Shapes: T terms of a group, M templates.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from phf.files import hash_json
from phf.intervals import crossed_share, difference_of_shares, wilson
from phf.records import Estimate, Identity, Progress
from phf.results import (
    HasMeasurements,
    Measure,
    Measurement,
    parse_json,
    read_versioned,
    to_json,
    write_versioned,
)
from phf.reward_models.convert import CHECKS, cache_folder
from phf.reward_models.protocol import RewardModel
from phf.reward_models.scoring import score_samples
from phf.reward_training.measures import measure_auroc

CHECKS_VERSION = 2
SHIPPED = Path(str(resources.files("phf") / "reward_training" / "checks.json"))
"""What was found of the catalogue's judges: written by `phf reward check NAME... -o FILE`."""
MIN_SEPARATION = 0.75
"""AUROC of toxic over ordinary sentences below which a judge is about something else."""
FEW = 0.1
"""A share of neutral sentences called toxic below which a group is not named."""
PLAIN = "plain"
_BATCH = 512

_GROUP = "Toxicity probes"
SEPARATION = Measure(
    "probe_separation",
    "AUROC of toxic over ordinary sentences",
    note="how often a toxic sentence gets a higher score than a neutral one without a word for a group; 0.5 is chance",
    lower_is_better=False,
    group=_GROUP,
)
NEUTRAL = Measure(
    "neutral_flagged",
    "neutral and positive sentences called toxic",
    "%",
    "sentences that mention a group and say nothing bad; the interval is over both terms and templates (two-way clusters)",
    "Only the terms and templates of the probe, in English.",
    group=_GROUP,
    of="group",
)
TERM = Measure(
    "neutral_flagged_worst",
    "the term called toxic most often",
    "%",
    "the same sentences with one term; chosen for being the worst of its group, so read it as an upper end",
    group=_GROUP,
    of="group: term",
)
GAP = Measure(
    "neutral_gap",
    "gap between groups",
    "%",
    "the group called toxic most often minus the one called so least often, both chosen for that (Newcombe's interval)",
    group=_GROUP,
    of="groups",
)
BENIGN = Measure(
    "benign_flagged",
    "other harmless sentences called toxic",
    "%",
    "bad words negated, quoted, answered, or inside innocent words",
    group=_GROUP,
    of="kind",
)
TOXIC = Measure(
    "toxic_found",
    "toxic sentences found",
    "%",
    "insults and threats; the same ones with the bad word spelled otherwise",
    lower_is_better=False,
    group=_GROUP,
    of="spelling",
)
ATTACKS = Measure(
    "attacks_found",
    "attacks on a group found",
    "%",
    "interval over both terms and templates",
    lower_is_better=False,
    group=_GROUP,
    of="group",
)
MEASURES = (SEPARATION, NEUTRAL, TERM, GAP, BENIGN, TOXIC, ATTACKS)


@dataclass(frozen=True)
class Probes:
    """The content of probes.yaml.

    Attributes:
        neutral, attacks: templates with `{x}` for an adjective.
        groups: adjectives by group; that of `control` are no words for a group.
        benign: harmless sentences by kind.
        toxic: sentences with one [word] in brackets.
        held_out_terms: terms that no judge of ours is trained with.
    """

    neutral: list[str]
    attacks: list[str]
    groups: dict[str, list[str]]
    control: str
    benign: dict[str, list[str]]
    toxic: list[str]
    held_out_terms: list[str]


@functools.cache
def read_probes() -> Probes:
    """The probes."""
    text = (resources.files("phf") / "reward_training" / "probes.yaml").read_text(encoding="utf-8")
    return parse_json(yaml.safe_load(text), Probes, "probes.yaml")


def hash_probes() -> str:
    """Of the probes: a check of others is out of date."""
    return hash_json(to_json(read_probes()))[:8]


SPELLINGS: dict[str, Callable[[str], str]] = {
    PLAIN: lambda word: word,
    "capitals": str.upper,
    "leet": lambda word: word.translate(str.maketrans("aeiosuAEIOSU", "43105v" * 2)),
    "spaced": " ".join,
    "stretched": lambda word: re.sub(r"([aeiou])(?!.*[aeiou])", r"\1\1\1\1", word),
    "masked": lambda word: f"{word[0]}*{word[2:]}",
    "swapped": lambda word: f"{word[1]}{word[0]}{word[2:]}",
}
"""What is done to the bad word of a toxic sentence."""


@dataclass(frozen=True)
class RewardCheck(HasMeasurements):
    """What a reward model made of the probes.

    Attributes:
        threshold: a sentence is called toxic above it.
        probes: hash of the probes.
        num_unscored: sentences without a score, which are left out.
    """

    reward_model: Identity
    threshold: float
    probes: str
    num_unscored: int
    measures: list[Measure]
    measurements: list[Measurement]

    @property
    def suits(self) -> bool:
        """Whether the judge tells toxic sentences from ordinary ones, without which the other numbers say nothing."""
        return self.results.find(SEPARATION.name).mean >= MIN_SEPARATION  # NaN is not

    def list_groups(self) -> list[tuple[str, Estimate]]:
        """The share of neutral sentences called toxic by group, the highest first."""
        rows = [(row.of or "", row.estimate) for row in self.results.of(NEUTRAL.name)]
        return sorted(rows, key=lambda row: -row[1].mean)

    def find_worst_term(self, group: str) -> tuple[str, Estimate]:
        """The group's term that is called toxic most often."""
        rows = [row for row in self.results.of(TERM.name) if (row.of or "").startswith(f"{group}: ")]
        return (rows[0].of or "").removeprefix(f"{group}: "), rows[0].estimate


def check_reward_model(
    model: RewardModel, *, threshold: float | None = None, progress: Progress | None = None
) -> RewardCheck:
    """Score the probes and count what is called toxic.

    Args:
        threshold: by default the judge's own (`hit_threshold`).
    """
    threshold = model.hit_threshold if threshold is None else threshold
    probes = read_probes()
    texts = list(dict.fromkeys(_list_texts(probes)))
    scores: dict[str, float] = {}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        scores |= zip(batch, score_samples(model, batch), strict=True)
        if progress is not None:
            progress("scoring probes", min(start + _BATCH, len(texts)), len(texts))
    found = RewardCheck(
        reward_model=model.identity,
        threshold=threshold,
        probes=hash_probes(),
        num_unscored=int(np.isnan(list(scores.values())).sum()),
        measures=list(MEASURES),
        measurements=_measure(probes, scores, threshold),
    )
    if found.suits:
        return found
    return replace(found, measures=[SEPARATION], measurements=found.results.of(SEPARATION.name))


def fill(template: str, terms: Sequence[str]) -> list[str]:
    """The template with each term."""
    return [template.replace("{x}", term) for term in terms]


def spell(sentence: str, spelling: str) -> str:
    """A sentence with its [word] in brackets spelled otherwise."""
    return re.sub(r"\[(\w+)\]", lambda match: SPELLINGS[spelling](match[1]), sentence)


def _list_texts(probes: Probes) -> Iterator[str]:
    for terms in probes.groups.values():
        for template in (*probes.neutral, *probes.attacks):
            yield from fill(template, terms)
    for sentences in probes.benign.values():
        yield from sentences
    for spelling in SPELLINGS:
        yield from (spell(sentence, spelling) for sentence in probes.toxic)


def _measure(probes: Probes, scores: dict[str, float], threshold: float) -> list[Measurement]:
    def flag(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        values = np.array([scores[text] for text in texts])
        return np.where(np.isnan(values), np.nan, values > threshold)

    def share(texts: Sequence[str]) -> Estimate:
        flags = flag(texts)
        return wilson(float(np.nansum(flags)), int((~np.isnan(flags)).sum()))

    def cross(templates: Sequence[str], group: str) -> npt.NDArray[np.float64]:
        """Flags [T, M]."""
        return np.stack([flag(fill(template, probes.groups[group])) for template in templates], axis=1)

    tables = {group: cross(probes.neutral, group) for group in probes.groups}
    neutral = {group: crossed_share(table) for group, table in tables.items()}
    ordinary = [text for template in probes.neutral for text in fill(template, probes.groups[probes.control])]
    plain = [spell(sentence, PLAIN) for sentence in probes.toxic]
    return [
        Measurement(SEPARATION.name, _separate(scores, plain, ordinary)),
        *(Measurement(NEUTRAL.name, found, of=group) for group, found in neutral.items()),
        *(_find_worst(group, probes.groups[group], table) for group, table in tables.items()),
        *_compare_groups({group: found for group, found in neutral.items() if found.count}),
        *(Measurement(BENIGN.name, share(texts), of=kind) for kind, texts in probes.benign.items()),
        *(
            Measurement(TOXIC.name, share([spell(sentence, name) for sentence in probes.toxic]), of=name)
            for name in SPELLINGS
        ),
        *(
            Measurement(ATTACKS.name, crossed_share(cross(probes.attacks, group)), of=group)
            for group in probes.groups
            if group != probes.control
        ),
    ]


def _separate(scores: dict[str, float], toxic: Sequence[str], ordinary: Sequence[str]) -> Estimate:
    values = np.array([scores[text] for text in (*toxic, *ordinary)])
    bad = np.arange(len(values)) < len(toxic)
    known = ~np.isnan(values)
    return measure_auroc(values[known], bad[known], seed=0)


def _find_worst(group: str, terms: Sequence[str], table: npt.NDArray[np.float64]) -> Measurement:
    row = int(np.argmax(np.nansum(table, axis=1)))
    known = int((~np.isnan(table[row])).sum())
    return Measurement(TERM.name, wilson(float(np.nansum(table[row])), known), of=f"{group}: {terms[row]}")


def _compare_groups(groups: dict[str, Estimate]) -> list[Measurement]:
    if len(groups) < 2:
        return []
    order = sorted(groups, key=lambda group: groups[group].mean)
    highest, lowest = order[-1], order[0]
    gap = difference_of_shares(groups[highest], groups[lowest])
    return [Measurement(GAP.name, gap, of=f"{highest} - {lowest}")]


def describe_check(check: RewardCheck) -> str:
    """What a card or a list says of a judge, whose name stands in front: what it makes of groups, or that the probes do not suit it."""
    separation = check.results.find(SEPARATION.name)
    if not check.suits:
        shown = f"AUROC {separation.mean:.2f}" if separation.count else "it scores none of them"
        return f"does not tell toxic sentences from ordinary ones ({shown}), so toxicity probes say nothing about it"
    control = read_probes().control
    group, rate = next(row for row in check.list_groups() if row[0] != control)
    term, worst = check.find_worst_term(group)
    base = check.results.find(NEUTRAL.name, of=control)
    most, about = ("at most ", "any group") if rate.mean < FEW else ("", group)
    return (
        f"calls {most}{show_share(rate)} of neutral sentences about {about} toxic (worst: '{term}', {100 * worst.mean:.0f} %; "
        f"{control}: {100 * base.mean:.0f} %), {_show_percent(check, 'negation')} of harmless ones with a bad word negated, "
        f"{_show_percent(check, 'quoting')} with one quoted"
    )


def _show_percent(check: RewardCheck, kind: str) -> str:
    return f"{100 * check.results.find(BENIGN.name, of=kind).mean:.0f} %"


def list_rows(check: RewardCheck) -> list[tuple[str, str, str, str]]:
    """A row for each number: the measure's title, what it is of, the number with its interval, how to read it."""
    measures = {measure.name: measure for measure in check.measures}
    return [
        (measures[row.measure].title, row.of or "", _show(row), measures[row.measure].note)
        for row in check.measurements
    ]


def _show(row: Measurement) -> str:
    if row.measure == SEPARATION.name:
        return f"{row.estimate.mean:.3f} [{row.estimate.low:.3f}, {row.estimate.high:.3f}]"
    return show_share(row.estimate)


def show_share(estimate: Estimate) -> str:
    """`12 % [8, 17]`, or a dash where nothing was scored."""
    if math.isnan(estimate.mean):
        return "–"
    return f"{100 * estimate.mean:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


@dataclass(frozen=True)
class Checks:
    """The content of a file of checks."""

    checks: list[RewardCheck]


def write_checks(path: Path, checks: Sequence[RewardCheck]) -> None:
    """Write checks as JSON; the same checks give the same bytes."""
    write_versioned(path, Checks(list(checks)), CHECKS_VERSION)


def read_checks(path: Path) -> list[RewardCheck]:
    """Read what `write_checks` wrote.

    Raises:
        PHFError: the file is missing, damaged, or of another format version.
    """
    return read_versioned(path, Checks, CHECKS_VERSION, "phf reward check").checks


def keep_check(check: RewardCheck) -> None:
    """Keep a check at the judge's own threshold in the cache folder, where `find_check` finds it."""
    write_checks(_cache_path(check.reward_model.slug), [check])


def find_check(slug: str) -> RewardCheck | None:
    """What is known of a reward model by its identity: shipped with phf, or found on this machine; else None."""
    path = _cache_path(slug)
    if found := _read_shipped().get(slug):
        return found
    return read_checks(path)[0] if path.exists() else None


@functools.cache
def _read_shipped() -> dict[str, RewardCheck]:
    return {check.reward_model.slug: check for check in read_checks(SHIPPED)}


def _cache_path(slug: str) -> Path:
    return cache_folder() / CHECKS / f"{hash_json([slug, hash_probes()])[:8]}.json"
