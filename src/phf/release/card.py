"""The model card of a release: README.md, made from phf.json alone by the template card.md."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from phf.config.objectives import objective_kinds
from phf.control import BAD_TOKEN, GOOD_TOKEN
from phf.files import write_bytes
from phf.objectives import modes_of
from phf.records import Estimate
from phf.release.record import FinetuneNumbers, PublishedEvaluation, PublishedFinetuning, ReleaseRecord
from phf.results import MODE_ORDER, Judge, Measure, Measurement, pivot
from phf.reward_models.catalogue import CARDS, FORMS

UNKNOWN = "unknown"
_MODES = {
    "good": "good: what this release writes",
    "bad": "bad: behind the token of bad mode",
    "none": "none: no token given, the model may write either",
    "untagged": "untagged: no token given or written",
    "deleted": "deleted: tokens taken out of the model",
}


def write_card(folder: Path, record: ReleaseRecord, *, examples: Mapping[str, str] | None = None) -> None:
    """Write README.md.

    Args:
        examples: Markdown on how each engine reads the folder (`phf.release.examples`), by the engine's name.
    """
    write_bytes(folder / "README.md", render_card(record, examples=examples).encode())


def render_card(record: ReleaseRecord, *, examples: Mapping[str, str] | None = None) -> str:
    """The text of README.md; whatever comes from a corpus or from a user is escaped."""
    descriptions = {card.name: card.description for card in CARDS}
    body = (
        _make_environment()
        .get_template("card.md")
        .render(
            record=record,
            objective_note=(objective_kinds()[record.objective].__doc__ or "")
            .strip()
            .split("\n")[0]
            .rstrip("."),
            starts_good=GOOD_TOKEN in record.prefix,
            has_bad=BAD_TOKEN in record.tokens,
            is_blocked=any(done["kind"] == "block" for done in record.forget),
            has_held_out=any(judge.role == "held-out" for judge in record.judges),
            examples=examples or {},
            training=_list_training(record),
            finetuning=_list_finetuning(record.finetuned.measured)
            if record.finetuned and record.finetuned.measured
            else [],
            judges=[
                (
                    judge.name,
                    judge.role,
                    descriptions.get(judge.name, "see phf.json"),
                    "; ".join(
                        filter(
                            None,
                            (
                                find_blind_spots(judge.name, is_code="sources" in judge.identity.parameters),
                                record.checks.get(judge.slug),
                            ),
                        )
                    ),
                )
                for judge in record.judges
            ],
            measured=_Tables(record, record.evaluation) if record.evaluation else None,
        )
    )
    body = re.sub(r"\n{3,}", "\n\n", body)
    return f"---\n{describe_for_hub(record).to_yaml()}\n---\n\n{body.strip()}\n"


def _make_environment() -> jinja2.Environment:
    """Templates of this folder; what they print is escaped unless it is Markdown of ours (`Markup`)."""
    environment = jinja2.Environment(  # noqa: S701  it makes Markdown, and `finalize` escapes
        loader=jinja2.FunctionLoader(lambda name: (resources.files("phf.release") / name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape(value),
    )
    environment.filters |= {"table": _format_table, "code": _code, "names": _list_names, "raw": Markup}
    return environment


def describe_for_hub(record: ReleaseRecord) -> ModelCardData:
    """The card's YAML header, with the headline numbers of the mode that this release writes in, which the Hub shows.

    The language of the corpus is not known, so it is left out.
    """
    init = record.config.model.init
    return ModelCardData(
        license=record.license if record.license != UNKNOWN else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pretraining-with-human-feedback", f"phf-{record.objective}", "safetensors"],
        base_model=init if isinstance(init, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", init) else None,
        model_name=_one_line(record.run.name),
        eval_results=_list_results(record, record.evaluation) or None if record.evaluation else None,
    )


def _list_results(record: ReleaseRecord, measured: PublishedEvaluation) -> list[EvalResult]:
    mode = modes_of(record.config.objective)[0]
    tables = _Tables(record, measured)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="phf",
            dataset_name=f"phf evaluate, mode {mode}",
            metric_type=row.measure,
            metric_name=_one_line(tables.name(row)),
            metric_value=float(f"{tables.scale(row).mean:.4g}"),
        )
        for row in tables.whole
        if row.mode == mode and tables.measures[row.measure].is_headline and math.isfinite(row.estimate.mean)
    ]


@dataclass(frozen=True)
class _Tables:
    """The numbers of an evaluation as the card shows them: headline measures first, then the others by group.

    A measure that has many numbers for a mode (by field, probe, round) is named, and its numbers are left to phf.json.
    """

    record: ReleaseRecord
    measured: PublishedEvaluation

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """By name."""
        return {measure.name: measure for measure in self.measured.measures}

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """By slug."""
        return {judge.slug: judge for judge in self.record.judges}

    @cached_property
    def whole(self) -> list[Measurement]:
        """Numbers of a plain mode, or of all, that are one of a kind."""
        return [
            row
            for row in self.measured.measurements
            if row.at is None and row.of in (None, "all") and (row.mode is None or row.mode in MODE_ORDER)
        ]

    def name(self, row: Measurement) -> str:
        """What was measured, by whom, and the unit."""
        measure, judge = self.measures[row.measure], self.judges.get(row.judge or "")
        title = measure.title
        if judge is None:
            return (
                f"{title} ({measure.unit})" if measure.unit and measure.unit not in title.lower() else title
            )
        scale = f" per {judge.display_scale:,.0f} characters" if self._scale(row) != 1 else ""
        return f"{title} by {judge.name}{scale} ({judge.role})"

    def _scale(self, row: Measurement) -> float:
        judge = self.judges.get(row.judge or "")
        return judge.display_scale if judge is not None and not self.measures[row.measure].unit else 1.0

    def scale(self, row: Measurement) -> Estimate:
        """The number in shown units: a judge's own where the measure has none."""
        scale, own = self._scale(row), row.estimate
        return Estimate(own.mean * scale, own.low * scale, own.high * scale, own.count)

    def _describe_mode(self, mode: str) -> Markup:
        is_gone = mode in ("bad", "none") and BAD_TOKEN not in self.record.tokens
        return Markup(_MODES[mode] + (" (not in this release)" if is_gone else ""))  # noqa: S704  our own words

    @cached_property
    def _headline(self) -> dict[str, dict[str, Estimate]]:
        rows = [row for row in self.whole if self.measures[row.measure].is_headline and row.mode in _MODES]
        return pivot(
            [Measurement(self.name(row), self.scale(row), row.mode) for row in rows],
            lambda row: row.mode or "",
            lambda row: row.measure,
        )

    @property
    def heads(self) -> list[str]:
        """Of the headline table: a column for each measure and judge."""
        return ["mode", *dict.fromkeys(name for found in self._headline.values() for name in found)]

    @property
    def headline(self) -> list[list[str]]:
        """A row for each mode."""
        return [
            [self._describe_mode(mode), *(_format(found.get(name)) for name in self.heads[1:])]
            for mode, found in self._headline.items()
        ]

    @property
    def counts(self) -> str:
        """How many samples a mode has."""
        counts = {row.estimate.count for row in self.whole if row.measure == "score"}
        return " or ".join(f"{count:,}" for count in sorted(counts))

    @property
    def groups(self) -> dict[str, "_Group"]:
        """The other measures: by group a row for each measure and judge, a column for each mode."""
        rows: dict[str, list[Measurement]] = {}
        for row in self.whole:
            if not self.measures[row.measure].is_headline or row.mode not in _MODES:
                rows.setdefault(self.measures[row.measure].group, []).append(row)
        return {group: self._make_group(own) for group, own in rows.items()}

    def _make_group(self, rows: Sequence[Measurement]) -> "_Group":
        shown = [Measurement(self.name(row), self.scale(row), row.mode or "all") for row in rows]
        modes = sorted({str(row.mode) for row in shown}, key=[*MODE_ORDER, "all"].index)
        table = pivot(shown, lambda row: row.measure, lambda row: str(row.mode))
        return _Group(
            ["", *modes],
            [[name, *(_format(found.get(mode)) for mode in modes)] for name, found in table.items()],
        )

    @property
    def left(self) -> list[str]:
        """Measures that no table has, by group."""
        shown = {row.measure for row in self.whole}
        groups: dict[str, list[str]] = {}
        for measure in self.measured.measures:
            if measure.name not in shown:
                groups.setdefault(measure.group, []).append(measure.title)
        return [f"{group}: {', '.join(titles)}" for group, titles in groups.items()]


