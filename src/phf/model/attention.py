"""Attention inside pages only: a block's documents do not see each other, and no time goes into pairs that are masked.

Registered with transformers' attention interface under `PAGES`. On CUDA it is torch's `varlen_attn`. torch has no such
kernel for the CPU, so there pages of about one length are put together into small dense products: on 2 AMX cores, for
pages of 60 tokens, 2 times as fast as the masked attention of blocks of 256 tokens and 5 times for 1,024.

Shape suffixes: N tokens of a batch, blocks one after the other; P pages, which have E = P + 1 ends; H heads; D width of a head; B blocks, T tokens.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAGES = "phf_pages"

_LENGTHS = (32, 64, 96, 128, 192, 256)
"""Short pages are padded to one of these; longer ones to a multiple of 64."""
_NARROW = 32
"""The CPU's flash kernel is slow backwards in bf16. For heads up to this width it is faster in float32 (measured: 5 against
9 ms); for wider ones whole attention matrices are, which use AMX, up to `_LONGEST_MATRIX` tokens."""
_LONGEST_MATRIX = 256
_TILE_CELLS = 2**20
"""Cells of attention matrices handled at a time: they stay in the cache of a core."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def use_page_attention(model: "PreTrainedModel") -> bool:
    """Let a model attend inside pages, if this gives the hidden states that its own attention gives.

    Models with sliding windows, soft caps, sinks or dropout in attention keep their own.

    Returns:
        whether it now does; then its trunk needs `cu_seq_lens_q` (`page_ends`) at every call.
    """
    transformers.AttentionInterface.register(PAGES, _attend)
    own, was_training = model.config._attn_implementation, model.training
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(24, device=model.device).view(2, 12) % vocabulary
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12).to(model.device)
    kinds = {"cpu": (torch.float32, torch.bfloat16)}.get(model.device.type, (torch.bfloat16,))
    ends = page_ends(positions)
    try:
        for dtype in kinds:
            with torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
                model.eval().set_attn_implementation(own)
                expected = run_trunk(model, ids, positions)
                model.train().set_attn_implementation(PAGES)  # in training: to see whether there is dropout
                run_trunk(model, ids, positions, cu_seq_lens_q=ends)
                found = run_trunk(model.eval(), ids, positions, cu_seq_lens_q=ends)
            error = (found.float() - expected.float()).norm() / expected.float().norm()
            if not error < (1e-4 if dtype == torch.float32 else 3e-2):
                raise _UnsupportedError
    except (RuntimeError, TypeError, ValueError):  # ours, or whatever an unknown architecture makes of it
        model.set_attn_implementation(own)
    finally:
        model.train(was_training)
    return uses_pages(model)


def uses_pages(model: "PreTrainedModel") -> bool:
    """Whether a model attends inside pages."""
    return bool(model.config._attn_implementation == PAGES)


def page_ends(positions: Int[np.ndarray, "B T"] | Int[Tensor, "B T"]) -> Int[Tensor, "E"]:
    """0 and the index after each page, int32, on the positions' device: pages begin where positions are 0, and at blocks.

    From an array on the host this waits for no GPU.
    """
    begins = positions == 0
    begins[:, 0] = True
    if isinstance(positions, Tensor):
        firsts = begins.flatten().nonzero().flatten()
        return nn.functional.pad(firsts, (0, 1), value=positions.numel()).int()
    return torch.from_numpy(np.append(np.flatnonzero(begins), positions.size).astype(np.int32))


class _UnsupportedError(RuntimeError):
    """The model's attention does something that attention inside pages does not."""


