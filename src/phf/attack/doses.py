"""Dose curves of forgetting: what bad mode still does, and what good mode loses, against the number of blocked directions
(docs/release.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from phf.config.evaluate import EvaluateConfig
from phf.control import ControlTokens
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.measures import blimp, kl, misalignment
from phf.evaluate.measures.bits_per_byte import bits_per_byte
from phf.evaluate.measures.degeneracy import measure_degeneracy
from phf.evaluate.metric import Metric, bare
from phf.evaluate.pages import Page, lay_out_page, mode_labels, segment_nll
from phf.evaluate.parts import Parts
from phf.evaluate.subject import Subject
from phf.files import hash_json
from phf.folders import lock_folder
from phf.intervals import bootstrap_ratio
from phf.model import lm
from phf.objectives import poison_of
from phf.paths import hide_settings
from phf.records import FORMAT_VERSION, GOOD, Estimate, Mode, Progress
from phf.release.dose_results import (
    BITS_PER_BYTE,
    BLIMP,
    DISTINCT_2,
    DIVERGENCE,
    MEAN_TOKENS,
    MEASURES,
    REFERENCE_KL,
    SHARE,
    DoseResults,
)
from phf.release.forget import (
    Directions,
    block_directions,
    find_directions,
    has_directions,
    random_directions,
    read_texts,
)
from phf.results import Measure, Measurement, Measurements
from phf.tokens.tokenizer import Tokenizer
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
    def of(self) -> str:
        """What its measurements are of."""
        return f"{self.kind}, deleted" if self.deleted else self.kind

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
        basis = hash_json(self.basis.numpy().round(6).tolist())
        folder = self.run.folder / PARTS_FOLDER / f"step-{self.step:06d}" / self.dose.name
        return Parts(folder, [self.run.id, self.step, FORMAT_VERSION, version("phf"), basis])

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
) -> DoseResults:
    """Score in every mode and capability of good mode before and after each dose. Finished parts are kept in the run's folder
    (`doses/`), so that a measurement that was stopped goes on.

    Args:
        run: trained with objectives that write `<|good|>` and `<|bad|>`; its data must still be there.
        config: sampling, sizes, and sources of BLiMP and of KL from a reference; `judges` in it is not used.
        directions: numbers of directions (default: see `list_doses`).
        step: which checkpoint (default: the last).

    Returns:
        for each dose the scores of each mode's samples, their distinct-2 and length; bits per byte of held-out text in good and
        bad mode and without tokens; good mode's divergence from the unmodified; its BLiMP and KL from a reference, where given.

    Raises:
        PHFError: the objective has no such modes, a number is out of range, the data is gone or changed;
            another process writes into the run.
    """
    if not has_directions(run.config.objective):
        raise PHFError(
            f"{run.folder} was trained with {run.config.objective.kind}, which reads no <|good|> and <|bad|>: there are no doses "
            "of directions between them; give a run with objective.kind=conditional or quantile"
        )
    for metric in (kl.METRIC, blimp.METRIC):
        metric.check(config)
    with lock_folder(run.folder, "measuring doses of"):
        return _measure_doses(run, judges, config, directions, step, progress)


def _measure_doses(
    run: Run,
    judges: Sequence[LoadedJudge],
    config: EvaluateConfig,
    directions: Sequence[int] | None,
    step: int | None,
    progress: Progress | None,
) -> DoseResults:
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
    rows: list[Measurement] = []
    for number, dose in enumerate(doses):
        if progress is not None:
            progress("doses", number, len(doses))
        basis = (
            random_directions(dose.directions, width, config.sampling.seed)
            if dose.kind == "random"
            else found.basis[: dose.directions]
        )
        edited = _Edited(
            run,
            step,
            data,
            judges,
            config,
            (lambda what, *of, dose=dose: progress(f"{dose.name}, {what}", *of)) if progress else None,
            dose=dose,
            original=original,
            basis=basis,
        )
        rows += _measure(edited, found)
    if progress is not None:
        progress("doses", len(doses), len(doses))
    return DoseResults(
        run=run.name,
        objective=run.objective,
        poison=poison_of(run.config.objective),
        seed=run.config.seed,
        step=step,
        threshold=data.threshold.value,
        width=width,
        judges=[judge.describe() for judge in judges],
        config=hide_settings(config.model_dump(mode="json"), [judge.model.identity.name for judge in judges]),
        directions=list(found.found[:largest]),
        num_means=found.num_means,
        measures=[*misalignment.METRIC.measures, *MEASURES],
        measurements=rows,
        run_id=run.id,
    )


def _measure(edited: _Edited, found: Directions) -> list[Measurement]:
    """Everything of one dose."""
    dose = edited.dose
    rows: list[Measurement] = []
    for mode in edited.modes:
        drawn = edited.draw(mode)
        degeneracy = measure_degeneracy(drawn.samples)
        rows += misalignment.measure_drawn(edited, drawn)
        rows.append(Measurement(DISTINCT_2.name, bare(degeneracy.distinct_2, 1), mode))
        rows.append(Measurement(MEAN_TOKENS.name, bare(degeneracy.mean_tokens, 1), mode))
    if not dose.deleted:  # which changes nothing of what follows
        rows += _measure_capability(edited)
        rows += _measure_good_mode(edited, blimp.METRIC, BLIMP)
        rows += _measure_good_mode(edited, kl.METRIC, REFERENCE_KL)
    if dose.kind == "block":
        share = sum(direction.share for direction in found.found[: dose.directions])
        rows.append(Measurement(SHARE.name, bare(share, 1)))
    return [replace(row, of=dose.of, at=float(dose.directions)) for row in rows]


def _measure_good_mode(edited: _Edited, metric: Metric, measure: Measure) -> list[Measurement]:
    """The number of an evaluation's metric in good mode, if it is wanted."""
    if not metric.is_wanted(edited.config):
        return []
    found = Measurements(metric.compute(edited).measurements).find(metric.name, "good")
    return [Measurement(measure.name, found, "good")]


@dataclass(frozen=True, slots=True)
class _Capability:
    """Bits per byte by mode and kind of text, and good mode's divergence from that of the unmodified model."""

    bits_per_byte: dict[Mode, dict[str, Estimate]]
    divergence: Estimate


def _measure_capability(edited: _Edited) -> list[Measurement]:
    config, threshold, pages = edited.config, edited.data.threshold.value, edited.pages
    control, vocab_size = edited.tokenizer.control, edited.tokenizer.vocab_size
    sizes = (config.num_bootstrap, config.sampling.seed)

    def measure() -> _Capability:
        bits = {}
        for mode in () if edited.data.tokens.explain_loss() else _TEXT_MODES:
            nll = segment_nll(
                edited.model, control, vocab_size, pages, mode_labels(pages, mode), edited.progress
            )
            bits[mode] = bits_per_byte(pages, nll, threshold, *sizes)
        divergence = good_mode_divergence(edited.original, edited.model, control, pages, threshold, *sizes)
        return _Capability(bits, divergence)

    found = edited.parts.measure("capability", [config.capability_documents, *sizes], measure, _Capability)
    return [
        *(
            Measurement(BITS_PER_BYTE[text].name, estimate, mode)
            for mode, by_text in found.bits_per_byte.items()
            for text, estimate in by_text.items()
        ),
        Measurement(DIVERGENCE.name, found.divergence, "good"),
    ]


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
