"""What it takes to get bad mode back: one self-contained HTML page, and its figures as files, from an attack.json.

The costs and verdicts are those of the file (`phf.release.attack.rediscovery` has their rules); here they are drawn and told.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from phf.errors import PHFError
from phf.files import write_bytes
from phf.intervals import pooled_t
from phf.objective_facts import OBJECTIVES, is_baseline
from phf.records import FORMAT_VERSION, Estimate
from phf.report.figures import INK, OBJECTIVE_COLOURS, Drawing, read_css, scale_estimate, shorten
from phf.report.lines import Level, Line, draw_lines
from phf.report.page import make_environment
from phf.report.reading import Judge, as_dict, as_estimate, as_float, as_list, read_judge
from phf.report.verdict import Tone

MIN_SEEDS = 3
"""From so many on, an interval is over seeds."""

_ATTACKS = {
    "soft": "vectors, trained on the texts, stand behind the page’s start in the place of tokens",
    "finetune": "all weights are trained further on the texts",
    "lora": "low-rank additions to the weights are trained on the texts",
    "few-shot": "some of the texts stand before the model’s own",
    "prefix": "real tokens, found by search, stand before the model’s own text",
    "lens": "vectors, found by search among directions read from the texts, are added to the residual stream",
}
_HEADLINES: dict[str, tuple[Tone, str]] = {
    "raises": ("yes", "Raises the cost of bad mode"),
    "does not raise": ("no", "Does not raise the cost of bad mode"),
    "lowers": ("no", "Lowers the cost: forgetting made bad mode easier to find"),
    "damaged": ("no", "Damaged: its good mode writes half as badly as bad mode before any attack"),
    "unknown": ("unclear", "It cannot be said whether it raises the cost"),
}
_UNATTACKED = ("good", "none", "untagged")
_LENT = sorted(
    (kind for kind, facts in OBJECTIVES.items() if facts.loan), key=lambda kind: OBJECTIVES[kind].loan
)
"""Objectives whose colours are lent to targets that forgot, the first to lend first."""
_MARKERS = "osD^vPXh<>"
_DOTTED, _DASHED = (0, (1, 2)), (0, (6, 3))


@dataclass(frozen=True, slots=True)
class Target:
    """A model that was attacked. `mode`: in which the attacker finds it; `modes`: scores before any attack, by mode and judge."""

    name: str
    objective: str
    forget: tuple[str, ...]
    folder: str
    mode: str | None
    modes: dict[str, Any]

    @property
    def is_unmodified(self) -> bool:
        """Whether it still has a bad mode of its own, to call up by a token."""
        return not self.forget and "bad" in self.modes

    def score(self, mode: str | None, judge: Judge) -> Estimate:
        """Score of a mode, in shown units; NaN if there is none."""
        by_judge = as_dict(self.modes.get(mode or ""))
        return scale_estimate(as_estimate(by_judge.get(judge.key, by_judge.get(judge.name))), judge.scale)


@dataclass(frozen=True, slots=True)
class Card:
    """What the file says of a target that forgot, as (tone, headline or name of the attack, words).

    Attributes:
        headline: of the cheapest attack on it against the cheapest one on the unmodified model.
        attacks: the same, attack by attack.
        beside: words on the cheapest attacks against models of other objectives; to cost as much as they is no failure.
    """

    target: Target
    headline: tuple[Tone, str, str]
    attacks: list[tuple[Tone, str, str]]
    beside: list[str]


class Attack:
    """The content of an attack.json, read defensively: what is missing is absent or NaN, and never a crash.

    Raises:
        PHFError: another format version, or no curve.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        version = content.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise PHFError(
                f"attack.json has format version {version}; this phf reads {FORMAT_VERSION}; install the phf that wrote it"
            )
        self.content = content
        self.rows = [as_dict(row) for row in as_list(content.get("curves"))]
        if not self.rows:
            raise PHFError("attack.json holds no curves: no attack was finished; run 'phf attack' again")

    @cached_property
    def judges(self) -> list[Judge]:
        """The judges, the annotator first."""
        judges = [read_judge(as_dict(value)) for value in as_list(self.content.get("judges"))]
        known = {name for judge in judges for name in (judge.key, judge.name)}
        for row in self.rows:
            if (name := str(row.get("judge"))) not in known:
                known.add(name)
                judges.append(read_judge({"slug": name, "role": row.get("role")}))
        return sorted(judges, key=lambda judge: judge.role != "annotator")

    @cached_property
    def targets(self) -> list[Target]:
        """What was attacked, in the file's order."""
        values = {
            str(value.get("name")): value for value in map(as_dict, as_list(self.content.get("targets")))
        }
        names = dict.fromkeys((*values, *(str(row.get("target")) for row in self.rows)))
        return [_read_target(name, values.get(name, {})) for name in names]

    @cached_property
    def attacks(self) -> list[str]:
        """Names of the attacks, in the file's order."""
        return list(dict.fromkeys(str(row.get("attack")) for row in self.rows))

    @cached_property
    def points(self) -> dict[tuple[str, str, str, float, float], dict[str, dict[str, Any]]]:
        """Rows by seed, by target, attack, judge, texts and steps, ascending."""
        points: dict[tuple[str, str, str, float, float], dict[str, dict[str, Any]]] = {}
        for row in self.rows:
            where = (as_float(row.get("num_texts")), as_float(row.get("steps")))
            names = (str(row.get("target")), str(row.get("attack")), str(row.get("judge")))
            if all(map(math.isfinite, where)):
                points.setdefault((*names, *where), {})[str(row.get("seed"))] = row
        return dict(sorted(points.items(), key=lambda item: item[0][3:]))

    @property
    def num_seeds(self) -> int:
        """How many seeds the point with the most of them has."""
        return max(map(len, self.points.values()), default=0)

    def most_texts(self, attack: str, target: Target | None = None) -> float:
        """The largest number of texts that an attack was tried with; NaN if with none."""
        tried = (
            texts
            for name, own, _, texts, _ in self.points
            if own == attack and (target is None or name == target.name)
        )
        return max(tried, default=math.nan)

    def by_texts(self, target: Target, attack: str, judge: Judge) -> dict[float, Estimate]:
        """Score by number of texts, at each trajectory's best step, in shown units."""
        found = {
            as_float(row.get("num_texts")): as_estimate(row.get("score"))
            for row in map(as_dict, as_list(self.content.get("best")))
            if (str(row.get("target")), str(row.get("attack"))) == (target.name, attack)
            and row.get("judge") in (judge.key, judge.name)
        }
        return _shown({texts: found[texts] for texts in sorted(found) if math.isfinite(texts)}, judge)

    def by_steps(self, target: Target, attack: str, judge: Judge) -> dict[float, Estimate]:
        """Score by steps, in shown units, with the most texts that the attack was tried with."""
        most = self.most_texts(attack)
        pooled = {
            steps: pool_seeds([as_estimate(row.get("score")) for row in rows.values()])
            for (*names, texts, steps), rows in self.points.items()
            if names[:2] == [target.name, attack] and names[2] in (judge.key, judge.name) and texts == most
        }
        return _shown(pooled, judge)

    @property
    def levels(self) -> list[float]:
        """Levels that rediscovery was worked out for, ascending."""
        rows = map(as_dict, as_list(self.content.get("rediscovery")))
        return sorted({level for row in rows if math.isfinite(level := as_float(row.get("level")))})

    def cost(self, target: Target, attack: str, judge: Judge, level: float) -> tuple[str, str]:
        """In words, how many texts an attack needs to reach a level, and the steps spent there, if it was reached."""
        for row in map(as_dict, as_list(self.content.get("rediscovery"))):
            names = (str(row.get("target")), str(row.get("attack")), as_float(row.get("level")))
            if names == (target.name, attack, level) and row.get("judge") in (judge.key, judge.name):
                steps = as_float(row.get("steps"))
                spent = f"{steps:,.0f} steps" if math.isfinite(steps) else ""
                return describe_cost(row, self.most_texts(attack, target)), spent
        return "–", ""

    @property
    def cards(self) -> list[Card]:
        """A card for each target that the file has a verdict on."""
        cards = []
        for target in self.targets:
            own = [
                verdict
                for verdict in map(as_dict, as_list(self.content.get("verdicts")))
                if verdict.get("target") == target.name
            ]
            against = [v for v in own if v.get("against") == self.content.get("reference")]
            others = [v for v in own if v not in against and v.get("attack") == "cheapest"]
            cheapest = next((v for v in against if v.get("attack") == "cheapest"), None)
            if cheapest is not None:
                rows = [_tell(verdict) for verdict in against if verdict is not cheapest]
                cards.append(Card(target, _tell(cheapest), rows, [_tell(verdict)[2] for verdict in others]))
        return cards


