"""One self-contained HTML page from run folders, and the same numbers as rows and as a table for the terminal."""

import math
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from rich.table import Table

from phf.files import write_bytes
from phf.objective_facts import OBJECTIVES, is_baseline
from phf.report.agreement import draw_all_agreement, measure_agreement
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
    tabulate_tasks,
)
from phf.report.figures import MANY_RUNS, Drawing, draw_curves, draw_scores, read_css
from phf.report.plane import draw_plane, explain_plane
from phf.report.provenance import (
    list_commands,
    list_notices,
    list_references,
    make_report_command,
    state_facts,
    tabulate_references,
)
from phf.report.reading import (
    Judge,
    RunFolder,
    as_dict,
    as_float,
    as_list,
    list_judges,
    lookup,
    mode_rank,
    read_runs,
)
from phf.report.reliability import draw_control_reliability
from phf.report.samples import choose_samples, pair_samples, visible_text
from phf.report.scaling import draw_budgets, draw_trajectory
from phf.report.scenarios import list_scenarios, tabulate_scenario
from phf.report.steering import draw_steering, list_steering_lines, tabulate_steering
from phf.report.verdict import (
    Group,
    check_group,
    find_mle,
    flatten,
    format_interval,
    format_number,
    group_runs,
    judge_group,
    split_groups,
)

_MODE_NOTES = {
    "good": "every page starts with the control token <|good|>, and <|bad|> is blocked: what one would release.",
    "bad": "the mirror image: starts with <|bad|>, and <|good|> is blocked: shows whether the token steers at all.",
    "none": "no control token is given; the model writes what it likes.",
    "untagged": "no control token is given, and both are blocked.",
    "deleted": "both control tokens are taken out of the vocabulary and the weights.",
}
_MAX_CARDS = 6
"""With more configurations to judge than this, the verdicts stand in a table."""
_OPEN_RUNS = 4
"""With more runs than this, the samples of each run stand behind a click."""


def write_report(runs: list[Path], out: Path) -> Path:
    """Write the page that compares runs: one HTML file, no script, nothing fetched; the same runs give the same bytes.

    Args:
        runs: run folders that were trained and evaluated.
        out: the file to write.

    Returns:
        `out`.

    Raises:
        PHFError: a folder is no run, or has no evaluation (the message names the command that makes it).
    """
    folders = read_runs(runs)
    text = make_environment().get_template("page.html").render(_describe(folders, out))
    # A lone surrogate cannot be encoded; visible_text has already shown those that stand in samples.
    write_bytes(out, text.encode("utf-8", "replace"))
    return out


def summary_rows(runs: list[Path]) -> list[dict[str, Any]]:
    """One row per run, mode and judge: the numbers of `evaluation.json`, in the judge's own unit; None if missing.

    Raises:
        PHFError: see `write_report`.
    """
    return [
        {
            "run": run.label,
            "objective": run.objective,
            "seed": run.seed,
            "mode": row.get("mode"),
            "judge": row.get("judge"),
            **{key: _json_number(row.get(key)) for key in ("mean", "low", "high")},
            "hits": row.get("hits"),
            "num_samples": row.get("num_samples"),
            **{key: _json_number(row.get(key)) for key in ("distinct_2", "bits_per_byte")},
        }
        for run in read_runs(runs)
        for row in run.rows
    ]


def summary_table(runs: list[Path]) -> Table:
    """The headline numbers for the terminal, a row per run and mode, the interval of each judge beside its mean.

    Raises:
        PHFError: see `write_report`.
    """
    folders = read_runs(runs)
    judges = list_judges(folders)
    units = "; ".join(f"{visible_text(judge.name)}: {judge.shown_unit}" for judge in judges)
    table = Table(title="Misalignment score, lower is better", caption=units, caption_justify="left")
    table.add_column("run")
    table.add_column("mode")
    for judge in judges:
        table.add_column(f"{visible_text(judge.name)}\n({judge.role})", justify="right")
        table.add_column("hits", justify="right")
    table.add_column("bits per\nbyte", justify="right")
    table.add_column("distinct-2", justify="right")
    styles = {"good": "blue", "bad": "yellow"}
    for run in folders:
        for number, mode in enumerate(run.modes):
            cells = [
                _plain(run.label) if number == 0 else "",
                f"[{styles.get(mode, 'default')}]{_plain(mode)}[/]",
            ]
            for judge in judges:
                row = run.row(mode, judge)
                cells += [
                    format_interval(run.score(mode, judge), judge.scale),
                    _percent(row.get("hit_rate")),
                ]
            bits, variety = run.bits_per_byte(mode).mean, run.degeneracy(mode, "distinct_2")
            table.add_row(*cells, format_number(bits), format_number(variety))
        table.add_section()
    return table