@dataclass(frozen=True, slots=True)
class _Group:
    heads: list[str]
    rows: list[list[str]]


def _format(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.mean):
        return "–"
    low, high = (
        "unknown" if math.isnan(end) else f"{end + 0.0:.3f}" for end in (estimate.low, estimate.high)
    )
    mean = f"{estimate.mean + 0.0:.3f}"  # no -0
    return mean if low == high == "unknown" else f"{mean} [{low}, {high}]"


def _list_training(record: ReleaseRecord) -> list[tuple[str, object]]:
    provenance, config = record.provenance, record.config
    settings = ", ".join(
        f"{key} {value}"
        for key, value in config.objective.model_dump(mode="json").items()
        if key != "kind" and value is not None
    )
    judge, corpus, seen = provenance.reward_model, provenance.corpus, f"{record.run.tokens_seen:,}"
    started = config.model.init or (config.start.run if config.start else None)
    return [
        ("Text", f"{corpus.num_documents:,} documents: {'; '.join(corpus.sources)}"),
        ("Corpus id", Markup(f"`{_code(corpus.id)}`")),  # noqa: S704
        ("Scored by", f"{judge.name} {judge.version}, one score per unit: {config.segments}"),
        ("Objective", f"{record.objective} ({settings})" if settings else record.objective),
        *([("Finetuned with", _describe_method(record.finetuned))] if record.finetuned else []),
        ("Good ends at", f"score {record.threshold:.4g}; {provenance.threshold.message}"),
        (
            "Tokens seen",
            f"{seen} (step {record.run.step:,}), {provenance.epochs:.3g} epochs in the whole budget",
        ),
        ("Started from", started or f"scratch, preset {config.model.preset}"),
        ("Tokenizer", f"{provenance.tokenizer.name}, control tokens that no text can reach"),
        ("Context", f"{config.data.context:,} tokens"),
        ("Seed", config.seed),
    ]


