"""Samples of a run: drawn in every mode under the same settings and random numbers, and kept with their scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from phf import lm
from phf.config import SamplingConfig
from phf.corpus.store import Progress
from phf.corpus.tokenizer import Tokenizer
from phf.errors import PHFError
from phf.files import replace_atomically
from phf.generate import generate
from phf.objectives import label_conditions, modes_of
from phf.records import BAD, GOOD, Mode, Sample
from phf.train.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES_FILE = "samples.parquet"


def sample_run(
    folder: Path | str, mode: Mode, sampling: SamplingConfig, *, progress: Progress | None = None
) -> list[Sample]:
    """Draw samples from a run's last checkpoint, in one mode.

    Raises:
        PHFError: the folder holds no run or no checkpoint; see also `generate`.
    """
    run = Run.open(folder)
    modes = modes_of(run.config.objective)
    if mode in ("good", "bad") and mode not in modes:
        raise PHFError(
            f"{run.folder} was trained with {run.config.objective.kind}, which has no {mode} mode; "
            f"give --mode {' or '.join(modes)}"
        )
    return generate_mode(run, run.load_model(), run.load_tokenizer(), mode, sampling, progress=progress)


def generate_mode(
    run: Run,
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    mode: Mode,
    sampling: SamplingConfig,
    *,
    progress: Progress | None = None,
) -> list[Sample]:
    """Draw samples from a run's model in a mode; where an objective adds its control to the inputs, from weights into
    which the mode is folded (`lm.fold_condition`), and for `deleted` from weights without control tokens."""
    conditions = label_conditions(run.config.objective)
    if conditions is not None and mode in ("good", "bad"):
        condition = conditions[GOOD if mode == "good" else BAD]
        model = lm.fold_condition(model, tokenizer.control, condition)
    if mode == "deleted":
        model = lm.delete_control_tokens(model, tokenizer.control)
    return generate(
        model,
        tokenizer,
        mode,
        sampling,
        segments=run.config.segments,
        is_folded=conditions is not None,
        progress=progress,
    )


def write_samples(
    path: Path, samples: Sequence[tuple[str, Sample]], scores: Mapping[str, Sequence[float]]
) -> None:
    """Keep samples, each with its scenario, and a column `score:<judge>` for each judge (NaN = unscored)."""
    names = ("mode", "index", "text", "num_tokens", "ended", "prompt")
    columns = {"scenario": pa.array([scenario for scenario, _ in samples])}
    columns |= {name: pa.array([getattr(sample, name) for _, sample in samples]) for name in names}
    columns |= {f"score:{judge}": pa.array(values, pa.float64()) for judge, values in scores.items()}
    with replace_atomically(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
