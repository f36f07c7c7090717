"""What it takes to get bad mode back: one self-contained HTML page, and its figures as files, from an attack.json.

The costs and verdicts are those of the file (`phf.attack.rediscovery` has their rules); here they are drawn and told.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from phf.attack.rediscovery import MIN_SEEDS
from phf.attack.results import (
    SCORE,
    SECONDS,
    AttackedModel,
    AttackResults,
    ForgettingOutcome,
    ForgettingVerdict,
    RediscoveryCost,
    Trajectory,
)
from phf.errors import PHFError
from phf.files import write_bytes
from phf.intervals import pooled_t
from phf.objective_facts import OBJECTIVES, is_baseline
from phf.records import Estimate
from phf.report.figures import INK, OBJECTIVE_COLOURS, Drawing, read_css, scale_estimate, shorten
from phf.report.lines import Level, Line, draw_lines
from phf.report.page import embed_figures, make_environment
from phf.report.verdict import Tone
from phf.results import Judge, Measure

_ATTACKS = {
    "soft": "vectors, trained on the texts, stand behind the page’s start in the place of tokens",
    "finetune": "all weights are trained further on the texts",
    "lora": "low-rank additions to the weights are trained on the texts",
    "few-shot": "some of the texts stand before the model’s own",
    "prefix": "real tokens, found by search, stand before the model’s own text",
    "lens": "vectors, found by search among directions read from the texts, are added to the residual stream",
}
_HEADLINES: dict[ForgettingOutcome, tuple[Tone, str]] = {
    "raises": ("yes", "Raises the cost of bad mode"),
    "does not raise": ("no", "Does not raise the cost of bad mode"),
    "lowers": ("no", "Lowers the cost: forgetting made bad mode easier to find"),
    "damaged": ("no", "Damaged: its good mode writes half as badly as bad mode before any attack"),
    "unknown": ("unclear", "It cannot be said whether it raises the cost"),
}
_LENT = sorted(
    (kind for kind, facts in OBJECTIVES.items() if facts.loan), key=lambda kind: OBJECTIVES[kind].loan
)
"""Objectives whose colours are lent to targets that forgot, the first to lend first."""
_MARKERS = "osD^vPXh<>"
_DOTTED, _DASHED = (0, (1, 2)), (0, (6, 3))


@dataclass(frozen=True, slots=True)
class Told:
    """A verdict as the page tells it; `attack` is None where it is on the cheapest one."""

    tone: Tone
    headline: str
    attack: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Card:
    """What the file says of a target that forgot.

    Attributes:
        headline: of the cheapest attack on it against the cheapest one on the unmodified model.
        attacks: the same, attack by attack.
        beside: the cheapest attacks against models of other objectives; to cost as much as they is no failure.
    """

    target: AttackedModel
    headline: Told
    attacks: list[Told]
    beside: list[Told]


@dataclass(frozen=True, slots=True)
class Point:
    """A target under an attack with so many texts, after so many steps: what each seed's trajectory was there."""

    target: str
    attack: str
    num_texts: int
    steps: float
    seeds: dict[int, Trajectory]

    def estimate(self, judge: Judge) -> Estimate:
        """The score over seeds, in shown units."""
        found = [one.results.find(SCORE.name, judge=judge.slug, at=self.steps) for one in self.seeds.values()]
        return scale_estimate(pool_seeds(found), judge.display_scale)