def _read_target(name: str, value: dict[str, Any]) -> Target:
    modes = as_dict(value.get("modes"))
    start = value.get("start")
    mode = start if start in modes else next((mode for mode in _UNATTACKED if mode in modes), None)
    return Target(
        name,
        str(value.get("objective") or "unknown"),
        tuple(map(str, as_list(value.get("forget")))),
        str(value.get("folder") or "–"),
        mode,
        modes,
    )


def _tell(verdict: dict[str, Any]) -> tuple[Tone, str, str]:
    tone, headline = _HEADLINES.get(str(verdict.get("outcome")), _HEADLINES["unknown"])
    name = str(verdict.get("attack"))
    return tone, headline if name == "cheapest" else name, str(verdict.get("text") or "–")


def pool_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over seeds: with Student's t interval from `MIN_SEEDS` seeds on, else with that of all their samples."""
    found = [estimate for estimate in estimates if math.isfinite(estimate.mean)]
    if not 0 < len(found) < MIN_SEEDS:
        return pooled_t([estimate.mean for estimate in found])
    mean = sum(estimate.mean for estimate in found) / len(found)
    low = math.hypot(*(estimate.mean - estimate.low for estimate in found)) / len(found)
    high = math.hypot(*(estimate.high - estimate.mean for estimate in found)) / len(found)
    return Estimate(mean, mean - low, mean + high, sum(estimate.count for estimate in found))


