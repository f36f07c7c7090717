"""The main path for notebooks and scripts.

    from phf.api import *

    corpus = build_corpus(["texts.jsonl"], "corpus")
    annotate(corpus, "toxicity-svm", "sentences")
    tokenize(corpus, "train:4096", "sentences")
    run = train(load_train_config("toxicity", ["corpus=corpus"]), "runs/conditional")
    print(sample(run.folder, "good")[0].text)
    evaluate([run.folder], judges=["toxicity-lstm"])
    write_report([run.folder], Path("report.html"))

Annotating uses a process pool: in a script, call it under `if __name__ == "__main__":`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from phf.annotate.annotate import annotate
from phf.annotate.annotation import Annotation, load_scores
from phf.attack.results import AttackResults
from phf.attack.suite import attack_targets
from phf.config.attack import AttackConfig, AttackSuiteConfig
from phf.config.evaluate import EvaluateConfig
from phf.config.release import ForgetConfig
from phf.config.steer import SteerConfig
from phf.config.train import SamplingConfig, TrainConfig, load_train_config, parse, parse_spec
from phf.corpus.store import Corpus, build_corpus
from phf.curate.balance import balance_corpus
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_runs
from phf.evaluate.rollouts import sample_run
from phf.evaluate.steer_run import steer_run
from phf.objective_facts import is_baseline
from phf.records import Mode, Progress, Sample
from phf.release.checks import Finding
from phf.release.folder import open_release, write_release
from phf.release.record import PublishedVerdict
from phf.release.verify import verify_release as _verify_release
from phf.report.page import write_report
from phf.report.reading import read_runs
from phf.report.verdict import Group, judge_group
from phf.results import Evaluation
from phf.tokens.tokens import TokenCache, tokenize
from phf.train.loop import resume, train
from phf.train.run import Run

__all__ = [
    "Annotation",
    "Corpus",
    "PHFError",
    "Path",
    "Run",
    "TokenCache",
    "TrainConfig",
    "annotate",
    "attack",
    "balance_corpus",
    "build_corpus",
    "evaluate",
    "load_scores",
    "load_train_config",
    "open_release",
    "release",
    "resume",
    "sample",
    "tokenize",
    "train",
    "verify_release",
    "write_report",
]


def sample(
    run: str | Path,
    mode: Mode = "good",
    *,
    steer: str | SteerConfig | None = None,
    prompts: Sequence[str] = (),
    **sampling: object,
) -> list[Sample]:
    """Texts that a run's model writes in one mode.

    Args:
        steer: a method of steering, such as `"guidance:scale=2"` (docs/steering.md); `phf.evaluate.steer_run.steer_run` also says
            what it cost.
        prompts: texts to continue; sample i continues text i modulo their number.
        sampling: of `SamplingConfig`.

    Raises:
        PHFError: the folder holds no run; a setting is not known or out of range; the run cannot be steered so.
    """
    settings = parse(SamplingConfig, sampling, "sample")
    if steer is None:
        return sample_run(run, mode, settings, prompts=prompts)
    method = parse_spec(SteerConfig, steer, "steer") if isinstance(steer, str) else steer
    return steer_run(run, mode, settings, method, prompts=prompts).samples


def evaluate(
    runs: Sequence[str | Path],
    judges: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    **sampling: object,
) -> list[Evaluation]:
    """Measure runs in each mode, by their annotator and by held-out judges; the content of each evaluation.json.

    Args:
        settings: of `EvaluateConfig`, such as `{"suite": "full", "kl": {"reference": "smollm2"}}`.
        sampling: of `SamplingConfig`.

    Raises:
        PHFError: see `evaluate_runs`; a setting is not known or out of range.
    """
    given = {**(settings or {}), "judges": list(judges), "sampling": sampling}
    return evaluate_runs(list(runs), parse(EvaluateConfig, given, "evaluate"))


def release(
    run: str | Path,
    folder: str | Path,
    forget: Sequence[str] = ("delete",),
    *,
    license: str = "unknown",
    step: int | None = None,
    gguf: bool = False,
    mle: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a run's model as a plain Hugging Face folder (docs/release.md).

    Args:
        forget: how bad mode is forgotten: `delete`, `block`, `block:directions=3`, `poison`.
        license: as the Hub writes it, such as `apache-2.0`.
        gguf: also as one file for llama.cpp.
        mle: an evaluated MLE run that the card's verdict compares with.

    Raises:
        PHFError: see `phf.release.folder.write_release`; a method is not known.
    """
    methods = [parse_spec(ForgetConfig, spec, "--forget") for spec in forget]
    verdicts = _judge_run(Path(run), Path(mle) if mle is not None else None)
    opened, out = Run.open(run), Path(folder)
    return write_release(
        opened,
        out,
        forget=methods,
        license=license,
        step=step,
        gguf=gguf,
        verdicts=verdicts,
        progress=progress,
    )


def _judge_run(run: Path, mle: Path | None) -> list[PublishedVerdict]:
    """The report's verdict on one run by each judge; none where it was not evaluated."""
    baseline = None
    if mle is not None:
        (read,) = read_runs([mle])
        baseline = Group(read.label, (read,))
        if not is_baseline(baseline.objective):
            raise PHFError(f"--mle {mle} is a run of {baseline.objective}; give one of objective.kind=mle")
    (read,) = read_runs([run], must_be_evaluated=False)
    group = Group(read.label, (read,))
    verdicts = {judge.name: judge_group(group, baseline, judge) for judge in group.judges}
    return [PublishedVerdict(name, each.headline, each.detail) for name, each in verdicts.items()]


def verify_release(
    folder: str | Path,
    run: str | Path | None = None,
    *,
    num_samples: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Check a release, by plain transformers in a process without phf, beside its run if that is given.

    Raises:
        PHFError: see `phf.release.verify.verify_release`.
    """
    opened = Run.open(run) if run is not None else None
    return _verify_release(folder, run=opened, num_samples=num_samples, seed=seed, progress=progress)


def attack(
    targets: Sequence[str | Path],
    out: str | Path,
    attacks: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> AttackResults:
    """Try to get bad mode back from releases and runs without `<|bad|>`; what OUT/attack.json holds.

    Args:
        targets: folders of one corpus, the unmodified run too.
        attacks: specs such as `"soft:tokens=8"`; default, those of `AttackSuiteConfig`.
        settings: of `AttackSuiteConfig`, such as `{"num_texts": [10, 1000], "judges": ["toxicity-lstm"]}`.

    Raises:
        PHFError: see `attack_targets`; a setting is not known or out of range.
    """
    given = dict(settings or {})
    if attacks:
        given["attacks"] = [parse_spec(AttackConfig, spec, "attack").model_dump() for spec in attacks]
    return attack_targets(list(targets), out, parse(AttackSuiteConfig, given, "attack"))