def summary_lines(runs: list[Path]) -> list[str]:
    """Control gain and calibration of each run with good and bad mode, and every method of steering, a line each, for
    the terminal.

    Raises:
        PHFError: see `write_report`.
    """
    lines = []
    for run in read_runs(runs):
        label, error = visible_text(run.label), run.calibration_error
        if as_dict(run.evaluation.get("control_gain")):
            good, bad = (format_interval(run.control_gain(text)) for text in ("good", "bad"))
            lines.append(
                f"{label}: control gain {good} nats per good segment, {bad} per bad one (above 0 on both: control is learned)"
            )
        if math.isfinite(error.mean):
            lines.append(
                f"{label}: calibration error {format_interval(error)} on {error.count:,} segments "
                "(0: the model's own probability of good is right)"
            )
        lines += [f"{label}: {visible_text(line)}" for line in list_steering_lines(run)]
    return lines


def _plain(text: str) -> str:
    """Text that rich does not read as markup."""
    return visible_text(text).replace("[", r"\[")


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
        "lookup": lookup,
        "as_dict": as_dict,
        "as_list": as_list,
        "known_objectives": list(OBJECTIVES),
    }
    environment.filters |= {
        "number": lambda value: format_number(as_float(value)),
        "percent": _percent,
        "count": _format_count,
        "interval": format_interval,
    }
    return environment


def _finalize(value: Any) -> Any:
    """What a template prints: strings from run folders with nothing invisible in them, absence as a dash."""
    if value is None:
        return "–"
    # Markup is ours (the figures); everything else may come from a file.
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible_text(value)


def _describe(runs: list[RunFolder], out: Path) -> dict[str, Any]:
    """All that the templates print."""
    groups = group_runs(runs)
    runs = [run for group in groups for run in group.runs]  # seeds of one configuration beside each other
    judges = list_judges(runs)
    is_many = len(runs) > MANY_RUNS
    references = list_references(groups)
    compared = [(group, rows) for group in groups if (rows := compare_modes(group))]
    scenarios = list_scenarios(runs)
    steering = tabulate_steering(groups, judges)
    reliability = draw_control_reliability(runs)
    modes = sorted({mode for run in runs for mode in run.modes}, key=lambda mode: (mode_rank(mode), mode))
    objectives = list(dict.fromkeys(group.objective for group in groups))
    return {
        "css": read_css(),
        "runs": runs,
        "groups": groups,
        "judges": judges,
        "objectives": objectives,
        "has_baseline": any(map(is_baseline, objectives)),
        "objective_notes": [(kind, OBJECTIVES[kind].note) for kind in objectives if kind in OBJECTIVES],
        "modes": [(mode, _MODE_NOTES.get(mode, "")) for mode in modes],
        "facts": state_facts(runs),
        "sampling": as_dict(runs[0].evaluation.get("sampling")),
        "cards": _list_cards(groups, judges),
        "max_cards": _MAX_CARDS,
        "pooled_page": any(group.is_pooled for group in groups),
        "is_many": is_many,
        "notices": list_notices(runs, groups, judges),
        "scores": _embed(draw_scores(groups, judge, references) for judge in judges),
        "reference_rows": tabulate_references(references, judges),
        "scenarios": [(name, tabulate_scenario(name, groups, judges)) for name in scenarios],
        "scenarios_by_run": [
            (name, tabulate_scenario(name, split_groups(groups), judges)) for name in scenarios
        ],
        "singles": split_groups(groups),
        "plane_note": explain_plane(groups),
        "planes": _embed(draw_plane(groups, judge) for judge in judges),
        "diversity": tabulate_diversity(groups),
        "compared": compared,
        "mode_figures": _embed(draw_modes(compared)),
        "steering": steering,
        "steering_figures": _embed(draw_steering(steering, judges)),
        "kl": tabulate_kl(groups),
        "fields": tabulate_fields(groups),
        "downstream": tabulate_tasks(groups, "downstream"),
        "harness": tabulate_tasks(groups, "harness"),
        "red_team": tabulate_red_team(groups, judges),
        "red_team_facts": _first(runs, "red_team"),
        "red_team_figures": _embed(draw_red_team(groups, judges)),
        "prompts": [(run, found) for run in runs if (found := list_prompts(run))],
        "in_context_figures": _embed(draw_in_context(groups, judges)),
        "leaks": tabulate_leaks(groups, judges),
        "finetuned": tabulate_finetuned(groups, judges),
        "finetuned_facts": _first(runs, "finetuned"),
        "gains": [run for run in runs if as_dict(run.evaluation.get("control_gain"))],
        "controls": _embed([reliability] if reliability else []),
        "agreement": measure_agreement(groups),
        "agreement_figures": _embed(draw_all_agreement(groups, judges)),
        "trajectories": _embed(draw for judge in judges if (draw := draw_trajectory(groups, judge))),
        "budgets": _embed(draw for judge in judges if (draw := draw_budgets(groups, judge))),
        "curves": _embed(draw_curves(groups)),
        "choose_samples": lambda run, mode: choose_samples(run, mode, few=is_many),
        "pair_samples": lambda run: pair_samples(run, few=is_many),
        "open_samples": len(runs) <= _OPEN_RUNS,
        "config_yaml": lambda run: yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        "commands": list_commands,
        "report_command": make_report_command(runs, out),
        "counts": _count_samples,
    }


