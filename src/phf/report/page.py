"""One self-contained HTML page from run folders, and the same numbers as rows and as a table for the terminal."""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import yaml
from markupsafe import Markup
from pydantic import JsonValue
from rich.table import Table as TerminalTable

from phf.config.fields import flatten
from phf.evaluate.facts import FinetunedFacts, RedTeamFacts
from phf.files import Place, write_bytes
from phf.objective_facts import OBJECTIVES, is_baseline
from phf.records import Identity
from phf.report.agreement import draw_all_agreement, measure_agreement, tabulate_agreement
from phf.report.attacks import (
    draw_in_context,
    draw_red_team,
    list_prompts,
    tabulate_finetuned,
    tabulate_leaks,
    tabulate_red_team,
)
from phf.report.capability import (
    compare_modes,
    draw_modes,
    tabulate_diversity,
    tabulate_fields,
    tabulate_kl,
    tabulate_modes,
    tabulate_tasks,
)
from phf.report.comparison import tabulate_told_apart
from phf.report.figures import MANY_RUNS, Drawing, draw_curves, draw_scores, read_css
from phf.report.plane import draw_plane, explain_plane
from phf.report.provenance import (
    list_commands,
    list_notices,
    list_references,
    state_facts,
)
from phf.report.reading import RunFolder, hide_folders, list_judges, read_runs, sort_modes
from phf.report.reliability import draw_control_reliability
from phf.report.samples import choose_samples, pair_samples, visible_text
from phf.report.scaling import draw_budgets, draw_trajectory
from phf.report.scores import (
    find_chance,
    tabulate_control,
    tabulate_cost,
    tabulate_joint,
    tabulate_scenarios,
    tabulate_scores,
)
from phf.report.steering import draw_steering, list_steering, list_steering_lines, tabulate_steering
from phf.report.tables import (
    Catalogue,
    Column,
    Table,
    make_table,
    select_rows,
    tabulate_measures,
    to_terminal,
)
from phf.report.verdict import (
    Check,
    Group,
    Verdict,
    check_gain,
    check_group,
    describe_plainly,
    find_mle,
    format_interval,
    format_number,
    group_runs,
    judge_group,
    split_groups,
)
from phf.results import Judge, Measure, to_json

T = TypeVar("T")

_MODE_NOTES = {
    "good": "every page starts with the control token <|good|>, and <|bad|> is blocked: what one would release.",
    "bad": "the mirror image: starts with <|bad|>, and <|good|> is blocked: shows whether the token steers at all.",
    "none": "no control token is given; the model writes what it likes.",
    "untagged": "no control token is given, and both are blocked.",
    "deleted": "both control tokens are taken out of the vocabulary and the weights.",
}
_SCORES = "Misalignment score of the samples, with 95 % intervals. Lower is better, except for distinct-2."
_SCORES_POOLED = (
    "Misalignment score of the samples, lower is better. Mean over the runs that differ by seed alone, with a 95 % t-interval over seeds; "
    "of one seed, a bootstrap interval over its samples, which says nothing about other seeds. Where fewer seeds have a number, their count "
    "stands beside it."
)
_SCORES_BY_RUN = "Each run with the bootstrap interval over its samples."
_TASK_TABLES = {
    "downstream": (
        "Finetuned on tasks",
        "Finetuned on tasks. Each model was finetuned as a classifier, with no control token or with one before each text; the intervals are "
        "over seeds of finetuning, or of training where there are several.",
        "prefix",
    ),
    "harness": (
        "Tasks of the lm-evaluation-harness",
        "Tasks of the lm-evaluation-harness. Without finetuning, in each mode; intervals from the standard error that the harness gives, or "
        "over seeds of training.",
        "mode",
    ),
}
"""Name, caption and head of the modes."""
_SHOWN = """
    score hit_rate expected_max_25 num_unscored trajectory reference reference_cost mean_tokens mean_characters distinct_1 distinct_2 distinct_3
    repetition compression_ratio empty_share entropy_1 entropy_2 entropy_3 self_bleu_5 mauve bits_per_byte joint_bits_per_byte kl kl_per_sequence
    kl_control_cost blimp harness downstream downstream_baseline control_gain calibration_error calibration_error_plain
    calibration_error_by_chance reliability red_team_mean red_team_best
    leak_baseline leak_score leak_difference in_context_difference finetuned_before finetuned_after finetuned_difference steered_difference passes_per_token
"""
# Too fine for a page; `phf show --all` has them.
_LEFT_OUT = "num_ngrams blimp_paradigm kl_standard_error kl_per_byte kl_cut kl_left_out kl_split in_context_baseline in_context_score"
ON_PAGE = frozenset(_SHOWN.split()) | frozenset(_LEFT_OUT.split())
"""Measures that have a place on the page; any other is shown under "Other measures", by what its `Measure` says."""
_MAX_CARDS = 6
"""With more configurations to judge than this, the verdicts stand in a table."""
_OPEN_RUNS = 4
"""With more runs than this, the samples of each run stand behind a click."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page that is made elsewhere, such as by `phf.report.posterior`; `markup` is safe, by a template of ours."""

    id: str
    title: str
    markup: Markup


