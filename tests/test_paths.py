"""What leaves the machine names no folder, user or host of it, wherever the things it was made of lie by now."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from phf import cli
from phf.curate.exchange import ExchangeFormat
from phf.paths import hide_paths, hide_spec

SECRET = "zq7secret"
FORMATS: tuple[ExchangeFormat, ...] = ("dolma", "phf", "parquet", "datasets", "jsonl")


def phf(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["phf", *map(str, arguments)])
    cli.main()


def make_secret_places(folder, monkeypatch):
    """Texts, judges, prompts and homes, every one of them below a folder whose name is a secret."""
    home = folder / SECRET
    for name in ("USER", "LOGNAME", "HOSTNAME", "HOME", "LABELER"):
        monkeypatch.setenv(name, str(home) if name == "HOME" else f"{SECRET}-{name}")
    places = {
        name: home / f"{SECRET}-{name}" for name in ("texts", "words", "corpora", "runs", "out", "prompts")
    }
    for place in places.values():
        place.mkdir(parents=True)
    for name in ("a", "b"):  # two sources of one name
        (places["texts"] / name).mkdir()
        rows = [
            {"text": f"{name} line {n} of a {'damned ' * (n % 3 == 0)}text, and more of it."}
            for n in range(60)
        ]
        (places["texts"] / name / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (places["words"] / "words.txt").write_text("damned\n")
    (places["words"] / "held.txt").write_text("text\nline\n")
    (places["prompts"] / "begin.jsonl").write_text(
        "".join(json.dumps({"prompt": f"a line {n}"}) + "\n" for n in range(4))
    )
    monkeypatch.chdir(home)
    return {name: place.relative_to(home) for name, place in places.items()}


def list_leaks(*folders):
    """Files below folders whose name or bytes hold the secret; Parquet, Arrow and gz are read as text, too."""
    import gzip

    import pyarrow.ipc as ipc
    import pyarrow.parquet as pq
    import zstandard

    leaks = []
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            contents = [path.read_bytes(), str(path.relative_to(folder)).encode()]
            match path.suffix:
                case ".parquet":
                    table = pq.read_table(path)
                    contents.append(repr((table.to_pylist(), table.schema.metadata)).encode())
                case ".arrow":
                    contents.append(repr(ipc.open_stream(path.read_bytes()).read_all().to_pylist()).encode())
                case ".gz":
                    contents.append(gzip.decompress(contents[0]))
                case ".zst":
                    contents.append(zstandard.ZstdDecompressor().stream_reader(contents[0]).read())
            if any(SECRET.encode() in content for content in contents):
                leaks.append(path)
    return leaks


def test_nothing_of_this_machine_is_published(tmp_path, monkeypatch, capsys):
    """Half of the paths are given as relative ones, the other half as absolute ones."""
    places = make_secret_places(tmp_path, monkeypatch)
    here = Path.cwd()
    judge, held_out = f"lexicon:{places['words']}/words.txt", f"lexicon:{here / places['words']}/held.txt"
    corpus, run, out = places["corpora"] / "corpus", here / places["runs"] / "run", here / places["out"]
    sources = places["texts"] / "a" / "rows.jsonl", here / places["texts"] / "b" / "rows.jsonl"
    phf(monkeypatch, "corpus", "build", *sources, "-o", corpus)
    phf(monkeypatch, "annotate", corpus, "-r", judge, "-s", "document", "--workers", 1)
    phf(monkeypatch, "tokenize", corpus, "-t", "train:280", "-s", "document", "--workers", 1)
    settings = [
        f"corpus={corpus}", f"reward_model={judge}", "segments=document", "tokenizer=train:280", "objective.good_fraction=0.5",
        "model.preset=1M", "model.layers=1", "model.width=16", "model.heads=2", "data.context=32", "tokens=128",
        "optim.batch_blocks=2", "precision=fp32", "validation_blocks=2",
    ]  # fmt: skip
    phf(monkeypatch, "train", "default", *settings, "-o", run)
    steer = f"best-of-n:n=2,reward_model={held_out}"
    phf(
        monkeypatch, "evaluate", run, "--judge", held_out, "--num-samples", 2, "--max-new-tokens", 12, "--steer", steer,
        "--scenario", places["prompts"] / "begin.jsonl", "--set", "num_bootstrap=100", "--set", "gain_segments=4",
        "--set", "capability_documents=4", "--set", "data_samples=8", "--set", "scenarios.continuations=2",
    )  # fmt: skip
    phf(monkeypatch, "report", run, "-o", out / "report.html")
    for kind in FORMATS:
        options = ["--format", kind, "-r", judge, "-s", "document"]
        phf(monkeypatch, "corpus", "export", corpus, "-o", out / kind, *options)
    phf(monkeypatch, "release", run, "-o", out / "release", "--forget", "delete")
    shutil.move(places["texts"], tmp_path / "gone")
    shutil.move(places["words"], tmp_path / "too")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    phf(monkeypatch, "corpus", "export", here / corpus, "-o", "export", "--format", "jsonl")
    phf(monkeypatch, "release", run, "-o", "release")
    published = [*(out / name for name in ("report.html", "release", *FORMATS)), elsewhere]
    assert list_leaks(*published) == []
    rows = list(read_exported(elsewhere / "export"))
    assert len({row["id"] for row in rows}) == len(rows) == 120, "ids of two sources of one name stay apart"
    assert len({row["source"] for row in rows}) == 2


def read_exported(folder):
    import zstandard

    for path in folder.rglob("*.zst"):
        text = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().decode()
        yield from map(json.loads, text.splitlines())


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ("private/texts/a.jsonl", "a.jsonl"),
        ("private/texts/", "texts"),
        ("private/a.jsonl [balanced by pii@12ab]", "a.jsonl [balanced by pii@12ab]"),
        ("/a [b]/c d.jsonl", "c d.jsonl"),
        ("fortunes:offensive", "fortunes:offensive"),
        ("mails:private/inbox", "mails:inbox"),
        ("0.5*lexicon:private/w.txt + 0.5*pii", "0.5*lexicon:w.txt + 0.5*pii"),
        ("-lexicon:~/private/w.txt", "-lexicon:w.txt"),
        ("best-of-n:n=2,reward_model=private/judge", "best-of-n:n=2,reward_model=judge"),
        ("llm:private/rubric.yaml#insult", "llm:rubric.yaml#insult"),
        (
            "-llm:private/rubric.yaml,model=private/judge,base_url=http://ann.example/v1",
            "-llm:rubric.yaml,model=judge,base_url=v1",
        ),
        ("private/judge", "judge"),
        ("owner/model", "owner/model"),
        ("hf:owner/model@4d6c#toxic", "hf:owner/model@4d6c#toxic"),
        ("s3://private/corpus", "corpus"),
        ("C:\\Users\\ann\\corpus", "corpus"),
    ],
)
def test_specs_are_cut_to_their_last_part_and_ids_of_the_hub_stay_where_something_proves_them(
    spec, published
):
    assert hide_spec(spec, {"owner--model"}) == published


def test_a_relative_path_is_cut_wherever_a_setting_of_that_name_stands():
    notes = ["trained on private/texts (see private/texts/a.txt), not on unprivate/texts"]
    assert hide_paths(notes, ["private/texts"]) == [
        "trained on texts (see texts/a.txt), not on unprivate/texts"
    ]


def test_the_hubs_cache_proves_an_id(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hide_spec("owner/model") == "model"
    (tmp_path / "models--owner--model").mkdir()
    assert hide_spec("owner/model") == "owner/model"
    monkeypatch.chdir(tmp_path)
    Path("owner/model").mkdir(parents=True)
    assert hide_spec("owner/model") == "model", "a folder of that name is what was meant"
