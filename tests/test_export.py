"""`phf tokens export`: what an engine's own reader finds is what `Blocks` lays out."""

import json
from pathlib import Path

import export_readers
import numpy as np
import pytest
from export_readers import engines
from typer.testing import CliRunner

from phf.cli import app
from phf.errors import PHFError
from phf.files import hash_file
from phf.integrations.columns import IGNORED, make_columns, make_tokens
from phf.integrations.export import export_blocks, read_export
from phf.integrations.loss import TokenLoss
from phf.integrations.transformers import BlockDataset, TrainerObjective
from phf.records import PAD, TEXT
from phf.train.data import open_data

READERS = {
    "datasets": ("datasets", export_readers.read_datasets),
    "olmo": ("olmo", export_readers.read_olmo),
    "megatron": ("megatron", export_readers.read_megatron),
    "nanotron": ("megatron", export_readers.read_nanotron),
    "litdata": ("litdata", export_readers.read_litdata),
    "mds": ("mds", export_readers.read_mds),
}
FORMATS = ("datasets", "olmo", "megatron", "litdata", "mds")


def blocks_of(config, manifest):
    """All blocks of an export, as the run reads them."""
    return open_data(config).training_blocks().rows(np.arange(manifest["num_blocks"]))


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("reader", READERS)
def test_the_engines_own_reader_finds_the_blocks(reader, small_config, tmp_path):
    """Two epochs and a bit in three shards: shards end anywhere, epochs end in padding."""
    kind, read = READERS[reader]
    config = small_config("data.context=48")
    manifest = export_blocks(config, tmp_path / "out", kind, epochs=2.1, shard_tokens=40_000)
    assert len(manifest["shards"]) > 2
    with engines():
        try:
            found = read(tmp_path / "out", manifest)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed; see tests/export_readers.py")
    config = config.model_copy(update={"tokens": manifest["config"]["tokens"]})
    batch = blocks_of(config, manifest)
    assert (batch.kinds == PAD).any()
    expected = make_columns(batch)
    if kind == "datasets":
        for name, column in expected.items():
            np.testing.assert_array_equal(found[name], column, err_msg=name)
        assert found["loss_weights"].min() == 0
        assert found["loss_weights"].max() == 1
    else:
        np.testing.assert_array_equal(found["tokens"], make_tokens(batch))
    if kind == "mds":
        for name in ("position_ids", "scores", "kinds", "segment_labels"):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        np.testing.assert_array_equal(found["is_active"][:, 0], expected["is_active"])
    if kind == "olmo":
        np.testing.assert_array_equal(found["labels"][:, :-1], expected["targets"])
    if kind == "datasets":
        np.testing.assert_array_equal(found["labels"][:, 1:], expected["targets"][:, :-1])


@pytest.mark.parametrize("kind", ["olmo", "litdata", "mds"])
def test_the_bytes_are_those_that_the_engines_readers_found(kind, small_config, tmp_path):
    config = small_config()
    manifest = export_blocks(config, tmp_path, kind, shard_tokens=1024)
    found = export_readers.read_layout(kind, tmp_path, manifest)
    np.testing.assert_array_equal(found, make_tokens(blocks_of(config, manifest)))


@pytest.mark.filterwarnings("ignore")
def test_megatrons_own_samples_are_the_blocks(small_config, tmp_path):
    config = small_config("data.context=48")
    manifest = export_blocks(config, tmp_path / "out", "megatron")
    with engines():
        try:
            samples = export_readers.sample_megatron(tmp_path / "out", manifest)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed; see tests/export_readers.py")
    batch = blocks_of(config, manifest)
    assert sorted(tokens for tokens, _, _ in samples) == sorted(make_tokens(batch).tolist())
    for tokens, labels, mask in samples:
        assert labels[:-1] == tokens[1:]
        assert mask == [1.0] * 48 + [0.0]


@pytest.mark.parametrize(
    ("objective", "reads"),
    [
        (["masking", "good_fraction=0.5"], "mask"),
        (["rwr"], "weight"),
        (["additive", "good_fraction=0.5"], "inputs"),
        (["unlikelihood", "good_fraction=0.5"], "scores"),
    ],
)
def test_a_format_that_would_make_mle_of_an_objective_is_refused(objective, reads, small_config, tmp_path):
    kind, *settings = objective
    config = small_config(f"objective.kind={kind}", *(f"objective.{setting}" for setting in settings))
    for name in ("olmo", "megatron", "litdata"):
        if (name, reads) == ("olmo", "mask"):
            continue
        with pytest.raises(PHFError, match=f"format {name} holds tokens and not .* is MLE; give --format"):
            export_blocks(config, tmp_path / name, name)
        assert not (tmp_path / name).exists()
    manifest = export_blocks(config, tmp_path / "rows", "datasets")
    if reads == "mask":
        assert not any("MLE" in line for line in manifest["lost"])
    elif reads == "scores":
        assert "has no static weights" in manifest["lost"][0]
    else:
        assert f"trains MLE and not {kind}" in manifest["lost"][0]


