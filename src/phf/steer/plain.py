"""Writing without a second model or stream, and counting what goes through the model meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phf.config import SamplingConfig, SegmentKind
from phf.generate.engine import TextTokenizer, generate
from phf.records import Mode, Progress, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Passes:
    """How many (row, position) pairs went through a model."""

    count: int = 0

    def per_token(self, samples: Sequence[Sample]) -> float:
        """Per text token of the samples that were kept; NaN without text."""
        num_tokens = sum(sample.num_tokens for sample in samples)
        return self.count / num_tokens if num_tokens else float("nan")


@contextmanager
def count_passes(model: "PreTrainedModel") -> Iterator[Passes]:
    """Count while it is open, copies of the model (`sampling.precision`) included. Prompts and control tokens count too,
    and rows that have ended until they leave their batch."""
    passes = Passes()

    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passes.count += kwargs["input_ids"].numel()

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


@dataclass(frozen=True)
class Writer:
    """`phf.generate.engine.generate` with all but the choice of samples given.

    Attributes:
        segments, prompts, is_folded: see `phf.generate.engine.generate`.
    """

    model: "PreTrainedModel"
    tokenizer: TextTokenizer
    mode: Mode
    sampling: SamplingConfig
    segments: SegmentKind
    prompts: Sequence[Sequence[int]] | None = None
    is_folded: bool = False
    progress: Progress | None = None

    def write(self, indices: Sequence[int] | None = None) -> list[Sample]:
        """These samples (see `phf.generate.engine.REDRAW`), or the first `sampling.num_samples`."""
        return generate(
            self.model,
            self.tokenizer,
            self.mode,
            self.sampling,
            segments=self.segments,
            prompts=self.prompts,
            is_folded=self.is_folded,
            indices=indices,
            progress=self.progress,
        )
