"""Exports read by the engines' own readers.

datasets, datatrove (nanotron's) and megatron-core are in the environment of the tests. The others want older versions of numpy and
transformers than ours, or clients of every cloud; they read where a folder of them is named (all did on 2026-12-01):

    pip install --no-deps --target engines litdata==0.2.76 lightning-utilities obstore tifffile boto3 botocore s3transfer \
        jmespath mosaicml-streaming==0.13.0 python-snappy cramjam Brotli zstd paramiko oci \
        ai2-olmo-core==3.0.0 cached-path bettermap dataclass-extensions importlib_resources
    PHF_ENGINES=engines pytest tests/test_export.py

What these import for pictures and clouds alone is put in by `_Absent`.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

ENGINES = os.environ.get("PHF_ENGINES")
_UNNEEDED = ("torchvision", "google", "cryptography", "oci", "paramiko")


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of which nothing is called."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in _UNNEEDED:
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock(spec=None, name=spec.name)
        module.VisionDataset = type("VisionDataset", (), {})
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def engines():
    """The packages of `PHF_ENGINES` can be imported here, behind our own."""
    if ENGINES is None:
        yield
        return
    before, finder = set(sys.modules), _Absent()
    sys.path.append(ENGINES)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(ENGINES)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in _UNNEEDED:
                del sys.modules[name]


def read_datasets(folder: Path, manifest: dict) -> dict[str, np.ndarray]:
    import datasets

    rows = datasets.load_from_disk(str(folder)).with_format("numpy")
    return {name: np.stack(list(rows[name])) for name in rows.column_names}


def read_mds(folder: Path, manifest: dict) -> dict[str, np.ndarray]:
    import json

    from streaming.base.format import reader_from_json
    from streaming.base.format.index import get_index_basename

    index = json.loads((folder / get_index_basename()).read_text())
    shards = [reader_from_json(str(folder), "", shard) for shard in index["shards"]]
    for shard in shards:
        shard.validate(allow_unsafe_types=False)
    samples = [shard[place] for shard in shards for place in range(len(shard))]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def read_litdata(folder: Path, manifest: dict) -> dict[str, np.ndarray]:
    from litdata import StreamingDataset, TokensLoader

    rows = StreamingDataset(
        str(folder), item_loader=TokensLoader(block_size=manifest["context"] + 1), shuffle=False
    )
    return {"tokens": np.stack([rows[place].numpy() for place in range(len(rows))])}


def read_olmo(folder: Path, manifest: dict) -> dict[str, np.ndarray]:
    from olmo_core.data.collator import DataCollator
    from olmo_core.data.numpy_dataset import NumpyFSLDataset
    from olmo_core.data.utils import get_labels

    places = range(len(manifest["shards"]))
    end = manifest["loss"]["control"]["end"]
    rows = NumpyFSLDataset(
        *(folder / f"{place:05d}.npy" for place in places),
        sequence_length=manifest["context"] + 1,
        pad_token_id=end,
        eos_token_id=end,
        vocab_size=manifest["vocab_size"],
        dtype=np.dtype(manifest["token_type"]).type,
        label_mask_paths=[folder / f"{place:05d}.label_mask.npy" for place in places],
    )
    batch = DataCollator(pad_token_id=end)([rows[place] for place in range(len(rows))])
    return {"tokens": batch["input_ids"].numpy(), "labels": get_labels(batch).numpy()}


def read_megatron(folder: Path, manifest: dict) -> dict[str, np.ndarray]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    rows = []
    for place in range(len(manifest["shards"])):
        shard = IndexedDataset(str(folder / f"{place:05d}"))
        assert len(shard.document_indices) == len(shard) + 1
        rows += [shard[row].copy() for row in range(len(shard))]  # it unmaps its file when it goes
    return {"tokens": np.stack(rows).astype(np.int64)}


def sample_megatron(folder: Path, manifest: dict) -> list[tuple[list[int], list[int], list[float]]]:
    """Tokens, labels and loss mask of each sample of Megatron's training set over the first shard, in its own order."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    tokenizer = MagicMock(vocab_size=manifest["vocab_size"], eod=manifest["loss"]["control"]["end"], pad=-1)
    tokenizer.unique_identifiers = {"class": "phf"}
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=manifest["context"] + 1,
        add_extra_token_to_sequence=False,
        blend=([str(folder / "00000")], None),
        split="1,0,0",
        path_to_cache=str(folder / "cache"),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    shard = GPTDataset.build_low_level_dataset(str(folder / "00000"), config)
    rows = GPTDataset(shard, str(folder / "00000"), np.arange(len(shard)), None, Split.train, config)
    return [
        tuple(rows[place][name].tolist() for name in ("tokens", "labels", "loss_mask"))
        for place in range(len(rows))
    ]


def read_nanotron(folder: Path, manifest: dict) -> dict[str, np.ndarray]:
    """By datatrove, whose data sets nanotron reads."""
    from datatrove.utils.dataset import DatatroveFileDataset

    size = np.dtype(manifest["token_type"]).itemsize
    rows = []
    for place in range(len(manifest["shards"])):
        shard = DatatroveFileDataset(str(folder / f"{place:05d}.bin"), manifest["context"], token_size=size)
        rows += [shard[row]["input_ids"] for row in range(len(shard))]
    return {"tokens": torch.stack(rows).numpy()}


def read_layout(kind: str, folder: Path, manifest: dict) -> np.ndarray:
    """The tokens [blocks, T + 1] by what we know of the bytes, for where the engine is not installed."""
    width, shards = manifest["context"] + 1, range(len(manifest["shards"]))
    if kind == "olmo":
        parts = [np.fromfile(folder / f"{place:05d}.npy", manifest["token_type"]) for place in shards]
    elif kind == "litdata":
        index = json.loads((folder / "index.json").read_text())
        assert [chunk["dim"] % width for chunk in index["chunks"]] == [0 for _ in shards]
        parts = [np.fromfile(folder / chunk["filename"], "<i4", offset=12) for chunk in index["chunks"]]
    else:
        parts = []
        for shard in json.loads((folder / "index.json").read_text())["shards"]:
            content = (folder / shard["raw_data"]["basename"]).read_bytes()
            starts = np.frombuffer(content, "<u4", shard["samples"] + 1, offset=4)
            names, sizes = shard["column_names"], shard["column_sizes"]
            offset = sum(sizes[: names.index("tokens")])
            parts += [np.frombuffer(content, "<i4", width, offset=start + offset) for start in starts[:-1]]
            assert starts[-1] == len(content)
    return np.concatenate(parts).reshape(-1, width)
