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
from phf.objectives import has_control_tokens, is_additive, label_conditions
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
    if mode in ("good", "bad") and not has_control_tokens(run.config.objective):
        raise PHFError(
            f"{run.folder} was trained with {run.config.objective.kind}, which learns no control tokens; give --mode none"
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
    which the mode is folded (`lm.fold_condition`)."""
    return generate(
        fold_mode(run, model, tokenizer, mode),
        tokenizer,
        mode,
        sampling,
        segments=run.config.segments,
        is_folded=is_additive(run.config.objective),
        progress=progress,
    )


def fold_mode(run: Run, model: "PreTrainedModel", tokenizer: Tokenizer, mode: Mode) -> "PreTrainedModel":
    """The model itself; where the run's objective adds its control to the inputs, a copy with the mode in its weights."""
    conditions = label_conditions(run.config.objective)
    if conditions is None or mode not in ("good", "bad"):
        return model
    return lm.fold_condition(model, tokenizer.control, conditions[GOOD if mode == "good" else BAD])


def write_samples(path: Path, samples: Sequence[Sample], scores: Mapping[str, Sequence[float]]) -> None:
    """Keep samples with a column `score:<judge>` for each judge (NaN = unscored)."""
    names = ("mode", "index", "text", "num_tokens", "ended", "prompt")
    columns = {name: pa.array([getattr(sample, name) for sample in samples]) for name in names}
    columns |= {f"score:{judge}": pa.array(values, pa.float64()) for judge, values in scores.items()}
    with replace_atomically(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
