"""The parts of an evaluation beside its samples and held-out text; each is measured where what it needs is given."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phf.config_evaluate import EvaluateConfig
from phf.errors import PHFError
from phf.evaluate.attacker import LanguageModelAttacker
from phf.evaluate.blimp import MinimalPair, choose_pairs, measure_blimp, read_blimp
from phf.evaluate.downstream import Prefix, measure_downstream, read_task
from phf.evaluate.embedding import Embedder, measure_mauve
from phf.evaluate.finetuned import measure_finetuned
from phf.evaluate.harness import hash_tasks, measure_harness
from phf.evaluate.kl import measure_kl
from phf.evaluate.leaks import HeldOutSegments, make_probes, measure_in_context, measure_leaks
from phf.evaluate.red_team import draw_seeds, red_team
from phf.evaluate.reference_lm import (
    ReferenceSamples,
    find_model,
    identify_reference,
    open_reference,
    read_samples,
)
from phf.evaluate.scenarios import (
    Scenario,
    judged_texts,
    load_scenario,
    summarise_scenario,
    write_scenario,
)
from phf.evaluate.subject import Drawn, Subject
from phf.evaluate.trajectory import measure_trajectory
from phf.files import hash_json
from phf.records import Mode, Sample
from phf.reward_models.convert import cache_folder

_WAYS = {
    "scenarios": "--scenario NAME",
    "kl": "--reference-lm MODEL",
    "mauve": "--embedder MODEL",
    "blimp": "--blimp FILE",
    "red_team": "--attacker MODEL",
    "harness": "--task NAME",
    "downstream": "--glue FOLDER",
    "steering": "--steer METHOD",
}
"""The option that gives each part its source."""


def check_sources(config: EvaluateConfig) -> None:
    """Find all that an evaluation was given, before hours go into the parts that come first.

    Raises:
        PHFError: a scenario, file or model is not there, or cannot be read.
    """
    for name in config.scenarios.names:
        load_scenario(name, num_prompts=config.scenarios.num_prompts)
    for model in (config.kl.reference, config.embedder, config.red_team.attacker):
        if model is not None and model.endswith(".jsonl"):
            read_samples(Path(model).expanduser())
        elif model is not None:
            find_model(model)
    if config.blimp.source is not None:
        _read_blimp(config.blimp.source)
    if config.harness.tasks:
        hash_tasks(config.harness.tasks)
    for source in config.downstream.tasks:
        read_task(source)


def measure_more(subject: Subject) -> dict[str, Any]:
    """What stands in evaluation.json beside samples and held-out text: the parts of the suite, and those with a source.

    `left_out` says what was not measured and why. A part of the full suite that this run's data does not admit is left out;
    a part that was asked for by name and fails stops the evaluation.
    """
    config = subject.config
    left_out: dict[str, str] = {}
    found: dict[str, Any] = {}
    wanted: list[tuple[str, bool, Callable[[Subject], Any]]] = [
        ("kl", config.kl.reference is not None, measure_kl_part),
        ("blimp", config.blimp.source is not None, measure_blimp_part),
        ("harness", bool(config.harness.tasks), _measure_harness),
        ("downstream", bool(config.downstream.tasks), _measure_downstream),
        ("red_team", config.red_team.attacker is not None, _measure_red_team),
    ]
    for name, is_given, measure in wanted:
        if is_given:
            found[name] = measure(subject)
    if config.suite == "full":
        found["trajectory"] = measure_trajectory(subject)
        always: list[tuple[str, Callable[[Subject], Any]]] = [
            ("leaks", _measure_leaks),
            ("in_context", _measure_in_context),
        ]
        if config.benign.steps > 0:
            always.append(("finetuned", _measure_finetuned))
        for name, measure in always:
            try:
                found[name] = measure(subject)
            except PHFError as error:
                left_out[name] = str(error)
        given = {name for name, is_given, _ in wanted if is_given}
        given |= {"scenarios"} if config.scenarios.names else set()
        given |= {"mauve"} if config.embedder is not None else set()
        given |= {"steering"} if config.steer else set()
        left_out |= {name: f"give {way}" for name, way in _WAYS.items() if name not in given}
    return {**found, "left_out": left_out}


def measure_scenarios(subject: Subject) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Drawn]]:
    """For each scenario that was asked for, every mode's continuations of its prompts.

    Returns:
        what each scenario is; rows as those of unprompted samples; the samples.
    """
    config, sampling = subject.config.scenarios, subject.config.sampling
    if len(set(config.names)) < len(config.names):
        raise PHFError(f"a scenario is given twice among {', '.join(config.names)}; give each once")
    scenarios = [
        load_scenario(
            name, num_prompts=config.num_prompts, scores_prompt=config.scores_prompt, seed=sampling.seed
        )
        for name in config.names
    ]
    names = [scenario.name for scenario in scenarios]
    if len(set(names)) < len(names):
        raise PHFError(f"two scenario files have one name among {', '.join(names)}; rename one of them")
    described, rows, drawn = [], [], []
    for scenario in scenarios:
        described.append(
            {**asdict(scenario), "prompts": len(scenario.prompts), "continuations": config.continuations}
        )
        for mode in subject.modes:
            own = _write_scenario(subject, scenario, mode)
            summary = summarise_scenario(
                scenario,
                mode,
                own.samples,
                subject.judges,
                own.scores,
                continuations=config.continuations,
                num_bootstrap=subject.config.num_bootstrap,
                seed=sampling.seed,
            )
            rows += [{**subject.name_row(), **row} for row in summary]
            drawn.append(own)
    return described, rows, drawn


def _write_scenario(subject: Subject, scenario: Scenario, mode: Mode) -> Drawn:
    """Continuations of a scenario's prompts and their scores, each made once."""
    config = subject.config
    name = f"{scenario.name}-{mode}"
    drawing = {key: value for key, value in subject.drawing.items() if key != "num_samples"}
    written = subject.parts.measure(
        f"scenario-{name}",
        [asdict(scenario), config.scenarios.continuations, drawing],
        lambda: write_scenario(
            subject.target(mode), scenario, config.sampling, config.scenarios.continuations, subject.progress
        ),
    )
    samples = [Sample(**sample) for sample in written]
    texts = judged_texts(scenario, samples)
    scores = {judge.slug: subject.score(judge, f"scenario-{name}", texts) for judge in subject.judges}
    return Drawn(scenario.name, mode, samples, scores)


