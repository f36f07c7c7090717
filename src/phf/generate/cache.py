"""Rows of ids that a model reads in step: each id once where the model's cache does what it should, else all ids again.

What a cache does is found out by reading a few ids with it (`find_cache`): some architectures take it under another
name, some have none and ignore what they are given, and of some the states cannot go on with other rows.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

_CACHE_STEP = 64
"""Positions by which the cache grows: few reallocations, and at most this many positions of memory to spare."""
_ROUNDING = 1e-3
"""Logits with and without a cache may differ by this share of the largest: by 1e-6 where it works, by .08 and more where not."""

STRANGE = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What architectures raise that make something else of a cache than it is."""


@contextmanager
def evaluation_mode(model: "PreTrainedModel") -> Iterator[None]:
    """While it is open, the model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class RowReader:
    """Rows that a model reads in step."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model, self._name = model, find_cache(model)
        self._cache = create_cache(model) if self._name is not None else None
        self._ids = torch.empty(0, 0, dtype=torch.long)

    def read(self, ids: Tensor) -> Tensor:
        """Logits [B, V] behind the next ids [B, T] of each row."""
        if self._name is not None:
            return _read_cached(self._model, self._name, self._cache, ids)
        self._ids = torch.cat([self._ids, ids], 1) if self._ids.numel() else ids
        logits: Tensor = self._model(input_ids=self._ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        if self._cache is not None:
            select_rows(self._cache, rows)
        else:
            self._ids = self._ids[rows]


def create_cache(model: "PreTrainedModel") -> DynamicCache:
    """The model's own cache, its plain layers replaced by ones that do not copy (sliding windows stay as they are)."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_FixedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Let a cache go on with some of its rows; one may come more than once."""
    for layer in cache.layers:
        layer.reorder_cache(rows)  # states have it as well as keys


def find_cache(model: "PreTrainedModel") -> str | None:
    """The name under which the model takes a cache that gives the logits it gives without, also where rows have left; None if
    there is none. Kept with the model: ask in float32, before a copy in another precision is made, which keeps it too."""
    if not hasattr(model, "cache_name"):
        names = [name for name in ("past_key_values", "cache_params") if _accepts(model, name)]
        with torch.inference_mode(), evaluation_mode(model):
            model.cache_name = next((name for name in names if _works(model, name)), None)
    found: str | None = model.cache_name
    return found


def _accepts(model: "PreTrainedModel", name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _works(model: "PreTrainedModel", name: str) -> bool:
    # `forward` itself: what counts or writes down the model's calls does not see the probe's.
    ids = torch.arange(21).view(3, 7).to(model.device) % model.config.get_text_config().vocab_size
    ids[:, 0] = 0  # every row begins alike, as pages do
    kept = torch.tensor([2, 0], device=model.device)
    try:
        rows = [
            _read_cached(model.forward, name, create_cache(model), part) for part in (ids[:, :6], ids[kept])
        ]
        cache = create_cache(model)
        _read_cached(model.forward, name, cache, ids[:, :5])
        found = [_read_cached(model.forward, name, cache, ids[:, 5:6])]
        select_rows(cache, kept)
        found.append(_read_cached(model.forward, name, cache, ids[kept, 6:]))
    except STRANGE:
        return False
    return is_alike(torch.cat(found), torch.cat(rows))


def is_alike(logits: Tensor, expected: Tensor) -> bool:
    """Whether logits differ by rounding alone."""
    return bool((logits - expected).abs().max() <= _ROUNDING * expected.abs().max())


def _read_cached(
    model: "Callable[..., CausalLMOutput]", name: str, cache: DynamicCache | None, ids: Tensor
) -> Tensor:
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1, **{name: cache})
    assert output.logits is not None
    logits: Tensor = output.logits[:, -1]
    return logits


class _FixedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """A cache layer that writes into memory allocated ahead; `DynamicLayer` copies all of it at every token."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._key_memory, self._value_memory = self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._key_memory.shape[2]:
            self._move(end, None)
        self._key_memory[:, :, start:end] = key_states
        self._value_memory[:, :, start:end] = value_states
        self.keys, self.values = self._key_memory[:, :, :end], self._value_memory[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._move(self._key_memory.shape[2], beam_idx)

    def _move(self, num_positions: int, rows: Tensor | None) -> None:
        """New memory for at least `num_positions`, holding what is there (or some rows of it)."""
        capacity = -(-num_positions // _CACHE_STEP) * _CACHE_STEP
        self._key_memory, self.keys = _copy_into_new(self.keys, capacity, rows)
        self._value_memory, self.values = _copy_into_new(self.values, capacity, rows)


def _copy_into_new(states: Tensor, capacity: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Fresh memory [B, H, capacity, D] and the view of it that holds `states` (or some of its rows)."""
    num_rows = states.shape[0] if rows is None else rows.shape[0]
    memory = states.new_empty(num_rows, states.shape[1], capacity, states.shape[3])
    view = memory[:, :, : states.shape[2]]
    if rows is None:
        view.copy_(states)
    else:
        torch.index_select(states, 0, rows, out=view)
    return memory, view
