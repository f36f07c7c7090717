"""The main path for notebooks and scripts.

    from phf.api import *

    corpus = build_corpus(["texts.jsonl"], "corpus")
    annotate(corpus, "toxicity-svm", "sentences")
    tokenize(corpus, "train:4096", "sentences")
    run = train(load_train_config("toxicity", ["corpus=corpus"]), "runs/conditional")
    print(sample(run, "good")[0].text)
    evaluate(run, judges="toxicity-lstm")
    write_report(run, "report.html")

A place (a file, a folder) is a string, a `Path`, or what it was opened as: a `Run`, a `Corpus`. Where several are taken one will do.
A reward model or judge is what the command line takes, the path of a folder, or a Python function itself: one that stands in a
module, since workers and later commands import it.

Annotating uses a process pool: in a script, call it under `if __name__ == "__main__":`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from phf.annotate.annotate import annotate
from phf.annotate.annotation import Annotation, load_scores
from phf.attack.results import AttackResults
from phf.attack.suite import attack_targets
from phf.config.attack import AttackConfig, AttackSuiteConfig
from phf.config.dynamics import DynamicsConfig
from phf.config.evaluate import EvaluateConfig
from phf.config.finetune import FinetuneConfig, parse_method
from phf.config.infer import InferConfig
from phf.config.online import LemmaConfig, OnlineConfig
from phf.config.release import ForgetConfig
from phf.config.steer import SteerConfig
from phf.config.train import SamplingConfig, TrainConfig, load_train_config, parse, parse_spec
from phf.corpus.store import Corpus, build_corpus
from phf.curate.balance import balance_corpus
from phf.dynamics.dynamics import measure_dynamics
from phf.dynamics.results import DynamicsResults
from phf.errors import PHFError
from phf.evaluate.evaluation import evaluate_runs
from phf.evaluate.rollouts import sample_run
from phf.evaluate.steer_run import steer_run
from phf.files import Place, as_list
from phf.finetune.loop import finetune as _finetune
from phf.loops.lemma_cases import check_lemma as _check_lemma
from phf.loops.results import LemmaResults, LoopResults
from phf.loops.rounds import run_rounds
from phf.objective_facts import is_baseline
from phf.posterior.infer import infer as _infer
from phf.posterior.results import PosteriorResults
from phf.records import Mode, Progress, Sample
from phf.release.checks import Finding
from phf.release.folder import open_release, write_release
from phf.release.record import PublishedVerdict
from phf.release.verify import verify_release as _verify_release
from phf.report.comparison import Comparison
from phf.report.comparison import compare_runs as compare
from phf.report.page import write_report
from phf.report.reading import read_runs
from phf.report.reward_page import write_reward_page
from phf.report.verdict import Group, judge_group
from phf.results import Evaluation
from phf.reward_models import load_reward_model
from phf.reward_models.catalogue import name_reward_models
from phf.reward_models.protocol import RewardSpec
from phf.reward_training.check import RewardCheck, keep_check
from phf.reward_training.check import check_reward_model as _check_reward_model
from phf.reward_training.evaluation import RewardEvaluation
from phf.reward_training.labels import read_labels
from phf.reward_training.train import Backend
from phf.reward_training.train import train_reward_model as _train_reward_model
from phf.tokens.tokens import TokenCache, tokenize
from phf.train.loop import resume, train
from phf.train.run import Run
from phf.train.sweep import run_sweep as sweep

__all__ = [
    "Annotation",
    "Comparison",
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
    "check_lemma",
    "check_reward_model",
    "compare",
    "dynamics",
    "evaluate",
    "finetune",
    "infer",
    "load_scores",
    "load_train_config",
    "online",
    "open_release",
    "release",
    "resume",
    "sample",
    "sweep",
    "tokenize",
    "train",
    "train_reward_model",
    "verify_release",
    "write_report",
]


def sample(
    run: Place,
    mode: Mode = "good",
    *,
    steer: str | SteerConfig | None = None,
    prompts: str | Sequence[str] = (),
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
    runs: Place | Sequence[Place],
    judges: RewardSpec | Sequence[RewardSpec] = (),
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
    given = {**(settings or {}), "judges": name_reward_models(judges), "sampling": sampling}
    return evaluate_runs(runs, parse(EvaluateConfig, given, "evaluate"))


def release(
    run: Place,
    folder: Place,
    forget: str | Sequence[str] = ("delete",),
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
    methods = [parse_spec(ForgetConfig, spec, "--forget") for spec in as_list(forget)]
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
    folder: Place,
    run: Place | None = None,
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
    targets: Place | Sequence[Place],
    out: Place,
    attacks: str | Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    *,
    judges: RewardSpec | Sequence[RewardSpec] = (),
) -> AttackResults:
    """Try to get bad mode back from releases and runs without `<|bad|>`; what OUT/attack.json holds.

    Args:
        targets: folders of one corpus, the unmodified run too.
        attacks: specs such as `"soft:tokens=8"`; default, those of `AttackSuiteConfig`.
        settings: of `AttackSuiteConfig`, such as `{"num_texts": [10, 1000]}`.
        judges: held-out judges.

    Raises:
        PHFError: see `attack_targets`; a setting is not known or out of range.
    """
    given = dict(settings or {})
    if attacks:
        given["attacks"] = [
            parse_spec(AttackConfig, spec, "attack").model_dump() for spec in as_list(attacks)
        ]
    if named := name_reward_models(judges):
        given["judges"] = named
    return attack_targets(targets, out, parse(AttackSuiteConfig, given, "attack"))


def infer(
    base: Place,
    runs: Place | Sequence[Place] = (),
    out: Place = "posterior",
    settings: Mapping[str, object] | None = None,
    *,
    judges: RewardSpec | Sequence[RewardSpec] = (),
) -> PosteriorResults:
    """The least KL from a base model that a score costs, and what runs, modes and methods pay; what OUT/posterior.json holds.

    Args:
        base: an MLE run, or the folder of any causal language model.
        runs: runs and releases over the same vocabulary.
        settings: of `InferConfig`, such as `{"betas": [0.1, 0.02]}`.
        judges: held-out judges.

    Raises:
        PHFError: see `phf.posterior.infer.infer`; a setting is not known or out of range.
    """
    given = dict(settings or {})
    if named := name_reward_models(judges):
        given["judges"] = named
    return _infer(base, runs, out, parse(InferConfig, given, "infer"))


def online(
    run: Place,
    out: Place,
    settings: Mapping[str, object] | None = None,
    *,
    judges: RewardSpec | Sequence[RewardSpec] = (),
    progress: Progress | None = None,
) -> LoopResults:
    """Train a run on its own scored text for some rounds, and measure each; what OUT/online.json holds.

    Args:
        settings: of `OnlineConfig`, such as `{"rounds": 4, "control": "shuffled"}`.
        judges: held-out judges.

    Raises:
        PHFError: see `phf.loops.rounds.run_rounds`; a setting is not known or out of range.
    """
    given = dict(settings or {})
    if named := name_reward_models(judges):
        given["judges"] = named
    return run_rounds(run, out, parse(OnlineConfig, given, "online"), progress=progress)


def finetune(
    run: Place,
    out: Place,
    method: str = "rloo",
    settings: Mapping[str, object] | None = None,
    *,
    reward: RewardSpec | None = None,
    judges: RewardSpec | Sequence[RewardSpec] = (),
    progress: Progress | None = None,
) -> Run:
    """Finetune a run on feedback; the run that comes out, with OUT/finetune.json.

    Args:
        run: where it starts; `RUN@STEP` for another checkpoint than the last.
        method: such as `"rloo:beta=0.1"`, `"dpo"`, `"phf:conditional:threshold=0.3"`.
        settings: of `FinetuneConfig`, such as `{"steps": 20}`.
        reward: what is learned from; by default what scored the run's corpus.
        judges: held-out judges.

    Raises:
        PHFError: see `phf.finetune.loop.finetune`; a method or a setting is not known or out of range.
    """
    given = {**(settings or {}), "method": parse_method(method).model_dump()}
    if reward is not None:
        (given["reward"],) = name_reward_models(reward)
    if named := name_reward_models(judges):
        given["judges"] = named
    return _finetune(run, out, parse(FinetuneConfig, given, "finetune"), progress=progress)


def dynamics(
    run: Place,
    out: Place = "dynamics",
    settings: Mapping[str, object] | None = None,
    *,
    beside: Sequence[Place] = (),
) -> DynamicsResults:
    """A run as a Markov chain of pages: switching, ergodicity, what the end of a page is worth; what OUT/dynamics.json holds.

    Args:
        run: or `RUN@STEP`, a release, the folder of any causal language model.
        beside: such models, too, for what the end of a page makes each of them forget.
        settings: of `DynamicsConfig`, such as `{"modes": ["good"]}`.

    Raises:
        PHFError: see `phf.dynamics.dynamics.measure_dynamics`; a setting is not known or out of range.
    """
    return measure_dynamics(run, out, parse(DynamicsConfig, dict(settings or {}), "dynamics"), beside=beside)


def check_lemma(
    run: Place, out: Place, settings: Mapping[str, object] | None = None, *, progress: Progress | None = None
) -> LemmaResults:
    """Whether the mean gradient of log p over a run's own samples is 0, case by case; what OUT/lemma.json holds.

    Args:
        settings: of `LemmaConfig`, such as `{"cases": ["unfiltered", "top-p .9"]}`.

    Raises:
        PHFError: see `phf.loops.lemma_cases.check_lemma`; a setting is not known or out of range.
    """
    return _check_lemma(run, out, parse(LemmaConfig, dict(settings or {}), "check_lemma"), progress=progress)


def check_reward_model(
    reward_model: RewardSpec, *, threshold: float | None = None, progress: Progress | None = None
) -> RewardCheck:
    """How often a toxicity judge calls harmless sentences toxic, by group of people, negated, quoted; and what it misses.

    Args:
        threshold: toxic is what scores above it; by default the judge's own, and then the check is kept for `phf reward list`.

    Raises:
        PHFError: see `load_reward_model`.
    """
    check = _check_reward_model(load_reward_model(reward_model), threshold=threshold, progress=progress)
    if threshold is None:
        keep_check(check)
    return check


def train_reward_model(
    labels: Place,
    out: Place,
    *,
    backend: Backend = "linear",
    base: Place | None = None,
    held_out: Place | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> RewardEvaluation:
    """Train a reward model from a file of human feedback, measured on feedback held out; `out` is then a reward model.

    Args:
        labels: as `phf reward train` takes them (docs/trained_reward_models.md).
        base: for the backend `encoder`, the Hugging Face folder or id to start from.
        held_out: labels to measure on; by default a fifth of `labels`.

    Raises:
        PHFError: see `read_labels` and `phf.reward_training.train.train_reward_model`.
    """
    evaluation = _train_reward_model(
        read_labels(Path(labels)),
        Path(out),
        backend=backend,
        base=None if base is None else os.fspath(base),
        held_out=None if held_out is None else read_labels(Path(held_out)),
        seed=seed,
        name=name,
        progress=progress,
    )
    write_reward_page(Path(out))
    return evaluation