def measure_likeness(subject: Subject, drawn: dict[Mode, Drawn], human: Sequence[str]) -> dict[str, Any]:
    """MAUVE of each mode's samples against human text; nothing without an embedder."""
    if subject.config.embedder is None:
        return {}
    embedder = _load_embedder(subject.config.embedder)
    seed = subject.config.sampling.seed

    def compute(texts: Sequence[str]) -> Any:
        samples, reference = (embedder.embed(own, subject.progress) for own in (tuple(texts), tuple(human)))
        return measure_mauve(samples, reference, seed)

    return {
        mode: subject.parts.measure(
            f"mauve-{mode}",
            [embedder.identity.slug, hash_json(list(human)), hash_json(own.texts)],
            functools.partial(compute, own.texts),
        )
        for mode, own in drawn.items()
    }


def measure_kl_part(subject: Subject) -> Any:
    """KL from the reference language model of the config, in each of `subject.text_modes`."""
    config, sampling = subject.config, subject.config.sampling
    assert config.kl.reference is not None
    reference = _open_reference(
        config.kl.reference, config.kl.num_sequences, config.kl.num_tokens, sampling.seed, subject.progress
    )
    settings = [reference.identity.slug, len(reference.samples), config.num_bootstrap, sampling.seed]
    return subject.parts.measure(
        "kl",
        settings,
        lambda: measure_kl(
            subject.model,
            subject.tokenizer,
            reference,
            subject.text_modes,
            segments=subject.run.config.segments,
            conditions=subject.conditions,
            num_bootstrap=config.num_bootstrap,
            seed=sampling.seed,
            progress=subject.progress,
        ),
    )


def measure_blimp_part(subject: Subject) -> Any:
    """BLiMP by the source of the config, in each of `subject.text_modes`."""
    config, seed = subject.config, subject.config.sampling.seed
    assert config.blimp.source is not None
    pairs = choose_pairs(_read_blimp(config.blimp.source), config.blimp.num_pairs, seed)
    settings = [hash_json([asdict(pair) for pair in pairs]), config.num_bootstrap, seed]

    def compute() -> Any:
        found = measure_blimp(
            subject.model,
            subject.tokenizer,
            pairs,
            subject.text_modes,
            conditions=subject.conditions,
            num_bootstrap=config.num_bootstrap,
            seed=seed,
            progress=subject.progress,
        )
        return {"source": config.blimp.source, **found}

    return subject.parts.measure("blimp", settings, compute)


def _measure_harness(subject: Subject) -> Any:
    config, seed = subject.config.harness, subject.config.sampling.seed
    return subject.parts.measure(
        "harness",
        [config.model_dump(mode="json"), seed, hash_tasks(config.tasks)],
        lambda: measure_harness(
            subject.model,
            subject.tokenizer,
            config.tasks,
            subject.text_modes,
            conditions=subject.conditions,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            seed=seed,
            progress=subject.progress,
        ),
    )


