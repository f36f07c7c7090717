"""Tensors in safetensors files, of which every rank writes its part and reads what it needs.

The files are those of torch.distributed.checkpoint's Hugging Face storage, whose reader cuts and joins their slices for
any number of ranks. Its writer is not used: it makes a file twice in memory and holds Python's lock meanwhile, so that
training would stand still (docs/design/0006).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from phf.files import keep_mode
from phf.train.distributed import Ranks, gather

_SHARDING = "DCP_SHARDING_INFO"
"""Where torch's reader looks for the offsets of slices, in a file's metadata."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank writes of some tensors: whole ones in CPU memory, and its slices of those that ranks share.

    Attributes:
        offsets: where each tensor begins in the whole one, a number per dimension.
    """

    tensors: dict[str, Tensor]
    offsets: dict[str, list[int]]

    def write(self, path: Path) -> None:
        """Write a safetensors file; one of whole tensors is like any other."""
        metadata = {"format": "pt"}
        if any(any(offset) for offset in self.offsets.values()):
            slices = {name: {"saved_offsets": offset} for name, offset in self.offsets.items()}
            metadata[_SHARDING] = json.dumps(slices)
        with keep_mode(path):
            save_file(self.tensors, path, metadata=metadata)


class HostMemory:
    """Copies of tensors in CPU memory, which is kept and filled again: one set of copies is in use at a time.

    From a GPU the copies are only begun, in the order of its stream; later kernels do not change them.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take_part(self, tensors: Mapping[str, Tensor], ranks: Ranks, *, is_whole: bool) -> Part:
        """Copy this rank's part of tensors that all ranks have under the same names; all must call this.

        Args:
            is_whole: every tensor is to be whole in one part; one that ranks share is gathered, one after the other.
        """
        from torch.distributed.tensor import DTensor  # as all of torch's distributed parts, slow to import
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        owners = assign_owners({name: tensor.numel() for name, tensor in tensors.items()}, ranks.size)
        part = Part({}, {})
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor) and not is_whole:
                own = tensor.to_local()
                _, begin = compute_local_shape_and_global_offset(
                    tensor.shape, tensor.device_mesh, tensor.placements
                )
                offset, is_own = list(begin), own.numel() > 0
            else:
                own, offset, is_own = gather(tensor), [0] * tensor.ndim, owners[name] == ranks.rank
            if is_own:
                part.tensors[name] = self._copy(name, own.detach())
                part.offsets[name] = offset
        return part

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self._buffers[name].copy_(tensor, non_blocking=True)


def assign_owners(sizes: Mapping[str, int], num_ranks: int) -> dict[str, int]:
    """The rank that writes each tensor: the one that has the least to write so far."""
    loads = [0] * num_ranks
    owners = {}
    for name, size in sizes.items():
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += size
    return owners


class TensorFiles:
    """The tensors in those safetensors files of a folder that match a pattern, whoever wrote which slice.

    Attributes:
        shapes: of the whole tensors, by name.
    """

    def __init__(self, folder: Path, pattern: str) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self._reader = HuggingFaceStorageReader(str(folder))
        self._metadata = self._reader.read_metadata()
        places = self._metadata.storage_data or {}
        names = {index.fqn for index, place in places.items() if Path(place.relative_path).match(pattern)}
        self.shapes = {
            name: tensor.size
            for name, tensor in self._metadata.state_dict_metadata.items()
            if name in names and isinstance(tensor, TensorStorageMetadata)
        }

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors in place; of one that ranks share, only this rank's slice is read."""
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

        planner = DefaultLoadPlanner()
        planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._reader.read_data(planner.create_local_plan(), planner).wait()
