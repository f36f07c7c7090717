"""What is kept of a run when it is done, from what its commands wrote."""

from collections.abc import Iterable
from dataclasses import replace

from pydantic import JsonValue

from phf.attack.results import ATTACK_FILE, read_attack
from phf.dynamics.results import DYNAMICS
from phf.errors import PHFError
from phf.loops.results import LEMMA, LOOP
from phf.posterior.results import POSTERIOR
from phf.report.reading import read_runs
from phf.results import Judge, Measure, Measurement
from phf.study.plan import StudyRun
from phf.study.results import RunResults


def collect(run: StudyRun, seconds: float) -> RunResults:
    """Read what a run's commands wrote.

    Raises:
        PHFError: they left nothing that has measurements, or it is damaged.
    """
    empty = RunResults(run.name, run.seed, run.settings_hash, seconds, [], [], [], {}, {})
    if run.arm.command is not None:
        judges, measures, rows = _read_command(run)
        return replace(empty, judges=judges, measures=_list_used(measures, rows), measurements=rows)
    (read,) = read_runs([run.folder])
    assert read.evaluation is not None, "read_runs refuses a run without"
    scores = {
        mode: {
            judge.slug: [round(score, 5) for score in read.sample_scores(mode, judge).tolist()]
            for judge in read.judges
        }
        for mode in read.modes
    }
    facts: dict[str, JsonValue] = {
        "objective": read.objective,
        "num_parameters": read.evaluation.num_parameters,
        "tokens": read.evaluation.tokens_seen,
        "corpus": read.record.corpus.id if read.record.corpus else None,
        "threshold": read.evaluation.threshold,
        "versions": read.record.versions,
        "notes": list(read.evaluation.notes),
    }
    rows = list(read.results)
    return replace(
        empty,
        judges=read.judges,
        measures=_list_used(read.evaluation.measures, rows),
        measurements=rows,
        scores=scores,
        facts=facts,
    )


def _list_used(measures: Iterable[Measure], rows: Iterable[Measurement]) -> list[Measure]:
    used = {row.measure for row in rows}
    return [measure for measure in measures if measure.name in used]


def _read_command(run: StudyRun) -> tuple[list[Judge], list[Measure], list[Measurement]]:
    """Judges, measures and numbers of a command's folder. Numbers of several models have the model in place of the mode."""
    folder = run.folder
    if (folder / ATTACK_FILE).is_file():
        attack = read_attack(folder)
        rows = [
            replace(
                row,
                measure=f"attack_{row.measure}",
                mode=_name(run, best.target),
                of=best.attack,
                at=float(best.num_texts),
            )
            for best in attack.best
            for row in best.measurements
        ]
        return (
            attack.judges,
            [
                replace(own, name=f"attack_{own.name}", title=f"{own.title} under attack")
                for own in attack.measures
            ],
            rows,
        )
    if POSTERIOR.is_in(folder):
        posterior = POSTERIOR.read(folder)
        rows = [
            replace(row, mode=_name(run, policy.name))
            for policy in posterior.policies
            for row in policy.measurements
        ]
        return posterior.judges, list(posterior.measures), rows
    if DYNAMICS.is_in(folder):
        dynamics = DYNAMICS.read(folder)
        return (
            [dynamics.judge] if dynamics.judge else [],
            list(dynamics.measures),
            list(dynamics.measurements),
        )
    if LOOP.is_in(folder):
        loop = LOOP.read(folder)
        return loop.judges, list(loop.measures), list(loop.measurements)
    if LEMMA.is_in(folder):
        lemma = LEMMA.read(folder)
        return [], list(lemma.measures), list(lemma.measurements)
    raise PHFError(
        f"arm {run.name}: '{run.arm.command}' left no results in {folder}; give attack, infer, dynamics or online, with -o {{own}}"
    )


def _name(run: StudyRun, name: str) -> str:
    """A model's name without the seed, and without spaces: `conditional-seed0 good` is `conditional_good`."""
    return name.replace(f"-seed{run.seed}", "").replace(" ", "_")