class Rediscovery:
    """What the page tells of an attack.

    Raises:
        PHFError: no attack was finished.
    """

    def __init__(self, results: AttackResults) -> None:
        self.results = results
        if not any(trajectory.measurements for trajectory in results.trajectories):
            raise PHFError("attack.json holds no curves: no attack was finished; run 'phf attack' again")
        self.targets = results.targets
        self.judges = sorted(results.judges, key=lambda judge: judge.role != "annotator")

    @cached_property
    def points(self) -> list[Point]:
        """All that was measured, each target's attacks by texts and steps, ascending."""
        points: dict[tuple[str, str, int, float], Point] = {}
        for one in self.results.trajectories:
            for steps in one.steps:
                place = (one.target, one.attack, one.num_texts, steps)
                points.setdefault(place, Point(*place, {})).seeds[one.seed] = one
        return sorted(points.values(), key=lambda point: (point.num_texts, point.steps))

    @cached_property
    def attacks(self) -> list[str]:
        """Names of the attacks, in the file's order."""
        return list(dict.fromkeys(one.attack for one in self.results.trajectories if one.measurements))

    @property
    def num_seeds(self) -> int:
        """How many seeds the point with the most of them has."""
        return max(len(point.seeds) for point in self.points)

    @property
    def rows(self) -> list[tuple[Point, int, Judge, list[Estimate]]]:
        """Every point, seed by seed and judge by judge, with its number of each measure in shown units."""
        names = [(target.name, attack) for target in self.targets for attack in self.attacks]
        return [
            (
                point,
                seed,
                judge,
                [self._show(measure, point.steps, judge, one) for measure in self.measures],
            )
            for name in names
            for point in self.points
            if (point.target, point.attack) == name
            for seed, one in point.seeds.items()
            for judge in self.judges
        ]

    @property
    def measures(self) -> list[Measure]:
        """What is shown of every point: not the seconds, which are others when the same attack is made again."""
        return [measure for measure in self.results.measures if measure.name != SECONDS.name]

    def _show(self, measure: Measure, steps: float, judge: Judge, trajectory: Trajectory) -> Estimate:
        found = trajectory.results
        if measure.name == SCORE.name:
            return scale_estimate(found.find(measure.name, judge=judge.slug, at=steps), judge.display_scale)
        own = found.find(measure.name, judge=judge.slug, at=steps)
        return own if math.isfinite(own.mean) else found.find(measure.name, at=steps)

    def most_texts(self, attack: str) -> int:
        """The largest number of texts that an attack was tried with."""
        return max(point.num_texts for point in self.points if point.attack == attack)

    def by_texts(self, target: AttackedModel, attack: str, judge: Judge) -> dict[float, Estimate]:
        """Score by number of texts, at each trajectory's best step, in shown units."""
        found = {
            float(row.num_texts): scale_estimate(row.score(judge.slug), judge.display_scale)
            for row in self.results.best
            if (row.target, row.attack) == (target.name, attack)
        }
        return _keep_known(dict(sorted(found.items())))

    def by_steps(self, target: AttackedModel, attack: str, judge: Judge) -> dict[float, Estimate]:
        """Score by steps, in shown units, with the most texts that the attack was tried with."""
        place = (target.name, attack, self.most_texts(attack))
        return _keep_known(
            {
                point.steps: point.estimate(judge)
                for point in self.points
                if (point.target, point.attack, point.num_texts) == place
            }
        )

    def score(self, target: AttackedModel, mode: str, judge: Judge) -> Estimate:
        """Score of a mode before any attack, in shown units."""
        return scale_estimate(target.score(mode, judge.slug), judge.display_scale)

    @property
    def levels(self) -> list[float]:
        """Levels that rediscovery was worked out for, ascending."""
        return sorted({cost.level for cost in self.results.rediscovery})

    @property
    def costs(self) -> dict[tuple[str, str], dict[tuple[str, float], RediscoveryCost]]:
        """For each target and attack the cost by judge and level."""
        found: dict[tuple[str, str], dict[tuple[str, float], RediscoveryCost]] = {}
        for cost in self.results.rediscovery:
            found.setdefault((cost.target, cost.attack), {})[cost.judge, cost.level] = cost
        return found

    @property
    def cards(self) -> list[Card]:
        """A card for each target that the file has a verdict on."""
        cards = []
        for target in self.targets:
            own = [verdict for verdict in self.results.verdicts if verdict.target == target.name]
            against = [_tell(verdict) for verdict in own if verdict.against == self.results.reference]
            others = [_tell(verdict) for verdict in own if verdict.against != self.results.reference]
            for headline in [told for told in against if told.attack is None][:1]:
                attacks = [told for told in against if told.attack is not None]
                cards.append(
                    Card(target, headline, attacks, [told for told in others if told.attack is None])
                )
        return cards


def _tell(verdict: ForgettingVerdict) -> Told:
    tone, headline = _HEADLINES[verdict.outcome]
    return Told(tone, headline, None if verdict.attack == "cheapest" else verdict.attack, verdict.text)


def pool_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds: with Student's t interval from `MIN_SEEDS` seeds on, else with that of all their samples."""
    found = [estimate for estimate in estimates if math.isfinite(estimate.mean)]
    if not 0 < len(found) < MIN_SEEDS:
        return pooled_t([estimate.mean for estimate in found])
    mean = sum(estimate.mean for estimate in found) / len(found)
    low = math.hypot(*(estimate.mean - estimate.low for estimate in found)) / len(found)
    high = math.hypot(*(estimate.high - estimate.mean for estimate in found)) / len(found)
    return Estimate(mean, mean - low, mean + high, sum(estimate.count for estimate in found))


def _keep_known(scores: dict[float, Estimate]) -> dict[float, Estimate]:
    """Points without a score are left out."""
    return {x: score for x, score in scores.items() if math.isfinite(score.mean)}


def draw_texts(attack: Rediscovery, judge: Judge) -> list[tuple[str, Drawing]]:
    """For each attack, score against the number of bad texts."""
    return _draw(attack, judge, attack.by_texts, "bad texts the attacker has", lambda _: "")


def draw_steps(attack: Rediscovery, judge: Judge) -> list[tuple[str, Drawing]]:
    """For each attack, score against the steps spent, with the most bad texts that it was tried with."""
    return _draw(
        attack,
        judge,
        attack.by_steps,
        "steps spent",
        lambda name: f" with {attack.most_texts(name):,} texts",
    )


