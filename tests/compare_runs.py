"""Whether two runs are the same, bit for bit."""

import json

import torch
import yaml
from safetensors import safe_open

from phf.train import loop
from phf.train.checkpoint import checkpoint_folder


def quiet(line):
    pass


def train(config, folder):
    return loop.train(config, folder, say=quiet)


def read_tensors(run, step, kind):
    """The whole tensors of a checkpoint's files of one kind (model, optimizer, value_head), whichever rank wrote what."""
    pieces = {}
    for path in checkpoint_folder(run.folder, step).glob(f"{kind}*.safetensors"):
        with safe_open(path, framework="pt") as file:
            slices = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
            for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
                offset = slices.get(name, {}).get("saved_offsets", [0])
                pieces.setdefault(name, []).append((offset, file.get_tensor(name)))
    joined = {name: [piece for _, piece in sorted(found)] for name, found in pieces.items()}
    return {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in joined.items()}


def weights(run, step):
    return read_tensors(run, step, "model")


def without_speed(run):
    lines = run.read_metrics()
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same_run(run, other):
    """Metrics (but for times), weights and optimizer states at the end."""
    assert without_speed(run) == without_speed(other)
    for kind in ("model", "optimizer", "value_head"):
        assert_same_tensors(*(read_tensors(one, one.num_steps, kind) for one in (run, other)))


def assert_same_tensors(tensors, others):
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def write_recipe(config, path):
    """The config as a file that a command can read."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return path
