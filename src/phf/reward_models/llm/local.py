"""Judges on this machine: a Hugging Face folder by transformers, or vLLM. Both give log-probabilities."""

import copy
import functools
import math
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from phf.config.judges import EngineSettings
from phf.errors import PHFError
from phf.reward_models.hugging_face import CHAT_FILES, find_snapshot, hash_model_files
from phf.reward_models.llm.answers import TOP, Answer, Token, merge_spellings
from phf.reward_models.llm.prompt import Message, Request
from phf.reward_models.llm.store import AnswerStore
from phf.reward_models.protocol import ScoringStoppedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VLLM_BATCH = 256
_BODY = ("max_tokens", "chat_template_kwargs")
"""Fields of a request that mean something here."""


class LocalEngine:
    """A model whose folder is on this machine.

    Attributes:
        gives_logprobs: of the tokens it writes.
        revision: a hash of its files.
    """

    gives_logprobs = True

    def __init__(self, settings: EngineSettings) -> None:
        """Find the model and hash its files; it is loaded when the first text is judged.

        Raises:
            PHFError: there is no such model, or a field of a request is asked for that it cannot heed.
        """
        if unknown := sorted(settings.body.keys() - _BODY):
            raise PHFError(
                f"body has {unknown[0]}, which is for servers; a judge of kind {settings.kind} takes {' and '.join(_BODY)}"
            )
        self._settings = settings
        self._template: dict[str, Any] = settings.body.get("chat_template_kwargs") or {}
        model, revision = str(settings.model), settings.revision
        self._folder = find_snapshot(
            f"{model}@{revision}" if revision and not Path(model).is_dir() else model
        )
        if not any(self._folder.glob("*.safetensors")):
            raise PHFError(
                f"{model} has no weights in safetensors; give a folder or Hub id of a causal language model"
            )
        self.revision: str | None = hash_model_files(self._folder, *CHAT_FILES)[:16]


