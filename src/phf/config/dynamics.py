"""What a user may choose of `phf dynamics` (docs/dynamics.md)."""

from typing import Annotated

from pydantic import Field

from phf.config.fields import StrictConfig
from phf.config.infer import TextSampling
from phf.records import Mode

_Count = Annotated[int, Field(gt=0)]


class PageSampling(TextSampling):
    """How pages are drawn: from all tokens, as the model has them, until they end."""

    num_samples: _Count = 1000
    """Pages of each mode."""
    max_new_tokens: _Count = 512
    """A page is cut after so many tokens of text, or where the model's context ends."""


class DynamicsConfig(StrictConfig):
    """What is measured of a model as a chain of pages."""

    modes: tuple[Mode, ...] = ()
    """Which modes write; all that the model has by default."""
    longest: Annotated[int, Field(gt=1)] = 20
    """Pages are cut after so many segments, the model's and those of the data alike."""
    far: Annotated[int, Field(gt=0)] = 10
    """Segments from which on two of one page are far from each other, for ergodicity."""
    triples: _Count = 200
    """Of documents that show what the end of a page makes the model forget."""
    distances: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 4, 8, 16)
    """Tokens behind that end at which it is asked."""
    beginning: Annotated[int, Field(ge=0)] = 4
    """Tokens of the third document behind which texts are drawn."""
    steps: _Count = 16
    """Tokens of these texts."""
    prefixes: _Count = 200
    """Pages that the model labels itself, and pages behind each forced beginning."""
    given: _Count = 3
    """Segments of one kind that a forced beginning has, before one more."""
    relaxation: _Count = 5
    """Segments behind it that are looked at."""
    streams: _Count = 32
    """Of pages one after the other in one context, for numbers by position."""
    contexts: _Count = 4
    """Their length, in contexts of training."""
    longest_stream: _Count = 4096
    """Their length in tokens, at most."""
    documents: str = ""
    """A corpus whose documents are read, for a model that has no data here; what it writes itself by default."""
    judge: str = ""
    """The reward model whose verdicts are the states of segments; the annotator by default."""
    threshold: float | None = None
    """score <= threshold is good; the run's own by default."""
    held_out: str = ""
    """A second reward model: how often the judge errs is measured against it, on the same segments."""
    held_out_threshold: float | None = None
    """Above it the second one's score is bad; its own hit threshold by default."""
    labels: str = ""
    """A file of labels ('phf label'), in place of a second reward model: how often the judge errs is measured on its texts."""
    top_ps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.9, 0.95, 0.99)
    """Shares of the mass that tokens are drawn from, to see which of them make a state that pages do not come back from."""
    top_ks: tuple[_Count, ...] = (40,)
    """Numbers of likeliest tokens, for the same."""
    truncated: Annotated[int, Field(ge=0)] = 100
    """Pages of each of these and each mode; 0 leaves them out."""
    within: _Count = 5
    """Segments within which a page comes back, or does not."""
    num_bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamplings behind every bootstrap interval."""
    sampling: PageSampling = PageSampling()
    """How pages are drawn."""


OPTIONS = {
    "modes": "--mode",
    "longest": "--longest",
    "far": "--far",
    "triples": "--triples",
    "documents": "--documents",
    "judge": "--judge",
    "threshold": "--threshold",
    "held_out": "--held-out",
    "labels": "--labels",
    "top_ps": "--top-p",
    "top_ks": "--top-k",
    "truncated": "--truncated",
    "sampling.num_samples": "--num-samples",
    "sampling.max_new_tokens": "--max-new-tokens",
    "sampling.control": "--control",
    "sampling.seed": "--seed",
}
"""Settings that have an option of their own, by dotted key; for the others there is `--set`."""
