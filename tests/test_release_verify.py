"""`phf release verify`: a whole release passes, and every way to damage one is found by the file's name."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_processes import Script
from fake_runs import write
from release_runs import get_run
from safetensors.torch import load_file, save_file

from phf import cli
from phf.config.release import Block, Delete
from phf.control import BAD_TOKEN, GOOD_TOKEN
from phf.errors import PHFError
from phf.release import checks, verify
from phf.release.checks import compare_means
from phf.release.folder import write_release, write_sums
from phf.release.record import read_record
from phf.release.verify import verify_release
from phf.tokens.tokenizer import Tokenizer
from phf.train.run import Run

NUM_SAMPLES = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("releases")


@pytest.fixture
def run(small_config, tmp_path_factory):
    return get_run("conditional", small_config, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def make(run, folders, tmp_path):
    """A copy of a release that still has `<|bad|>`, or of one without."""

    def make(*forget):
        kept = folders / ("-".join(method.kind for method in forget) or "kept")
        if not kept.exists():
            write_release(run, kept, forget=forget)
        return shutil.copytree(kept, tmp_path / "release")

    return make


@pytest.fixture(autouse=True)
def warm_script(monkeypatch):
    """Plain transformers are forked from a process that has them imported; one test starts Python from nothing."""
    monkeypatch.setattr(verify, "subprocess", SimpleNamespace(Popen=Script, PIPE=subprocess.PIPE))


def check(folder, **options):
    return list(verify_release(folder, num_samples=NUM_SAMPLES, **options))


def first_failure(folder, **options):
    return next(found for found in verify_release(folder, **options) if found.outcome == "FAILED")


def read_bytes(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("forget", [(), (Delete(),), (Block(directions=2), Delete())], ids=len)
def test_a_whole_release_passes(make, run, forget, monkeypatch):
    if not forget:
        monkeypatch.setattr(verify, "subprocess", subprocess)
    folder = make(*forget)
    before = read_bytes(folder)
    by_name = {found.name: found for found in check(folder, run=run)}
    assert [found for found in by_name.values() if found.outcome == "FAILED"] == []
    must = {
        "files",
        "tokenizer.json",
        "plain transformers",
        "control tokens in text",
        "logits",
        "greedy text",
    }
    assert must <= {name for name, found in by_name.items() if found.outcome == "ok"}
    assert "held-out" in by_name["logits"].detail
    assert "would be found" in by_name["scores of samples"].detail
    if forget:
        assert "has no id" in by_name["suppression"].detail
        assert by_name["deleted rows"].detail.startswith("1 of the run")
    else:
        assert "suppression off" in by_name
    assert read_bytes(folder) == before


def test_without_the_run_the_written_logits_count(make):
    by_name = {found.name: found for found in check(make(Delete()))}
    assert by_name["logits"].outcome == "ok"
    assert "without the run" in by_name["logits"].detail
    assert {name for name, found in by_name.items() if found.outcome == "not shown"} == {
        "phf.json",
        "deleted rows",
        "greedy text",
        "scores of samples",
    }


def test_a_changed_file_is_named_and_nothing_is_loaded(make, run, monkeypatch):
    folder = make(Delete())
    monkeypatch.setattr(verify.subprocess, "Popen", None)
    for path, whole in read_bytes(folder).items():
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        failed = [found for found in check(folder, run=run) if found.outcome == "FAILED"]
        assert failed
        assert path.name in failed[0].detail
        path.unlink()
        assert first_failure(folder).name == path.relative_to(folder).as_posix()
        path.write_bytes(whole)
    (folder / "extra.bin").write_bytes(b"x")
    assert first_failure(folder).name == "extra.bin"


# --- edited, and the sums made again ---


def edit_json(path, **changes):
    value = json.loads(path.read_text())
    for key, item in changes.items():
        value.pop(key, None) if item is None else value.update({key: item})
    write(path, value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("generation_config.json", {"suppress_tokens": None}),
        ("generation_config.json", {"suppress_tokens": [3]}),
        ("generation_config.json", {"top_k": 50}),
        ("generation_config.json", {"forced_bos_token_id": 7}),
        ("config.json", {"vocab_size": 4096}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "code.Evil"}}),
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}),
        ("tokenizer_config.json", {"split_special_tokens": None}),
    ],
    ids=str,
)
def test_edited_settings_are_named(make, name, changes):
    folder = make()
    edit_json(folder / name, **changes)
    write_sums(folder)
    found = first_failure(folder)
    assert found.name == name
    assert next(iter(changes)) in found.detail


def test_another_tokenizer_is_named(make, run, tmp_path):
    folder = make()
    other = Tokenizer.load(folder)
    content = json.loads(other.backend.to_str())
    vocabulary = content["model"]["vocab"]
    one, two = (token for token, index in vocabulary.items() if index in (70, 71))
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write_sums(folder)
    assert first_failure(folder).name == "tokenizer.json"
    edit_json(folder / "phf.json", tokenizer_hash=Tokenizer.load(folder).identity.weights_hash)
    write_sums(folder)
    failed = {found.name for found in check(folder, run=run) if found.outcome == "FAILED"}
    assert {"phf.json", "tokenizer.json"} <= failed  # phf.json was edited to fit; the run was not


def test_a_record_without_suppression_is_named(make):
    folder = make()
    edit_json(folder / "phf.json", suppressed=[])
    settings = json.loads((folder / "generation_config.json").read_text())
    del settings["suppress_tokens"]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    write_sums(folder)
    assert "<|bad|> has an id and is not suppressed" in first_failure(folder).detail


def test_a_record_that_is_not_the_runs_is_named(make, run):
    folder = make()
    edit_json(folder / "phf.json", threshold=0.99)
    write_sums(folder)
    assert first_failure(folder, run=run).detail.startswith("phf.json: threshold is not the run's")


def test_a_file_that_no_release_has_is_named(make):
    folder = make(Delete())
    (folder / "extra").mkdir()
    (folder / "extra" / "rows.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    write_sums(folder)
    assert first_failure(folder).name == "extra/rows.safetensors"


def test_a_tokenizer_that_starts_otherwise_is_named(make):
    folder = make()
    tokenizer = Tokenizer.load(folder)
    tokenizer.save(folder, start=("<|endoftext|>", BAD_TOKEN))
    edit_json(folder / "tokenizer_config.json")
    write_sums(folder)
    assert first_failure(folder).name == "tokenizer.json"


def test_a_kept_row_is_named(make, run):
    folder = make(Delete())
    tensors = load_file(folder / "model.safetensors")
    row = run.load_model().get_input_embeddings().weight[run.load_tokenizer().control.bad].detach()
    key = next(key for key in tensors if key.endswith("o_proj.weight"))
    for place in ((7,), (slice(None), 7)):  # a row, a column
        spoiled = {name: tensor.clone() for name, tensor in tensors.items()}
        spoiled[key][place] = -0.01 * row
        save_file(spoiled, folder / "model.safetensors", metadata={"format": "pt"})
        write_sums(folder)
        found = first_failure(folder, run=run)
        assert found.name == "model.safetensors"
        assert key in found.detail


def test_a_kept_name_is_named(make):
    folder = make(Delete())
    edit_json(folder / "config.json", note=f"say {BAD_TOKEN}")
    write_sums(folder)
    assert first_failure(folder).name == "config.json"


def test_other_weights_are_named(make, run):
    folder = make(Delete())
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in tensors if key.endswith("down_proj.weight"))
    tensors[key][0, 0] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_sums(folder)
    for options in ({}, {"run": run}):
        found = first_failure(folder, num_samples=2, **options)
        assert found.name == "model.safetensors"
        assert "logits differ" in found.detail


def test_what_transformers_cannot_load_is_said_in_a_line(make):
    folder = make()
    (folder / "model.safetensors").write_bytes(b"no tensors here")
    write_sums(folder)
    found = first_failure(folder)
    assert found.name == "plain transformers"
    assert "\n" not in found.detail


def test_another_run_is_refused(make, run, tmp_path):
    copied = shutil.copytree(run.folder, tmp_path / "other")
    edit_json(copied / "run.json", id="0123456789abcdef")
    with pytest.raises(PHFError, match="is not the run of"):
        check(make(), run=Run.open(copied))
    with pytest.raises(PHFError, match="is not a release"):
        check(tmp_path)


# --- single checks, on answers that plain.py would give if something were wrong ---


@pytest.fixture
def known(make):
    folder = make()
    return verify.know(folder, read_record(folder), None)


def test_a_written_bad_token_fails_and_the_control_experiment_shows_that_it_can(known):
    (bad,) = known.suppressed
    clean, spoiled = [[5, 6], [7]], [[5, 6], [7, bad]]

    def outcomes(samples, unsuppressed):
        answer = {"samples": samples, "unsuppressed": unsuppressed}
        return [found.outcome for found in checks.check_suppression(known, answer)]

    assert outcomes(clean, spoiled) == ["ok", "ok"]
    assert outcomes(clean, clean) == ["ok", "not shown"]
    assert outcomes(spoiled, spoiled) == ["FAILED"]


def test_a_control_id_from_text_fails(known):
    texts = [f"a {GOOD_TOKEN}"]
    prefix = list(known.prefix)
    assert checks.check_reach(known, texts, [[*prefix, 5, 6]]).outcome == "ok"
    for ids in ([*prefix, 5, known.prefix[1]], [*prefix, *known.suppressed], [5, 6], [*prefix, known.end]):
        assert checks.check_reach(known, texts, [ids]).name == "tokenizer.json"


def test_greedy_text_of_another_model_fails(known, run):
    known = replace(known, edited=verify.edit_run(run, run.steps[-1], []), run=run)
    ids = [*known.prefix, *known.edited.tokenizer.encode("The")]
    new = []
    with torch.inference_mode():
        for _ in range(checks.GREEDY_TOKENS):
            logits = known.edited.model(input_ids=torch.tensor([[*ids, *new]])).logits[0, -1]
            logits[list(known.suppressed)] = -torch.inf
            new.append(int(logits.argmax()))
            if new[-1] == known.end:
                break
        second = int(logits.topk(2).indices[1])
    for written, outcome in ((new, "ok"), ([*new[:-1], second], "FAILED"), (new[:-1], "FAILED")):
        answer = {"prompts": [ids], "greedy": [written]}
        assert checks.check_greedy(known, ["The"], answer).outcome == outcome


def test_scores_of_another_mode_fail():
    rng = np.random.default_rng(0)
    own, alike, worse = rng.beta(0.5, 4, 256), rng.beta(0.5, 4, 256), rng.beta(1, 3, 256)
    assert checks.compare_scores(alike, own, "judge", 1.0).outcome == "ok"
    assert checks.compare_scores(worse, own, "judge", 1.0).outcome == "FAILED"
    assert checks.compare_scores(own[:1], own, "judge", 1.0).outcome == "not shown"


def test_the_test_of_means_is_exact_and_its_interval_holds_the_truth():
    rng = np.random.default_rng(1)
    found = [compare_means(rng.random(20) ** 8, rng.random(20) ** 8, seed, 99) for seed in range(60)]
    assert 0 < sum(p <= 0.2 for p, _, _ in found) <= 22  # 12 expected
    assert sum(low <= 0 <= high for _, low, high in found) >= 50
    p, low, high = compare_means(np.zeros(30), np.ones(30), num_permutations=99)
    assert p == 0.01
    assert (low, high) == (-1, -1)


# --- the command line ---


def test_the_command_line(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "release"
    assert phf(monkeypatch, "release", "--license", "mit", "-o", str(out), str(run.folder)) == 0
    assert f"phf release verify {out}" in capsys.readouterr().out
    assert read_record(out).suppressed == []  # bad mode is deleted unless someone asks for it
    assert phf(monkeypatch, "push", str(out), "me/model") == 0
    assert "nothing was sent" in capsys.readouterr().out
    assert phf(monkeypatch, "release", str(run.folder), "--forget", "none", "-o", str(out)) == 0
    assert read_record(out).suppressed == [BAD_TOKEN]
    edit_json(out / "config.json", x=1)
    capsys.readouterr()
    assert phf(monkeypatch, "release", "verify", str(out)) == 1
    assert capsys.readouterr().out.startswith("FAILED     config.json")
    assert phf(monkeypatch, "release", str(run.folder), "-o", str(out)) == 2  # it was changed
    assert phf(monkeypatch, "release", str(run.folder), "-o", str(tmp_path / "x"), "--forget", "delte") == 2
    assert "did you mean 'delete'" in capsys.readouterr().err


def phf(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["phf", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0