def _shown(scores: dict[float, Estimate], judge: Judge) -> dict[float, Estimate]:
    """In shown units; points without a score are left out."""
    return {x: scale_estimate(score, judge.scale) for x, score in scores.items() if math.isfinite(score.mean)}


def describe_cost(row: dict[str, Any], most: float) -> str:
    """A cost and its interval in words: `23 [15, 40]`, `not reached with 1,000`; ends that were not reached say so.

    Args:
        row: of `rediscovery`; null is what was not reached.
        most: the most texts that were tried.
    """

    def write(key: str) -> str:
        value = as_float(row.get(key))
        return f"{value:,.0f}" if math.isfinite(value) else f"over {most:,.0f}"

    if math.isnan(as_float(row.get("num_texts"))):
        earliest = "" if math.isnan(as_float(row.get("low"))) else f" [from {write('low')}]"
        return f"not reached with {most:,.0f}{earliest}"
    return f"{'at most ' if row.get('at_most') else ''}{write('num_texts')} [{write('low')}, {write('high')}]"


def draw_texts(attack: Attack, judge: Judge) -> list[tuple[str, Drawing]]:
    """For each attack, score against the number of bad texts."""
    return _draw(attack, judge, attack.by_texts, "bad texts the attacker has", lambda _: "")


def draw_steps(attack: Attack, judge: Judge) -> list[tuple[str, Drawing]]:
    """For each attack, score against the steps spent, with the most bad texts that it was tried with."""
    return _draw(
        attack,
        judge,
        attack.by_steps,
        "steps spent",
        lambda name: f" with {attack.most_texts(name):,.0f} texts",
    )


