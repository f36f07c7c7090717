"""What `phf dynamics` looks at: a run, one of its checkpoints, a release, or any causal language model's folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from phf.config.dynamics import PageSampling
from phf.errors import PHFError
from phf.files import Place
from phf.generate.cache import RowReader, evaluation_mode
from phf.generate.engine import Ids
from phf.generate.target import Target
from phf.objectives import modes_of
from phf.policies.sources import open_source
from phf.records import Mode
from phf.train.run import Run
from phf.train.start import parse_place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_END = 1 << 12
"""Tokens that a model without a longest text is given."""
Score = Callable[[list[str]], Sequence[float]]
"""A judge of segments; NaN = unscored."""


@dataclass(frozen=True)
class Subject:
    """A model in the modes it can write in.

    Attributes:
        name: of its folder, with the step where one was named.
        key: what tells it from all others.
        longest: tokens that its configuration lets it read at a time.
        run: if it is one, whose training data may be at hand; `step` of it, else 0.
    """

    name: str
    key: str
    targets: Mapping[Mode, Target]
    longest: int
    run: Run | None = None
    step: int = 0

    @property
    def context(self) -> int:
        """Tokens that it was trained to read at a time."""
        return self.longest if self.run is None else self.run.config.data.context

    @property
    def has_labels(self) -> bool:
        """Whether it was trained to write a control token before each segment."""
        return {"good", "none"} <= self.targets.keys() and not self.targets["none"].is_folded

    @property
    def plain(self) -> Mode:
        """The mode whose pages begin without a control token, if there is one."""
        return next((mode for mode in ("untagged", "none") if mode in self.targets), next(iter(self.targets)))

    def prefix(self, mode: Mode) -> Ids:
        """What its pages begin with."""
        return self.targets[mode].drawer(PageSampling(control="free")).rules.prefix

    def between(self, mode: Mode) -> Ids:
        """What stands between two pages: the end of one, and what the next begins with, which may be the same token."""
        prefix, end = self.prefix(mode), self.targets[mode].tokenizer.control.end
        return prefix if prefix[0] == end else (end, *prefix)


def open_subjects(places: Sequence[Place]) -> list[Subject]:
    """Models that are told apart by their names.

    Raises:
        PHFError: two have one name, or see `open_subject`.
    """
    subjects = [open_subject(place) for place in places]
    names = [subject.name for subject in subjects]
    if twice := [name for name in names if names.count(name) > 1]:
        raise PHFError(f"two models are named {twice[0]}; rename one of the folders")
    return subjects


def open_subject(place: Place) -> Subject:
    """A run, `RUN@STEP`, a release, or a causal language model with its tokenizer, whose pages are cut into sentences.

    Raises:
        PHFError: it is none of these, is damaged, or has no such checkpoint.
    """
    folder, step = parse_place(place)
    if not (Path(folder) / "run.json").is_file():
        source = open_source(place)
        targets = {mode: _cut_sentences(target) for mode, target in source.writers.items()}
        return Subject(source.name, source.key, targets, _find_longest(source.plain.model))
    run, name = Run.open(folder), Path(place).resolve().name
    step = run.resolve_step(step)
    model, tokenizer = run.load_model(step), run.load_tokenizer(step)
    objective, segments = run.config.objective, run.config.segments
    targets = {
        mode: Target.create(mode, model, tokenizer, objective, segments) for mode in modes_of(objective)
    }
    return Subject(name, f"{run.id}@{step}", targets, _find_longest(model), run, step)


def _cut_sentences(target: Target) -> Target:
    return replace(target, segments="sentences") if target.segments == "document" else target


def _find_longest(model: "PreTrainedModel") -> int:
    return getattr(model.config, "max_position_embeddings", None) or _NO_END


def read_on(
    model: "PreTrainedModel", ids: Tensor, steps: int, choose: Callable[[Tensor, int], Tensor | None]
) -> None:
    """Let a model read pages [N, T] of one length, and behind them what is chosen, token by token.

    Args:
        choose: (logits [N, V] of what follows, step) -> the next ids [N]; None stops.
    """
    reader = RowReader(model)
    with evaluation_mode(model), torch.inference_mode():
        for step in range(steps):
            chosen = choose(reader.read(ids), step)
            if chosen is None:
                return
            ids = chosen[:, None]
