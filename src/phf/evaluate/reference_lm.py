"""A reference language model and what it writes: the texts that `phf.evaluate.measures.kl` scores, each with its log-probability.

The reference is any Hugging Face causal language model, sampled at temperature 1 once and kept, so that all runs are
measured on the same texts; or a JSONL of texts that an API model wrote, with the log-probabilities it gave.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers
from pydantic import JsonValue

from phf.control import END_TOKEN
from phf.errors import PHFError
from phf.files import hash_file, hash_json, write_bytes
from phf.generate.cache import RowReader
from phf.generate.engine import draw_tokens
from phf.records import Identity, Progress
from phf.reward_models.hugging_face import find_snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SPELLING_TOKENS = 3
"""Tokens a sample may go on for after its last one, to finish a character that it would otherwise cut in two: UTF-8
has at most four bytes for one, and a byte-level vocabulary a token for each byte."""

transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class ReferenceSample:
    """A text that the reference wrote.

    Attributes:
        text: without special tokens.
        log_prob: log p of the ids it was written as, in nats, the end's included where it ended.
        num_tokens: how many factors `log_prob` has; None where an API did not say.
        ended: whether the reference ended the page behind it; else the text is a page's beginning.
        ids: the reference's token ids of the text; None where an API did not say.
        is_canonical: whether its tokenizer makes these very ids of the text; None where that is not known.
        index: of its stream of random numbers; None where it was not drawn here.
    """

    text: str
    log_prob: float
    num_tokens: int | None = None
    ended: bool = False
    ids: tuple[int, ...] | None = None
    is_canonical: bool | None = None
    index: int | None = None

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return len(self.text.encode())


@dataclass(frozen=True, slots=True)
class ReferenceSamples:
    """Independent texts of one reference.

    Attributes:
        identity: what wrote them: the model and how it was sampled, or the file.
    """

    identity: Identity
    samples: tuple[ReferenceSample, ...]

    @property
    def num_rejected(self) -> int:
        """Texts that were drawn among these and left out, because they were no UTF-8."""
        last = self.samples[-1].index
        return 0 if last is None else last + 1 - len(self.samples)

    def to_json(self) -> dict[str, JsonValue]:
        """How `evaluation.json` describes them; shares are None where nothing is known."""
        canonical = [sample.is_canonical for sample in self.samples if sample.is_canonical is not None]
        return {
            "identity": self.identity.to_json(),
            "slug": self.identity.slug,
            "num_rejected": self.num_rejected,
            "ended_share": float(np.mean([sample.ended for sample in self.samples])),
            "canonical_share": float(np.mean(canonical)) if canonical else None,
        }


class ReferenceLM:
    """A causal language model whose pages begin with a start token and end with an end token.

    Its distribution is the model's at temperature 1 over text and end: tokens that are neither (`<|im_start|>`, an
    unused row of the embedding) cannot be drawn, and the probabilities of the rest are those without them.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", source: Identity
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        names = tokenizer.get_vocab()
        # An instruction model's start token opens a message; <|endoftext|> is what stood between documents.
        start = names.get(END_TOKEN, tokenizer.bos_token_id)
        start = tokenizer.eos_token_id if start is None else start
        if start is None:
            raise PHFError(
                f"{source.name} has no {END_TOKEN}, bos_token or eos_token to start a page with; choose another reference"
            )
        self.start = int(start)
        stops: int | list[int] | None = model.generation_config.eos_token_id
        ends = {self.start, tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
        if tokenizer.bos_token_id not in (tokenizer.eos_token_id, names.get(END_TOKEN)):
            ends.discard(tokenizer.bos_token_id)  # such as Llama's <s>, which nothing ends with
        vocab_size = model.config.get_text_config().vocab_size
        self.ends = sorted(int(i) for i in ends if i < vocab_size)
        # The control tokens of a run's own tokenizer are in its vocabulary, but no text has them.
        control = {i for name, i in names.items() if name.startswith("<|") and name.endswith("|>")}
        is_text = torch.arange(vocab_size) < len(tokenizer)
        is_text[[i for i in special | control if i < vocab_size]] = False
        self.is_allowed = is_text.index_fill(0, torch.tensor(self.ends), True).to(model.device)
        self.identity = source

    def write(self, indices: Sequence[int], num_tokens: int, seed: int) -> list[ReferenceSample | None]:
        """Sample pages at temperature 1, up to `num_tokens` tokens each (and up to `SPELLING_TOKENS` more, to finish a
        character); None for what is no UTF-8. A sample depends on (seed, index) alone, up to rounding.
        """
        drawn = self._draw(indices, num_tokens, seed)
        return [
            self._make_sample(index, *page, num_tokens) for index, page in zip(indices, drawn, strict=True)
        ]

    @torch.inference_mode()
    def _draw(
        self, indices: Sequence[int], num_tokens: int, seed: int
    ) -> list[tuple[list[int], list[float], bool]]:
        """For each page its text ids, their log-probabilities (the end's last, if it came), and whether it ended."""
        num_steps = num_tokens + SPELLING_TOKENS
        uniforms = np.stack([np.random.default_rng([seed, index]).random(num_steps) for index in indices])
        pages: list[tuple[list[int], list[float]]] = [([], []) for _ in indices]
        done = np.zeros(len(indices), bool)
        ends = torch.tensor(self.ends, device=self.model.device)
        inputs = torch.full((len(indices), 1), self.start, device=self.model.device)
        reader = RowReader(self.model)
        for step in range(num_steps):
            logits = reader.read(inputs).float().masked_fill(~self.is_allowed, -torch.inf)
            numbers = torch.from_numpy(uniforms[:, step]).to(logits.device)
            drawn = draw_tokens(logits, numbers, temperature=1.0, top_p=1.0)
            log_probs = logits.double().log_softmax(-1)
            # Any of the end tokens ends the page: what counts is that it ended.
            ended = torch.isin(drawn, ends)
            end_log_prob = log_probs[:, ends].logsumexp(-1)
            chosen = torch.where(ended, end_log_prob, log_probs.gather(-1, drawn[:, None])[:, 0])
            for row, (ids, values) in enumerate(pages):
                if not done[row]:
                    values.append(float(chosen[row]))
                    if ended[row]:
                        done[row] = True
                    else:
                        ids.append(int(drawn[row]))
            if done.all():
                break
            inputs = drawn[:, None]
        return [(ids, values, bool(end)) for (ids, values), end in zip(pages, done, strict=True)]

    def _make_sample(
        self, index: int, ids: list[int], log_probs: list[float], ended: bool, num_tokens: int
    ) -> ReferenceSample | None:
        """The page cut after `num_tokens`, or where the character that this would cut is complete."""
        if ended and len(ids) < num_tokens:
            return self._spell(index, ids, log_probs, True)
        for length in range(num_tokens, len(ids) + 1):
            if (sample := self._spell(index, ids[:length], log_probs[:length], False)) is not None:
                return sample
        return None

    def _spell(
        self, index: int, ids: list[int], log_probs: list[float], ended: bool
    ) -> ReferenceSample | None:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "\ufffd" in text:
            return None
        canonical = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ReferenceSample(
            text, math.fsum(log_probs), len(log_probs), ended, tuple(ids), list(canonical) == ids, index
        )


def identify_reference(spec: str) -> Identity:
    """The identity of a model by its files, without loading it. See `load_reference`."""
    path, folder = find_model(spec)
    is_gguf = path.suffix == ".gguf"
    names = ("*.safetensors", "config.json", "tokenizer*")
    files = [path] if is_gguf else sorted(file for name in names for file in folder.glob(name))
    name = path.stem if is_gguf else path.resolve().name if path.is_dir() else spec.replace("/", "--")
    return Identity(name, "1", hash_json({file.name: hash_file(file) for file in files}))


def find_model(spec: str) -> tuple[Path, Path]:
    """What the spec names as a path, and the folder that holds the model.

    Raises:
        PHFError: there is none.
    """
    path = Path(spec).expanduser()
    if not path.exists() and (path.suffix == ".gguf" or spec.startswith((".", "/", "~"))):
        raise PHFError(
            f"{spec} does not exist; give a folder, a .gguf file, a .jsonl of samples, or a Hub id"
        )
    return path, path.parent if path.suffix == ".gguf" else find_snapshot(spec)


def check_reference(spec: str | None) -> None:
    """Find what a spec names, if there is one, without loading it.

    Raises:
        PHFError: there is none, or it is a JSONL file that cannot be read.
    """
    if spec is not None and spec.endswith(".jsonl"):
        read_samples(Path(spec).expanduser())
    elif spec is not None:
        find_model(spec)


def load_reference(spec: str) -> ReferenceLM:
    """A causal language model to sample from, in float32.

    Args:
        spec: a folder (config.json, safetensors, a tokenizer), a `.gguf` file, or a Hub id.

    Raises:
        PHFError: there is no such model, it cannot be loaded, or it has no token to start with.
    """
    path, folder = find_model(spec)
    gguf: dict[str, str] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=None if gguf else True,
            **gguf,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise PHFError(
            f"cannot load a causal language model from '{spec}': {reason}; give a folder with config.json, safetensors "
            "and tokenizer.json, a .gguf file (needs the packages gguf and accelerate), or a Hub id"
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ReferenceLM(model.eval().to(device), tokenizer, identify_reference(spec))


def sample_reference(
    reference: ReferenceLM,
    num_sequences: int,
    num_tokens: int,
    seed: int,
    *,
    cache: Path,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> ReferenceSamples:
    """`num_sequences` pages of a reference (paper: 4,096 of 64 tokens), drawn once and kept in a file.

    A file that holds enough of them is read; one with too few is gone on with, so that a killed call loses a batch.

    Args:
        cache: folder of the file, whose name changes with the model, `num_tokens` and `seed`.

    Raises:
        PHFError: nothing that it writes is UTF-8, or the file is damaged.
    """
    identity = _sampling_identity(reference.identity, num_tokens, seed)
    samples = _read_kept(cache, identity)
    # Whole batches, always of the same indices: the last digits of a number may depend on its batch.
    num_drawn = -(-((samples[-1].index or 0) + 1) // batch_size) * batch_size if samples else 0
    while len(samples) < num_sequences:
        drawn = reference.write(range(num_drawn, num_drawn + batch_size), num_tokens, seed)
        num_drawn += batch_size
        samples += [sample for sample in drawn if sample is not None]
        if not samples:
            raise PHFError(f"{identity.name} wrote {num_drawn} texts of which none is UTF-8; choose another")
        _write_samples(_kept_path(cache, identity), identity, samples)
        if progress is not None:
            progress(f"sampling {identity.name}", min(len(samples), num_sequences), num_sequences)
    return ReferenceSamples(identity, tuple(samples[:num_sequences]))


def open_reference(
    spec: str,
    num_sequences: int,
    num_tokens: int,
    seed: int,
    *,
    cache: Path,
    progress: Progress | None = None,
) -> ReferenceSamples:
    """Texts of a reference by its spec: `.jsonl` is read (`read_samples`); of anything else those that are kept in
    `cache`, if they are enough, and else the model is loaded and sampled.

    Raises:
        PHFError: see `read_samples`, `load_reference` and `sample_reference`.
    """
    if spec.endswith(".jsonl"):
        found = read_samples(Path(spec).expanduser())
        return ReferenceSamples(found.identity, found.samples[:num_sequences])
    identity = _sampling_identity(identify_reference(spec), num_tokens, seed)
    kept = _read_kept(cache, identity)
    if len(kept) >= num_sequences:
        return ReferenceSamples(identity, tuple(kept[:num_sequences]))
    return sample_reference(
        load_reference(spec), num_sequences, num_tokens, seed, cache=cache, progress=progress
    )


def _sampling_identity(model: Identity, num_tokens: int, seed: int) -> Identity:
    settings = {"num_tokens": num_tokens, "temperature": 1, "seed": seed}
    return Identity(model.name, model.version, model.weights_hash, {**model.parameters, **settings})


def _kept_path(cache: Path, identity: Identity) -> Path:
    return cache / f"{identity.slug}.jsonl"


def _read_kept(cache: Path, identity: Identity) -> list[ReferenceSample]:
    path = _kept_path(cache, identity)
    if not path.exists():
        return []
    found = read_samples(path)
    if found.identity != identity:
        raise PHFError(f"{path} holds samples of {found.identity.slug}; delete it")
    return list(found.samples)


def read_samples(path: Path) -> ReferenceSamples:
    """Texts of a reference from a JSONL file, such as an API model's, written at temperature 1.

    A row is `{"text", "logprob"}` or `{"text", "token_logprobs"}` (natural logarithms, one factor per token), and
    perhaps `num_tokens`, `ended` (the page ends behind the text, and the end's log-probability is included), `ids`.
    What `sample_reference` keeps has a first line that says what wrote it.

    Raises:
        PHFError: the file is missing, or a row is none of these; names the line.
    """
    if not path.is_file():
        raise PHFError(f"{path} does not exist; give a JSONL of texts with log-probabilities, or a model")
    identity = Identity(path.stem, "file", hash_file(path))
    samples: list[ReferenceSample] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if number == 1 and "reference" in row:
                identity = Identity.from_json(row["reference"])
                continue
            samples.append(_parse_row(row))
        except (ValueError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0] if not isinstance(error, KeyError) else f"no {error}"
            raise PHFError(
                f'{path}, line {number}: {reason}; a row is {{"text": ..., "logprob": ...}} or '
                '{"text": ..., "token_logprobs": [...]}, in nats'
            ) from None
    if not samples:
        raise PHFError(f"{path} holds no sample; a row is a text with its logprob or token_logprobs")
    return ReferenceSamples(identity, tuple(samples))


def _parse_row(row: object) -> ReferenceSample:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise TypeError("no text")
    row["text"].encode()  # a lone surrogate is no text
    factors, num_tokens, ids = row.get("token_logprobs"), row.get("num_tokens"), row.get("ids")
    log_prob = math.fsum(float(value) for value in factors) if factors is not None else float(row["logprob"])
    if not math.isfinite(log_prob) or log_prob > 1e-3:
        raise ValueError(f"log-probability {log_prob:g} is not a finite number up to 0")
    num_tokens = len(factors) if factors is not None else num_tokens
    if num_tokens is not None and not (isinstance(num_tokens, int) and num_tokens > 0):
        raise ValueError(f"num_tokens {num_tokens!r} is not a number above 0")
    ended = row.get("ended", False)
    if not isinstance(ended, bool):
        raise TypeError(f"ended {ended!r} is not true or false")
    if not row["text"] and not ended:
        raise ValueError("an empty text that did not end")
    canonical = row.get("canonical")
    return ReferenceSample(
        row["text"],
        log_prob,
        num_tokens,
        ended,
        tuple(int(i) for i in ids) if ids is not None else None,
        bool(canonical) if canonical is not None else None,
        int(row["index"]) if row.get("index") is not None else None,
    )


def _write_samples(path: Path, identity: Identity, samples: Sequence[ReferenceSample]) -> None:
    header = {"reference": identity.to_json()}
    rows = [
        {
            "index": sample.index,
            "text": sample.text,
            "logprob": sample.log_prob,
            "num_tokens": sample.num_tokens,
            "ended": sample.ended,
            "ids": sample.ids,
            "canonical": sample.is_canonical,
        }
        for sample in samples
    ]
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in [header, *rows]).encode())
