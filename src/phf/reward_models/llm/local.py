"""Judges on this machine: a Hugging Face folder by transformers, or vLLM. Both give log-probabilities."""

import functools
import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from phf.errors import PHFError
from phf.reward_models.hugging_face import find_snapshot, hash_model_files
from phf.reward_models.llm.answers import TOP, Answer, Token
from phf.reward_models.llm.engines import Request
from phf.reward_models.llm.prompt import Message
from phf.reward_models.llm.rubric import EngineSettings
from phf.reward_models.llm.store import AnswerStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VLLM_BATCH = 256


class FolderEngine:
    """A causal language model that transformers loads, read in batches: what all conversations begin with is read once."""

    gives_logprobs = True

    def __init__(self, settings: EngineSettings) -> None:
        """Find the model and hash its files; the weights are loaded when the first text is judged.

        Raises:
            PHFError: there is no such model, or a temperature is asked for.
        """
        if settings.temperature > 0:
            raise PHFError(
                f"temperature {settings.temperature:g} is for servers; a local judge answers with the likeliest"
            )
        self._settings = settings
        self._folder = _find_folder(settings)
        self.revision: str | None = hash_model_files(self._folder)[:16]
        self._prefix: tuple[list[int], DynamicCache] | None = None

    def answer(
        self, requests: Sequence[Request], max_tokens: int, store: AnswerStore
    ) -> Iterator[tuple[str, str | None]]:
        """See `phf.reward_models.llm.engines.Engine.answer`."""
        encoded = [(key, self._encode(messages)) for key, messages in requests]
        encoded.sort(key=lambda request: len(request[1]))
        if self._shares_prefix and len(encoded) > 1:
            self._keep_prefix([ids for _, ids in encoded])
        size = self._settings.concurrency if self._shares_prefix else 1
        for start in range(0, len(encoded), size):
            batch = encoded[start : start + size]
            for (key, _), answer in zip(
                batch, self._write([ids for _, ids in batch], max_tokens), strict=True
            ):
                store.write(key, answer)
                yield key, None

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)

    @functools.cached_property
    def _model(self) -> "PreTrainedModel":
        is_gpu = torch.cuda.is_available()
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self._folder,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.bfloat16 if is_gpu else torch.float32,
            )
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PHFError(f"{self._settings.model} cannot be loaded as a language model: {reason}") from None
        return model.eval().to("cuda" if is_gpu else "cpu")

    @functools.cached_property
    def _shares_prefix(self) -> bool:
        """Whether rows of several lengths can go on from one cache: what takes neither cache nor positions reads one by one."""
        taken = inspect.signature(self._model.forward).parameters
        return {"past_key_values", "position_ids", "attention_mask"} <= set(taken)

    @functools.cached_property
    def _marks(self) -> "re.Pattern[str] | None":
        """The special tokens that this tokenizer would read out of a text."""
        added = self._tokenizer.added_tokens_decoder.values()
        marks = {token.content for token in added if token.special} | set(self._tokenizer.all_special_tokens)
        longest = sorted(filter(None, marks), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest))) if longest else None

    def _encode(self, messages: list[Message]) -> list[int]:
        if self._marks is not None:
            # A blank behind the first character: no text may hold what divides messages.
            messages = [
                {
                    **own,
                    "content": self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", own["content"]),
                }
                for own in messages
            ]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            text = "\n\n".join(own["content"] for own in messages) + "\n\n"
            ids = self._tokenizer(text)["input_ids"]
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(ids) + 64 > limit:
            raise PHFError(
                f"rubric and text have {len(ids):,} tokens, {self._settings.model} reads {limit:,}; lower max_characters of the "
                "rubric, or its examples"
            )
        return ids

    @torch.inference_mode()
    def _write(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        """The likeliest answer to each prompt, with the log-probabilities of its tokens."""
        device = self._model.device
        start, cache = self._open_cache(prompts)
        longest = max(len(ids) for ids in prompts) - start
        rest = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, ids in enumerate(prompts):
            rest[row, longest - (len(ids) - start) :] = torch.tensor(ids[start:])
            mask[row, longest - (len(ids) - start) :] = 1
        inputs, positions = rest.to(device), (start + mask.cumsum(-1) - 1).clamp(min=0).to(device)
        mask = torch.cat([torch.ones(len(prompts), start, dtype=torch.int64), mask], 1).to(device)
        ends = self._list_ends()
        tokens: list[list[Token]] = [[] for _ in prompts]
        done = [False] * len(prompts)
        for _ in range(max_tokens):
            logits, inputs_read = self._read(inputs, mask, positions, cache), inputs
            top = logits.float().log_softmax(-1).topk(TOP, -1)
            chosen = top.indices[:, 0]
            for row, written in enumerate(tokens):
                done[row] = done[row] or int(chosen[row]) in ends
                if not done[row]:
                    written.append(self._spell(top.indices[row], top.values[row]))
            if all(done):
                break
            inputs = chosen[:, None] if cache is not None else torch.cat([inputs_read, chosen[:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
            positions = positions[:, -1:] + 1
        return [
            Answer("".join(token for token, _ in written), written, len(ids), len(written))
            for ids, written in zip(prompts, tokens, strict=True)
        ]

    def _read(self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
        """Logits [B, V] of the next token."""
        taken = {
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }
        logits: Tensor = self._model(input_ids=inputs, **(taken if cache is not None else {})).logits
        return logits[:, -1]

    @torch.inference_mode()
    def _keep_prefix(self, prompts: list[list[int]]) -> None:
        """Read what all prompts begin with, unless that is what was read last."""
        first, last = min(prompts), max(prompts)  # in the order of lists, so that all others lie between
        shared = [
            one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        ]
        shared = shared[: min(map(len, prompts)) - 1]
        if shared and (self._prefix is None or self._prefix[0] != shared):
            cache = DynamicCache(config=self._model.config)
            ids = torch.tensor([shared], device=self._model.device)
            self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            self._prefix = shared, cache

    def _open_cache(self, prompts: list[list[int]]) -> tuple[int, DynamicCache | None]:
        """How many ids of the prompts are read already, and a cache that has read them, a row for each prompt."""
        if not self._shares_prefix:
            return 0, None
        cache = DynamicCache(config=self._model.config)
        kept, read = self._prefix or ([], None)
        if read is None or any(ids[: len(kept)] != kept or len(ids) == len(kept) for ids in prompts):
            return 0, cache
        for index, layer in enumerate(read.layers):
            keys, values = (part.expand(len(prompts), -1, -1, -1) for part in (layer.keys, layer.values))
            cache.update(keys, values, index)
        return len(kept), cache

    def _list_ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        own = ends if isinstance(ends, list) else [ends]
        return {int(i) for i in (*own, self._tokenizer.eos_token_id) if i is not None}

    def _spell(self, ids: Tensor, log_probs: Tensor) -> Token:
        spelled = [self._tokenizer.decode([int(i)]) for i in ids]
        top: dict[str, float] = {}
        for token, log_prob in zip(spelled, log_probs.tolist(), strict=True):
            top.setdefault(token, log_prob)
        return spelled[0], top


class VLLMEngine:
    """A model that vLLM loads on a GPU; its prefix cache reads the rubric once."""

    gives_logprobs = True

    def __init__(self, settings: EngineSettings) -> None:
        """Find the model; vLLM starts when the first text is judged.

        Raises:
            PHFError: there is no such model.
        """
        self._settings = settings
        self._folder = _find_folder(settings)
        self.revision: str | None = hash_model_files(self._folder)[:16]

    def answer(
        self, requests: Sequence[Request], max_tokens: int, store: AnswerStore
    ) -> Iterator[tuple[str, str | None]]:
        """See `phf.reward_models.llm.engines.Engine.answer`."""
        sampling = self._vllm.SamplingParams(
            temperature=self._settings.temperature, max_tokens=max_tokens, logprobs=TOP, seed=0
        )
        for start in range(0, len(requests), _VLLM_BATCH):
            batch = requests[start : start + _VLLM_BATCH]
            outputs = self._engine.chat([messages for _, messages in batch], sampling, use_tqdm=False)
            for (key, _), output in zip(batch, outputs, strict=True):
                store.write(key, _read_vllm(output))
                yield key, None

    @functools.cached_property
    def _vllm(self) -> Any:
        try:
            return import_module("vllm")
        except ImportError:
            raise PHFError(
                "kind=vllm needs vLLM, on a machine with a GPU; run pip install 'phf[vllm]', or give kind=folder or a server"
            ) from None

    @functools.cached_property
    def _engine(self) -> Any:
        return self._vllm.LLM(
            model=str(self._folder),
            enable_prefix_caching=True,
            generation_config="vllm",  # nothing from the model's own generation_config.json
            max_logprobs=TOP,
            disable_log_stats=True,
        )


def _read_vllm(output: Any) -> Answer:
    written = output.outputs[0]
    tokens: list[Token] = []
    for token_id, top in zip(written.token_ids, written.logprobs, strict=True):
        spelled = {str(own.decoded_token): float(own.logprob) for own in top.values()}
        tokens.append((str(top[token_id].decoded_token), spelled))
    return Answer(written.text, tokens, len(output.prompt_token_ids), len(tokens))


def _find_folder(settings: EngineSettings) -> Path:
    model, revision = str(settings.model), settings.revision
    folder = find_snapshot(f"{model}@{revision}" if revision and not Path(model).is_dir() else model)
    if not any(folder.glob("*.safetensors")):
        raise PHFError(
            f"{model} has no weights in safetensors; give a folder or Hub id of a causal language model"
        )
    return folder
