"""What came out: score, KL from the start and length, by texts of the result and of the start with the same random numbers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from phf.evaluate.metric import bare
from phf.finetune.learners import Used
from phf.finetune.pool import Pool
from phf.finetune.results import (
    BEST_KL,
    BEST_SCORE,
    CALLS,
    KL_TEXT,
    KL_TOKEN,
    LABELS,
    LENGTH,
    SCORE,
    WRITTEN,
    FinetuneResults,
)
from phf.finetune.start import Start
from phf.generate.engine import Ids, Written
from phf.intervals import best_of, bootstrap_mean, bootstrap_ratio
from phf.paths import hide_settings
from phf.policies.drawing import Drawing
from phf.posterior.frontier import Frontier
from phf.posterior.frontier import best_of as find_best
from phf.records import Progress
from phf.results import Measurement
from phf.reward_models import score_samples
from phf.train.run import Run

_Values = npt.NDArray[np.float64]

_STREAM = 2


def measure_result(
    start: Start,
    run: Run,
    result: Drawing,
    used: Used,
    pool: Pool | None,
    progress: Progress | None = None,
) -> FinetuneResults:
    """Draw from the result, as `result` does, and the start, score, and read the KL."""
    config = start.config
    num, settings = config.sampling.num_samples, (config.num_bootstrap, config.seed or 0)
    prompts = [start.prompts[index % len(start.prompts)] for index in range(num)]
    rows: list[Measurement] = []
    notes = list(start.notes)
    for name, own in (("start", start), ("result", replace(start, drawing=result))):
        model = own.drawing.target.model
        texts, decoded = own.write(model, prompts, _STREAM, f"measuring {name}", progress)
        for judge in start.judges:
            scores = score_samples(judge.model, decoded)
            rows.append(Measurement(SCORE.name, bootstrap_mean(scores, *settings), judge=judge.slug, of=name))
            if num_unscored := int(np.isnan(scores).sum()):
                notes.append(
                    f"{num_unscored:,} of {num:,} texts ({name}) have no score by {judge.model.identity.name}"
                )
        lengths = np.array([len(ids) + ended for ids, ended in texts], np.float64)
        rows.append(Measurement(LENGTH.name, bootstrap_mean(lengths, *settings), of=name))
    gaps = read_gaps(start, result, prompts, texts)
    rows.append(Measurement(KL_TEXT.name, bootstrap_mean(gaps, *settings)))
    rows.append(Measurement(KL_TOKEN.name, bootstrap_ratio(gaps, lengths, *settings)))
    tokens = _count_tokens(run, config.texts) if used.tokens is None else used.tokens
    rows += [Measurement(CALLS.name, bare(used.calls)), Measurement(WRITTEN.name, bare(tokens))]
    if config.proxy is not None:
        rows.append(Measurement(LABELS.name, bare(config.proxy.labels_a_round * config.proxy.num_rounds)))
    if pool is not None:
        rows += list_best(pool, *settings)
    names = [judge.model.identity.name for judge in start.judges]
    return FinetuneResults(
        run_id=run.id,
        reward="" if config.preferences else start.reward.slug,
        judges=[judge.describe() for judge in start.judges],
        settings=hide_settings(config.model_dump(mode="json"), names),
        notes=notes,
        measurements=rows,
    )


def read_gaps(start: Start, result: Drawing, prompts: Sequence[Ids], texts: Sequence[Written]) -> _Values:
    """log result - log start of each text, each with the control tokens that its mode writes: [N]."""
    with torch.no_grad():
        own, other = (
            drawing.log_probs(drawing.target.model, drawing.lay_out(prompts, texts)).double().sum(1)
            for drawing in (result, start.drawing)
        )
    found: _Values = (own - other).cpu().numpy()
    return found


def _count_tokens(run: Run, texts: int) -> float:
    """Tokens that the steps wrote, by the lengths that they logged."""
    return float(sum(line["length"] * texts for line in run.read_metrics() if line["kind"] == "train"))


def list_best(pool: Pool, num_bootstrap: int, seed: int) -> list[Measurement]:
    """Score and KL of the best of n at powers of two, as far as a pool goes."""
    scores = pool.scores[np.isfinite(pool.scores)]
    frontier, rows = Frontier(scores, num_bootstrap=0, seed=seed), []
    n = 1
    while n <= len(scores) // 4:
        found = best_of(scores, scores, n, num_bootstrap, seed)
        rows.append(Measurement(BEST_SCORE.name, found, at=n))
        rows.append(
            Measurement(BEST_KL.name, bare(float(find_best(frontier, n).kl[0]) if n > 1 else 0.0), at=n)
        )
        n *= 2
    return rows