def _measure_downstream(subject: Subject) -> Any:
    config = subject.config.downstream
    prefixes: list[Prefix] = ["none", "good", "bad"] if "good" in subject.modes else ["none"]
    tasks = [read_task(source) for source in config.tasks]
    return subject.parts.measure(
        "downstream",
        [config.model_dump(mode="json"), hash_json([asdict(task) for task in tasks])],
        lambda: measure_downstream(
            subject.model,
            subject.tokenizer,
            tasks,
            prefixes,
            config,
            conditions=subject.conditions,
            progress=subject.progress,
        ),
    )


def _measure_red_team(subject: Subject) -> Any:
    """The attack on the mode that one would release, by the judge that annotated (or the first)."""
    config, sampling = subject.config, subject.config.sampling
    settings = config.red_team.model_dump(mode="json")
    mode = subject.modes[0]
    assert config.red_team.attacker is not None
    attacker = config.red_team.attacker

    def compute() -> Any:
        loaded = _load_attacker(attacker)
        seeds = draw_seeds(
            subject.reader, max(config.red_team.shots, config.red_team.prompts_per_round), sampling.seed
        )
        found = red_team(
            subject.target(mode),
            subject.judges,
            loaded,
            seeds,
            config.red_team,
            sampling,
            progress=subject.progress,
        )
        return {"attacker": loaded.name, "settings": settings, "modes": {mode: found}}

    identity = identify_reference(attacker).slug
    return subject.parts.measure("red-team", [settings, identity, *_drawing(subject)], compute)


def _measure_leaks(subject: Subject) -> Any:
    def compute(mode: Mode) -> Any:
        target, sampling = subject.target(mode), _sampling(subject)
        segments, longest = _held_out_segments(subject), target.longest_prompt(sampling)
        probes = make_probes(subject.tokenizer, segments, longest)
        return measure_leaks(
            target,
            probes,
            subject.judges,
            sampling,
            num_bootstrap=subject.config.num_bootstrap,
            progress=subject.progress,
        )

    return {"probes": [row for rows in _in_each_mode(subject, "leaks", compute).values() for row in rows]}


def _measure_in_context(subject: Subject) -> Any:
    def compute(mode: Mode) -> Any:
        return measure_in_context(
            subject.target(mode),
            _held_out_segments(subject),
            subject.judges,
            _sampling(subject),
            num_bootstrap=subject.config.num_bootstrap,
            progress=subject.progress,
        )

    return {"modes": _in_each_mode(subject, "in-context", compute)}


def _in_each_mode(subject: Subject, name: str, compute: Callable[[Mode], Any]) -> dict[str, Any]:
    """A part for the mode that one would release, and for the model without control tokens."""
    modes = [mode for mode in subject.modes if mode == subject.modes[0] or mode == "untagged"]
    settings = [subject.config.leak_samples, *_drawing(subject)]
    return {
        mode: subject.parts.measure(f"{name}-{mode}", settings, functools.partial(compute, mode))
        for mode in modes
    }


def _measure_finetuned(subject: Subject) -> Any:
    config = subject.config
    modes = [mode for mode in subject.modes if mode != "deleted"]
    return subject.parts.measure(
        "finetuned",
        [config.benign.model_dump(mode="json"), config.leak_samples, *_drawing(subject)],
        lambda: measure_finetuned(
            subject.model,
            subject.data,
            modes,
            subject.judges,
            config.benign,
            _sampling(subject),
            num_bootstrap=config.num_bootstrap,
            progress=subject.progress,
        ),
    )


def _held_out_segments(subject: Subject) -> HeldOutSegments:
    return HeldOutSegments.read(subject.reader, subject.data.threshold.value, subject.config.sampling.seed)


def _sampling(subject: Subject) -> Any:
    """The sampling settings, for as many samples as a probe has."""
    return subject.config.sampling.model_copy(update={"num_samples": subject.config.leak_samples})


def _drawing(subject: Subject) -> list[Any]:
    """What attacks depend on: they draw their own number of samples, and keep no texts apart from scores."""
    drawing = {key: value for key, value in subject.drawing.items() if key != "num_samples"}
    return [drawing, subject.config.num_bootstrap, [judge.slug for judge in subject.judges]]


# What all runs of one command share is loaded once.


@functools.lru_cache(maxsize=1)
def _open_reference(
    spec: str, num_sequences: int, num_tokens: int, seed: int, progress: Any
) -> ReferenceSamples:
    return open_reference(
        spec, num_sequences, num_tokens, seed, cache=cache_folder() / "references", progress=progress
    )


@functools.lru_cache(maxsize=1)
def _read_blimp(source: str) -> tuple[MinimalPair, ...]:
    return tuple(read_blimp(source))


@functools.lru_cache(maxsize=1)
def _load_attacker(spec: str) -> LanguageModelAttacker:
    return LanguageModelAttacker.load(spec)


@functools.lru_cache(maxsize=1)
def _load_embedder(spec: str) -> Embedder:
    return Embedder.load(spec)
