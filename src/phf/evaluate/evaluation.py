"""`phf evaluate`: everything measured about a run, in one file that is written last (docs/evaluation.md)."""

import functools
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from phf.config.evaluate import EvaluateConfig, list_asked, list_options
from phf.config.train import parse
from phf.errors import PHFError
from phf.evaluate.drawn import Drawn
from phf.evaluate.judges import choose_judges
from phf.evaluate.rollouts import SAMPLES_FILE, encode_samples
from phf.evaluate.subject import PARTS_FOLDER, Subject
from phf.evaluate.suite import METRICS, check_config, list_measures, measure_all
from phf.files import Place, as_list, hash_bytes, hash_file, write_bytes
from phf.folders import lock_folder
from phf.generate.vllm import close_engine
from phf.items import ITEMS_FILE, encode_items
from phf.records import Progress, Sample
from phf.results import EVALUATION_FILE, Evaluation, encode, read_evaluation, write_evaluation
from phf.reward_models import RewardModel, load_reward_model
from phf.train.checkpoint import check_checkpoint
from phf.train.run import Run


def evaluate_runs(
    runs: Place | Sequence[Place],
    config: EvaluateConfig,
    *,
    step: int | None = None,
    force: bool = False,
    wait: bool = False,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Evaluate runs under the same settings, loading each judge once. See `evaluate_run`.

    All runs, judges and settings are looked at before the first sample is drawn.

    Args:
        wait: for another process that writes into one of the runs, instead of an error.
    """
    load = functools.cache(load_reward_model)
    opened = [Run.open(folder) for folder in as_list(runs)]
    with ExitStack() as held:
        held.callback(close_engine)
        # In one order for all, so that no two processes wait for each other; a run may be named twice.
        for folder, name in sorted({run.folder.resolve(): run.folder for run in opened}.items()):
            held.enter_context(lock_folder(folder, "evaluating", name=name, wait=wait, say=say))
        opened = [Run.open(run.folder) for run in opened]  # as they are now that nobody else writes them
        check_config(config)
        for run in opened:
            check_checkpoint(run.folder, run.resolve_step(step))
            choose_judges(run.data().annotation, config.judges, load)
            find_loss(run, config, step, force=force)
        return [
            evaluate_run(run, config, step=step, force=force, load=load, say=say, progress=progress)
            for run in opened
        ]


def evaluate_run(
    run: Run,
    config: EvaluateConfig,
    *,
    step: int | None = None,
    force: bool = False,
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure alignment, degeneracy and capability of a run in each mode; writes evaluation.json, samples.parquet and items.parquet.

    Finished parts are used again (`phf.evaluate.parts`): of an evaluation that was stopped, or that asked for less.

    Args:
        step: which checkpoint (default: the last).
        say: told what a reader must know, such as that no judge is the annotator.

    Raises:
        PHFError: no checkpoint, or it is damaged; the data is gone or changed, a judge is not known or not installed; there is an
            evaluation with more samples, which only `force` replaces.
    """
    check_config(config)
    if loss := find_loss(run, config, step, force=force):
        say(f"{run.name}: {loss}")
    step = run.resolve_step(step)
    check_checkpoint(run.folder, step)  # also where all parts are kept, and nothing would load it
    path = run.folder / EVALUATION_FILE
    data = run.data()
    judges, notes = choose_judges(data.annotation, config.judges, load)
    notes = [*run.record.get("elsewhere", {}).get("notes", []), *notes]
    for note in notes:
        say(f"{run.name}: {note}")
    if force:
        shutil.rmtree(run.folder / PARTS_FOLDER, ignore_errors=True)
    found, left_out = measure_all(Subject(run, step, data, judges, config, progress, load))
    samples = _encode(own for metric in found.values() for own in metric.drawn)
    items = encode_items(own for metric in found.values() for own in metric.items)
    measurements = [row for metric in found.values() for row in metric.measurements]
    evaluation = Evaluation(
        run=run.name,
        objective=run.objective,
        seed=run.config.seed,
        step=step,
        tokens_seen=step * run.tokens_per_step,
        num_parameters=int(run.record["num_parameters"]),
        judges=[judge.describe() for judge in judges],
        config=config.model_dump(mode="json"),
        threshold=data.threshold.value,
        notes=notes,
        samples_sha256=hash_bytes(samples),
        measures=list_measures(measurements),
        measurements=measurements,
        facts={name: own.facts for name, own in found.items() if own.facts},
        left_out=left_out,
        run_id=run.id,
        items_sha256=hash_bytes(items),
    )
    if not _is_kept(path, evaluation):
        path.unlink(missing_ok=True)  # until it is written again, the samples would not be those it speaks of
        write_bytes(run.folder / SAMPLES_FILE, samples)
        write_bytes(run.folder / ITEMS_FILE, items)
        write_evaluation(path, evaluation)
    return evaluation


def find_loss(run: Run, config: EvaluateConfig, step: int | None, *, force: bool) -> str | None:
    """What an evaluation that is there has and the next one will not, with the command that brings it back.

    Raises:
        PHFError: it has more samples of this step, which are drawn again at a price; without `force`.
    """
    path = run.folder / EVALUATION_FILE
    try:
        earlier = read_evaluation(path, run.id)
        old = parse(EvaluateConfig, earlier.config, str(path))
    except (
        PHFError
    ):  # none, a damaged one, another run's, or one of another version: nothing that this could tell apart
        return None
    step = run.resolve_step(step)
    command = shlex.join(
        [
            "phf",
            "evaluate",
            str(run.folder),
            *list_options(list_asked(earlier.config)),
            "--step",
            str(earlier.step),
        ]
    )
    fewer, more = config.sampling.num_samples, old.sampling.num_samples
    if fewer < more and step == earlier.step and not force:
        raise PHFError(
            f"{run.folder} has an evaluation of {more:,} samples per mode, and this one would replace it by {fewer:,}; "
            f"give --num-samples {more}, or --force to measure all again with fewer"
        )
    lost = [f"step {earlier.step}"] if step != earlier.step else []
    lost += [f"judge {judge}" for judge in old.judges if judge not in config.judges]
    lost += [metric.name for metric in METRICS if metric.is_wanted(old) and not metric.is_wanted(config)]
    return f"no longer in its evaluation: {', '.join(lost)}; '{command}' brings it back" if lost else None


def _is_kept(path: Path, evaluation: Evaluation) -> bool:
    """Whether this very evaluation, its samples and its items are on the disk already."""
    hashes = {SAMPLES_FILE: evaluation.samples_sha256, ITEMS_FILE: evaluation.items_sha256}
    try:
        # Encoded: NaN, which is not itself, is null there.
        is_same = encode(read_evaluation(path)) == encode(evaluation)
        return is_same and all(hash_file(path.parent / name) == own for name, own in hashes.items())
    except (PHFError, OSError):  # missing or damaged
        return False


def _encode(drawn: Iterable[Drawn]) -> bytes:
    """The content of samples.parquet."""
    samples: list[tuple[str, Sample]] = []
    scores: dict[str, list[float]] = {}
    for own in drawn:
        samples += [(own.scenario, sample) for sample in own.samples]
        for slug, values in own.scores.items():
            scores.setdefault(slug, []).extend(values)
    return encode_samples(samples, scores)
