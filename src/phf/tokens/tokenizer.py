"""A tokenizer whose control tokens no text can reach.

The control tokens are the last used ids. They stand in the vocabulary without merges and are not "added tokens", so
neither the model nor the matcher of added tokens ever produces them from text; only the template inserts them, by id.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from phf.control import BAD_TOKEN, END_TOKEN, GOOD_TOKEN, ControlTokens, level_tokens
from phf.errors import PHFError
from phf.files import hash_json, read_json, write_bytes, write_json
from phf.records import Identity
from phf.tokens.vocabulary import add_unreachable, extend_vocabulary, find_control, release_control, steps

NUM_BYTES = 256
NUM_CONTROL = 3

# GPT-2's pattern with three changes. Digits stay single: a small vocabulary has no room for numbers. A line end
# always ends a token: with GPT-2's pattern nearly every line of code ends inside one ("\n   "). Letters, then marks:
# a combining accent stays with its word.
WORD_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|[^\S\n]*\n|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class EncodedDocuments:
    """Token ids of several documents, one after the other, and where each token lies in the joined texts.

    Attributes:
        ids: int64 [num_tokens].
        num_tokens: int64 [num_documents].
        starts, ends: int64 [num_tokens]; in bytes for a byte-level tokenizer (exact), else in code points.
    """

    ids: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


class Tokenizer:
    """A Hugging Face tokenizer with `<|endoftext|>`, `<|good|>` and `<|bad|>`, and perhaps levels between those two.

    Attributes:
        backend: the `tokenizers.Tokenizer`. Call the methods here instead where one fits.
        control: ids of these tokens.
        name: a short name for folders and tables.
    """

    def __init__(self, backend: tokenizers.Tokenizer, control: ControlTokens, name: str) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self.backend = backend
        self.control = control
        self.name = name

    @cached_property
    def vocab_size(self) -> int:
        """Number of used ids; control tokens, as far as they were not deleted, are the last of them."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def padded_vocab_size(self, multiple: int = 64) -> int:
        """Rows of an embedding for this tokenizer, rounded up for speed."""
        return -(-self.vocab_size // multiple) * multiple

    @cached_property
    def identity(self) -> Identity:
        """What decides the ids of a text: all of the tokenizer but its template."""
        content = json.loads(self.backend.to_str())
        content["post_processor"] = None
        return Identity(self.name, "1", hash_json(content))

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether tokens are runs of the text's bytes, so that every text comes back exactly."""
        content = json.loads(self.backend.to_str())
        byte_level = [
            step for step in steps(content, "pre_tokenizer", "pretokenizers") if step["type"] == "ByteLevel"
        ]
        decodes = any(step["type"] == "ByteLevel" for step in steps(content, "decoder", "decoders"))
        exact = content["normalizer"] is None and not any(step["add_prefix_space"] for step in byte_level)
        return bool(byte_level) and decodes and exact

    @cached_property
    def pieces(self) -> list[str]:
        """What each id stands for, in the model's own alphabet (byte-level: one character per byte)."""
        pieces = [self.backend.id_to_token(index) or "" for index in range(self.vocab_size)]
        if self.is_byte_level:
            letters = byte_letters()
            for index, token in self.backend.get_added_tokens_decoder().items():
                pieces[index] = "".join(letters[byte] for byte in token.content.encode())
        return pieces

    @cached_property
    def _piece_lengths(self) -> npt.NDArray[np.int64]:
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never a control token, whatever the text spells."""
        ids: list[int] = self.encode_documents([text]).ids.tolist()
        return ids

    def encode_documents(self, texts: Sequence[str]) -> EncodedDocuments:
        """Token ids of whole documents, on all the threads of `tokenizers`.

        Raises:
            PHFError: the tokenizer does not keep a text's bytes, or produced a control token.
        """
        if self.is_byte_level:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        else:
            encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        num_tokens = np.array([len(row) for row in rows], dtype=np.int64)
        ids = np.fromiter(
            (index for row in rows for index in row), dtype=np.int64, count=int(num_tokens.sum())
        )
        self._refuse_control(ids)
        if not self.is_byte_level:
            text_starts = np.cumsum([0, *(len(text) for text in texts[:-1])])
            offsets = [offset for encoding in encodings for offset in encoding.offsets]
            spans = (
                np.array(offsets, dtype=np.int64).reshape(-1, 2) + np.repeat(text_starts, num_tokens)[:, None]
            )
            return EncodedDocuments(ids, num_tokens, spans[:, 0], spans[:, 1])
        # A letter of a piece is a byte of the text, so lengths give exact places, and a lost byte shows in their sum; but not one
        # for which an unknown token of as many letters stands.
        lengths = self._piece_lengths[ids]
        ends = np.cumsum(lengths)
        found, expected = int(ends[-1]) if len(ends) else 0, sum(len(text.encode()) for text in texts)
        if found != expected or (self._has_unknown and not self._spell(ids, "".join(texts))):
            raise PHFError(
                f"tokenizer {self.name} does not keep a text whole ({expected} bytes in, {found} out); "
                "choose another, or train:4096"
            )
        return EncodedDocuments(ids, num_tokens, ends - lengths, ends)

    @cached_property
    def _has_unknown(self) -> bool:
        model = json.loads(self.backend.to_str())["model"]
        return model.get("unk_token") is not None or model.get("unk_id") is not None

    def _spell(self, ids: npt.NDArray[np.int64], text: str) -> bool:
        """Whether the pieces of some ids are the bytes of a text, in a byte-level vocabulary."""
        letters = dict(enumerate(byte_letters()))
        spelled = "".join([self.pieces[index] for index in ids.tolist()])
        return spelled == text.encode().decode("latin-1").translate(letters)

    def encode_piece(self, piece: str) -> list[int]:
        """Token ids of a part of a token, spelled in the model's own alphabet (see `pieces`)."""
        ids = [token.id for token in self.backend.model.tokenize(piece)]
        self._refuse_control(np.array(ids))
        if self.is_byte_level and "".join(self.pieces[index] for index in ids) != piece:
            raise PHFError(f"tokenizer {self.name} cannot spell {piece!r}; choose another, or train:4096")
        return ids

    def _refuse_control(self, ids: npt.NDArray[np.int64]) -> None:
        control = self.control
        if ((ids == control.end) | (ids >= control.good)).any():
            raise PHFError(
                f"tokenizer {self.name} made a control token from plain text; choose another, or train:4096"
            )

    def decode(self, ids: Iterable[int], skip_control: bool = True) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD.

        Control tokens are left out unless asked for, and with them every special token of the vocabulary (`<s>`, `<pad>`,
        `<unk>`), as transformers does with `skip_special_tokens=True`.
        """
        control = (self.control.end, *self.control.all)
        kept = [int(index) for index in ids if not (skip_control and index in control)]
        return str(self.backend.decode(kept, skip_special_tokens=skip_control))

    def add_levels(self, num_levels: int) -> "Tokenizer":
        """This tokenizer with `<|level_1|>` and on behind `<|bad|>`; ids of texts that spell no such name do not change.

        Raises:
            PHFError: the vocabulary has such a token of its own.
        """
        assert self.control.num_levels == 0, "levels are added once"
        names = level_tokens(num_levels)
        control = replace(self.control, num_levels=num_levels)
        backend = add_unreachable(
            self.backend, dict(zip(names, control.all[2:], strict=True)), list(names), self.name
        )
        return Tokenizer(backend, control, self.name)

    def delete_control_tokens(self, *, keep_good: bool) -> "Tokenizer":
        """This tokenizer without `<|bad|>` and levels, and without `<|good|>` unless it is kept.

        No other id moves, `control` still names the ids that were theirs, and a text that spells one of these tokens
        becomes the ids that it always became.
        """
        content = json.loads(self.backend.to_str())
        vocabulary = content["model"]["vocab"]
        first = self.control.bad if keep_good else self.control.good
        if content["model"]["type"] == "Unigram":
            del vocabulary[first:]
        else:
            content["model"]["vocab"] = {token: index for token, index in vocabulary.items() if index < first}
        content["post_processor"] = None  # a template with `<|good|>` in it could not be read again
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        return Tokenizer(backend, replace(self.control, num_levels=0), self.name)

    def save(self, folder: Path, start: Sequence[str] = (END_TOKEN,)) -> None:
        """Write a plain Hugging Face folder.

        Args:
            folder: created if it is missing.
            start: tokens that the template puts first when `add_special_tokens=True`; a release may add `<|good|>`.
        """
        end_token = str(self.backend.id_to_token(self.control.end))
        first = [end_token if token == END_TOKEN else token for token in start]
        self.backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A"],
            pair=[*first, "$A", end_token, "$B:1"],
            special_tokens=[(token, self.backend.token_to_id(token)) for token in {*first, end_token}],
        )
        write_bytes(folder / "tokenizer.json", self.backend.to_str(pretty=True).encode())
        deleted = {}
        if self.vocab_size <= self.control.bad:  # `load` would take it for a tokenizer that is not ours
            deleted["control_tokens"] = [GOOD_TOKEN] if self.vocab_size > self.control.good else []
        write_json(
            folder / "tokenizer_config.json",
            {
                **deleted,
                # This class takes tokenizer.json as it is; a model's own class would build another from its parts.
                "tokenizer_class": "PreTrainedTokenizerFast",
                "name_or_path": self.name,
                "bos_token": end_token,
                "eos_token": end_token,
                "pad_token": end_token,
                "split_special_tokens": True,
                "clean_up_tokenization_spaces": False,
                "model_max_length": int(1e30),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """A tokenizer that `save` wrote.

        Raises:
            PHFError: the folder is missing, damaged, or not one of ours.
        """
        config = _read_config(folder)
        backend = _read_backend(folder / "tokenizer.json")
        control = find_control(backend, config)
        if control is None:
            raise PHFError(f"{folder} is not a tokenizer saved by phf; give it to 'phf tokenize --tokenizer'")
        # transformers, where it has saved one of ours again, leaves its name out.
        return cls(backend, control, str(config.get("name_or_path") or folder.name))


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others follow from U+0100."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(NUM_BYTES, 2 * NUM_BYTES))
    return [chr(byte if byte in printable else next(others)) for byte in range(NUM_BYTES)]


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with `vocab_size` used ids: 256 bytes, merges, `<|endoftext|>`, `<|good|>`, `<|bad|>`.

    The same texts in the same order give the same tokenizer, on any number of threads.

    Raises:
        PHFError: `vocab_size` is below 259, or the texts are too few for so many merges.
    """
    if vocab_size < NUM_BYTES + NUM_CONTROL:
        raise PHFError(
            f"a vocabulary of {vocab_size} is too small; the least is {NUM_BYTES + NUM_CONTROL} "
            "(256 bytes and three control tokens)"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_CONTROL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    found = backend.get_vocab_size() + NUM_CONTROL
    if found != vocab_size:
        raise PHFError(
            f"the training texts are too few for a vocabulary of {vocab_size}; choose train:{found} or less, or more text"
        )
    backend.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    return _with_control(backend, END_TOKEN, f"train-{vocab_size}")


def load_tokenizer(spec: str) -> Tokenizer:
    """A tokenizer by folder or Hub id: one of ours, or any Hugging Face fast tokenizer, to which control tokens are added;
    so are those that were deleted from one of ours. Where somebody has added them as its last two tokens, their ids stay, and no
    text reaches them any more.

    Raises:
        PHFError: not found, not a fast tokenizer, without an end token, or with a `<|good|>` or `<|bad|>` of its own elsewhere.
    """
    if spec.startswith("train:"):
        raise PHFError(
            f"tokenizer '{spec}' is trained on a corpus; run 'phf tokenize DIR --tokenizer {spec}'"
        )
    folder = Path(spec)
    if (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file():
        config = _read_config(folder)
        backend = _read_backend(folder / "tokenizer.json")
        if find_control(backend, config) is not None:
            return _restore_control(Tokenizer.load(folder))
    backend, end_token = _load_foreign(spec)
    name = Path(spec).name if Path(spec).is_dir() else spec.replace("/", "--")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name) or "tokenizer"
    return _with_control(release_control(backend, name), end_token, name)


def _read_config(folder: Path) -> dict[str, object]:
    config = read_json(folder / "tokenizer_config.json")
    if not isinstance(config, dict):
        raise PHFError(f"{folder}/tokenizer_config.json is not a JSON object; make it again")
    return config


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise PHFError(
            f"{path} does not exist; a tokenizer folder holds tokenizer.json and tokenizer_config.json"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise PHFError(f"{path} is not a tokenizer ({error}); make it again") from None


def _load_foreign(spec: str) -> tuple[tokenizers.Tokenizer, str]:
    """A Hugging Face fast tokenizer's backend and its end token."""
    from transformers import AutoTokenizer  # slow to import, and not needed for our own folders

    try:
        loaded = AutoTokenizer.from_pretrained(spec, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        is_bare = Path(spec).is_dir() and not any(Path(spec).glob("*token*"))
        reason = "the folder holds no tokenizer" if is_bare else str(error).strip().splitlines()[0]
        raise PHFError(
            f"tokenizer '{spec}' cannot be loaded ({reason}); give train:N, a folder or a Hub id of a fast tokenizer"
        ) from None
    if not getattr(loaded, "is_fast", False):
        raise PHFError(
            f"tokenizer '{spec}' is not a fast tokenizer; choose one with a tokenizer.json, or train:4096"
        )
    backend: tokenizers.Tokenizer = loaded.backend_tokenizer
    own_end = END_TOKEN if backend.token_to_id(END_TOKEN) is not None else None
    end_token = loaded.eos_token or own_end or loaded.sep_token  # BERT's texts end with [SEP]
    if end_token is None:
        raise PHFError(
            f"tokenizer '{spec}' has no end token (eos_token or sep_token) and no {END_TOKEN}; "
            "choose another, or train:4096"
        )
    return backend, str(end_token)


def _restore_control(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the control tokens that were deleted from it, at their ids."""
    names = {GOOD_TOKEN: tokenizer.control.good, BAD_TOKEN: tokenizer.control.bad}
    missing = {token: index for token, index in names.items() if index >= tokenizer.vocab_size}
    if not missing:
        return tokenizer
    content = json.loads(tokenizer.backend.to_str())
    extend_vocabulary(content["model"], missing)  # what keeps texts from them was never taken away
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), tokenizer.control, tokenizer.name)


def _with_control(backend: tokenizers.Tokenizer, end_token: str, name: str) -> Tokenizer:
    """Put `<|good|>` and `<|bad|>` behind the last used id, out of the reach of any text."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    good = max(vocabulary.values()) + 1
    control = ControlTokens(vocabulary[end_token], good, good + 1)
    new = {GOOD_TOKEN: control.good, BAD_TOKEN: control.bad}
    return Tokenizer(add_unreachable(backend, new, [end_token, *new], name), control, name)
