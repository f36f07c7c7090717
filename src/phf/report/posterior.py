"""What a score costs: the frontier of a base model and the policies beside it, from a posterior.json, as a page and as a section."""

import math
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from phf.files import write_bytes
from phf.posterior.results import PolicyResult, PosteriorResults
from phf.records import Estimate
from phf.report.figures import (
    FAINT,
    INK,
    OBJECTIVE_COLOURS,
    Drawing,
    draw_figure,
    plot_point,
    read_css,
    scale_estimate,
    shorten,
)
from phf.report.page import Section, embed_figures, make_environment
from phf.results import Judge, Measure

_LINEAR = 0.1
"""Nats below which the axis of KL is linear, above logarithmic: methods of choice spend tenths, trained models tens."""
_TICKS = (0, 0.1, 0.3, 1, 3, 10, 30, 100)
_MAX_LABELS = 8
"""More policies than this have numbers in the picture, those of the table's lines."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: its name and, per column, a number in shown units."""

    name: str
    note: str
    cells: list[Estimate]


@dataclass(frozen=True, slots=True)
class Asked:
    """A table of what was asked for beside scores and divergences: its heads, what stands in its lines, and the blind spot."""

    name: str
    heads: list[str]
    rows: list[Row]
    note: str


class Posterior:
    """What the page tells of a posterior.json."""

    def __init__(self, results: PosteriorResults) -> None:
        self.results = results
        self.judges = results.judges
        self.has_numbers = len(results.policies) > _MAX_LABELS

    @property
    def betas(self) -> list[float]:
        """The temperatures of the targets, as they were given."""
        return [row.at for row in self.results.results.of("log_z") if row.at is not None]

    @property
    def clipped(self) -> float:
        """The largest share of the base model's texts that may lie below the bound; NaN of an older file."""
        return self.results.results.find("clipped_share").high

    @property
    def targets(self) -> list[Row]:
        """A line per beta: log Z, its bounds, KL, effective share, and the score by each judge, in two ways."""
        find = self.results.results.find
        return [
            Row(
                f"{beta:g}",
                f"{self.results.num_exact[f'{beta:g}']:,} exact draws",
                [
                    *(
                        find(measure, at=beta)
                        for measure in ("log_z", "log_z_lower", "log_z_upper", "target_kl", "ess")
                    ),
                    *(
                        scale_estimate(find(measure, judge=judge.slug, at=beta), judge.display_scale)
                        for judge in self.judges
                        for measure in ("target_score", "exact_score")
                    ),
                ],
            )
            for beta in self.betas
        ]

    @property
    def standings(self) -> list[Row]:
        """A line per policy: score and excess by each judge, KL both ways, cost."""
        return [
            Row(
                f"{number}. {policy.name}" if self.has_numbers else policy.name,
                policy.objective or "base model",
                [
                    *(
                        number
                        for judge in self.judges
                        for number in (
                            self.score(policy, judge),
                            policy.results.find("excess_kl", judge=judge.slug),
                        )
                    ),
                    *(
                        policy.results.find(measure)
                        for measure in ("kl_from_base", "kl_to_base", "closest_beta", "passes", "judge_calls")
                    ),
                ],
            )
            for number, policy in enumerate(self.results.policies, 1)
        ]

    @property
    def asked(self) -> list[Asked]:
        """Promises, levels and soft values: a table for the measures that have their places in common."""
        groups: dict[tuple[str, str, str], list[Measure]] = {}
        for measure in self.results.measures:
            if measure.of and self.results.results.of(measure.name):
                groups.setdefault((measure.group, measure.of, measure.at), []).append(measure)
        return [self._list_asked(own) for own in groups.values()]

    def _list_asked(self, measures: list[Measure]) -> Asked:
        first, results = measures[0], self.results.results
        places = dict.fromkeys(
            (row.of, row.at) for row in results.of(*(measure.name for measure in measures))
        )
        rows = [
            Row(
                str(of),
                "" if at is None else f"{first.at} {at:.4g}",
                [results.find(measure.name, of=of, at=at) for measure in measures],
            )
            for of, at in places
        ]
        notes = " ".join(dict.fromkeys(f"{measure.title}: {measure.note}" for measure in measures))
        return Asked(first.of, [measure.title for measure in measures], rows, f"{notes} {first.blind_spot}")

    @property
    def distances(self) -> list[Row]:
        """A line per policy: KL to the target of each beta."""
        return [
            Row(policy.name, "", [policy.results.find("kl_to_target", at=beta) for beta in self.betas])
            for policy in self.results.policies
            if policy.results.of("kl_to_target")
        ]

    def score(self, policy: PolicyResult, judge: Judge) -> Estimate:
        """In shown units."""
        return scale_estimate(policy.results.find("score", judge=judge.slug), judge.display_scale)

    @property
    def nearest(self) -> list[tuple[float, str]]:
        """By beta, the policy that is nearest to its target."""
        found = []
        for place, beta in enumerate(self.betas):
            known = [row for row in self.distances if math.isfinite(row.cells[place].mean)]
            if known:
                found.append((beta, min(known, key=lambda row: row.cells[place].mean).name))
        return found

    def draw(self, judge: Judge) -> Drawing:
        """Score against KL: the frontier with its band, best of n as a dashed line, every policy as a point."""
        find = self.results.results.find
        places = [row.at for row in self.results.results.of("path_kl")]
        line = [
            (
                find("path_kl", at=at).mean,
                scale_estimate(find("path_score", judge=judge.slug, at=at), judge.display_scale),
            )
            for at in places
        ]
        chosen = [policy for policy in self.results.policies if policy.results.of("kl_bound")]
        dashed = [(policy.results.find("kl_bound").mean, self.score(policy, judge).mean) for policy in chosen]

        spent = [policy.results.find("kl_from_base").high for policy in self.results.policies]

        def draw(axes: Axes) -> None:
            kls = [kl for kl, _ in line]
            axes.fill_between(
                kls,
                [score.low for _, score in line],
                [score.high for _, score in line],
                color=FAINT,
                alpha=0.25,
                linewidth=0,
            )
            axes.plot(kls, [score.mean for _, score in line], color=INK, linewidth=1.4)
            if len(dashed) > 1:
                axes.plot(*zip(*sorted(dashed), strict=True), color=INK, linewidth=1, linestyle=(0, (4, 3)))
            for number, policy in enumerate(self.results.policies, 1):
                kl, score = policy.results.find("kl_from_base"), self.score(policy, judge)
                if not (math.isfinite(kl.mean) and math.isfinite(score.mean)):
                    continue
                colour = OBJECTIVE_COLOURS.get(policy.objective, INK)
                plot_point(
                    axes, shorten(policy.name), policy.mode, (kl.mean, score.mean), kl, score, colour=colour
                )
                is_right = kl.mean > 1
                is_of_base = policy.source == self.results.base and policy.method
                label = shorten(policy.method if is_of_base else policy.name)
                axes.annotate(
                    str(number) if self.has_numbers else label,
                    (kl.mean, score.mean),
                    xytext=(-7 if is_right else 6, 5),
                    textcoords="offset points",
                    ha="right" if is_right else "left",
                    fontsize=8,
                )
            # Before the scale: margins in the units of this scale overflow where all is near 0.
            axes.set_xlim(0, 2 * max([1.0, *(kl for kl in [*kls, *spent] if math.isfinite(kl))]))
            axes.set_xscale("symlog", linthresh=_LINEAR, linscale=0.4)
            axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.set_xlabel("KL from the base model, nats a text")
            axes.set_ylabel(f"{judge.shown_unit}  (lower is better)")

        whose = (
            "the least KL at which a mean score can be had"
            if judge.role == "annotator"
            else f"what the annotator’s target scores by {judge.name}"
        )
        also = "Dashed: the best of n draws, at the bound log n − (n − 1)/n that is often given for its KL. "
        numbers = "Numbers: the lines of the table below. " * self.has_numbers
        return draw_figure(
            draw,
            f"What a score costs, by {judge.name}",
            f"Line: the frontier, {whose}, with a 95 % band. {also * (len(dashed) > 1)}Points: policies, with 95 % intervals. {numbers}Down and left is better; nothing can lie left of the line by the annotator.",
            3.6,
        )


def describe_posterior(results: PosteriorResults) -> dict[str, object]:
    """What the section's template is given."""
    posterior = Posterior(results)
    return {
        "posterior": posterior,
        "posterior_figures": embed_figures(posterior.draw(judge) for judge in posterior.judges),
        "posterior_terms": [
            measure
            for measure in results.measures
            if not measure.of and measure.name not in ("path_kl", "path_score")
        ],
    }


def make_section(results: PosteriorResults) -> Section:
    """The section for the page that compares runs."""
    template = make_environment().get_template("posterior.html")
    markup = Markup(template.render(describe_posterior(results)))  # noqa: S704 - escaped by the template
    return Section("posterior", "What a score costs", markup)


def write_posterior_page(results: PosteriorResults, path: Path) -> Path:
    """Write the page of a posterior.json to `path`: no script, nothing fetched; the same content gives the same bytes."""
    template = make_environment().get_template("posterior_page.html")
    page = template.render(css=read_css(), results=results, **describe_posterior(results))
    write_bytes(path, page.encode("utf-8", "replace"))
    return path
