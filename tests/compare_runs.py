"""Whether two runs are the same, bit for bit."""

import torch
import yaml
from safetensors.torch import load_file

from phf.train import loop
from phf.train.checkpoint import checkpoint_folder


def quiet(line):
    pass


def train(config, folder):
    return loop.train(config, folder, say=quiet)


def weights(run, step):
    return load_file(checkpoint_folder(run.folder, step) / "model.safetensors")


def without_speed(run):
    lines = run.read_metrics()
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same_run(run, other):
    """Metrics (but for times), weights and optimizer states at the end."""
    assert without_speed(run) == without_speed(other)
    folders = [checkpoint_folder(one.folder, one.num_steps) for one in (run, other)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        tensors, others = (load_file(folder / name) for folder in folders)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, others[key]), key


def write_recipe(config, path):
    """The config as a file that a command can read."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return path