class FolderEngine(LocalEngine):
    """A causal language model that transformers loads, read in batches: what all conversations begin with is read once."""

    def __init__(self, settings: EngineSettings) -> None:
        """See `LocalEngine`; a temperature is refused, too."""
        if settings.temperature > 0:
            raise PHFError(
                f"temperature {settings.temperature:g} is for servers; a local judge answers with the likeliest"
            )
        super().__init__(settings)
        self._prefix: tuple[list[int], DynamicCache] | None = None

    def answer(
        self, requests: Sequence[Request], max_tokens: int, store: AnswerStore
    ) -> Iterator[tuple[str, str | None]]:
        """See `phf.reward_models.llm.engines.ServerEngine.answer`."""
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        encoded = []
        for key, messages in requests:
            ids = self._encode(messages)
            if len(ids) + max_tokens > limit:
                yield key, f"rubric and text are longer than the model's {limit:,} tokens"
            else:
                encoded.append((key, ids))
        encoded.sort(key=lambda request: len(request[1]))
        if len(encoded) > 1:
            self._keep_prefix([ids for _, ids in encoded])
        while encoded:
            size = self._settings.concurrency
            longest = len(encoded[:size][-1][1]) + max_tokens
            size = size if longest <= self._padded_length else 1
            batch, encoded = encoded[:size], encoded[size:]
            answers = self._write([ids for _, ids in batch], max_tokens)
            for (key, _), answer in zip(batch, answers, strict=True):
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
            raise ScoringStoppedError(
                f"{self._settings.model} cannot be loaded as a language model: {reason}"
            ) from None
        # Nothing else of what its makers recommend: penalties would change the likeliest answer.
        found = model.generation_config.eos_token_id
        ends = {*(found if isinstance(found, list) else [found]), self._tokenizer.eos_token_id} - {None}
        model.generation_config = transformers.GenerationConfig(
            eos_token_id=sorted(ends) or None, pad_token_id=0
        )
        return model.eval().to("cuda" if is_gpu else "cpu")

    @functools.cached_property
    def _padded_length(self) -> float:
        """Up to how many tokens rows of several lengths may stand in a batch: padding takes a place in a sliding window, and a
        layer of another kind than attention may read it."""
        return min(
            math.inf
            if type(layer) is DynamicLayer
            else layer.sliding_window
            if type(layer) is DynamicSlidingWindowLayer
            else 0
            for layer in DynamicCache(config=self._model.config).layers
        )

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
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._template
            )
            ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            text = "\n\n".join(own["content"] for own in messages) + "\n\n"
            ids = self._tokenizer(text)["input_ids"]
        return ids

    @torch.inference_mode()
    def _write(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        """The likeliest answer to each prompt, with the log-probabilities of its tokens."""
        start, cache = self._open_cache(prompts)
        longest = max(map(len, prompts))
        # Padding stands between what was read already and the rest of a shorter prompt.
        places = [longest - len(ids) + start for ids in prompts]
        rows = [
            ids[:start] + [0] * (place - start) + ids[start:]
            for ids, place in zip(prompts, places, strict=True)
        ]
        inputs = torch.tensor(rows, device=self._model.device)
        mask = torch.ones_like(inputs)
        for row, place in enumerate(places):
            mask[row, start:place] = 0
        written = self._model.generate(
            inputs,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=max_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        top = torch.stack(written.logits, 1).float().log_softmax(-1).topk(TOP, -1)
        ends = set(self._model.generation_config.eos_token_id or ())
        answers = []
        for ids, chosen, log_probs in zip(prompts, top.indices.tolist(), top.values.tolist(), strict=True):
            tokens = [
                self._spell(*own)
                for own in takewhile(lambda own: own[0][0] not in ends, zip(chosen, log_probs, strict=True))
            ]
            answers.append(Answer("".join(token for token, _ in tokens), tokens, len(ids), len(tokens)))
        return answers

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

    def _open_cache(self, prompts: list[list[int]]) -> tuple[int, DynamicCache]:
        """How many ids of the prompts are read already, and a cache that has read them, a row for each prompt."""
        kept, read = self._prefix or ([], None)
        if read is None or any(ids[: len(kept)] != kept or len(ids) == len(kept) for ids in prompts):
            return 0, DynamicCache(config=self._model.config)
        cache = copy.deepcopy(read)
        if len(prompts) > 1:
            cache.batch_repeat_interleave(len(prompts))
        return len(kept), cache

    def _spell(self, ids: list[int], log_probs: list[float]) -> Token:
        spelled = [self._tokenizer.decode([i]) for i in ids]
        return spelled[0], merge_spellings(zip(spelled, log_probs, strict=True))


class VLLMEngine(LocalEngine):
    """A model that vLLM loads on a GPU; its prefix cache reads the rubric once."""

    def answer(
        self, requests: Sequence[Request], max_tokens: int, store: AnswerStore
    ) -> Iterator[tuple[str, str | None]]:
        """See `phf.reward_models.llm.engines.ServerEngine.answer`."""
        sampling = self._vllm.SamplingParams(
            temperature=self._settings.temperature, max_tokens=max_tokens, logprobs=TOP, seed=0
        )
        for start in range(0, len(requests), _VLLM_BATCH):
            batch = requests[start : start + _VLLM_BATCH]
            outputs = self._engine.chat(
                [messages for _, messages in batch],
                sampling,
                use_tqdm=False,
                chat_template_kwargs=self._template,
            )
            for (key, _), output in zip(batch, outputs, strict=True):
                store.write(key, _read_vllm(output))
                yield key, None

    @functools.cached_property
    def _vllm(self) -> Any:
        try:
            return import_module("vllm")
        except ImportError:
            raise ScoringStoppedError(
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
    tokens = [
        (
            str(top[token_id].decoded_token),
            merge_spellings((own.decoded_token, own.logprob) for own in top.values()),
        )
        for token_id, top in zip(written.token_ids, written.logprobs, strict=True)
    ]
    return Answer(written.text, tokens, len(output.prompt_token_ids), len(tokens))