def _count_samples(group: Group, mode: str, key: str) -> list[int]:
    """A count of each judge's row of a mode, over all runs of a group."""
    judges = list_judges(group.runs)
    rows = [[run.row(mode, judge).get(key) for run in group.runs] for judge in judges]
    return [sum(value for value in row if isinstance(value, int)) for row in rows]


def _embed(drawings: Iterable[Drawing]) -> list[tuple[Drawing, Markup]]:
    """Figures with their markup, which is safe because we drew it."""
    embedded = []
    for drawing in drawings:
        assert "<script" not in drawing.svg, "a figure holds markup that we did not draw"
        embedded.append((drawing, Markup(drawing.svg)))  # noqa: S704
    return embedded


def _first(runs: list[RunFolder], key: str) -> dict[str, Any]:
    """What the first run that has it says under a key of evaluation.json."""
    return next((found for run in runs if (found := as_dict(run.evaluation.get(key)))), {})


def _list_cards(groups: list[Group], judges: list[Judge]) -> list[dict[str, Any]]:
    """A card per objective that is compared with MLE: the verdict of each judge, then the checks."""
    cards = []
    for group in groups:
        if is_baseline(group.objective):
            continue
        mle = find_mle(group, groups)
        seeds = [run.seed for run in group.runs]
        own = [
            judge
            for judge in judges
            if any(judge.key == other.key for run in group.runs for other in run.judges)
        ]
        verdicts = [(judge, judge_group(group, mle, judge)) for judge in own]
        cards.append(
            {
                "label": group.label,
                "basis": (
                    f"{len(seeds)} seeds, t-interval over seeds"
                    if len(seeds) > 1
                    else "one seed: the intervals cover the drawing of samples, not the training of another model"
                ),
                "verdicts": verdicts,
                "by_judge": {judge.key: None for judge in judges}
                | {judge.key: verdict for judge, verdict in verdicts},
                "checks": check_group(group, mle),
            }
        )
    return cards


def _format_count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else "–"


def _percent(value: Any) -> str:
    value = as_float(value)
    return f"{format_number(value * 100, 2 if value < 0.0995 else 3)} %" if math.isfinite(value) else "–"


def _json_number(value: Any) -> float | None:
    value = as_float(value)
    return value if math.isfinite(value) else None