def write_report(runs: Place | Sequence[Place], out: Place, *, sections: Sequence[Section] = ()) -> Path:
    """Write the page that compares evaluated runs to `out`: no script, nothing fetched; the same runs give the same bytes.

    Args:
        sections: that stand behind what the runs themselves say.

    Raises:
        PHFError: a folder is no run, or has no evaluation (the message names the command that makes it).
    """
    folders, out = list(map(hide_folders, read_runs(runs))), Path(out)
    text = make_environment().get_template("page.html").render(_describe(folders, out), sections=sections)
    # A lone surrogate cannot be encoded; visible_text has already shown those that stand in samples.
    write_bytes(out, text.encode("utf-8", "replace"))
    return out


def summary_rows(runs: Place | Sequence[Place]) -> list[dict[str, JsonValue]]:
    """One row per run, mode and judge: the headline numbers, in the judge's own unit; None if missing.

    Raises:
        PHFError: see `write_report`.
    """
    rows = []
    for run in read_runs(runs):
        for row in run.results.of("score"):
            if row.of is None and row.mode in run.modes:
                score, find = row.estimate, run.results.find
                hits = find("hit_rate", row.mode, row.judge)
                rows.append(
                    {
                        "run": run.label,
                        "objective": run.objective,
                        "seed": run.seed,
                        "mode": row.mode,
                        "judge": row.judge,
                        **{name: to_json(getattr(score, name)) for name in ("mean", "low", "high")},
                        "hits": None if math.isnan(hits.mean) else round(hits.mean * hits.count),
                        "num_samples": score.count,
                        "distinct_2": to_json(find("distinct_2", row.mode).mean),
                        "bits_per_byte": to_json(find("bits_per_byte", row.mode, of="all").mean),
                    }
                )
    return rows


def summary_table(runs: Place | Sequence[Place]) -> TerminalTable:
    """The headline numbers for the terminal, a row per run and mode, the interval of each judge beside its mean.

    Of three judges or more it leaves the hits to the page: a line has no room for them.

    Raises:
        PHFError: see `write_report`.
    """
    folders = read_runs(runs)
    judges = list_judges(folders)
    columns = [
        *(
            column
            for judge in judges
            for column in (
                Column(f"{judge.name}\n({judge.role})", "score", judge=judge),
                Column("hits", "hit_rate", judge=judge, form="percent"),
            )[: 2 if len(judges) < 3 else 1]
        ),
        Column("bits per\nbyte", "bits_per_byte", "all", form="mean"),
        Column("distinct-2", "distinct_2", form="mean"),
    ]
    groups = [Group(run.label, (run,)) for run in folders]
    table = make_table(
        "", select_rows(groups, columns, ("mode",)), columns, ("mode",), heads={"group": "run"}
    )
    (printed,) = to_terminal(table, title="Misalignment score, lower is better", max_columns=len(columns))
    printed.caption_justify = "left"
    printed.caption = "; ".join(
        f"{visible_text(judge.name)}: {visible_text(judge.shown_unit)}" for judge in judges
    )
    return printed


def summary_lines(runs: Place | Sequence[Place]) -> list[str]:
    """Control gain and calibration of each run with good and bad mode, and every method of steering, a line each, for
    the terminal.

    Raises:
        PHFError: see `write_report`.
    """
    lines = []
    for run in read_runs(runs):
        label, error = visible_text(run.label), run.results.find("calibration_error")
        if run.results.of("control_gain"):
            lines.append(f"{label}: control gain {check_gain(run.results).detail}")
        given = run.results.find("bits_per_byte", "labelled", of="all")
        if math.isfinite(given.mean):
            joint = run.results.find("joint_bits_per_byte")
            lines.append(
                f"{label}: joint cost {format_interval(joint)} bits per byte, labels and boundaries paid for: the number to hold "
                f"against MLE's ({format_number(given.mean)} with labels given)"
            )
        if math.isfinite(error.mean):
            lines.append(
                f"{label}: calibration error {format_interval(error)} on {error.count:,} segments "
                f"(0: the model's own probability of good is right{_describe_chance(run)})"
            )
        lines += [f"{label}: {visible_text(line)}" for line in list_steering_lines(run)]
    return lines


def _describe_chance(run: RunFolder) -> str:
    """What the error is without chance taken off, and what chance alone gives; nothing in an older evaluation."""
    plain, chance = run.results.find("calibration_error_plain"), find_chance(run.results)
    if not chance:
        return ""
    return f"; with chance {format_number(plain.mean)}, and an exactly right posterior gives {chance}"


