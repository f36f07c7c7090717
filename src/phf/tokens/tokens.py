"""Token ids of a corpus and where its segments end in them: made once per tokenizer and segmentation."""

import copy
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers

from phf.config.train import SegmentKind
from phf.corpus.manifests import TokenManifest, TokenShard
from phf.corpus.segment import hash_segment_ends, segmentation_identity
from phf.corpus.store import Corpus, read_manifest, write_manifest
from phf.errors import NotApplicableError, PHFError
from phf.files import Place, check_hash, find_local, hash_bytes, hash_file, hash_json, write_bytes
from phf.folders import lock_folder
from phf.records import Identity, Progress, Split
from phf.tokens.recovery import count_lost, explain_loss
from phf.tokens.splitter import Splitter, cumulate
from phf.tokens.tokenizer import WORD_PATTERN, Tokenizer, load_tokenizer, train_tokenizer

TRAINING_BYTES = 20_000_000
"""Text that a tokenizer is trained on at most: more changes hardly a merge of a small vocabulary."""

WINDOW_ROWS = 1 << 21
"""Segments and documents of a window (`phf.tokens.windows`), all of which a process holds in memory at once."""

_Type = TypeVar("_Type", bound=np.generic)
_TYPES = {"segment_ends": "<i8", "document_ends": "<i8", "segment_bytes": "<u4", "is_train": "|b1"}
_TOKENIZER_FILES = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")


def tokenize(
    corpus: Corpus | Place,
    spec: Place,
    segments: SegmentKind,
    *,
    workers: int | None = None,
    training_bytes: int = TRAINING_BYTES,
    progress: Progress | None = None,
) -> "TokenCache":
    """Tokenize every document of a corpus whole, or what an earlier call has left undone.

    A shard is done when the manifest lists it, which is written last. The bytes do not depend on `workers` or on how
    often the work was stopped.

    Args:
        spec: `train:N` (byte-level BPE with N ids, trained on the training split), a folder, or a Hub id.
        segments: where segments end; a token that straddles an end is split, no other.
        workers: row groups of a shard in work at a time, beside the threads of `tokenizers`; by default one per core.
        training_bytes: text that `train:N` is trained on at most.

    Raises:
        PHFError: the tokenizer cannot be had or loses text; the corpus or an earlier cache is damaged.
    """
    if workers is not None and workers < 1:
        raise PHFError(f"workers {workers} must be at least 1")
    corpus, spec = Corpus.open(corpus), os.fspath(spec)
    if find_local(corpus.path) is None:
        raise PHFError(
            f"{corpus.path} is not on a local disk, and training maps tokens into memory; copy the corpus to one first, "
            "with the storage's own tool (aws s3 sync, gcloud storage rsync, hf download)"
        )
    tokenizer, trained_on = _obtain_tokenizer(corpus, spec, training_bytes)
    folder = token_folder(corpus, tokenizer.identity, segments)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "writing"):
        for left_over in folder.rglob(".*.tmp"):  # of a process that was killed
            left_over.unlink()
        entries = _find_valid_entries(corpus, folder, is_exact=tokenizer.is_byte_level)
        if entries and all(entry is not None for entry in entries):
            return TokenCache.open(folder)
        # Before any shard: a call that goes on finds, by `trained_on`, the very tokenizer that made the first ones.
        tokenizer.save(folder / "tokenizer")
        manifest: TokenManifest = {
            "kind": "tokens",
            "tokenizer": tokenizer.identity.to_json(),
            "tokenizer_spec": spec,
            "tokenizer_files": {name: hash_file(folder / name) for name in _TOKENIZER_FILES},
            "trained_on": trained_on,
            "segments": segments,
            "segmentation": segmentation_identity(segments),
            "dtype": "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4",
            "shards": entries,
        }
        _write_state(folder, manifest)
        _tokenize_shards(corpus, folder, manifest, tokenizer, workers or os.cpu_count() or 1, progress)
    return TokenCache.open(folder, verify=False)  # just written, or just checked


def token_folder(corpus: Corpus, tokenizer: Identity, segments: SegmentKind) -> Path:
    """Where the tokens of a tokenizer and a segmentation lie: the id hashes both."""
    key = {"tokenizer": tokenizer.to_json(), "segmentation": segmentation_identity(segments)}
    return corpus.path / "tokens" / f"{tokenizer.name}@{hash_json(key)[:8]}"