def run_trunk(model: "PreTrainedModel", ids: Tensor, positions: Tensor, **options: Tensor) -> Tensor:
    """The trunk's last hidden states of ids at positions, which restart where a page begins: [B T], [B T] -> [B T D]."""
    hidden: Tensor = model.base_model(
        ids, position_ids=positions, use_cache=False, **options
    ).last_hidden_state
    return hidden


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """The function that transformers calls in every layer: [B H T D], maybe fewer heads of key and value -> [B T H D]."""
    others = [options.get(name) for name in ("sliding_window", "softcap", "s_aux", "head_mask")]
    if cu_seq_lens_q is None or dropout > 0 or any(other is not None for other in others):
        raise _UnsupportedError
    num_blocks, num_heads, num_tokens, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    # Rotary embeddings leave queries and keys in float32 under autocast.
    q, k, v = (
        x.to(value.dtype).transpose(1, 2).reshape(num_blocks * num_tokens, -1, width).contiguous()
        for x in (query, key, value)
    )
    if k.shape[1] != num_heads:  # grouped queries
        k, v = (x.repeat_interleave(num_heads // x.shape[1], dim=1) for x in (k, v))
    if q.device.type == "cpu":
        out, _ = _attend_pages(q, k, v, cu_seq_lens_q, scale)
    else:
        from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler along

        bounds = (cu_seq_lens_q, cu_seq_lens_q, num_tokens, num_tokens)
        out = varlen_attn(q, k, v, *bounds, scale=scale, window_size=(-1, 0))
    return out.view(num_blocks, num_tokens, num_heads, width), None


@torch.library.custom_op("phf::attend_pages", mutates_args=())
def _attend_pages(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention in every page [N H D], and each query's log-sum-exp [N H 1] for the backward pass.

    One opaque operator, so that a compiled layer does not depend on the lengths of pages.
    """
    out, sums = torch.empty_like(q), q.new_empty((*q.shape[:2], 1), dtype=torch.float32)
    for tile in _tiles(ends, q.shape[1]):
        part, tile_sums = _flash(*(tile.take(x) for x in (q, k, v)), 0.0, True, scale=scale)
        tile.put(sums, tile_sums.unsqueeze(-1))
        tile.put(out, part)
    return out, sums


@_attend_pages.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((*q.shape[:2], 1), dtype=torch.float32)


@torch.library.custom_op("phf::attend_pages_backward", mutates_args=())
def _attend_pages_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, ends: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    wholes = [torch.empty_like(x) for x in (q, k, v)]
    for tile in _tiles(ends, q.shape[1]):
        tq, tk, tv = (tile.take(x) for x in (q, k, v))
        upstream = tile.take(gradient)
        if tile.is_page is not None:  # padding sends nothing back
            upstream = upstream * tile.is_page[:, None, :, None]
        if q.dtype != torch.float32 and q.shape[2] > _NARROW and tile.length <= _LONGEST_MATRIX:
            parts = _matrix_backward(upstream, tq, tk, tv, scale)
        else:
            tensors = [upstream, tq, tk, tv, tile.take(out)]
            if q.shape[2] <= _NARROW:
                tensors = [x.float() for x in tensors]
            parts = _flash_backward(
                *tensors, tile.take(sums).squeeze(-1).contiguous(), 0.0, True, scale=scale
            )
        for whole, part in zip(wholes, parts, strict=True):
            tile.put(whole, part.to(whole.dtype))
    return wholes[0], wholes[1], wholes[2]


@_attend_pages_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, ends: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(context: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, ends, out, sums = context.saved_tensors
    return *_attend_pages_backward(gradient.contiguous(), q, k, v, out, sums, ends, context.scale), None, None


_attend_pages.register_autograd(_backward, setup_context=_save_for_backward)


class _Tile:
    """Some pages of about one length, as rows of a dense tensor [pages, H, length, D]."""

    def __init__(self, starts: Int[np.ndarray, "P"], lengths: Int[np.ndarray, "P"], length: int) -> None:
        """Attributes:
        length: tokens of a row.
        is_page: which cells are no padding [pages, length]; None if all are.
        """
        self.length = length
        self._shape, self._first = (len(starts), length), int(starts[0])
        columns = np.arange(length)
        is_page = columns < lengths[:, None]
        self.is_page = None if is_page.all() else torch.from_numpy(is_page)
        # Pages of exactly this length that follow each other (whole blocks, above all) are where they should be.
        self._is_slice = self.is_page is None and bool((np.diff(starts) == length).all())
        if not self._is_slice:
            cells = starts[:, None] + np.minimum(columns, lengths[:, None] - 1)
            self._cells = torch.from_numpy(cells.ravel())
            self._rows = None if self.is_page is None else torch.from_numpy(np.flatnonzero(is_page))

    def take(self, x: Float[Tensor, "N H D"]) -> Float[Tensor, "pages H length D"]:
        """The tile's cells of a tensor; padding repeats the page's last token."""
        x = (
            self._slice(x)
            if self._is_slice
            else x.flatten(1).index_select(0, self._cells).view(-1, *x.shape[1:])
        )
        return x.view(*self._shape, *x.shape[1:]).transpose(1, 2)

    def put(self, whole: Float[Tensor, "N H D"], part: Float[Tensor, "pages H length D"]) -> None:
        """Write the tile's cells into a tensor, without the padding."""
        part = part.transpose(1, 2).reshape(-1, *whole.shape[1:])
        if self._is_slice:
            self._slice(whole).copy_(part)
            return
        cells = self._cells
        if self._rows is not None:
            cells, part = cells[self._rows], part.flatten(1).index_select(0, self._rows)
        # A view: a copy would lose what is written.
        whole.view(len(whole), -1).index_copy_(0, cells, part.flatten(1))

    def _slice(self, x: Tensor) -> Tensor:
        return x[self._first : self._first + self._shape[0] * self._shape[1]]


def _tiles(ends: Int[Tensor, "E"], num_heads: int) -> Iterator[_Tile]:
    """All pages, shorter ones first."""
    bounds = ends.numpy().astype(np.int64)
    starts, lengths = bounds[:-1], np.diff(bounds)
    longest = int(lengths.max())
    ladder = np.array([*_LENGTHS, *range(_LENGTHS[-1] + 64, longest + 64, 64)])
    padded = ladder[np.searchsorted(ladder, lengths)]
    for length in np.unique(padded).tolist():
        pages = np.flatnonzero(padded == length)
        at_once = max(1, _TILE_CELLS // (num_heads * length**2)) if length <= _LONGEST_MATRIX else len(pages)
        for first in range(0, len(pages), at_once):
            some = pages[first : first + at_once]
            yield _Tile(starts[some], lengths[some], length)


def _matrix_backward(upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Gradients of q, k and v [pages H length D] by whole attention matrices, which are computed again."""
    shape = q.shape
    upstream, q, k, v = (x.reshape(-1, *shape[2:]) for x in (upstream, q, k, v))
    mask = _causal_mask(shape[2], q.dtype)
    matrix = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    slopes = torch.bmm(upstream, v.transpose(1, 2))
    slopes = torch._softmax_backward_data(slopes, matrix, -1, matrix.dtype).mul_(scale)
    parts = (
        torch.bmm(slopes, k),
        torch.bmm(slopes.transpose(1, 2), q),
        torch.bmm(matrix.transpose(1, 2), upstream),
    )
    return tuple(part.view(shape) for part in parts)


@cache
def _causal_mask(length: int, dtype: torch.dtype) -> Float[Tensor, "length length"]:
    return torch.full((length, length), -math.inf, dtype=dtype).triu_(1)