def _describe_method(done: PublishedFinetuning) -> str:
    settings = ", ".join(
        f"{key} {value}" for key, value in done.method.items() if key != "kind" and value is not None
    )
    judge = done.reward_model
    source = f"scores of {judge.name} {judge.version}" if judge else "preferences that people gave"
    return f"{done.method['kind']} ({settings}) in mode {done.mode}, on {source}"


def _list_finetuning(measured: FinetuneNumbers) -> list[list[str]]:
    """A row for each measure and judge: of the model that it began from, and of what came out."""
    measures = {measure.name: measure for measure in measured.measures}
    judges = {judge.slug: judge for judge in measured.judges}

    def name(row: Measurement) -> str:
        measure, judge = measures[row.measure], judges.get(row.judge or "")
        title = measure.title if judge is None else f"{measure.title} by {judge.name} ({judge.role})"
        return f"{title}, {measure.unit}" if measure.unit else title

    table = pivot(
        [row for row in measured.measurements if row.at is None], name, lambda row: row.of or "result"
    )
    return [
        [title, *(_format(found.get(of)) for of in ("start", "result"))] for title, found in table.items()
    ]


def find_blind_spots(name: str, *, is_code: bool = False) -> str:
    """What a reward model with a name cannot see; one that is not in the catalogue is described by the form of its name.

    Args:
        is_code: it is somebody's own Python, whatever its name (`phf.reward_models.function`).
    """
    if is_code:
        name = "<module>:"
    for card in CARDS:
        if card.name == name:
            return card.blind_spots
    if "*" in name or " + " in name:
        form = "0.7*SPEC"
    elif ":" in name:
        form = {"hf": "hf:", "lexicon": "lexicon:"}.get(name.partition(":")[0], "<module>")
    else:
        form = "<folder>"
    return next(entry.blind_spots for entry in FORMS if entry.form.startswith(form))


def escape(text: object) -> str:
    """Foreign text in a line of Markdown: no markup, no HTML, no new line, no control character."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~$]|^-)", r"\\\1", _one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _one_line(text: object) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _code(text: object) -> Markup:
    """Foreign text between backticks."""
    return Markup(_one_line(text).replace("`", "'"))  # noqa: S704


def _list_names(names: Iterable[str]) -> Markup:
    """Names of tokens as code."""
    return Markup(", ".join(f"`{_code(name)}`" for name in names))  # noqa: S704


def _format_table(rows: Iterable[Sequence[object]], heads: Sequence[str]) -> Markup:
    """A table in Markdown, its cells escaped unless they are Markdown already."""
    cells = [[cell if isinstance(cell, Markup) else escape(cell) for cell in row] for row in (heads, *rows)]
    lines = [cells[0], ["---"] * len(heads), *cells[1:]]
    return Markup("\n".join("| " + " | ".join(line) + " |" for line in lines))  # noqa: S704