class TokenCache:
    """The tokens of a corpus, in corpus order. Small arrays are global; ids stay memory-mapped, shard by shard.

    Attributes:
        path: its folder.
        manifest, shards: `manifest.json`, its own hash checked, and its entries in order.
        num_documents, num_segments, num_tokens: of all splits, without control tokens and `<|endoftext|>`.
    """

    def __init__(self, path: Path, manifest: TokenManifest) -> None:
        self.path = path
        self.manifest = manifest
        self.shards = [entry for entry in manifest["shards"] if entry is not None]
        self.num_documents = sum(entry["num_documents"] for entry in self.shards)
        self.num_segments = sum(entry["num_segments"] for entry in self.shards)
        self.num_tokens = sum(entry["num_tokens"] for entry in self.shards)
        self._numbers = list(range(len(self.shards)))  # by which the files of each shard are named
        self._unchecked: dict[str, str] = {}  # SHA-256 of files that are checked when they are first read
        self._mapped: dict[tuple[int, str], npt.NDArray[Any]] = {}

    @property
    def num_characters(self) -> int:
        """Code points of all texts, as far as they were counted (see `lost`)."""
        return sum(entry.get("num_characters", 0) for entry in self.shards)

    @cached_property
    def lost(self) -> dict[str, int] | None:
        """How often each character did not come back from the ids (`phf.tokens.recovery`); None if no one has counted."""
        if self.tokenizer.is_byte_level:
            return {}
        if not all("lost" in entry for entry in self.shards):
            return None
        return dict(sum((Counter(entry["lost"]) for entry in self.shards), Counter[str]()))

    def explain_loss(self) -> str | None:
        """Why what a model pays for the ids is not the price of the text; None if it is."""
        if self.lost is None:
            return (
                f"{self.path} does not say what its tokenizer lost; run 'phf tokenize' again, which counts it"
            )
        return explain_loss(self.lost, self.num_characters, self.tokenizer.name)

    def check_recovery(self) -> None:
        """Refuse to price text by ids that do not say all of it.

        Raises:
            NotApplicableError: more characters do not come back than `MAX_LOST_SHARE`; says how many, and which.
        """
        if reason := self.explain_loss():
            raise NotApplicableError(reason)

    @classmethod
    def open(cls, path: Path | str, verify: bool = True) -> "TokenCache":
        """Open a finished token cache.

        Args:
            path: `DIR/tokens/<tokenizer>@<id>`.
            verify: check the SHA-256 of every file; of a cache of many windows, when it is first read.

        Raises:
            PHFError: it is missing, unfinished or damaged; names the file.
        """
        path = Path(path)
        manifest: TokenManifest = read_manifest(path / "manifest.json", _remedy(path))
        if not manifest["complete"]:
            num_done = sum(entry is not None for entry in manifest["shards"])
            raise PHFError(
                f"{path} is not finished ({num_done} of {len(manifest['shards'])} shards); run 'phf tokenize' again"
            )
        cache = cls(path, manifest)
        if verify:
            files = dict(manifest["tokenizer_files"])
            arrays = cache._unchecked if cache.is_large else files
            for entry in cache.shards:
                arrays.update(entry["files"])
            for name, sha256 in files.items():
                check_hash(path / name, sha256, _remedy(path))
        return cache

    def with_levels(self, num_levels: int) -> "TokenCache":
        """The same tokens, seen by a tokenizer with more control tokens (see `Tokenizer.add_levels`)."""
        view = copy.copy(self)
        view.tokenizer = self.tokenizer.add_levels(num_levels)
        return view

    def select(self, shards: Sequence[int] | npt.NDArray[np.int64]) -> "TokenCache":
        """Some shards as a cache of their own."""
        entries = self.manifest["shards"]
        view = TokenCache(self.path, {**self.manifest, "shards": [entries[shard] for shard in shards]})
        view.tokenizer = self.tokenizer
        view._numbers = [self._numbers[shard] for shard in shards]
        view._unchecked = self._unchecked
        return view

    @property
    def is_large(self) -> bool:
        """Whether the arrays over all segments and documents are more than a process should hold."""
        return self.num_documents + self.num_segments > WINDOW_ROWS and len(self.shards) > 1

    @property
    def slug(self) -> str:
        """`<tokenizer>@<id>`; the id changes with the tokenizer and with the segmentation."""
        return self.path.name

    @property
    def segment_ends_hash(self) -> str:
        """Equal to that of an annotation if and only if all segment ends are the same."""
        return str(self.manifest["segment_ends_hash"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return Tokenizer.load(self.path / "tokenizer")

    @cached_property
    def ids(self) -> list[npt.NDArray[np.unsignedinteger]]:
        """Token ids of each shard, memory-mapped."""
        return [self._map(index, "ids") for index in range(len(self.shards))]

    @cached_property
    def shard_starts(self) -> npt.NDArray[np.int64]:
        """Tokens before each shard, and in all: int64 [num_shards + 1]."""
        return cumulate([entry["num_tokens"] for entry in self.shards])

    @cached_property
    def shard_segments(self) -> npt.NDArray[np.int64]:
        """Segments before each shard, and in all: int64 [num_shards + 1]."""
        return cumulate([entry["num_segments"] for entry in self.shards])

    def map_shard(self, shard: int, kind: str) -> npt.NDArray[Any]:
        """An array of a shard as it lies on the disk (docs/format.md), memory-mapped: `ids`, or one of `_TYPES`."""
        if (shard, kind) not in self._mapped:
            self._mapped[shard, kind] = self._map(shard, kind)
        return self._mapped[shard, kind]

    @cached_property
    def segment_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each segment, int64 [num_segments]; at least 1."""
        return self._join("segment_ends", np.int64, ends=True)

    @cached_property
    def segment_bytes(self) -> npt.NDArray[np.uint32]:
        """UTF-8 bytes of each segment's text, uint32 [num_segments]."""
        return self._join("segment_bytes", np.uint32)

    @cached_property
    def document_segments(self) -> npt.NDArray[np.int64]:
        """Segments of each document, int64 [num_documents]; 0 for an empty document."""
        return self._join("document_ends", np.int64, ends=True)

    @cached_property
    def is_train(self) -> npt.NDArray[np.bool_]:
        """Whether each document is in the training split, bool [num_documents]."""
        return self._join("is_train", np.bool_)

    def split_mask(self, split: Split) -> npt.NDArray[np.bool_]:
        """Whether each document is in a split, bool [num_documents]."""
        return self.is_train if split == "train" else ~self.is_train

    def _map(self, shard: int, kind: str) -> npt.NDArray[Any]:
        file = self.path / f"{self._numbers[shard]:05d}.{kind}"
        if (sha256 := self._unchecked.get(file.name)) is not None:
            check_hash(file, sha256, _remedy(self.path))
            self._unchecked.pop(file.name, None)
        dtype = np.dtype(self.manifest["dtype"] if kind == "ids" else _TYPES[kind])
        if file.stat().st_size == 0:  # cannot be mapped
            return np.empty(0, dtype)
        return np.memmap(file, dtype, mode="r")

    def _join(self, kind: str, dtype: type[_Type], ends: bool = False) -> npt.NDArray[_Type]:
        """One array over all shards; cumulative ends become lengths."""
        parts = [np.asarray(self._map(shard, kind)) for shard in range(len(self.shards))]
        if ends:
            parts = [np.diff(part, prepend=0) for part in parts]
        return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


def find_tokens(corpus: Corpus, spec: str, segments: SegmentKind) -> TokenCache:
    """The finished tokens of a corpus that an earlier call of `tokenize` made with this spec.

    Raises:
        PHFError: there are none (names the command that makes them), they are damaged, or made from other documents.
    """
    command = f"phf tokenize {corpus.path} --tokenizer {spec} --segments {segments}"
    folders, finished = [], []
    for path in sorted((corpus.path / "tokens").glob("*/manifest.json")):
        manifest = read_manifest(path, _remedy(path.parent))
        if (manifest["tokenizer_spec"], manifest["segments"]) == (spec, segments):
            folders.append(path.parent)
        elif manifest["complete"]:
            finished.append((manifest["tokenizer_spec"], manifest["segments"]))
    if not folders and not spec.startswith("train:"):
        # The same tokenizer may have been given by another name.
        folders.append(token_folder(corpus, load_tokenizer(spec).identity, segments))
    for folder in folders:
        if (folder / "manifest.json").exists():
            tokens = TokenCache.open(folder)
            inputs = [entry["input_sha256"] for entry in tokens.shards]
            if inputs != [shard.sha256 for shard in corpus.shards]:
                raise PHFError(f"{folder} is stale: it was made from other documents; run: {command}")
            return tokens
    others = ", ".join(f"tokenizer={other}" for other, kind in finished if kind == segments)
    proposal = f"it has {others}: give that, or " if others else ""
    raise PHFError(
        f"{corpus.path} has no tokens by {spec} on {segments}; {proposal}make them with: {command}"
    )


def _remedy(folder: Path) -> str:
    return f"delete {folder} and run 'phf tokenize' again"


def _obtain_tokenizer(corpus: Corpus, spec: str, training_bytes: int) -> tuple[Tokenizer, str | None]:
    """The tokenizer of a spec, and a hash of what it was trained on if it is one of `train:N`."""
    if not spec.startswith("train:"):
        return load_tokenizer(spec), None
    number = spec.removeprefix("train:")
    if not (number.isascii() and number.isdigit() and len(number) < 8):
        raise PHFError(f"tokenizer '{spec}' has no valid vocabulary size; write for example train:4096")
    trainer = f"tokenizers {tokenizers.__version__} {WORD_PATTERN} {training_bytes}"
    trained_on = hash_json({"spec": f"train:{int(number)}", "corpus": corpus.id, "trainer": trainer})
    for path in sorted((corpus.path / "tokens").glob("*/manifest.json")):
        manifest = read_manifest(path, _remedy(path.parent))
        if manifest["trained_on"] == trained_on:
            for name in _TOKENIZER_FILES:
                check_hash(path.parent / name, manifest["tokenizer_files"][name], _remedy(path.parent))
            return Tokenizer.load(path.parent / "tokenizer"), trained_on
    # Of a large training split the share that has about `training_bytes`, chosen by the first digits of the texts' hashes:
    # the last ones decide the split.
    limit = training_bytes / max(1, corpus.manifest["counts"]["train"]["bytes"]) * 2**48
    documents = corpus.iterate_documents("train")
    texts = (document.text for document in documents if int(document.text_hash[:12], 16) < limit)
    return train_tokenizer(texts, int(number)), trained_on


def _find_valid_entries(corpus: Corpus, folder: Path, *, is_exact: bool) -> list[TokenShard | None]:
    """For each shard the entry of an earlier call, if its input and its files are still the same; and, unless the tokenizer
    `is_exact`, if it says what was lost."""
    entries: list[TokenShard | None] = [None] * len(corpus.shards)
    if not (folder / "manifest.json").exists():
        return entries
    earlier = read_manifest(folder / "manifest.json", _remedy(folder))["shards"]
    for index, (entry, shard) in enumerate(zip(earlier, corpus.shards, strict=False)):
        if entry is None or entry["input_sha256"] != shard.sha256 or not (is_exact or "lost" in entry):
            continue
        for name, sha256 in entry["files"].items():
            check_hash(folder / name, sha256, _remedy(folder))
        entries[index] = entry
    return entries


def _write_state(folder: Path, manifest: TokenManifest) -> None:
    """Write the manifest; it is complete when every shard has an entry."""
    entries = manifest["shards"]
    manifest["complete"] = all(entry is not None for entry in entries)
    hashes = [entry["segment_ends_hash"] for entry in entries if entry is not None]
    manifest["segment_ends_hash"] = hash_json(hashes) if manifest["complete"] else None
    write_manifest(folder / "manifest.json", manifest)


def _tokenize_shards(
    corpus: Corpus,
    folder: Path,
    manifest: TokenManifest,
    tokenizer: Tokenizer,
    workers: int,
    progress: Progress | None,
) -> None:
    """Tokenize the shards without an entry, in order; write each shard's files, then its entry."""
    splitter = Splitter(tokenizer)
    pending = [index for index, entry in enumerate(manifest["shards"]) if entry is None]
    num_documents = sum(corpus.shards[index].num_documents for index in pending)
    num_done = 0
    for index in pending:
        with corpus.open_shard(index) as file:
            num_groups = file.num_row_groups

        def run(group: int, index: int = index) -> _Group:
            return _tokenize_group(corpus, index, group, splitter, manifest["segments"], manifest["dtype"])

        groups = []
        with closing(_map_in_order(run, range(num_groups), workers)) as results:
            for result in results:
                groups.append(result)
                num_done += len(result.num_segments)
                if progress is not None:
                    progress("tokenizing documents", num_done, num_documents)
        manifest["shards"][index] = _write_shard(
            folder, index, groups, corpus.shards[index].sha256, manifest["dtype"]
        )
        _write_state(folder, manifest)


@dataclass(frozen=True, slots=True)
class _Group:
    """What a row group of documents becomes."""

    ids: npt.NDArray[np.integer]  # [num_tokens]
    segment_lengths: npt.NDArray[np.int64]  # tokens [num_segments]
    segment_bytes: npt.NDArray[np.int64]  # [num_segments]
    segment_ends: npt.NDArray[np.int64]  # code points, restarting with each document [num_segments]
    num_segments: npt.NDArray[np.int64]  # [num_documents]
    is_train: npt.NDArray[np.bool_]  # [num_documents]
    num_characters: int
    lost: Counter[str]


def _map_in_order(
    run: Callable[[int], _Group], groups: Sequence[int], workers: int
) -> Generator[_Group, None, None]:
    """The groups' results in order, by threads that are never far ahead (which bounds memory)."""
    # Threads, not processes: most of the time is spent in `tokenizers` and numpy, which let go of the lock.
    remaining = iter(groups)
    waiting: deque[Future[_Group]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for group in islice(remaining, 2 * workers - len(waiting)):
                waiting.append(pool.submit(run, group))
            if not waiting:
                return
            yield waiting.popleft().result()


def _tokenize_group(
    corpus: Corpus, shard: int, group: int, splitter: "Splitter", segments: SegmentKind, dtype: str
) -> _Group:
    table, ends = corpus.read_segments(shard, group, ["id", "text", "split"], segments)
    texts: list[str] = table["text"].to_pylist()
    num_segments = np.array([len(document) for document in ends], np.int64)
    flat_ends = np.fromiter((end for document in ends for end in document), np.int64, int(num_segments.sum()))
    ids, lengths, num_bytes = splitter.tokenize(texts, num_segments, flat_ends)
    if not (lengths > 0).all():
        document = int(np.searchsorted(np.cumsum(num_segments), int((lengths > 0).argmin()), side="right"))
        raise PHFError(
            f"tokenizer {splitter.tokenizer.name} gives no token to a segment of document "
            f"{table['id'][document]}; choose a byte-level one, for example train:4096"
        )
    is_train = np.array([split == "train" for split in table["split"].to_pylist()], np.bool_)
    rows = np.split(ids, cumulate(lengths)[cumulate(num_segments)][1:-1])
    lost = count_lost(splitter.tokenizer, texts, rows)
    num_characters = sum(map(len, texts))
    return _Group(
        ids.astype(dtype), lengths, num_bytes, flat_ends, num_segments, is_train, num_characters, lost
    )


def _write_shard(
    folder: Path, index: int, groups: Sequence[_Group], input_sha256: str, dtype: str
) -> TokenShard:
    """Write a shard's files and give its manifest entry."""

    def join(name: str, dtype: str) -> npt.NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(getattr(group, name) for group in groups)])

    num_segments, lengths = join("num_segments", "<i8"), join("segment_lengths", "<i8")
    arrays = {
        "ids": join("ids", dtype),
        "segment_ends": np.cumsum(lengths),
        "document_ends": np.cumsum(num_segments),
        "segment_bytes": join("segment_bytes", "<i8"),
        "is_train": join("is_train", "|b1"),
    }
    files = {}
    for kind, array in arrays.items():
        data = array.astype(dtype if kind == "ids" else _TYPES[kind], copy=False).tobytes()
        write_bytes(folder / f"{index:05d}.{kind}", data)
        files[f"{index:05d}.{kind}"] = hash_bytes(data)
    return {
        "files": files,
        "input_sha256": input_sha256,
        "num_documents": len(num_segments),
        "num_segments": len(lengths),
        "num_tokens": len(arrays["ids"]),
        "num_bytes": int(arrays["segment_bytes"].sum()),
        "num_characters": sum(group.num_characters for group in groups),
        "lost": dict(sorted(sum((group.lost for group in groups), Counter[str]()).items())),
        "segment_ends_hash": hash_segment_ends(num_segments, join("segment_ends", "<i8")),
    }