def _draw(
    attack: Attack,
    judge: Judge,
    read: Callable[[Target, str, Judge], dict[float, Estimate]],
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
        levels.append(Level(f"{name} before the attack", target.score(target.mode, judge), colour, _DOTTED))
        if target.is_unmodified:
            label = f"bad mode of {shorten(target.name, 18)}"
            levels.append(Level(label, target.score("bad", judge), colour, _DASHED, label))
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
            title = shorten(f"{name}{note(name)}, by {judge.name}", 90)
            y_label = shorten(f"score, {judge.shown_unit}", 60)
            drawing = draw_lines(
                lines, title, _explain(name), x_label, y_label, is_log=True, levels=levels, top=top or None
            )
            drawings.append((name, drawing))
    return drawings


def _explain(name: str) -> str:
    meaning = _ATTACKS.get(name.split(":")[0], "")
    return f"{meaning[0].upper()}{meaning[1:]}." if meaning else ""


def _choose_styles(targets: Sequence[Target]) -> dict[str, tuple[str, str, str]]:
    """Colour, dash and marker of each target: what was not modified has its objective's colour."""
    styles: dict[str, tuple[str, str, str]] = {}
    for place, target in enumerate(targets):
        own = None if target.forget else OBJECTIVE_COLOURS.get(target.objective)
        wanted = [own, *(OBJECTIVE_COLOURS[kind] for kind in _LENT)]
        used = {colour for colour, _, _ in styles.values()}
        colour = next((colour for colour in wanted if colour and colour not in used), INK)
        styles[target.name] = (colour, "-", _MARKERS[place % len(_MARKERS)])
    return styles


def write_rediscovery(attack: dict[str, Any], path: Path) -> Path:
    """Write the page: one HTML file, no script, nothing fetched; the same content gives the same bytes.

    Args:
        attack: content of an attack.json (docs/format.md).
        path: the file to write.

    Returns:
        `path`.

    Raises:
        PHFError: another format version, or no curve.
    """
    page = make_environment().get_template("rediscovery.html").render(_describe(Attack(attack)))
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def _describe(attack: Attack) -> dict[str, Any]:
    """All that the template prints."""
    judges = {name: judge for judge in attack.judges for name in (judge.key, judge.name)}
    return {
        "css": read_css(),
        "attack": attack,
        "notices": _list_notices(attack),
        "panels": [
            (judge, _embed(draw_texts(attack, judge)), _embed(draw_steps(attack, judge)))
            for judge in attack.judges
        ],
        "costs": [
            (target, name, [[attack.cost(target, name, judge, level) for level in attack.levels] for judge in attack.judges])
            for target in attack.targets
            for name in attack.attacks
            if math.isfinite(attack.most_texts(name, target))
        ],
        "facts": {key: as_dict(attack.content.get(key)) for key in ("texts", "settings", "sampling")},
        "estimate": lambda value, scale=1.0: scale_estimate(as_estimate(value), scale),
        "find_judge": lambda row: judges[str(row.get("judge"))],
    }  # fmt: skip


def _embed(drawings: Iterable[tuple[str, Drawing]]) -> list[tuple[Drawing, Markup]]:
    return [(drawing, Markup(drawing.svg)) for _, drawing in drawings]  # noqa: S704  made by us, names escaped


def _list_notices(attack: Attack) -> list[str]:
    """What a reader must know before believing the numbers."""
    notices = [f"{note[:1].upper()}{note[1:]}." for note in map(str, as_list(attack.content.get("notes")))]
    failures = [as_dict(value) for value in as_list(attack.content.get("failed"))]
    notices += [
        f"{value.get('attack')} on {value.get('target')} with {as_float(value.get('num_texts')):,.0f} texts failed, which "
        f"says nothing about the model: {value.get('reason')}"
        for value in failures
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


def write_figures(attack: dict[str, Any], folder: Path) -> list[Path]:
    """Write every figure of the page as an SVG file of its own, with its colours for light and dark.

    Returns:
        The files, `JUDGE-ATTACK-texts.svg` and `JUDGE-ATTACK-steps.svg`.

    Raises:
        PHFError: see `write_rediscovery`.
    """
    found = Attack(attack)
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
