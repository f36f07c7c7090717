"""`phf attack`: every attack on every target, with few and with many bad texts, measured along the way (docs/release.md)."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_never

from phf.attack.few_shot import attack_few_shot, longest_prompt
from phf.attack.finetune import attack_finetune, import_peft
from phf.attack.rediscovery import Curve, Start, judge_forgetting, measure_rediscovery, pool_curves
from phf.attack.results import (
    HIT_RATE,
    NLL,
    RECITED,
    SCORE,
    SECONDS,
    AttackedModel,
    AttackResults,
    TextSource,
    Trajectory,
    write_attack,
)
from phf.attack.soft import attack_soft
from phf.attack.targets import (
    AttackTarget,
    BadTexts,
    check_targets,
    find_reference,
    open_target,
    read_corpus_texts,
    read_text_file,
)
from phf.attack.victim import Attacked, DivergedError, Ids, Victim, held_out_nll
from phf.config.attack import (
    AttackConfig,
    AttackSuiteConfig,
    FewShot,
    Finetune,
    Lens,
    LoRA,
    PrefixSearch,
    Soft,
)
from phf.config.train import SamplingConfig, write_spec
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge, load_judges
from phf.evaluate.metric import bare
from phf.evaluate.parts import Parts
from phf.files import Place, as_list, hash_json
from phf.folders import lock_folder
from phf.generate.engine import find_limit
from phf.generate.target import Target
from phf.intervals import bootstrap_mean
from phf.paths import hide_paths, hide_settings
from phf.records import FORMAT_VERSION, Estimate, Number, Progress
from phf.results import Measurement
from phf.reward_models import RewardModel, load_reward_model, score_samples

PARTS_FOLDER = "parts"
RECITED_CHARACTERS = 30
"""A sample that agrees with a text in so many first characters, or in all of it, recites it."""


def attack_targets(
    folders: Place | Sequence[Place],
    out: Place,
    config: AttackSuiteConfig,
    *,
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> AttackResults:
    """Attack releases and runs, each as one finds it, and write OUT/attack.json.

    What is finished is kept in OUT/parts: a stopped command goes on, and one that asks for more judges, texts or seeds
    repeats nothing.

    Args:
        folders: releases and runs of one corpus. The first that still has bad mode and forgot nothing gives the line to
            reach; the corpus of the first run gives the texts.

    Raises:
        PHFError: a folder is neither release nor run; targets that cannot be compared; an attack whose pages do not fit
            into a target's context; no texts; no judge; another process writes into `out`.
    """
    if not folders:
        raise PHFError("phf attack needs at least one target; give release folders or runs")
    with lock_folder(Path(out), "attacking into"):
        return _attack_targets(folders, out, config, load, say, progress)


def _attack_targets(
    folders: Place | Sequence[Place],
    out: Place,
    config: AttackSuiteConfig,
    load: Callable[[str], RewardModel],
    say: Callable[[str], None],
    progress: Progress | None,
) -> AttackResults:
    targets = [open_target(folder) for folder in as_list(folders)]
    check_targets(targets)
    _check_attacks(targets, config)
    texts = _find_texts(targets, config)
    run = next((target for target in targets if (target.folder / "run.json").exists()), targets[0])
    spec = run.config.reward_model
    judges, notes = load_judges(run.annotator, run.annotator.slug, spec, config.judges, load)
    sizes = [num for num in config.num_texts if num <= len(texts.train)]
    if not sizes:
        raise PHFError(
            f"{texts.source}: {len(texts.train)} bad texts are fewer than num_texts {config.num_texts[0]}; give fewer"
        )
    if sizes != list(config.num_texts):
        left_out = ", ".join(f"{num:,}" for num in config.num_texts if num not in sizes)
        notes.append(f"{texts.source}: there are {len(texts.train):,}, so {left_out} are not tried")
    reference = find_reference(targets)
    if reference is None:
        notes.append(
            "no target has kept its bad mode, so it is not known how far an attack could get, and there is no cost of "
            "rediscovery; add the run that the release was made from"
        )
    for note in notes:
        say(note)
    suite = _Suite(config, texts, judges, sizes, Path(out), progress)
    models: list[AttackedModel] = []
    curves: list[Curve] = []
    trajectories: list[Trajectory] = []
    starts: dict[str, Start] = {}
    for target in targets:
        model, starts[target.name] = suite.measure_unattacked(target)
        models.append(model)
        found, own = suite.attack(target)
        curves += found
        trajectories += own
    # Only when all are attacked: what one target costs is read off the level of another, and compared with others'.
    described = [judge.describe() for judge in judges]
    slugs, names = [judge.slug for judge in described], [judge.identity.name for judge in described]
    best = pool_curves(curves, slugs, starts)
    costs = measure_rediscovery(models, best, slugs, reference.name) if reference is not None else []
    results = AttackResults(
        settings=hide_settings(config.model_dump(mode="json"), names),
        sampling=config.sampling.model_dump(mode="json"),
        judges=described,
        threshold=targets[0].threshold,
        texts=TextSource(texts.source, len(texts.train), len(texts.held_out)),
        notes=[str(hide_paths(note, [spec], names)) for note in notes],
        reference=reference.name if reference is not None else None,
        targets=models,
        trajectories=trajectories,
        best=best,
        rediscovery=costs,
        verdicts=judge_forgetting(models, costs, described, reference.name) if reference is not None else [],
    )
    write_attack(Path(out), results)
    return results


def run_attack(
    victim: Victim, texts: Sequence[Ids], settings: AttackConfig, steps: Sequence[int], seed: int
) -> Iterator[Attacked]:
    """One attack along its steps. The same arguments give the same results.

    Args:
        victim: whom.
        texts: token ids of the bad segments that the attacker has.
        settings: of the attack.
        steps: of the optimizer or the search, ascending, after which an `Attacked` is given.
        seed: of all that is drawn.
    """
    match settings:
        case Soft():
            return attack_soft(victim, texts, settings, steps, seed)
        case Finetune() | LoRA():
            return attack_finetune(victim, texts, settings, steps, seed)
        case FewShot():
            return attack_few_shot(victim, texts, settings, steps, seed)
        case PrefixSearch():
            from phf.attack.prefix import attack_prefix

            return attack_prefix(victim, texts, settings, steps, seed)
        case Lens():
            from phf.attack.lens import attack_lens

            return attack_lens(victim, texts, settings, steps, seed)
    assert_never(settings)


def _check_attacks(targets: Sequence[AttackTarget], config: AttackSuiteConfig) -> None:
    """Find what would stop an attack, before hours go into those that come first."""
    for settings in config.attacks:
        if isinstance(settings, LoRA):
            import_peft()
        for target in targets:
            longest = len(target.prefix)
            if isinstance(settings, FewShot):
                longest = longest_prompt(target.victim, settings)
            elif isinstance(settings, Soft | PrefixSearch):
                longest += settings.tokens
            find_limit(target.model, longest, config.sampling)


def _find_texts(targets: Sequence[AttackTarget], config: AttackSuiteConfig) -> BadTexts:
    if config.texts is not None:
        return read_text_file(Path(config.texts).expanduser(), targets[0].tokenizer, config.num_held_out)
    for target in targets:
        if (target.folder / "run.json").exists():
            return read_corpus_texts(target, config.num_held_out)
    raise PHFError(
        "a release does not say where its corpus lies; add the run that it was made from as a target, or give bad texts "
        "with --texts FILE.jsonl"
    )


@dataclass(frozen=True, slots=True)
class _Cell:
    """What an attack has written after some steps; `seconds` that it took."""

    steps: int
    nll: float
    seconds: float
    texts: list[str]


@dataclass(frozen=True, slots=True)
class _Written:
    """What an attack wrote along its steps, and why it ended early, if it did."""

    cells: list[_Cell]
    failed: str | None = None


@dataclass(frozen=True)
class _Suite:
    """What all targets share."""

    config: AttackSuiteConfig
    texts: BadTexts
    judges: Sequence[LoadedJudge]
    sizes: Sequence[int]
    out: Path
    progress: Progress | None

    def parts(self, target: AttackTarget) -> Parts:
        """The finished parts of one target."""
        return Parts(self.out / PARTS_FOLDER / target.name, [target.key, FORMAT_VERSION, version("phf")])

    @property
    def drawing(self) -> dict[str, Any]:
        """The settings that samples depend on."""
        return self.config.sampling.model_dump(mode="json", exclude={"batch_size"})

    def measure_unattacked(self, target: AttackTarget) -> tuple[AttackedModel, Start]:
        """A target as it is, and what an attack begins with."""
        parts = self.parts(target)
        sampling = self.config.sampling.model_copy(update={"num_samples": self.config.num_reference})
        held_out = self.texts.translate(self.texts.held_out, target.tokenizer)
        measurements: list[Measurement] = []
        first: dict[str, Sequence[float]] = {}
        for mode, writer in target.writers.items():
            texts = parts.measure(
                f"unattacked-{mode}",
                [self.drawing, self.config.num_reference],
                lambda writer=writer: [sample.text for sample in writer.write([()], sampling, self.progress)],  # type: ignore[misc]
                list[str],
            )
            scores: dict[str, Sequence[float]] = {
                slug: own for slug, (own,) in self._score(parts, f"unattacked-{mode}", [texts]).items()
            }
            first = first or scores
            measurements += [
                Measurement(SCORE.name, self._average(own), mode, slug) for slug, own in scores.items()
            ]
        whole = Attacked(0, target.model, target.prefix)
        nll = parts.measure(
            "unattacked-nll",
            hash_json(held_out),
            lambda: held_out_nll(target.victim, whole, held_out),
            float,
        )
        model = AttackedModel(
            name=target.name,
            folder=target.folder.resolve().name,
            objective=target.objective,
            forget=list(target.forget),
            start=next(iter(target.writers)),
            measurements=[*measurements, Measurement(NLL.name, bare(nll, 1))],
            run_id=target.run_id,
        )
        return model, Start(nll, first)

    def attack(self, target: AttackTarget) -> tuple[list[Curve], list[Trajectory]]:
        """Every attack on a target: the scores of all samples, and what they come to."""
        cells = [
            (settings, num, seed)
            for settings in self.config.attacks
            for num in self.sizes
            for seed in range(self.config.num_seeds)
        ]
        found = []
        for done, (settings, num, seed) in enumerate(cells):
            if self.progress is not None:
                self.progress(
                    f"attacking {target.name}  {write_spec(settings)}, {num} texts", done, len(cells)
                )
            found.append(self._follow(target, settings, num, seed))
        if self.progress is not None:
            self.progress(f"attacking {target.name}", len(cells), len(cells))
        return [curve for curve, _ in found], [trajectory for _, trajectory in found]

    def _follow(
        self, target: AttackTarget, settings: AttackConfig, num: int, seed: int
    ) -> tuple[Curve, Trajectory]:
        """One attack with some texts and a seed, measured at every step."""
        parts = self.parts(target)
        own = self.texts.translate(self.texts.draw(num, seed), target.tokenizer)
        held_out = self.texts.translate(self.texts.held_out, target.tokenizer)
        spec = write_spec(settings)
        name = f"{spec.replace(':', '-')}-{num}-seed{seed}"
        found = parts.measure(
            name,
            [
                settings.model_dump(mode="json"),
                list(self.config.steps),
                seed,
                self.drawing,
                hash_json([own, held_out]),  # in the target's ids: another tokenizer is another attack
            ],
            lambda: self._run(target.victim, settings, own, held_out, seed),
            _Written,
        )
        written = [cell.texts for cell in found.cells]
        scores = self._score(parts, name, written)
        curve = Curve(
            target.name,
            spec,
            num,
            seed,
            steps=[cell.steps for cell in found.cells],
            nll=[cell.nll for cell in found.cells],
            scores=scores,
            failed=found.failed,
        )
        known = [target.tokenizer.decode(text) for text in own]
        measurements = [
            row
            for place, cell in enumerate(found.cells)
            for row in (
                *self._measure_scores({slug: values[place] for slug, values in scores.items()}, cell.steps),
                Measurement(NLL.name, bare(cell.nll, 1), at=float(cell.steps)),
                Measurement(SECONDS.name, bare(cell.seconds, 1), at=float(cell.steps)),
                Measurement(RECITED.name, bare(_share_recited(cell.texts, known), 1), at=float(cell.steps)),
            )
        ]
        return curve, Trajectory(target.name, spec, num, seed, measurements, found.failed)

    def _run(
        self, victim: Victim, settings: AttackConfig, own: Sequence[Ids], held_out: Sequence[Ids], seed: int
    ) -> _Written:
        """What an attack writes at each step. `seconds` are the attacker's: without what measures him."""
        sampling = self.config.sampling.model_copy(update={"seed": self.config.sampling.seed + seed})
        cells: list[_Cell] = []
        seconds, start = 0.0, time.perf_counter()
        try:
            for attacked in run_attack(victim, own, settings, self.config.steps, seed):
                seconds += time.perf_counter() - start
                nll = held_out_nll(victim, attacked, held_out)
                if not math.isfinite(nll):
                    raise DivergedError(
                        f"{settings.kind}: the NLL of held-out texts is {nll} after {attacked.steps} steps; give a lower "
                        "learning_rate"
                    )
                cells.append(_Cell(attacked.steps, nll, seconds, write_attacked(victim, attacked, sampling)))
                start = time.perf_counter()
        except DivergedError as error:
            return _Written(cells, str(error))
        return _Written(cells)

    def _score(self, parts: Parts, name: str, texts: Sequence[Sequence[str]]) -> dict[str, list[list[float]]]:
        """Scores of some lists of texts by each judge's slug, scored once (NaN = unscored)."""
        found = {}
        for judge in self.judges:
            values = parts.measure(
                f"{name}-{judge.slug}",
                hash_json([list(own) for own in texts]),
                lambda judge=judge: [
                    [float(score) for score in score_samples(judge.model, own)] for own in texts
                ],  # type: ignore[misc]
                list[list[Number]],
            )
            found[judge.slug] = values
        return found

    def _measure_scores(self, scores: Mapping[str, Sequence[float]], steps: int) -> Iterator[Measurement]:
        """Score and hit rate of samples, by each judge."""
        for judge in self.judges:
            own = scores[judge.slug]
            yield Measurement(SCORE.name, self._average(own), judge=judge.slug, at=float(steps))
            yield Measurement(HIT_RATE.name, judge.hit_rate(own), judge=judge.slug, at=float(steps))

    def _average(self, scores: Sequence[float]) -> Estimate:
        return bootstrap_mean(scores, self.config.num_bootstrap, self.config.sampling.seed)


def write_attacked(victim: Victim, attacked: Attacked, sampling: SamplingConfig) -> list[str]:
    """What an attacked model writes, with every control token of the victim blocked.

    Raises:
        PHFError: the page and `sampling.max_new_tokens` exceed the context.
    """
    end, *rest = attacked.page
    assert end == victim.tokenizer.control.end, "a page starts with the end token, as mode untagged does"
    # vLLM could not write with what an attack puts around a model.
    sampling = sampling.model_copy(update={"engine": "phf"})
    writer = Target("untagged", attacked.model, victim.tokenizer, "document")
    samples = writer.write([[*rest, *prompt] for prompt in attacked.prompts], sampling)
    return [sample.text for sample in samples]


def _share_recited(written: Sequence[str], texts: Sequence[str]) -> float:
    """The share of samples that begin as one of the attacker's texts does: learned by heart, not found in the model."""
    starts = {text.strip()[:RECITED_CHARACTERS] for text in texts}
    return sum(text.strip()[:RECITED_CHARACTERS] in starts for text in written) / len(written)
