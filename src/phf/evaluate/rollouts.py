"""Samples of a run: drawn in every mode under the same settings and random numbers, and kept with their scores."""

import io
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.files import Place, as_list
from phf.generate.target import Target
from phf.objectives import modes_of
from phf.records import Mode, Progress, Sample
from phf.train.run import Run

SAMPLES_FILE = "samples.parquet"


def sample_run(
    folder: Place,
    mode: Mode,
    sampling: SamplingConfig,
    *,
    prompts: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> list[Sample]:
    """Draw samples from a run's last checkpoint, in one mode.

    Args:
        prompts: texts to continue; sample i continues text i modulo their number.

    Raises:
        PHFError: the folder holds no run or no checkpoint; see also `Target.write`.
    """
    target = open_target(Run.open(folder), mode)
    encoded = [target.encode(prompt, sampling.control) for prompt in as_list(prompts)]
    return target.write(encoded or [[]], sampling, progress)


def open_target(run: Run, mode: Mode) -> Target:
    """A run's last checkpoint in a mode.

    Raises:
        PHFError: the run has no such mode, or no checkpoint.
    """
    objective = run.config.objective
    modes = modes_of(objective)
    if mode in ("good", "bad") and mode not in modes:
        raise PHFError(
            f"{run.folder} was trained with {objective.kind}, which has no {mode} mode; "
            f"give --mode {' or '.join(modes)}"
        )
    return Target.create(mode, run.load_model(), run.load_tokenizer(), objective, run.config.segments)


def encode_samples(samples: Sequence[tuple[str, Sample]], scores: Mapping[str, Sequence[float]]) -> bytes:
    """The content of samples.parquet: samples, each with its scenario, and a column `score:<judge>` for each judge (NaN =
    unscored). The same samples give the same bytes."""
    names = ("mode", "index", "text", "num_tokens", "ended", "prompt")
    columns = {"scenario": pa.array([scenario for scenario, _ in samples])}
    columns |= {name: pa.array([getattr(sample, name) for _, sample in samples]) for name in names}
    columns |= {f"score:{judge}": pa.array(values, pa.float64()) for judge, values in scores.items()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