def test_weights_and_masks_are_those_of_the_loss(small_config, tmp_path):
    masking = small_config("objective.kind=masking", "objective.good_fraction=0.5")
    rows = export_readers.read_datasets(tmp_path / "m", export_blocks(masking, tmp_path / "m", "datasets"))
    is_bad = (rows["kinds"] == TEXT) & (rows["scores"] > open_data(masking).threshold.value)
    np.testing.assert_array_equal(rows["loss_weights"], np.where(is_bad, 0.0, 1.0))
    np.testing.assert_array_equal(
        rows["labels"][:, 1:], np.where(is_bad[:, :-1], IGNORED, rows["targets"][:, :-1])
    )
    # RWR between two parts of plain MLE: weights of text where it is active, 1 elsewhere.
    rwr = small_config("objective.kind=rwr", "objective.start=0.5")
    rows = export_readers.read_datasets(tmp_path / "r", export_blocks(rwr, tmp_path / "r", "datasets"))
    reward = open_data(rwr).objective.reward_scale
    assert reward is not None
    weights = np.exp((-rows["scores"] - reward.mean) / reward.deviation).clip(max=20)
    is_weighted = (rows["kinds"] == TEXT) & rows["is_active"][:, None]
    np.testing.assert_allclose(rows["loss_weights"], np.where(is_weighted, weights, 1.0), rtol=1e-5)
    assert 0 < is_weighted.mean() < 0.6


def test_trainer_reads_an_export_as_it_reads_the_run(small_config, tmp_path):
    import datasets

    config = small_config("objective.kind=scalar")
    export_blocks(config, tmp_path / "out", "datasets")
    data = open_data(config)
    ours = TrainerObjective.of(data).collate([BlockDataset(data)[place] for place in range(6)])
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    theirs = TrainerObjective.read(tmp_path / "out").collate([rows[place] for place in range(6)])
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(theirs[name], tensor, err_msg=name)


def test_the_same_export_has_the_same_bytes_and_goes_on_where_it_was_stopped(small_config, tmp_path):
    config = small_config()

    def run(out, stop_after=None):
        calls = []

        def progress(*_):
            calls.append(1)
            if len(calls) == stop_after:
                raise KeyboardInterrupt

        return export_blocks(config, out, "megatron", shard_tokens=1024, progress=progress)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_after=2)
    with pytest.raises(PHFError, match="is not finished"):
        read_export(tmp_path / "parts")
    before = (tmp_path / "parts" / "00000.bin").stat().st_mtime_ns
    assert not (tmp_path / "parts" / "00001.bin").exists()
    parts = run(tmp_path / "parts")
    assert parts == whole
    assert (tmp_path / "parts" / "00000.bin").stat().st_mtime_ns == before, "a whole shard is kept"
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    read_export(tmp_path / "parts", verify=True)
    flip(tmp_path / "parts" / "00001.bin")
    with pytest.raises(PHFError, match=r"00001\.bin is missing or damaged"):
        read_export(tmp_path / "parts", verify=True)
    run(tmp_path / "parts")
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole"), "a damaged shard is made again"


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hash_file(path) for path in files}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def test_workers_are_of_ray():
    done = CliRunner().invoke(
        app, ["tokens", "export", "demo", "-o", "out", "--format", "olmo", "--workers", "2"]
    )
    assert "--workers and --ray-address are of --engine ray" in str(done.exception or done.output)


def test_a_folder_of_something_else_is_refused_by_name(small_config, tmp_path):
    export_blocks(small_config(), tmp_path / "out", "olmo")
    with pytest.raises(PHFError, match=r"was exported with another config\.seed \(0, not 1\)"):
        export_blocks(small_config("seed=1"), tmp_path / "out", "olmo")
    with pytest.raises(PHFError, match=r"another format \(olmo, not litdata\)"):
        export_blocks(small_config(), tmp_path / "out", "litdata")
    # What leaves the blocks alone is no other export.
    export_blocks(
        small_config("optim.learning_rate=1", "model.layers=2", "log_every=9"), tmp_path / "out", "olmo"
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(PHFError, match=r"holds thesis\.txt and no export"):
        export_blocks(small_config(), tmp_path / "mine", "olmo")
    with pytest.raises(PHFError, match="is no export"):
        read_export(tmp_path / "mine")
    with pytest.raises(PHFError, match="--epochs 0 is no token"):
        export_blocks(small_config(), tmp_path / "none", "olmo", epochs=0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "/" not in json.dumps({key: manifest[key] for key in ("config", "loss")}), (
        "no folder of this machine"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_the_command_says_what_is_lost(kind, small_config, tmp_path):
    config = small_config()
    (tmp_path / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    done = CliRunner().invoke(
        app,
        [
            "tokens",
            "export",
            str(tmp_path / "recipe.yaml"),
            "-o",
            str(tmp_path / "out"),
            "--format",
            kind,
            "--json",
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert shown["num_blocks"] == 48
    assert any("isolation is lost" in line for line in shown["lost"]) == (
        kind in ("olmo", "megatron", "litdata")
    )
    loss = TokenLoss.from_json(read_export(tmp_path / "out", verify=True)["loss"])
    assert loss.objective.config == config.objective
