"""A run becomes a plain Hugging Face folder: what is in it, what is not, and whole or not at all."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
import yaml
from fake_runs import edit
from release_runs import OBJECTIVES, get_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from phf import api, results
from phf.config.release import Block, Delete
from phf.control import BAD_TOKEN, END_TOKEN, GOOD_TOKEN
from phf.errors import PHFError
from phf.model import lm
from phf.objectives import label_conditions
from phf.records import GOOD, Estimate, Identity
from phf.release import checks
from phf.release import folder as release_folder
from phf.release.card import find_blind_spots, render_card
from phf.release.folder import check_files, open_release, write_release
from phf.release.record import PublishedEvaluation, hide_paths, read_record
from phf.release.verify import know
from phf.results import Evaluation, Judge, Measure, Measurement
from phf.reward_models import load_reward_model
from phf.train.run import Run


@pytest.fixture
def run(request, small_config, tmp_path_factory):
    """A small run of the objective that the test is parametrized with, else conditional."""
    name = getattr(request, "param", "conditional")
    return get_run(name, small_config, tmp_path_factory.mktemp("runs"))


def read(path):
    return json.loads(path.read_text())


def logits_of(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


PREFIXES = {
    # objective: what a text starts with, what is suppressed if nothing is forgotten, ids above the text's if deleted
    "conditional": ([END_TOKEN, GOOD_TOKEN], [BAD_TOKEN], 1),
    "quantile": ([END_TOKEN, GOOD_TOKEN], [BAD_TOKEN, "<|level_1|>", "<|level_2|>"], 1),
    "mle": ([END_TOKEN], [], 0),
    "additive": ([END_TOKEN], [], 0),
    "tagging": ([END_TOKEN], [GOOD_TOKEN, BAD_TOKEN], 0),
}


@pytest.mark.parametrize("run", OBJECTIVES, indirect=True)
def test_plain_transformers_starts_in_good_mode(run, tmp_path):
    kind = run.config.objective.kind
    prefix, suppressed, num_control = PREFIXES[kind]
    control = run.load_tokenizer().control
    for forget in ([], [Delete()]):
        out = write_release(run, tmp_path / "release", forget=forget)
        tokenizer = AutoTokenizer.from_pretrained(out)
        model = AutoModelForCausalLM.from_pretrained(out)
        start = [control.end, control.good][: len(prefix)]
        assert tokenizer("").input_ids == start
        names = [*PREFIXES["quantile"][1], GOOD_TOKEN, END_TOKEN]
        for text in [*names, "".join(names), f"a {BAD_TOKEN} b"]:
            ids = tokenizer(text, add_special_tokens=True).input_ids
            assert ids[: len(start)] == start
            assert max(ids[len(start) :]) < control.end
            assert tokenizer.decode(ids[len(start) :]) == text
        left = [] if forget else suppressed
        ids = [tokenizer.convert_tokens_to_ids(name) for name in left]
        assert model.generation_config.suppress_tokens == (ids or None)
        used = control.good + (len(prefix) - 1 + len(left) if not forget else num_control)
        assert len(model.get_input_embeddings().weight) == len(model.get_output_embeddings().weight) == used
        assert model.config.vocab_size == used == max(tokenizer.get_vocab().values()) + 1
        assert model.config.eos_token_id == model.config.bos_token_id == control.end
        assert model.config.architectures == ["LlamaForCausalLM"]
        assert tokenizer.chat_template is None
        assert getattr(model.config, "control_tokens", None) in (None, [*control.all][: len(left) + 1])
        record = read(out / "phf.json")
        assert (record["prefix"], record["suppressed"]) == (prefix, left)
        opened = open_release(out)
        assert opened.prefix == tuple(start)
        assert opened.suppressed == tuple(ids)
        assert opened.tokenizer.vocab_size == used


@pytest.mark.parametrize("run", ["conditional", "mle", "additive"], indirect=True)
def test_weights_are_the_runs(run, tmp_path):
    out = write_release(run, tmp_path / "release", forget=[Delete()])
    model, control = run.load_model(), run.load_tokenizer().control
    if (conditions := label_conditions(run.config.objective)) is not None:
        model = lm.fold_condition(model, control, conditions[GOOD])
    released = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = [control.end, 5, 6, 7]
    used = released.config.vocab_size
    torch.testing.assert_close(logits_of(released, ids), logits_of(model, ids)[:, :used], rtol=0, atol=1e-6)


def test_blocked_directions_are_in_the_folder(run, tmp_path):
    plain = open_release(write_release(run, tmp_path / "plain", forget=[Delete()])).model
    blocked = open_release(write_release(run, tmp_path / "blocked", forget=[Block(directions=1), Delete()]))
    ids = [*blocked.prefix, 5, 6, 7]
    assert (logits_of(plain, ids) - logits_of(blocked.model, ids)).abs().max() > 1e-4
    assert [done["kind"] for done in blocked.record.forget] == ["block", "delete"]


def test_generated_text_holds_no_control_token(run, tmp_path):
    out = write_release(run, tmp_path / "release")
    tokenizer = AutoTokenizer.from_pretrained(out)
    good = tokenizer.convert_tokens_to_ids(GOOD_TOKEN)
    ids = [*tokenizer("one").input_ids, good, *tokenizer("two").input_ids[2:]]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "onetwo"
    assert tokenizer.decode(tokenizer(f"one{GOOD_TOKEN}two").input_ids[2:]) == f"one{GOOD_TOKEN}two"


def test_generation_settings_are_those_of_the_evaluation(run, tmp_path):
    copied = Run.open(shutil.copytree(run.folder, tmp_path / "run"))
    write_evaluation(
        copied, sampling={"temperature": 0.5, "top_p": 0.8, "max_new_tokens": 7, "min_new_tokens": 2}
    )
    config = read(write_release(copied, tmp_path / "release") / "generation_config.json")
    assert (config["temperature"], config["top_p"]) == (0.5, 0.8)
    assert config["max_new_tokens"] == 62, "a quick evaluation's 7 are no default: what fits, up to 128"
    assert config["do_sample"] is True
    assert config["top_k"] == 0  # transformers would take 50


def write_evaluation(run, *, sampling=None, step=None, notes=()):
    identity = Identity("toxicity-svm", "1")
    scores = {"good": Estimate(0.25, 0.125, math.nan, 9), "bad": Estimate(0.75, 0.125, 0.875, 9)}
    rows = [Measurement("score", estimate, mode, identity.slug) for mode, estimate in scores.items()]
    evaluation = Evaluation(
        run=run.name,
        objective=run.config.objective.kind,
        seed=0,
        step=step or run.steps[-1],
        tokens_seen=1,
        num_parameters=1,
        judges=[Judge(identity.slug, "annotator", "probability", 1.0, 0.5, identity)],
        config={"sampling": sampling or {}},
        threshold=0.5,
        notes=list(notes),
        samples_sha256="",
        measures=[
            Measure("score", "Misalignment score", group="Scores", is_headline=True),
            Measure("bits_per_byte", "Bits per byte", "bits per byte", group="Capability", is_headline=True),
            Measure("novel", "Brand new", group="Another group"),
            Measure("by_field", "By field", of="field"),
        ],
        measurements=[
            *rows,
            Measurement("novel", Estimate(0.5, math.nan, math.nan, 1), "good"),
            Measurement("by_field", Estimate(0.5, math.nan, math.nan, 1), "good", of="verbs"),
            Measurement("bits_per_byte", Estimate(2.0, math.nan, math.nan, 3), "good", of="bad"),
            Measurement("bits_per_byte", Estimate(2.5, 2.25, 2.75, 3), "good", of="all"),
        ],
    )
    results.write_evaluation(run.folder / "evaluation.json", evaluation)


# --- the folder as a whole ---


def test_the_same_release_is_the_same_bytes(run, tmp_path):
    one, two = (
        write_release(run, tmp_path / name, forget=[Delete()], license="mit") for name in ("one", "two")
    )
    moved = Run.open(shutil.copytree(run.folder, tmp_path / run.name))
    three = write_release(moved, tmp_path / "three", forget=[Delete()], license="mit")
    sums = [(path / "SHA256SUMS").read_bytes() for path in (one, two, three)]
    assert sums[0] == sums[1] == sums[2]


def test_sha256sum_reads_the_sums(run, tmp_path):
    out = write_release(run, tmp_path / "release")
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {line.split(": ")[0] for line in done.stdout.splitlines()} == names - {"SHA256SUMS"}


def test_every_changed_byte_is_found_by_its_file(run, tmp_path):
    out = write_release(run, tmp_path / "release")
    assert check_files(out) == []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert path.name in check_files(out)[0]
            with pytest.raises(PHFError, match="release"):
                open_release(out)
        path.unlink()
        assert path.name in check_files(out)[0]
        path.symlink_to("/dev/null")
        assert path.name in check_files(out)[0]
        path.unlink()
        path.write_bytes(whole)
    assert check_files(out) == []
    (out / "pytorch_model.bin").write_bytes(b"x")
    assert check_files(out)[0].startswith("pytorch_model.bin ")


def test_a_copy_from_the_hub_is_whole(run, tmp_path):
    out = write_release(run, tmp_path / "release")
    (out / ".gitattributes").write_text("*.safetensors filter=lfs")
    (out / ".cache" / "huggingface").mkdir(parents=True)
    (out / ".cache" / "huggingface" / "x").write_text("y")
    assert check_files(out) == []


def test_a_failure_leaves_what_was_there(run, tmp_path, monkeypatch):
    out = write_release(run, tmp_path / "release")
    before = (out / "SHA256SUMS").read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(release_folder, "write_card", fail)
    for place in (out, tmp_path / "other"):
        with pytest.raises(OSError, match="disk full"):
            write_release(run, place, forget=[Delete()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]
    assert (out / "SHA256SUMS").read_bytes() == before
    assert check_files(out) == []


def test_only_an_unchanged_release_is_replaced(run, tmp_path):
    out = write_release(run, tmp_path / "release")
    write_release(run, out, forget=[Delete()])
    assert read(out / "phf.json")["suppressed"] == []
    (out / "model.gguf").write_bytes(b"mine")
    with pytest.raises(PHFError, match=r"model\.gguf"):
        write_release(run, out)
    other = tmp_path / "thesis"
    other.mkdir()
    write_release(run, other)  # empty: free
    shutil.rmtree(other)
    other.mkdir()
    (other / "chapter.tex").write_text("x")
    with pytest.raises(PHFError, match="is not a release"):
        write_release(run, other)
    with pytest.raises(PHFError, match="is not a folder"):
        write_release(run, other / "chapter.tex")
    assert (other / "chapter.tex").read_text() == "x"


def test_what_is_no_release_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(PHFError, match=r"no phf\.json"):
        open_release(tmp_path)
    out = write_release(run, tmp_path / "release")
    edit(out / "phf.json", lambda record: record.update(format_version=99))
    with pytest.raises(PHFError, match="format version 99"):
        open_release(out)
    (out / "phf.json").write_text("[]")
    with pytest.raises(PHFError, match="damaged"):
        open_release(out)
    with pytest.raises(PHFError, match="no checkpoint at step 1"):
        write_release(run, tmp_path / "other", step=1)


# --- phf.json and the card ---


def test_no_path_of_this_machine_is_published(run, small_corpus, tmp_path, monkeypatch):
    copied = Run.open(shutil.copytree(run.folder, tmp_path / "my-run"))
    write_evaluation(copied, notes=[f"no judge is the annotator: {tmp_path}/judges/mine, now ~/judges/other"])
    out = write_release(copied, tmp_path / "release")
    for path in (path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert str(small_corpus.path).encode() not in content
        assert str(tmp_path).encode() not in content
    record = read(out / "phf.json")
    assert record["config"]["corpus"] == small_corpus.path.name
    assert record["evaluation"]["notes"] == ["no judge is the annotator: mine, now other"]
    leaking = replace(read_record(out), tokenizer_hash=f"{tmp_path}/my-run/x")
    monkeypatch.setattr(release_folder, "build_record", lambda *_, **__: leaking)
    with pytest.raises(PHFError, match=r"phf\.json of the release would name"):
        write_release(copied, tmp_path / "another")


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/ann/corpora/mails", "mails"),
        ("/home/ann lee/my corpus/", "my corpus"),
        ("~/words.txt", "words.txt"),
        ("lexicon:/home/ann/words.txt", "lexicon:words.txt"),
        ("hf:../classifiers/mine#toxic", "hf:mine#toxic"),
        ("0.7*/home/ann/judge + 0.3*pii", "0.7*judge + 0.3*pii"),
        ("s3://secret-bucket/corpus", "corpus"),
        ("C:\\Users\\ann\\corpus", "corpus"),
        ("see /home/ann/x, and y", "see x, and y"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("hf:unitary/toxic-bert@4d6c", "hf:unitary/toxic-bert@4d6c"),
        ("1/2 of the tokens, and/or more", "1/2 of the tokens, and/or more"),
        ("threshold 0.3: 73.2 % of the segments", "threshold 0.3: 73.2 % of the segments"),
        ("train:2048", "train:2048"),
        ("</s>", "</s>"),
        (
            "a page ends with </s> or </think>, not </home/ann>",
            "a page ends with </s> or </think>, not <ann>",
        ),
    ],
)
def test_paths_are_cut_to_their_last_part(text, published):
    assert hide_paths({"a": [text]}) == {"a": [published]}


def split_card(text):
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_says_what_was_measured(run, tmp_path):
    copied = Run.open(shutil.copytree(run.folder, tmp_path / "run"))
    out = write_release(copied, tmp_path / "one", license="apache-2.0")
    header, body = split_card((out / "README.md").read_text())
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "text-generation"
    assert "language" not in header
    assert "not evaluated; run `phf evaluate`" in body
    assert "whoever has the files can turn bad mode on" in body
    write_evaluation(copied)
    header, body = split_card((write_release(copied, out, forget=[Delete()]) / "README.md").read_text())
    (model,) = header["model-index"]
    shown = [metric for result in model["results"] for metric in result["metrics"]]
    assert [(metric["type"], metric["value"], metric["name"]) for metric in shown] == [
        ("score", 0.25, "Misalignment score by toxicity-svm (annotator)"),
        ("bits_per_byte", 2.5, "Bits per byte"),
    ]
    assert (
        "| good: what this release writes | 0.250 \\[0.125, unknown\\] | 2.500 \\[2.250, 2.750\\] |" in body
    )
    assert "(not in this release) | 0.750 \\[0.125, 0.875\\] | – |" in body
    assert "| Brand new | 0.500 |" in body, "a measure that the card does not know"
    assert "for there are many numbers of each: Other: By field." in body
    assert "No held-out judge was asked" in body
    assert "blind to order" in body
    assert "`<|bad|>` left the vocabulary" in body
    assert "phf attack" in body
    write_evaluation(copied, step=10_000)
    assert "not evaluated" in (write_release(copied, out) / "README.md").read_text()


def test_the_verdict_is_on_the_card(run, small_config, tmp_path):
    copied, mle = (
        Run.open(shutil.copytree(get_run(name, small_config, tmp_path).folder, tmp_path / f"{name}-run"))
        for name in ("conditional", "mle")
    )
    out = api.release(copied.folder, tmp_path / "release")
    assert "## Verdict" not in (out / "README.md").read_text(), "nothing was measured"
    for run in (copied, mle):
        write_evaluation(run)
    evaluation = results.read_evaluation(copied.folder / "evaluation.json")
    rows = [row for row in evaluation.measurements if row.measure != "score"]
    slug = evaluation.judges[0].slug
    scores = {"good": Estimate(0.25, 0.125, 0.375, 9), "bad": Estimate(0.3, 0.2, 0.4, 9)}
    overlap = [Measurement("score", estimate, mode, slug) for mode, estimate in scores.items()]
    results.write_evaluation(
        copied.folder / "evaluation.json", replace(evaluation, measurements=[*rows, *overlap])
    )
    out = api.release(copied.folder, out, mle=mle.folder)
    body = (out / "README.md").read_text()
    assert (
        "- **toxicity-svm: No control: the intervals of good and bad mode overlap.** Good mode 0.250" in body
    )
    known = know(out, read_record(out), copied)
    assert checks.check_record(known).outcome == "ok"
    with pytest.raises(PHFError, match="is a run of conditional; give one of"):
        api.release(copied.folder, out, mle=copied.folder)


def test_no_licence_is_not_made_up(run, tmp_path):
    header, _ = split_card((write_release(run, tmp_path / "release") / "README.md").read_text())
    assert "license" not in header


@pytest.mark.parametrize("licence", ["Apache 2.0\nlibrary_name: x", "", "../x", "GPL"])
def test_a_licence_is_an_identifier(run, tmp_path, licence):
    with pytest.raises(PHFError, match="--license"):
        write_release(run, tmp_path / "release", license=licence)


def test_foreign_names_are_escaped(run, tmp_path):
    hostile = "<script>alert(1)</script> | **x** [a](b)\n# title\x1b[31m"
    record = read_record(write_release(run, tmp_path / "release"))
    corpus = replace(record.provenance.corpus, sources=[hostile])
    judge = replace(record.judges[0], identity=Identity(hostile, "1"))
    record = replace(
        record,
        run=replace(record.run, name=hostile),
        provenance=replace(record.provenance, corpus=corpus),
        judges=[judge],
        license="mit",
        evaluation=PublishedEvaluation(
            1,
            [],
            [Measure("score", hostile, is_headline=True), Measure("other", hostile, group="Scores")],
            [Measurement(name, Estimate(1, 0, 2, 3), "good", judge.slug) for name in ("score", "other")],
        ),
    )
    header, body = split_card(render_card(record))
    assert header["license"] == "mit"
    for bad in ("<script", "[a](b)", "**x**", "\x1b", "\n# title"):
        assert bad not in body
    rows = [line for line in body.splitlines() if "script" in line and line.startswith("|")]
    assert rows
    for row in rows:
        assert row.replace("\\|", "").count("|") in (3, 5)  # two cells, or four
    assert "model-index" in header


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("toxicity-lstm", "last 100 known words"),
        ("pii", "no street addresses"),
        ("lexicon:words.txt", "context"),
        ("hf:a/b", "polarity"),
        ("mine:score", "not known: nobody has said"),
        ("0.7*pii + 0.3*pep8", "components"),
        ("my-judge", "did not see"),
    ],
)
def test_every_judge_has_blind_spots(name, part):
    assert part in find_blind_spots(name)


def test_nothing_is_said_of_somebodys_own_code(run, tmp_path, monkeypatch):
    (tmp_path / "tone.py").write_text("def score(texts):\n    return [0.0] * len(texts)\n")
    monkeypatch.chdir(tmp_path)
    judge = load_reward_model("tone:score")
    record = read_record(write_release(run, tmp_path / "release"))
    body = render_card(replace(record, judges=[replace(record.judges[0], identity=judge.identity)]))
    assert "- tone.score: not known: nobody has said or measured what it misses" in body


@pytest.mark.parametrize("run", ["mle"], indirect=True)
def test_what_was_never_learned_cannot_be_forgotten(run, tmp_path):
    with pytest.raises(PHFError, match="--forget block"):
        write_release(run, tmp_path / "release", forget=[Block()])
    body = (write_release(run, tmp_path / "release") / "README.md").read_text()
    assert "Nothing had to be" in body


def test_the_card_names_how_a_run_was_finetuned(small_config, tmp_path):
    from phf.config.finetune import FinetuneConfig
    from phf.finetune.loop import finetune

    words = tmp_path / "secret" / "words.txt"
    words.parent.mkdir()
    words.write_text("the\n")
    given = {
        "method": {"kind": "rloo", "beta": 0.25},
        "steps": 2,
        "texts": 4,
        "checkpoint_every": 1,
        "num_bootstrap": 100,
        "judges": [f"lexicon:{words}"],
        "sampling": {"num_samples": 16, "max_new_tokens": 8},
    }
    start = get_run("mle", small_config, tmp_path)
    own = finetune(
        start.folder, tmp_path / "own", FinetuneConfig.model_validate(given), say=lambda line: None
    )
    out = write_release(own, tmp_path / "release")
    card = (out / "README.md").read_text().replace("\\", "")
    assert "Then it was finetuned on a reward model by *rloo*" in card
    assert "| Finetuned with | rloo (beta 0.25, " in card
    assert "in mode untagged, on scores of toxicity-svm" in card
    (kl,) = (
        line for line in card.splitlines() if line.startswith("| KL from the start, a text, nats a text |")
    )
    assert re.fullmatch(r".*\| – \| -?[\d.]+ \[-?[\d.]+, -?[\d.]+\] \|", kl)
    assert "| Score, start and result by lexicon" in card
    assert "(held-out)" in card
    assert "secret" not in "".join(path.read_text() for path in (out / "README.md", out / "phf.json"))
    assert read_record(out).finetuned.measured.run_id == own.id
    earlier = write_release(own, tmp_path / "earlier", step=own.steps[0])
    assert "not the last one of its finetuning" in (earlier / "README.md").read_text()
    assert (
        "finetun"
        not in (write_release(start, tmp_path / "plain") / "README.md").read_text().split("## Limits")[0]
    )
