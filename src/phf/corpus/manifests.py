"""Shapes of the manifests of annotations and tokens, as `write_manifest` takes and `read_manifest` gives them.

A shard has no entry until its files are whole; a manifest is complete when all of its shards have one.
"""

from typing import NotRequired, TypedDict

from phf.config import SegmentKind
from phf.records import IdentityRecord

Segmentation = dict[str, str | int]
"""See `phf.corpus.segment.segmentation_identity`."""


class AnnotationShard(TypedDict):
    """The scores of one document shard; `reasons` counts the unscored segments by why they are."""

    file: str
    sha256: str
    input_sha256: str
    num_documents: int
    num_segments: int
    num_unscored: int
    reasons: dict[str, int]
    segment_ends_hash: str


class AnnotationManifest(TypedDict):
    """What scored, on which segments; `components` is there for a combination alone."""

    kind: str
    reward_model: IdentityRecord
    reward_model_spec: str
    unit: str
    segments: SegmentKind
    segmentation: Segmentation
    shards: list[AnnotationShard | None]
    components: NotRequired[list[dict[str, object]]]
    complete: NotRequired[bool]
    segment_ends_hash: NotRequired[str | None]


class TokenShard(TypedDict):
    """The tokens of one document shard; `files` gives the SHA-256 of each array by its file's name."""

    files: dict[str, str]
    input_sha256: str
    num_documents: int
    num_segments: int
    num_tokens: int
    num_bytes: int
    segment_ends_hash: str


class TokenManifest(TypedDict):
    """What tokenized, on which segments; `trained_on` hashes what a tokenizer of `train:N` was trained on."""

    kind: str
    tokenizer: IdentityRecord
    tokenizer_spec: str
    tokenizer_files: dict[str, str]
    trained_on: str | None
    segments: SegmentKind
    segmentation: Segmentation
    dtype: str
    shards: list[TokenShard | None]
    complete: NotRequired[bool]
    segment_ends_hash: NotRequired[str | None]
