"""Dose curves of forgetting: what bad mode still does, and what good mode loses, against the number of blocked directions
(docs/release.md)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf import lm
from phf.config_evaluate import EvaluateConfig
from phf.control import ControlTokens
from phf.corpus.tokenizer import Tokenizer
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.measures import blimp, kl
from phf.evaluate.measures.bits_per_byte import bits_per_byte
from phf.evaluate.measures.degeneracy import measure_degeneracy
from phf.evaluate.measures.misalignment import measure_drawn
from phf.evaluate.metric import Metric
from phf.evaluate.pages import Page, lay_out_page, mode_labels, segment_nll
from phf.evaluate.parts import Parts
from phf.evaluate.subject import Subject
from phf.files import hash_json
from phf.intervals import bootstrap_ratio
from phf.objectives import poison_of
from phf.records import FORMAT_VERSION, GOOD, Estimate, Mode, Progress
from phf.release.forget import (
    Directions,
    block_directions,
    find_directions,
    has_directions,
    random_directions,
    read_texts,
)
from phf.results import Measurements, to_json
from phf.train.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS_FOLDER = "doses"
FIRST_COMPONENTS = 8
"""Beyond the mean differences, doses double from here to a quarter of the width."""
_TEXT_MODES: tuple[Mode, ...] = ("good", "bad", "none")


@dataclass(frozen=True, slots=True)
class Dose:
    """How many directions are projected out, of which kind, and whether `<|bad|>` is deleted then.

    Attributes:
        kind: `block` takes those of bad mode, in their order; `random` as many random ones: the control.
    """

    kind: Literal["block", "random"]
    directions: int
    deleted: bool = False

    @property
    def name(self) -> str:
        """For files and progress: `block-3-delete`."""
        return f"{self.kind}-{self.directions}{'-delete' if self.deleted else ''}"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are drawn. Deleting `<|bad|>` changes no text behind `<|good|>` nor where control tokens are blocked
        (a test holds both): only the mode in which the model writes them itself is drawn again."""
        if self.kind == "random":
            return ("good", "bad")
        return ("none",) if self.deleted else ("good", "bad", "none", "untagged")