def _draw(
    attack: Rediscovery,
    judge: Judge,
    read: Callable[[AttackedModel, str, Judge], dict[float, Estimate]],
    x_label: str,
    note: Callable[[str], str],
) -> list[tuple[str, Drawing]]:
    """A panel for each attack that has a point; all end at the same height."""
    styles = _choose_styles(attack.targets)
    curves = {
        name: [(target, points) for target in attack.targets if (points := read(target, name, judge))]
        for name in attack.attacks
    }
    levels = []
    for target in attack.targets:
        name, colour = shorten(target.name), styles[target.name][0]
        levels.append(
            Level(f"{name} before the attack", attack.score(target, target.start, judge), colour, _DOTTED)
        )
        if target.is_unmodified:
            label = f"bad mode of {shorten(target.name, 18)}"
            levels.append(Level(label, attack.score(target, "bad", judge), colour, _DASHED, label))
    scores = [score for found in curves.values() for _, points in found for score in points.values()]
    ends = [
        end for score in (*scores, *(level.value for level in levels)) for end in (score.mean, score.high)
    ]
    top = 1.05 * max(filter(math.isfinite, ends), default=0.0)
    drawings = []
    for name, found in curves.items():
        if found:
            lines = [
                Line(shorten(target.name, 24), tuple(points.items()), *styles[target.name])
                for target, points in found
            ]
            meaning = _ATTACKS.get(name.split(":")[0], "")
            caption = f"{meaning[0].upper()}{meaning[1:]}." if meaning else ""
            title = shorten(f"{name}{note(name)}, by {judge.name}", 90)
            y_label = shorten(f"score, {judge.shown_unit}", 60)
            drawing = draw_lines(
                lines, title, caption, x_label, y_label, is_log=True, levels=levels, top=top or None
            )
            drawings.append((name, drawing))
    return drawings


def _choose_styles(targets: Sequence[AttackedModel]) -> dict[str, tuple[str, str, str]]:
    """Colour, dash and marker of each target: what was not modified has its objective's colour."""
    styles: dict[str, tuple[str, str, str]] = {}
    for place, target in enumerate(targets):
        own = None if target.forget else OBJECTIVE_COLOURS.get(target.objective)
        wanted = [own, *(OBJECTIVE_COLOURS[kind] for kind in _LENT)]
        used = {colour for colour, _, _ in styles.values()}
        colour = next((colour for colour in wanted if colour and colour not in used), INK)
        styles[target.name] = (colour, "-", _MARKERS[place % len(_MARKERS)])
    return styles


def write_rediscovery(results: AttackResults, path: Path) -> Path:
    """Write the page of an attack.json to `path`: no script, nothing fetched; the same content gives the same bytes.

    Raises:
        PHFError: no attack was finished.
    """
    attack = Rediscovery(results)
    page = (
        make_environment()
        .get_template("rediscovery.html")
        .render(
            css=read_css(),
            attack=attack,
            results=results,
            texts={key: value for key, value in asdict(results.texts).items() if value},
            notices=_list_notices(attack),
            panels=[
                (
                    judge,
                    embed_figures(drawing for _, drawing in draw_texts(attack, judge)),
                    embed_figures(drawing for _, drawing in draw_steps(attack, judge)),
                )
                for judge in attack.judges
            ],
            scale=scale_estimate,
        )
    )
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def _list_notices(attack: Rediscovery) -> list[str]:
    """What a reader must know before believing the numbers."""
    notices = [f"{note[:1].upper()}{note[1:]}." for note in attack.results.notes]
    notices += [
        f"{one.attack} on {one.target} with {one.num_texts:,} texts failed, which says nothing about the model: {one.failed}"
        for one in attack.results.failed
    ]
    if attack.num_seeds < MIN_SEEDS:
        notices.append(
            f"{attack.num_seeds} seed{'' if attack.num_seeds == 1 else 's'}: intervals cover the drawing of samples, not another "
            "attacker’s texts and random numbers."
        )
    if not any(is_baseline(target.objective) for target in attack.targets):
        notices.append(
            "No MLE model is here: nothing says what the same texts do to a model that never had a bad mode."
        )
    notices.append(
        "A cost is what these attackers paid. Others, or more texts and steps, may pay less: it is no lower bound."
    )
    return notices


def write_figures(results: AttackResults, folder: Path) -> list[Path]:
    """Write every figure of the page as an SVG file of its own, with its colours for light and dark.

    Returns:
        The files, `JUDGE-ATTACK-texts.svg` and `JUDGE-ATTACK-steps.svg`.

    Raises:
        PHFError: see `write_rediscovery`.
    """
    found = Rediscovery(results)
    css = read_css()
    colours = css[: css.index("* {")]  # the variables, light and dark
    style = f"<style>{colours}svg {{ background: var(--paper); font-family: system-ui, sans-serif; }}</style>"
    files = []
    for judge in found.judges:
        for axis, draw in (("texts", draw_texts), ("steps", draw_steps)):
            for name, drawing in draw(found, judge):
                svg = drawing.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
                file = folder / f"{_file_name(judge.name)}-{_file_name(name)}-{axis}.svg"
                write_bytes(file, svg.replace(">", f">{style}", 1).encode("utf-8", "replace"))
                files.append(file)
    return files


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "unnamed"
