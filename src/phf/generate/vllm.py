"""The engine `vllm`: the same samples in distribution as the engine `phf`, written by vLLM.

What a mode blocks is blocked by a logit bias of minus infinity (vLLM has no `suppress_tokens`; `allowed_token_ids`
holds no more than 1,024 ids, `bad_words` takes words, and a bias of -100 would leave a blocked token to be drawn at a
high temperature). vLLM counts control tokens as new tokens, we count text: so texts are written in rounds, each of which
asks for the text tokens that are still missing and goes on where the last one stopped.

A sample depends on (seed, index), but its random numbers are vLLM's own: it is not the sample of the engine `phf`, and
vLLM promises the same sample only for the same batch, version and machine.
"""

import gc
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch

from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.generate.engine import Ids, TokenDrawer, Written, find_limit
from phf.model.lm import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from vllm import LLM

MAX_BLOCKED = 1024
"""vLLM holds so many biases per request (`MAX_NUM_LOGIT_BIAS_TOKENS`); one more ends its engine."""

_MEMORY_SHARE = 0.5
"""Of a GPU's memory for vLLM: the model itself and the judges share the GPU."""


@dataclass
class _Page:
    """A text that is being written: its prefix and prompt, what came after them, and room for so many new ids."""

    index: int
    start: list[int]
    room: int
    new: list[int] = field(default_factory=list)
    num_text: int = 0
    ended: bool = False


def write_pages_with_vllm(
    model: "PreTrainedModel",
    drawer: TokenDrawer,
    pages: Sequence[Ids],
    indices: Sequence[int],
    report: Callable[[int], None],
) -> list[Written]:
    """`phf.generate.engine.write_pages` on vLLM: same arguments, same rules, same counts of text tokens.

    Starting vLLM takes up to a minute, so its engine is kept for the next call with the same weights; `close_engine`
    ends it.

    Raises:
        PHFError: vLLM is not installed; `control="forced"`, for which vLLM has no hook; more ids to block than vLLM can; or
            prefix, prompt and new tokens do not fit into the model's context.
    """
    sampling = drawer.sampling
    if drawer.rules.forced is not None:
        raise PHFError(
            "control=forced cannot be written by vLLM; give control=free or prefix, or the engine phf"
        )
    limit = find_limit(model, max(map(len, pages)), sampling)
    texts = [
        _Page(index, list(page), min(limit - len(page), 2 * sampling.max_new_tokens))
        for index, page in zip(indices, pages, strict=True)
    ]
    padding = range(drawer.vocab_size, model.get_input_embeddings().weight.shape[0])
    blocked = [*drawer.rules.blocked, *padding]
    if len(blocked) + 1 > MAX_BLOCKED:
        raise PHFError(
            f"vLLM blocks at most {MAX_BLOCKED} ids and this model has {len(padding)} unused ones; give the engine phf"
        )
    vllm = _import_vllm()
    engine = _open_engine(vllm, model, sampling)
    pending, number = texts, 0
    while pending:
        requests = [_create_request(page, drawer, blocked, number) for page in pending]
        outputs = engine.generate(
            [{"prompt_token_ids": [*page.start, *page.new]} for page in pending],
            [vllm.SamplingParams(**request) for request in requests],
            use_tqdm=False,
        )
        for page, output in zip(pending, outputs, strict=True):
            ids = list(output.outputs[0].token_ids)  # the end too: vLLM hands out the token it stopped at
            page.new.extend(ids)
            page.ended = drawer.control.end in ids
            page.num_text += len(_find_text(ids, drawer))
        pending = [
            page
            for page in pending
            if not page.ended and page.num_text < sampling.max_new_tokens and len(page.new) < page.room
        ]
        number += 1
        report(len(texts) - len(pending))
    return [(_find_text(page.new, drawer), page.ended) for page in texts]


def _create_request(
    page: _Page, drawer: TokenDrawer, blocked: Sequence[int], number: int
) -> dict[str, object]:
    """Arguments of vLLM's `SamplingParams` for the next round of a page.

    Until `min_new_tokens` of text are there the end token is blocked, and no more than those are asked for.
    """
    sampling, end = drawer.sampling, drawer.control.end
    # Random bits of its own for each round of each sample.
    philox = np.random.Philox(key=[sampling.seed, page.index], counter=number)
    wanted = sampling.max_new_tokens
    if page.num_text < sampling.min_new_tokens:
        blocked = [*blocked, end]
        wanted = sampling.min_new_tokens
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": min(wanted - page.num_text, page.room - len(page.new)),
        "stop_token_ids": [end],
        "logit_bias": dict.fromkeys(blocked, -np.inf),
        "seed": int(philox.random_raw()) >> 1,
        "detokenize": False,
    }


def _find_text(ids: Sequence[int], drawer: TokenDrawer) -> list[int]:
    """The ids that are neither control tokens nor the end."""
    found = np.array(ids, np.int64)
    text: list[int] = found[drawer.is_text(found)].tolist()
    return text


_engine: "tuple[str, LLM] | None" = None


def _import_vllm() -> ModuleType:
    try:
        return import_module("vllm")
    except ImportError:
        raise PHFError(
            "the engine vllm needs vLLM, on a machine with a GPU; run pip install 'phf[vllm]', or give the engine phf"
        ) from None


def _open_engine(vllm: ModuleType, model: "PreTrainedModel", sampling: SamplingConfig) -> "LLM":
    """vLLM's engine for these weights: the one that runs, or a new one in its place."""
    global _engine
    key = f"{_hash_weights(model)} {sampling.precision} {sampling.batch_size}"
    if _engine is not None and _engine[0] == key:
        return _engine[1]
    close_engine()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        engine = vllm.LLM(
            model=folder,
            skip_tokenizer_init=True,
            dtype={"fp32": "float32", "bf16": "bfloat16"}[sampling.precision],
            generation_config="vllm",  # nothing from the model's own generation_config.json
            max_num_seqs=sampling.batch_size,
            gpu_memory_utilization=_MEMORY_SHARE,
            disable_log_stats=True,
        )
    _engine = key, engine
    return engine


def close_engine() -> None:
    """End vLLM's engine, if one runs, and free its memory."""
    global _engine
    if _engine is not None:
        _engine[1].llm_engine.engine_core.shutdown()
        _engine = None
        gc.collect()


def _hash_weights(model: "PreTrainedModel") -> str:
    config = {**model.config.to_dict(), "architectures": None, "dtype": None}  # saving sets these two
    digest = hashlib.sha256(repr(sorted(config.items())).encode())
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
