"""A reward model from human feedback: refuse what cannot work, hold a fifth out, fit, measure (docs/trained_reward_models.md)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from phf.errors import PHFError
from phf.folders import create_folder
from phf.records import Progress
from phf.reward_models.linear import (
    LinearRewardModel,
    fit_linear,
    fit_linear_pairs,
    list_heaviest,
    write_model_record,
)
from phf.reward_models.protocol import RewardModel
from phf.reward_models.scoring import score_samples
from phf.reward_models.trained import is_trained_on, load_trained
from phf.reward_training.check import check_reward_model
from phf.reward_training.counterfactual import Terms, add_counterfactuals
from phf.reward_training.evaluation import (
    AUROC,
    CALIBRATION_ERROR,
    PAIR_ACCURACY,
    SPEARMAN_OF_RATINGS,
    GoodBadHistogram,
    HeldOut,
    LabelFacts,
    LinearFit,
    RewardEvaluation,
    TriedSettings,
    read_reward_evaluation,
    write_reward_evaluation,
)
from phf.reward_training.labels import LabelKind, Labels
from phf.reward_training.measures import (
    estimate,
    list_reliability,
    measure_auroc,
    measure_calibration_error,
    measure_spearman,
)
from phf.reward_training.split import Examples, check_apart, merge_duplicates, split_examples

Backend = Literal["linear", "encoder"]

MIN_EXAMPLES, MIN_PER_CLASS, MIN_HELD_OUT = 50, 20, 5
"""Fewer different texts (or pairs), fewer of them good or bad, or fewer held out, are refused."""
NUM_SHOWN = 25
EPSILON = 1e-6


def train_reward_model(
    labels: Labels,
    out: Path,
    *,
    seed: int,
    backend: Backend = "linear",
    base: str | None = None,
    held_out: Labels | None = None,
    terms: Terms | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> RewardEvaluation:
    """Train a reward model, measure it on held-out feedback, and write its folder, which appears whole. One that this has
    made before is returned as it is.

    Args:
        out: the folder to make; `load_reward_model(str(out))` loads it.
        base: for the backend `encoder`, the Hugging Face folder or id to start from.
        held_out: feedback of the same kind to measure on; by default a fifth of the labels is held out.
        terms: texts trained on that have one of these are repeated with others in its place, with the same label.
        name: of the reward model; by default the folder's.
        progress: of the finetuning; called with (description, done, total).

    Returns:
        What `evaluation.json` holds.

    Raises:
        PHFError: too few examples, one class alone, a held-out text that is trained on, pairs with `terms`, or `out` holds
            something else.
    """
    if backend == "encoder" and base is None:
        raise PHFError(
            "the backend encoder starts from a model; give --base with a Hugging Face folder or id"
        )
    if terms is not None and labels.kind == "pairs":
        raise PHFError(f"{labels.path} holds pairs; counterfactual terms are for labels and ratings alone")
    examples = merge_duplicates(labels)
    _check_enough(examples, labels)
    if held_out is None:
        train, test = split_examples(examples, seed)
    else:
        if held_out.kind != labels.kind:
            raise PHFError(
                f"{held_out.path} holds {held_out.kind}, {labels.path} {labels.kind}; give one kind"
            )
        train, test = examples, merge_duplicates(held_out)
        check_apart(train, test, str(held_out.path))
    _check_held_out(test, labels.kind, held_out is not None)
    name = name or out.resolve().name
    trained_on: dict[str, object] = {
        "labels": labels.sha256,
        "kind": labels.kind,
        "examples": len(train),
        "seed": seed,
    }
    if held_out is not None:
        trained_on["held_out"] = held_out.sha256
    num_given = len(train)
    if terms is not None:
        train = add_counterfactuals(train, terms, seed=seed, held_out=test.texts)
        trained_on |= {"counterfactual": terms.sha256, "counterfactuals": len(train) - num_given}
    if is_trained_on(out, name, trained_on):
        found = read_reward_evaluation(out)
        if (found.base, found.linear is not None) == (base, backend == "linear"):
            return found
    with create_folder(out, "training") as folder:
        linear: LinearFit | None = None
        model: RewardModel
        if backend == "linear":
            model = _fit_linear(train, labels.kind, seed, name, trained_on)
            model.save(folder)
            linear = describe_linear(model, [*train.texts, *train.rejected])
        else:
            from phf.reward_training.encoder import finetune_encoder

            assert base is not None
            description = finetune_encoder(
                train,
                folder,
                base=base,
                seed=seed,
                name=name,
                trained_on=trained_on,
                progress=progress,
            )
            write_model_record(folder, description)
            model = load_trained(folder)
        tested = (
            measure_pairs(model, test, seed)
            if labels.kind == "pairs"
            else measure_labels(model, test, labels.kind, seed)
        )
        evaluation = RewardEvaluation(
            reward_model=model.identity,
            seed=seed,
            measures=tested.measures,
            measurements=tested.measurements,
            histogram=tested.histogram,
            num_unscored=tested.num_unscored,
            base=base if backend == "encoder" else None,
            linear=linear,
            check=check_reward_model(model, progress=progress),
            labels=LabelFacts(
                kind=labels.kind,
                file=labels.path.name,
                sha256=labels.sha256,
                held_out_file=held_out.path.name if held_out is not None else None,
                num_train=num_given,
                num_counterfactuals=len(train) - num_given,
                num_held_out=len(test),
                num_bad_train=int((train.targets[:num_given] > 0.5).sum()),
                num_duplicates=examples.num_duplicates,
                num_conflicts=len(examples.conflicts),
                conflicts=list(examples.conflicts[:NUM_SHOWN]),
                num_bad_rows=len(labels.bad_rows),
                bad_rows=list(labels.bad_rows[:NUM_SHOWN]),
            ),
        )
        return write_reward_evaluation(folder, evaluation)


def _fit_linear(
    train: Examples, kind: LabelKind, seed: int, name: str, trained_on: dict[str, object]
) -> LinearRewardModel:
    if kind == "pairs":
        return fit_linear_pairs(train.texts, train.rejected, seed=seed, name=name, trained_on=trained_on)
    return fit_linear(train.texts, train.targets.tolist(), seed=seed, name=name, trained_on=trained_on)


def describe_linear(model: LinearRewardModel, texts: Sequence[str]) -> LinearFit:
    """The settings that were tried, and the heaviest n-grams by name."""
    bad, good = list_heaviest(model, texts, NUM_SHOWN)
    trials = [
        TriedSettings(str(trial.features), trial.l2, trial.loss, trial.standard_error)
        for trial in model.trials
    ]
    return LinearFit(str(model.features), trials, heaviest_bad=bad, heaviest_good=good)


def measure_labels(model: RewardModel, held_out: Examples, kind: LabelKind, seed: int) -> HeldOut:
    """AUROC, calibration and histogram on held-out texts; for ratings also the rank correlation. Above 0.5 is bad."""
    scores = np.asarray(score_samples(model, held_out.texts))
    scored = ~np.isnan(scores)
    scores, targets = scores[scored], held_out.targets[scored]
    found = {AUROC: measure_auroc(scores, targets > 0.5, seed=seed)}
    if kind == "ratings":
        found[SPEARMAN_OF_RATINGS] = measure_spearman(scores, targets, seed=seed)
    found[CALIBRATION_ERROR] = measure_calibration_error(scores, targets, seed=seed)
    return HeldOut(
        found, list_reliability(scores, targets), count_histogram(scores, targets > 0.5), int((~scored).sum())
    )


def measure_pairs(model: RewardModel, held_out: Examples, seed: int) -> HeldOut:
    """Pair accuracy (a tie counts half), and how well the probability of the judgement is calibrated."""
    chosen, rejected = (
        np.asarray(score_samples(model, texts)) for texts in (held_out.texts, held_out.rejected)
    )
    scored = ~(np.isnan(chosen) | np.isnan(rejected))
    chosen, rejected, clusters = chosen[scored], rejected[scored], held_out.clusters[scored]
    right = np.where(chosen == rejected, 0.5, chosen < rejected)
    logits = [logit(np.clip(scores, EPSILON, 1 - EPSILON)) for scores in (rejected, chosen)]
    probability = expit(logits[0] - logits[1])  # Bradley-Terry: of what the person chose
    # Which text stands first says nothing, so each pair is read both ways; a cluster keeps the two together.
    both = np.concatenate([probability, 1 - probability])
    outcome = np.concatenate([np.ones(len(probability)), np.zeros(len(probability))])
    accuracy = estimate(
        lambda weights: float(weights @ right / weights.sum()), len(right), seed=seed, clusters=clusters
    )
    error = measure_calibration_error(both, outcome, seed=seed, clusters=np.concatenate([clusters, clusters]))
    return HeldOut(
        {PAIR_ACCURACY: accuracy, CALIBRATION_ERROR: error},
        list_reliability(both, outcome),
        count_histogram(np.concatenate([chosen, rejected]), np.repeat([False, True], len(chosen))),
        int((~scored).sum()),
    )


def count_histogram(scores: npt.NDArray[np.float64], is_bad: npt.NDArray[np.bool_]) -> GoodBadHistogram:
    """Counts of good and bad texts in 20 equal bins of score from 0 to 1."""
    edges = np.linspace(0, 1, 21)
    good, bad = (np.histogram(scores[chosen], edges)[0].tolist() for chosen in (~is_bad, is_bad))
    return GoodBadHistogram(edges.tolist(), good, bad)


def _check_enough(examples: Examples, labels: Labels) -> None:
    what = "pairs" if labels.kind == "pairs" else "texts"
    hint = "collect more with 'phf label'"
    if len(examples) < MIN_EXAMPLES:
        raise PHFError(
            f"{labels.path} holds {len(examples):,} different {what}; at least {MIN_EXAMPLES} are needed: {hint}"
        )
    if labels.kind == "ratings" and np.ptp(labels.targets) == 0:
        raise PHFError(
            f"{labels.path} gives every text the same rating; there is nothing to learn from it: {hint}"
        )
    if labels.kind == "labels":
        num_bad = int((examples.targets > 0.5).sum())
        num_good = len(examples) - num_bad
        for num, name in ((num_bad, "bad (label 1)"), (num_good, "good (label 0)")):
            if num < MIN_PER_CLASS:
                raise PHFError(
                    f"{labels.path} holds {num:,} {name} texts among {len(examples):,}; at least {MIN_PER_CLASS} are "
                    f"needed: {hint}"
                )


def _check_held_out(test: Examples, kind: LabelKind, given: bool) -> None:
    remedy = (
        "label more texts" if given else "label more texts, choose another --seed, or give --held-out FILE"
    )
    if len(test) < MIN_HELD_OUT:
        shared = " (pairs that share a text stay together)" if kind == "pairs" else ""
        raise PHFError(
            f"only {len(test)} examples would be held out{shared}; at least {MIN_HELD_OUT} are needed: {remedy}"
        )
    num_bad = int((test.targets > 0.5).sum())
    if kind == "labels" and num_bad in (0, len(test)):
        raise PHFError(
            f"{num_bad} of the {len(test)} held-out texts are bad; both kinds are needed: {remedy}"
        )