def list_doses(num_means: int, width: int, directions: Sequence[int] | None = None) -> list[Dose]:
    """Each number of directions with and without delete, and as many random ones; the unmodified model first.

    Args:
        num_means: directions that are no principal components (`Directions.num_means`).
        width: of the residual stream.
        directions: default: every number up to `num_means`, then 8, 16 and on up to a quarter of the width.
    """
    if directions is None:
        powers = [FIRST_COMPONENTS << step for step in range(32) if FIRST_COMPONENTS << step <= width // 4]
        directions = [*range(num_means + 1), *(number for number in powers if number > num_means)]
    numbers = sorted({0, *directions})
    doses = [Dose("block", number, deleted) for number in numbers for deleted in (False, True)]
    doses += [Dose("random", number) for number in numbers if number > 0]
    return sorted(doses, key=lambda dose: dose.directions)


@dataclass(frozen=True, kw_only=True)
class _Edited(Subject):
    """A checkpoint's model with a dose, measured as an evaluation measures the model itself."""

    dose: Dose
    original: "PreTrainedModel"
    basis: Tensor

    @cached_property
    def parts(self) -> Parts:
        """The finished parts of this dose."""
        run = self.run.record.get("id") or hash_json(self.run.record)
        basis = hash_json(self.basis.numpy().round(6).tolist())
        folder = self.run.folder / PARTS_FOLDER / f"step-{self.step:06d}" / self.dose.name
        return Parts(folder, [run, self.step, FORMAT_VERSION, version("phf"), basis])

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The edited model."""
        blocked = block_directions(self.original, self.basis)
        if not self.dose.deleted:
            return blocked
        return lm.delete_control_tokens(blocked, self.tokenizer.control, keep_good=True)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The edited model's."""
        whole = self.run.load_tokenizer(self.step)
        return whole.delete_control_tokens(keep_good=True) if self.dose.deleted else whole

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are drawn."""
        return self.dose.modes

    @property
    def text_modes(self) -> list[Mode]:
        """BLiMP and KL from a reference are of good mode alone."""
        return ["good"]


def measure_doses(
    run: Run,
    judges: Sequence[LoadedJudge],
    config: EvaluateConfig,
    *,
    directions: Sequence[int] | None = None,
    step: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score in every mode and capability of good mode before and after each dose. Finished parts are kept in the run's folder
    (`doses/`), so that a measurement that was stopped goes on.

    Args:
        run: trained with objectives that write `<|good|>` and `<|bad|>`; its data must still be there.
        config: sampling, sizes, and sources of BLiMP and of KL from a reference; `judges` in it is not used.
        directions: numbers of directions (default: see `list_doses`).
        step: which checkpoint (default: the last).

    Returns:
        `directions` (where each comes from and its share), and `doses`: for each, `modes` (by judge: score, hit rate;
        distinct-2), `bits_per_byte` on good and bad text in good and bad mode and without tokens, `kl` of good mode's
        next-token distributions from the unmodified ones on held-out good text (nats per token), `blimp`,
        `reference_kl`.

    Raises:
        PHFError: the objective has no such modes, a number is out of range, the data is gone or changed.
    """
    if not has_directions(run.config.objective):
        raise PHFError(
            f"{run.folder} was trained with {run.config.objective.kind}, which reads no <|good|> and <|bad|>: there are no doses "
            "of directions between them; give a run with objective.kind=conditional or quantile"
        )
    for metric in (kl.METRIC, blimp.METRIC):
        metric.check(config)
    step = run.resolve_step(step)
    original, control = run.load_model(step), run.load_tokenizer(step).control
    found = find_directions(original, control, read_texts(run))  # as a release finds them
    width = found.basis.shape[1]
    doses = list_doses(found.num_means, width, directions)
    if (largest := doses[-1].directions) > len(found.basis):
        raise PHFError(
            f"{largest} directions: at most {len(found.basis)} can be found in a stream {width} wide"
        )
    data = run.data()
    rows = []
    for number, dose in enumerate(doses):
        if progress is not None:
            progress("doses", number, len(doses))
        named = partial(_name_progress, progress, dose) if progress is not None else None
        edited = _Edited(
            run,
            step,
            data,
            judges,
            config,
            named,
            dose=dose,
            original=original,
            basis=_choose(found, dose, config.sampling.seed),
        )
        rows.append(_measure(edited, found))
    if progress is not None:
        progress("doses", len(doses), len(doses))
    result = to_json(
        {
            "format_version": FORMAT_VERSION,
            "run": run.name,
            "objective": run.config.objective.kind,
            "poison": poison_of(run.config.objective),
            "seed": run.config.seed,
            "step": step,
            "threshold": data.threshold.value,
            "width": width,
            "judges": [judge.describe() for judge in judges],
            "config": config.model_dump(mode="json"),
            "directions": [asdict(direction) for direction in found.found[:largest]],
            "num_means": found.num_means,
            "doses": rows,
        }
    )
    assert isinstance(result, dict)
    return result


def _name_progress(progress: Progress, dose: Dose, description: str, done: int, total: int) -> None:
    progress(f"{dose.name}, {description}", done, total)


def _choose(found: Directions, dose: Dose, seed: int) -> Tensor:
    if dose.kind == "random":
        return random_directions(dose.directions, found.basis.shape[1], seed)
    return found.basis[: dose.directions]


def _measure(edited: _Edited, found: Directions) -> dict[str, Any]:
    dose = edited.dose
    is_block = dose.kind == "block"
    modes = {}
    for mode in edited.modes:
        drawn = edited.draw(mode)
        degeneracy = measure_degeneracy(drawn.samples)
        modes[mode] = {
            "scores": _list_scores(edited, Measurements(measure_drawn(edited, drawn)), mode),
            "distinct_2": degeneracy.distinct_2,
            "mean_tokens": degeneracy.mean_tokens,
        }
    return {
        **asdict(dose),
        "share": sum(direction.share for direction in found.found[: dose.directions]) if is_block else None,
        "modes": modes,
        **({} if dose.deleted else _measure_capability(edited)),
        "blimp": _of_good_mode(edited, blimp.METRIC),
        "reference_kl": _of_good_mode(edited, kl.METRIC),
    }


def _list_scores(edited: _Edited, found: Measurements, mode: Mode) -> dict[str, dict[str, float]]:
    """By judge what an evaluation says of samples."""
    rows = {}
    for judge in edited.judges:
        score, rate, worst, unscored = (
            found.find(name, mode, judge.slug)
            for name in ("score", "hit_rate", "expected_max_25", "num_unscored")
        )
        rows[judge.slug] = {
            "mean": score.mean,
            "low": score.low,
            "high": score.high,
            "hit_rate": rate.mean,
            "hit_low": rate.low,
            "hit_high": rate.high,
            "num_samples": score.count,
            "num_unscored": int(unscored.mean),
            "expected_max_25": worst.mean,
            "expected_max_25_low": worst.low,
            "expected_max_25_high": worst.high,
        }
    return rows


def _of_good_mode(edited: _Edited, metric: Metric) -> Estimate | None:
    """One estimate of an evaluation, which delete does not change."""
    if not metric.is_wanted(edited.config) or edited.dose.deleted:
        return None
    return Measurements(metric.compute(edited).measurements).find(metric.name, "good")


def _measure_capability(edited: _Edited) -> dict[str, Any]:
    """Bits per byte in each mode, and the divergence of good mode from that of the unmodified model."""
    config, threshold, pages = edited.config, edited.data.threshold.value, edited.pages
    control, vocab_size = edited.tokenizer.control, edited.tokenizer.vocab_size
    sizes = (config.num_bootstrap, config.sampling.seed)

    def measure() -> dict[str, Any]:
        bits = {}
        for mode in _TEXT_MODES:
            nll = segment_nll(
                edited.model, control, vocab_size, pages, mode_labels(pages, mode), edited.progress
            )
            bits[mode] = bits_per_byte(pages, nll, threshold, *sizes)
        kl = good_mode_divergence(edited.original, edited.model, control, pages, threshold, *sizes)
        return {"bits_per_byte": bits, "kl": kl}

    settings = [config.capability_documents, *sizes]
    measured: dict[str, Any] = edited.parts.measure("capability", settings, measure, dict[str, Any])
    return measured


@torch.inference_mode()
def good_mode_divergence(
    before: "PreTrainedModel",
    after: "PreTrainedModel",
    control: ControlTokens,
    pages: Sequence[Page],
    threshold: float,
    num_bootstrap: int,
    seed: int,
) -> Estimate:
    """KL(before || after) of the distributions of the next text token, in nats per token of good segments, `<|good|>` standing
    before every segment; exact over the vocabulary, control tokens cut, with a bootstrap interval over documents."""
    sums, counts = [], []
    for page in pages:
        ids, owners = lay_out_page(page, mode_labels([page], "good")[0], control)
        scored = (owners[1:] >= 0) & (page.labels(threshold) == GOOD)[owners[1:]]
        counts.append(int(scored.sum()))
        sums.append(_sum_divergence(before, after, ids, scored, control) if counts[-1] else 0.0)
    return bootstrap_ratio(sums, counts, num_bootstrap, seed)


def _sum_divergence(
    before: "PreTrainedModel",
    after: "PreTrainedModel",
    ids: npt.NDArray[np.int64],
    scored: npt.NDArray[np.bool_],
    control: ControlTokens,
) -> float:
    """Over the positions whose next id is `scored` [T - 1]."""
    inputs = torch.from_numpy(ids[None, :-1]).to(before.device)
    kept = torch.from_numpy(scored).to(before.device)
    own, other = (
        # The control tokens are the last used ids, padding comes after.
        torch.log_softmax(
            model(input_ids=inputs, use_cache=False).logits[0, kept, : control.good].double(), -1
        )
        for model in (before, after)
    )
    return float((own.exp() * (own - other)).sum())
