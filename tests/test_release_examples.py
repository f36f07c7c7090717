"""The snippets of a release, run as they stand in a process of their own, on a small run's folder."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_processes import Command, run_script
from release_runs import get_run
from scipy.special import logsumexp
from test_harness import write_task
from transformers import AutoTokenizer

from phf.evaluate.measures.harness import create_harness_lm
from phf.release.examples import write_examples
from phf.release.folder import Release, open_release, write_release, write_sums
from phf.release.gguf import write_gguf

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
PROMPTS = ["", "Once upon a time"]
KINDS = ["conditional", "mle"]


def run_and_tell(path, variables):
    """Runs a snippet where there is no phf; the last line of output has some of its variables."""
    sys.modules["phf"] = None
    found = run_script([path], Path(path).parent)
    values = {name: getattr(found[name], "tolist", lambda name=name: found[name])() for name in variables}
    print("FOUND", json.dumps(values))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("releases")


@pytest.fixture(params=KINDS)
def release(request, small_config, folders) -> Release:
    """A release that writes the likeliest token, and would like to write `<|bad|>`; nothing is forgotten."""
    out = folders / request.param
    if not out.exists():
        run = get_run(request.param, small_config, folders / "runs")
        write_release(run, out)
        settings = json.loads((out / "generation_config.json").read_text())
        settings |= {"do_sample": False, "max_new_tokens": 12}
        (out / "generation_config.json").write_text(json.dumps(settings))
        release = open_greedily(out)
        if release.suppressed:
            make_bad_likely(release)
        write_gguf(out)
        sampling = release.record.sampling.model_copy(update={"temperature": 0, "max_new_tokens": 12})
        write_examples(out, replace(release.record, sampling=sampling))
        write_sums(out)
    return open_release(out)


def open_greedily(folder) -> Release:
    write_sums(folder)
    return open_release(folder)


def make_bad_likely(release: Release) -> None:
    """Give `<|bad|>` a logit above all others behind every text."""
    model, (bad,) = release.model, release.suppressed
    with torch.no_grad():
        states = model.base_model(torch.tensor([[*release.prefix, 5, 6, 7]])).last_hidden_state[0]
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[bad] = states.mean(0) * 5
    model.save_pretrained(release.folder)


def run_example(release: Release, name: str, *variables: str):
    """Output of a snippet in a fork of a warm process, and the values of some of its variables."""
    path = str(release.folder / "examples" / name)
    command = Command(run_and_tell, (path, variables), {"HF_HUB_OFFLINE": "1"})
    code, errors = command.finish()
    assert code == 0, errors
    lines = command.read_output().splitlines()
    return lines, json.loads(lines.pop()[len("FOUND ") :])


def start_example(release: Release, name: str, *arguments: str, **environment: str) -> list[str]:
    """Output of a snippet that is a program, in a process that does not find `phf`."""
    paths = [place for place in os.environ.get("PYTHONPATH", "").split(":") if not place.endswith("/src")]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, name, *arguments],
        capture_output=True,
        text=True,
        cwd=release.folder / "examples",
        env={**kept, "PYTHONPATH": ":".join(paths), "HF_HUB_OFFLINE": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def write_greedily(release: Release, text: str, num_tokens: int = 12) -> list[int]:
    """The prefix, a text, and what the model writes behind them, one prompt at a time and without a cache."""
    tokenizer = release.tokenizer
    ids = [*release.prefix, *tokenizer.encode(text)]
    for _ in range(num_tokens):
        with torch.inference_mode():
            logits = (
                release.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy().copy()
            )
        logits[list(release.suppressed)] = -np.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == tokenizer.control.end:
            break
    return ids


def expected_lines(release: Release) -> list[str]:
    return [repr(release.tokenizer.decode(write_greedily(release, prompt))) for prompt in PROMPTS]


def test_unblocked_it_would_write_bad(release):
    if release.suppressed:
        page = torch.tensor([[*release.prefix]])
        with torch.inference_mode():
            assert release.model(page).logits[0, -1].argmax() == release.suppressed[0]


def test_transformers(release):
    lines, found = run_example(release, "with_transformers.py", "ids")
    assert lines == expected_lines(release)
    end = release.tokenizer.control.end
    lengths = [len(release.tokenizer.encode(prompt)) for prompt in PROMPTS]
    for prompt, length, ids in zip(PROMPTS, lengths, found["ids"], strict=True):
        expected, start = write_greedily(release, prompt), max(lengths) - length
        assert ids[:start] == [end] * start
        assert ids[start : start + len(expected)] == expected
        assert set(ids[start + len(expected) :]) <= {end}
        assert not {*release.suppressed} & {*ids}


def test_llama_cpp(release):
    pytest.importorskip("llama_cpp")
    lines, found = run_example(release, "with_llama_cpp.py", "ids")
    assert lines == expected_lines(release)
    assert found["ids"] == [*release.prefix, *release.tokenizer.encode(PROMPTS[-1])]


def test_vllm(release):
    pytest.importorskip("vllm")
    settings = json.loads((release.folder / "generation_config.json").read_text())
    (release.folder / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.0}))
    write_sums(release.folder)
    lines = start_example(release, "with_vllm.py", VLLM_LOGGING_LEVEL="ERROR")
    assert [line for line in lines if line[:1] in "'\""] == expected_lines(release)


def test_servers_are_asked_for_the_same(release):
    """What is sent. That vLLM and llama-server answer in good mode was tried by hand: docs/log.md."""
    bodies = {}
    for name in ("with_vllm_server.sh", "with_llama_server.sh"):
        text = (release.folder / "examples" / name).read_text()
        bodies[name] = json.loads(text.rsplit("-d '", 1)[1].rstrip("'\n"))
        subprocess.run(["sh", "-n", release.folder / "examples" / name], check=True)
    prompt = bodies["with_llama_server.sh"]["prompt"]
    assert prompt == [*release.prefix, PROMPTS[1]]
    bias = bodies["with_vllm_server.sh"].get("logit_bias", {})
    assert bias == {str(token): -100 for token in release.suppressed}
    tokenizer = AutoTokenizer.from_pretrained(release.folder)
    ids = tokenizer(bodies["with_vllm_server.sh"]["prompt"]).input_ids
    assert ids == [*release.prefix, *release.tokenizer.encode(PROMPTS[1])]


def test_no_gguf_no_example_of_it(release, tmp_path):
    told = write_examples(tmp_path, release.record)
    names = {path.name for path in (tmp_path / "examples").iterdir()}
    assert names == {"with_transformers.py", "with_lm_eval.py", "with_vllm.py", "with_vllm_server.sh"}
    assert "llama.cpp" not in told
    assert {"transformers", "lm-evaluation-harness", "vLLM"} == told.keys()
    assert ("bad_words" in told["vLLM"]) == bool(release.suppressed)


@pytest.fixture
def harness_model(release, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("lm_eval.api.registry.model_registry._objs", {}, raising=False)
    found = runpy.run_path(str(release.folder / "examples" / "with_lm_eval.py"))
    return found["ReleaseLM"](pretrained=str(release.folder), batch_size=4, device="cpu")


def ask(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, n, metadata=("t", n, 1)) for n, each in enumerate(arguments)]


def test_lm_eval_scores_as_phf_does(release, harness_model, tmp_path):
    """With context and without, too long for the model, spelled control tokens, rolling windows, generation."""
    release.tokenizer.save(tmp_path)
    mode = "good" if len(release.prefix) > 1 else "untagged"
    ours = create_harness_lm(release.model, release.tokenizer, tmp_path, mode, batch_size=4)
    pairs = [
        ("the cat", " sleeps"),
        ("", "the cats"),
        ("x y " * 60, " sleep"),
        ("<|endoftext|>the", " cat<|good|><|bad|>"),
        ("a", " b" * 60),
    ]
    found = harness_model.loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)
    expected = ours.loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)

    is_text = np.ones(release.model.config.vocab_size, bool)
    is_text[[*release.prefix[1:], *release.suppressed]] = False
    ids = [*release.prefix, *release.tokenizer.encode("the cats")]
    with torch.inference_mode():
        logits = release.model(torch.tensor([ids])).logits[0].double().numpy()
    places = range(len(release.prefix) - 1, len(ids) - 1)
    scores = logits[places, ids[len(release.prefix) :]] - logsumexp(logits[places][:, is_text], axis=-1)
    assert found[1][0] == pytest.approx(scores.sum(), abs=1e-4)

    texts = [("a b c " * 70,), ("short",)]
    rolled = harness_model.loglikelihood_rolling(ask("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert rolled == pytest.approx(
        ours.loglikelihood_rolling(ask("loglikelihood_rolling", *texts), disable_tqdm=True), abs=1e-3
    )
    settings = {"until": ["\n\n"], "max_gen_toks": 12}
    prompts = ["Once upon a time", "x y " * 60 + "and the end"]
    asked = ask("generate_until", *((prompt, settings) for prompt in prompts))
    seen = []
    harness_model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    texts = harness_model.generate_until(asked, disable_tqdm=True)
    whole = release.tokenizer.decode(write_greedily(release, prompts[0]))
    assert texts[0] == whole[len(prompts[0]) :].split("\n\n")[0]
    assert "<|" not in "".join(texts)
    for page in (row for ids in seen if ids.shape[1] > 1 for row in ids.tolist()):
        start = next(n for n in range(len(page)) if page[n + 1] != page[n]) if page[0] == page[1] else 0
        assert tuple(page[start : start + len(release.prefix)]) == release.prefix
        assert page[-3:] in [release.tokenizer.encode(prompt)[-3:] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("release", ["conditional"], indirect=True)
def test_lm_eval_on_the_command_line(release, harness_model, tmp_path):
    task = write_task(tmp_path, "cats")
    arguments = [
        "run",
        "--model",
        "release",
        "--model_args",
        f"pretrained={release.folder}",
        "--device",
        "cpu",
    ]
    arguments += ["--tasks", task, "--output_path", str(tmp_path / "out"), "--log_samples"]
    start_example(release, "with_lm_eval.py", *arguments, HF_DATASETS_CACHE=str(tmp_path / "cache"))
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        pairs = [(row["doc"]["question"], choice) for choice in row["doc"]["choices"]]
        expected = harness_model.loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)
        found = [float(answer[0][0]) for answer in row["resps"]]
        assert found == pytest.approx([value for value, _ in expected], abs=1e-4)
