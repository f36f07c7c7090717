"""Shapes of the manifests of corpora, annotations and tokens, as `write_manifest` takes and `read_manifest` gives them.

A shard has no entry until its files are whole; a manifest is complete when all of its shards have one.
"""

from typing import NotRequired, TypedDict

from phf.config.train import SegmentKind
from phf.records import IdentityRecord


class SourceRecord(TypedDict):
    """What became of the rows of a source, in the manifest of a corpus."""

    spec: str
    num_bad_rows: int
    bad_row_reasons: dict[str, int]
    first_bad_rows: list[dict[str, str]]
    left_out_reasons: NotRequired[dict[str, int]]
    first_left_out: NotRequired[list[dict[str, str]]]


class _Shard(TypedDict):
    input_sha256: str
    num_documents: int
    num_segments: int
    segment_ends_hash: str


class _Manifest(TypedDict):
    kind: str
    segments: SegmentKind
    segmentation: dict[str, str | int]
    complete: NotRequired[bool]
    segment_ends_hash: NotRequired[str | None]


class AnnotationShard(_Shard):
    """The scores of one document shard; `reasons` counts the unscored segments by why they are."""

    file: str
    sha256: str
    num_unscored: int
    reasons: dict[str, int]


class AnnotationManifest(_Manifest):
    """What scored, on which segments; `components` is there for a combination alone."""

    reward_model: IdentityRecord
    reward_model_spec: str
    unit: str
    shards: list[AnnotationShard | None]
    components: NotRequired[list[dict[str, object]]]


class TokenShard(_Shard):
    """The tokens of one document shard; `files` gives the SHA-256 of each array by its file's name, `lost` how often each
    character of the texts does not come back from the ids. An earlier phf did not count that."""

    files: dict[str, str]
    num_tokens: int
    num_bytes: int
    num_characters: NotRequired[int]
    lost: NotRequired[dict[str, int]]


class TokenManifest(_Manifest):
    """What tokenized, on which segments; `trained_on` hashes what a tokenizer of `train:N` was trained on."""

    tokenizer: IdentityRecord
    tokenizer_spec: str
    tokenizer_files: dict[str, str]
    trained_on: str | None
    dtype: str
    shards: list[TokenShard | None]