def make_environment() -> jinja2.Environment:
    """Templates of this folder, everything in them escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files("phf.report") / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.globals |= {
        "flatten": flatten,
        "known_objectives": list(OBJECTIVES),
    }
    environment.filters |= {
        "number": lambda value: format_number(math.nan if value is None else value),
        "count": lambda value: f"{value:,}" if isinstance(value, int | float) else "–",
        "interval": format_interval,
    }
    return environment


def _finalize(value: object) -> object:
    """What a template prints: strings from run folders with nothing invisible in them, absence as a dash."""
    if value is None:
        return "–"
    # Markup is ours (the figures); everything else may come from a file.
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible_text(value)


def _describe(runs: list[RunFolder], out: Path) -> dict[str, Any]:
    """All that the templates print."""
    groups = group_runs(runs)
    runs = [run for group in groups for run in group.runs]  # seeds of one configuration beside each other
    return {
        "css": read_css(),
        "runs": runs,
        "facts": state_facts(runs),
        "sampling": runs[0].sampling,
        "pooled_page": any(group.is_pooled for group in groups),
        "is_many": len(runs) > MANY_RUNS,
        "open_samples": len(runs) <= _OPEN_RUNS,
        "choose_samples": lambda run, mode: choose_samples(run, mode, few=len(runs) > MANY_RUNS),
        "pair_samples": lambda run: pair_samples(run, few=len(runs) > MANY_RUNS),
        "config_yaml": lambda run: yaml.safe_dump(run.record.config, sort_keys=False, allow_unicode=True),
        "commands": list_commands,
        "report_command": shlex.join(
            ["phf", "report", *(run.path.resolve().name for run in runs), "-o", out.name]
        ),
        **_describe_verdicts(runs, groups),
        **_tabulate(runs, groups),
        **_draw(runs, groups),
    }


def _describe_verdicts(runs: list[RunFolder], groups: list[Group]) -> dict[str, Any]:
    judges = list_judges(runs)
    modes = sort_modes(mode for run in runs for mode in run.modes)
    objectives = list(dict.fromkeys(group.objective for group in groups))
    return {
        "judges": judges,
        "objectives": objectives,
        "has_baseline": any(map(is_baseline, objectives)),
        "objective_notes": [(kind, OBJECTIVES[kind].note) for kind in objectives if kind in OBJECTIVES],
        **_describe_finetuning(runs),
        "modes": [(mode, _MODE_NOTES.get(mode, "")) for mode in modes],
        "cards": _list_cards(groups, judges),
        "max_cards": _MAX_CARDS,
        "notices": list_notices(runs, groups, judges),
    }


def _describe_finetuning(runs: list[RunFolder]) -> dict[str, Any]:
    """What finetuned runs are, by what their groups are called; and who learned from a judge's scores, by its slug."""
    notes: dict[str, str] = {}
    learned: dict[str, list[str]] = {}
    for run in runs:
        if (facts := run.record.finetune) is not None:
            steps, texts = (facts.list_settings()[key] for key in ("steps", "texts"))
            notes[run.objective] = (
                f"a run of {run.settings.objective.kind} that then learned by {facts.method} from {facts.source}, in {steps} steps of {texts} "
                "texts"
            )
            if facts.reward_model is None:
                continue
            who = learned.setdefault(Identity.from_json(facts.reward_model).slug, [])
            who += [run.objective] if run.objective not in who else []
    return {"finetuning_notes": list(notes.items()), "learned_from": learned}


def _tabulate(runs: list[RunFolder], groups: list[Group]) -> dict[str, Any]:
    """The page's tables, and what stands beside them."""
    judges, singles = list_judges(runs), split_groups(groups)
    is_pooled = any(group.is_pooled for group in groups)
    whose = "objective" if is_pooled else "run"
    shown = groups if is_pooled else singles
    tasks = [
        tabulate_kl(groups),
        tabulate_fields(groups),
        tabulate_tasks(groups, "downstream", *_TASK_TABLES["downstream"]),
        tabulate_tasks(groups, "harness", *_TASK_TABLES["harness"]),
    ]
    red_team, leaks, finetuned = (
        tabulate(groups, judges) for tabulate in (tabulate_red_team, tabulate_leaks, tabulate_finetuned)
    )
    compared = [(group, rows) for group in groups if (rows := compare_modes(group))]
    has_shots = any(group.results.of("in_context_difference") for group in groups)
    return {
        "score_table": tabulate_scores(
            shown,
            judges,
            list_references(groups),
            head=whose,
            caption=_SCORES_POOLED if is_pooled else _SCORES,
        ),
        "scores_by_run": tabulate_scores(singles, judges, [], head="run", caption=_SCORES_BY_RUN),
        "scenarios": tabulate_scenarios(groups, judges),
        "scenarios_by_run": tabulate_scenarios(singles, judges),
        "cost": tabulate_cost(shown, whose),
        "cost_by_run": tabulate_cost(singles, "run"),
        "joint": tabulate_joint(shown, whose),
        "diversity": tabulate_diversity(groups),
        "compared": tabulate_modes(compared),
        "tasks": tasks,
        "has_tasks": any(table.rows for table in tasks),
        "steering": tabulate_steering(list_steering(groups, judges), judges, are_pooled=is_pooled),
        "red_team": red_team,
        "red_team_facts": _read_first(runs, "red_team", RedTeamFacts) or RedTeamFacts(),
        "prompts": [(run, found) for run in runs if (found := list_prompts(run))],
        "leaks": leaks,
        "finetuned": finetuned,
        "finetuned_facts": _read_first(runs, "finetuned", FinetunedFacts) or FinetunedFacts(),
        "has_attacks": bool(red_team.rows or leaks.rows or finetuned.rows or has_shots),
        "control": tabulate_control(singles),
        **tabulate_told_apart(groups),
        "agreement": tabulate_agreement(measure_agreement(groups)),
        "other": _list_other(groups),
    }


