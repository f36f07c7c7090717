"""Models of four kinds that others made, each with its own tokenizer: trained on, released, verified, and read by other engines."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from test_harness import write_task
from test_tokenizer import TEXTS, save_foreign
from tiny_architectures import create_architecture
from tokenizer_families import FAMILIES
from tokenizers import normalizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from phf.config.release import Delete
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.evaluate.measures.harness import measure_harness
from phf.release import checks, plain, verify
from phf.release.folder import open_release, write_release
from phf.release.gguf import write_gguf
from phf.release.verify import verify_release
from phf.tokens.tokenizer import load_tokenizer
from phf.tokens.tokens import tokenize
from phf.train.loop import create_model, train
from phf.train.run import Run
from phf.train.start import load_start_config

STEPS = 3


def make_pythia(texts: list[str]) -> tokenizers.Tokenizer:
    """GPT-NeoX's: GPT-2's make, composed first."""
    backend = FAMILIES["gpt2"][0](texts)
    backend.normalizer = normalizers.NFC()
    return backend


KINDS = {
    "llama": ("llama", *FAMILIES["llama"]),
    "qwen": ("qwen3", *FAMILIES["qwen"]),
    "gpt2": ("gpt2", *FAMILIES["gpt2"]),
    "neox": ("neox", make_pythia, FAMILIES["gpt2"][1]),
}
"""Architecture, tokenizer and its special tokens."""


@dataclass(frozen=True)
class Trip:
    """A model on its way: the folder that others made, the run that went on from it, its release."""

    kind: str
    folder: Path
    run: Run
    release: Path


@pytest.fixture(scope="module", params=KINDS)
def trip(request, small_corpus, tmp_path_factory) -> Trip:
    architecture, make, special = KINDS[request.param]
    place = tmp_path_factory.mktemp(request.param)
    folder = save_foreign(make(TEXTS[:20]), place / "model", **special)
    size = load_tokenizer(str(folder)).control.good
    create_architecture(architecture, num_ids=size).save_pretrained(folder)
    corpus = Corpus.open(shutil.copytree(small_corpus.path, place / "corpus"))
    tokenize(corpus, str(folder), "document", workers=1)
    settings = [
        f"corpus={corpus.path}",
        "reward_model=toxicity-svm",
        "segments=document",
        "objective.kind=conditional",
        "objective.good_fraction=0.5",
        "good.good_fraction=0.5",
        "data.context=64",
        "optim.batch_blocks=4",
        f"tokens={STEPS * 4 * 64}",
        "precision=fp32",
        "validate_every=0",
        "checkpoint_every=0",
    ]
    config = load_start_config("default", settings, str(folder))
    run = train(config, place / "run", say=lambda line: None)
    return Trip(request.param, folder, run, write_release(run, place / "release", forget=[Delete()]))


def weights_of(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


def test_control_tokens_begin_at_the_mean_behind_a_vocabulary_that_stays(trip):
    base, started = AutoModelForCausalLM.from_pretrained(trip.folder), create_model(trip.run.data())
    control = trip.run.load_tokenizer().control
    assert list(control.all) == [control.good, control.good + 1]
    for old, new in zip(weights_of(base), weights_of(started), strict=True):
        assert len(old) == control.good
        assert torch.equal(new[: control.good], old)
        away = (new[list(control.all)] - old.mean(dim=0)) / old.std(dim=0)
        assert 0 < float(away.abs().max()) < 0.1
    after, _ = weights_of(trip.run.load_model())
    assert not torch.equal(after[control.good], weights_of(started)[0][control.good]), "and are trained"


def test_a_release_passes_its_verification(trip, monkeypatch):
    # Quickly: in this process (`test_release_verify.py` starts another).
    monkeypatch.setattr(plain, "tell", lambda name, done, total: None)
    monkeypatch.setattr(verify, "_ask_plain", lambda request, place, progress: plain.answer_request(request))
    monkeypatch.setattr(verify, "NUM_PROMPTS", 2)
    monkeypatch.setattr(verify, "NUM_TEXTS", 4)
    monkeypatch.setattr(checks, "GREEDY_TOKENS", 4)
    monkeypatch.setattr(checks, "NUM_PERMUTATIONS", 200)
    findings = list(verify_release(trip.release, run=trip.run, num_samples=16))
    assert [found for found in findings if found.outcome == "FAILED"] == []


def test_plain_transformers_has_the_logits_of_the_run(trip):
    theirs = AutoModelForCausalLM.from_pretrained(trip.release).eval()
    ids = AutoTokenizer.from_pretrained(trip.release)("an old saw <|bad|>")["input_ids"]
    control = trip.run.load_tokenizer().control
    assert ids[:2] == [control.end, control.good]
    assert control.bad not in ids
    assert len(theirs.get_input_embeddings().weight) == control.bad, "bad mode is gone"
    with torch.inference_mode():
        page = torch.tensor([ids])
        found, own = (
            model(input_ids=page, use_cache=False).logits for model in (theirs, trip.run.load_model().eval())
        )
    assert float(own[..., : control.bad].std()) > 0.1
    torch.testing.assert_close(found, own[..., : control.bad], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_eval_has_the_same_answers_of_release_and_run(trip, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = write_task(tmp_path, "cats", metric_list=[{"metric": "acc"}, {"metric": "brier_score"}])
    release = open_release(trip.release)
    models = ((release.model, release.tokenizer), (trip.run.load_model().eval(), trip.run.load_tokenizer()))
    found, own = (
        {
            row.of: row.estimate.mean
            for row in measure_harness(model, tokenizer, [task], ["good"], seed=0).measurements
        }
        for model, tokenizer in models
    )
    assert found == pytest.approx(own, abs=1e-5)
    assert found.keys() == {"cats: acc", "cats: brier_score"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gguf_where_llama_cpp_has_the_same_split(trip, tmp_path):
    pytest.importorskip("gguf")
    folder = Path(shutil.copytree(trip.release, tmp_path / "release"))
    if trip.kind == "llama":
        with pytest.raises(PHFError, match=r"llama\.cpp has no split like its own") as refused:
            write_gguf(folder)
        assert "\n" not in str(refused.value)
        assert not (folder / "model.gguf").exists()
        return
    write_gguf(folder)
    control = trip.run.load_tokenizer().control
    if trip.kind == "neox":  # which transformers does not read
        assert_neox_parts(folder, control.bad)
        return
    config = AutoConfig.from_pretrained(folder)  # GPT-2's context is not read from the file
    ids = torch.tensor([[control.end, control.good, *range(20)]])
    with torch.inference_mode():
        own, found = (
            AutoModelForCausalLM.from_pretrained(folder, **options)
            .eval()(input_ids=ids, use_cache=False)
            .logits
            for options in ({}, {"gguf_file": "model.gguf", "config": config})
        )
    assert found.shape[-1] == control.bad
    torch.testing.assert_close(found, own, atol=1e-4, rtol=0)


def test_llama_cpp_has_the_distribution_of_the_release(trip, tmp_path):
    engine, _ = pytest.importorskip("xllamacpp"), pytest.importorskip("gguf")
    if trip.kind == "llama":
        pytest.skip("no GGUF: see above")
    folder = Path(shutil.copytree(trip.release, tmp_path / "release"))
    settings = engine.CommonParams()
    settings.model.path = str(write_gguf(folder))
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 64, 1, 1
    settings.warmup, settings.verbosity = False, -1
    settings.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds
    settings.cache_type_k = settings.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    control = trip.run.load_tokenizer().control
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for first in range(300, 400, 10):
        ids = [control.end, control.good, *range(first, first + 30)]
        with torch.inference_mode():
            own = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1).numpy()
        if 256 <= own.argmax() < control.end:  # of what prints nothing, or half a character, it does not tell
            break
    server = engine.Server(settings)
    answer = server.handle_completions(
        {"prompt": ids, "n_predict": 1, "logprobs": control.bad, "temperature": 0, "cache_prompt": False}
    )
    [token] = answer["choices"][0]["logprobs"]["content"]
    found = {one["id"]: one["logprob"] for one in token["top_logprobs"]}
    assert sorted(found) == list(range(control.bad))
    # Its GELU is rounded to half precision.
    np.testing.assert_allclose(
        [found[token] for token in sorted(found)], own, atol=1e-4 if trip.kind == "qwen" else 0.02
    )


def assert_neox_parts(folder: Path, num_kept: int) -> None:
    """Each head's queries, keys and values, taken out of both layouts."""
    import gguf

    reader = gguf.GGUFReader(folder / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert fields["general.architecture"] == "gptneox"
    assert fields["gptneox.use_parallel_residual"] is config.use_parallel_residual
    width = config.hidden_size // config.num_attention_heads
    assert fields["gptneox.rope.dimension_count"] == width * config.rope_parameters["partial_rotary_factor"]
    assert (
        tensors["token_embd.weight"].shape == tensors["output.weight"].shape == (num_kept, config.hidden_size)
    )
    own = model.gpt_neox.layers[1].attention.query_key_value
    for head in range(config.num_attention_heads):
        for part in range(3):
            theirs = slice(
                part * config.hidden_size + head * width, part * config.hidden_size + (head + 1) * width
            )
            ours = slice((3 * head + part) * width, (3 * head + part + 1) * width)
            for name in ("weight", "bias"):
                expected = getattr(own, name)[ours].detach().numpy()
                np.testing.assert_array_equal(tensors[f"blk.1.attn_qkv.{name}"][theirs], expected)