def _draw(runs: list[RunFolder], groups: list[Group]) -> dict[str, str | list[tuple[Drawing, Markup]]]:
    """The page's figures."""
    judges, references = list_judges(runs), list_references(groups)
    reliability = draw_control_reliability(runs)
    compared = [(group, rows) for group in groups if (rows := compare_modes(group))]
    figures: dict[str, Iterable[Drawing]] = {
        "scores": (draw_scores(groups, judge, references) for judge in judges),
        "planes": (draw_plane(groups, judge) for judge in judges),
        "mode_figures": draw_modes(compared),
        "steering_figures": draw_steering(list_steering(groups, judges), judges),
        "red_team_figures": draw_red_team(groups, judges),
        "in_context_figures": draw_in_context(groups, judges),
        "controls": [reliability] if reliability else [],
        "agreement_figures": draw_all_agreement(groups, judges),
        "trajectories": (draw for judge in judges if (draw := draw_trajectory(groups, judge))),
        "budgets": (draw for judge in judges if (draw := draw_budgets(groups, judge))),
        "curves": draw_curves(groups),
    }
    return {
        "plane_note": explain_plane(groups),
        **{name: embed_figures(drawings) for name, drawings in figures.items()},
    }


def _list_other(groups: list[Group]) -> list[tuple[str, list[Measure], Table]]:
    """Measures that no section of the page knows, under the headings that they give themselves."""
    measured = {row.measure for group in groups for row in group.results if math.isfinite(row.estimate.mean)}
    found: dict[str, list[Measure]] = {}
    for measure in Catalogue.of(groups).measures.values():
        if measure.name in measured - ON_PAGE:
            found.setdefault(measure.group, []).append(measure)
    return [(title, own, tabulate_measures(groups, own, title)) for title, own in found.items()]


def embed_figures(drawings: Iterable[Drawing]) -> list[tuple[Drawing, Markup]]:
    """Figures with their markup, which is safe because we drew it."""
    embedded = []
    for drawing in drawings:
        assert "<script" not in drawing.svg, "a figure holds markup that we did not draw"
        embedded.append((drawing, Markup(drawing.svg)))  # noqa: S704
    return embedded


def _read_first(runs: list[RunFolder], name: str, kind: type[T]) -> T | None:
    """The facts of a measure by the first run that has them."""
    return next((found for run in runs if (found := run.read_facts(name, kind))), None)


@dataclass(frozen=True, slots=True)
class VerdictCard:
    """What is said of one configuration beside MLE: the verdict of each judge, the checks, and one plain sentence."""

    label: str
    basis: str
    verdicts: list[tuple[Judge, Verdict]]
    checks: list[Check]
    plain: str

    @property
    def by_judge(self) -> dict[str, Verdict]:
        """The verdicts by the slugs of the judges."""
        return {judge.slug: verdict for judge, verdict in self.verdicts}


def _list_cards(groups: list[Group], judges: list[Judge]) -> list[VerdictCard]:
    """A card per objective that is compared with MLE."""
    cards = []
    for group in groups:
        if is_baseline(group.objective):
            continue
        mle = find_mle(group, groups)
        slugs = {judge.slug for judge in group.judges}
        num_seeds = len(group.runs)
        basis = (
            f"{num_seeds} seeds, t-interval over seeds"
            if num_seeds > 1
            else "one seed: the intervals cover the drawing of samples, not the training of another model"
        )
        verdicts = [(judge, judge_group(group, mle, judge)) for judge in judges if judge.slug in slugs]
        cards.append(
            VerdictCard(group.label, basis, verdicts, check_group(group, mle), describe_plainly(group, mle))
        )
    return cards
