"""Every text, number and file that somebody can give has a bound: one line says what is wrong, no traceback, no killed machine."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
from command_processes import start_command
from pydantic import ValidationError
from release_runs import get_run

from phf import cli
from phf.config.fields import StrictConfig
from phf.config.recipes import apply_overrides, read_recipe
from phf.config.train import TrainConfig, parse
from phf.corpus.store import build_corpus
from phf.errors import PHFError

NASTY = {
    "half a character": "\udc80",
    "NUL": "a\x00b",
    "long": "x" * 10**6,
    "override": "\u202eabc\u202c",
    "escape": "\x1b[31mred\x1b[2J",
    "BOM": "\ufeff",
    "empty": "",
    "blank": " ",
    "new line": "\n",
    "quotes": "'\"",
    "markup": "<script>alert(1)</script>",
    "parents": "../..",
    "joined": "👩‍👩‍👧",
}


def run_phf(monkeypatch, capsys, *arguments):
    """Its exit code, and what it wrote. Any other exception than an exit fails the test."""
    monkeypatch.setattr(sys, "argv", ["phf", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code = 0
    try:
        cli.main()
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def check_run(monkeypatch, capsys, *arguments):
    """Run it: it works, or says in one line why not, and steers no terminal."""
    code, out, err = run_phf(monkeypatch, capsys, *arguments)
    assert code in (0, 2) or (code == 1 and arguments[0] == "sweep"), (arguments, err)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code == 2), (arguments, err)
    assert not any(len(line) > 5000 for line in errors)
    written = set(out + err)
    assert not written & {"\x00", "\x1b", "\r", "\u202e", "\x07"}, arguments
    return code, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a corpus, labels, an export and a recipe in it."""
    folder = tmp_path_factory.mktemp("bounds")
    (folder / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"Text number {n}."}) + "\n" for n in range(40))
    )
    build_corpus([str(folder / "t.jsonl")], folder / "corpus", validation_fraction=0)
    choice = {"type": "choices", "from_name": "q", "value": {"choices": ["good"]}}
    task = {"id": 1, "data": {"text": "fine"}, "annotations": [{"result": [choice]}]}
    (folder / "export.json").write_text(json.dumps([task]))
    (folder / "labels.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    return folder


@pytest.fixture
def run(small_config, tmp_path_factory):
    return get_run("conditional", small_config, tmp_path_factory.mktemp("runs"))


COMMANDS = [
    "{}",
    "corpus build {} -o out",
    "corpus build t.jsonl -o out --text-field {}",
    "corpus build t.jsonl -o {}",
    "corpus stats {}",
    "corpus stats corpus -r {}",
    "corpus balance corpus -r {} --threshold 0 -o out",
    "corpus export corpus -o out --format {}",
    "corpus export corpus -o out -r {}",
    "corpus import {} -o out --format dolma",
    "corpus import t.jsonl -o out --format {}",
    "corpus import t.jsonl -o out --format jsonl --attribute {}",
    "annotate corpus -r {}",
    "annotate corpus -r lexicon:{}",
    "annotate corpus -r {}:f",
    "annotate corpus -r module:{}",
    "annotate corpus -r hf:{}",
    "annotate corpus -r pii -s {}",
    "tokenize corpus -t {}",
    "tokenize corpus -t train:{}",
    "label corpus -o out --labeler {}",
    "label corpus -o out --task {}",
    "label corpus -o out --order {}",
    "label corpus -o {}",
    "label --import export.json -o out --question {}",
    "label --import export.json -o out --field {}",
    "label --import export.json -o out --bad {}",
    "label --import {} -o out",
    "reward check {}",
    "reward show {}",
    "reward train {} -o out",
    "reward train labels.jsonl -o {}",
    "train {} -o out",
    "train default {} -o out",
    "train default {}=1 -o out",
    "train default corpus={} -o out",
    "train default corpus=corpus reward_model={} -o out",
    "train default corpus=corpus reward_model=pii segments=lines objective.kind={} -o out",
    "train --resume {}",
    "train --init {} -o out",
    "sweep default {}=[1,2] -o out",
    "sweep default seed=0,1 {} -o out",
    "evaluate {}",
    "show {}",
    "compare {}",
    "report {} -o out.html",
    "report missing -o {}",
    "release {} -o out",
    "release verify {}",
    "attack {} -o out",
    "push {} a/b",
    "explore {}",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_text_that_a_command_takes_may_be_nasty(place, tmp_path, monkeypatch, capsys, command):
    for entry in place.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    before = set(place.iterdir())
    for name, text in NASTY.items():
        check_run(monkeypatch, capsys, *(part.replace("{}", text) for part in command.split(" ")))
        assert set(place.iterdir()) == before, name


RUN_COMMANDS = [
    "sample {run} -n 1 --prompt {}",
    "sample {run} --mode {}",
    "sample {run} --set {}",
    "sample {run} -n 1 --steer {}",
    "evaluate {run} --judge {}",
    "evaluate {run} --scenario {}",
    "evaluate {run} --set {}",
    "evaluate {run} --set kl.reference={}",
    "evaluate {run} --steer {}",
    "release {run} -o out --license {}",
    "release {run} -o out --forget {}",
    "attack {run} -o out --attack {}",
    "attack {run} -o out --texts {}",
    "show {run} {}",
]


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_every_text_that_a_command_on_a_run_takes_may_be_nasty(run, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for text in NASTY.values():
        if text or command.split(" ")[-1] != "{}":
            parts = command.split(" ")
            check_run(
                monkeypatch, capsys, *(p.replace("{run}", str(run.folder)).replace("{}", text) for p in parts)
            )


def test_files_of_nasty_texts_are_read(run, place, tmp_path, monkeypatch, capsys):
    """Labels, word lists, prompts, texts of an attacker, exports: what cannot be used is left out or refused, never a traceback."""
    monkeypatch.chdir(tmp_path)
    rows = {
        "rows": [
            {"text": text, "prompt": text, "label": n % 2, "id": text}
            for n, text in enumerate(NASTY.values())
        ]
    }
    for ascii_only in (True, False):
        lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows["rows"]]
        (tmp_path / "rows.jsonl").write_bytes("".join(lines).encode(errors="surrogatepass"))
        choices = [
            {"type": "choices", "from_name": text, "value": {"choices": [text]}} for text in NASTY.values()
        ]
        tasks = [
            {
                "id": t,
                "data": {t: t},
                "annotations": [{"completed_by": t, "created_at": t, "result": choices}],
            }
            for t in NASTY.values()
        ]
        content = json.dumps([None, *tasks], ensure_ascii=ascii_only).encode(errors="surrogatepass")
        (tmp_path / "export.json").write_bytes(content)
        (tmp_path / "tasks.json").write_bytes(
            json.dumps(tasks, ensure_ascii=ascii_only).encode(errors="surrogatepass")
        )
        for arguments in (
            ["corpus", "build", "rows.jsonl", "-o", f"corpus-{ascii_only}"],
            ["label", "--import", "export.json", "-o", "l.jsonl"],
            ["label", "--import", "tasks.json", "-o", "l.jsonl"],
            [
                "label",
                "--import",
                "tasks.json",
                "-o",
                f"l-{ascii_only}.jsonl",
                "--question",
                "<script>alert(1)</script>",
            ],
            ["reward", "train", "rows.jsonl", "-o", f"reward-{ascii_only}"],
            ["attack", run.folder, "-o", "attack", "--texts", "rows.jsonl"],
        ):
            check_run(monkeypatch, capsys, *arguments)
    for text in NASTY.values():
        (tmp_path / "words.txt").write_bytes(text.encode(errors="surrogatepass"))
        check_run(monkeypatch, capsys, "annotate", place / "corpus", "-r", "lexicon:words.txt", "--dry-run")
        (tmp_path / "recipe.yaml").write_bytes(b"corpus: " + text.encode(errors="surrogatepass"))
        check_run(monkeypatch, capsys, "train", "recipe.yaml", "-o", "out")


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (LAUGHS, "more than 10,000 values"),
        ("a: &a [*a]", "more than 10,000 values"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ("seed: 2020-13-45", "not valid YAML (month must be in 1..12"),
        ("seed: !!int x", "not valid YAML"),
        ("seed: !!bool x", "not valid YAML"),
        ("seed: !!int ''", "not valid YAML"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("? [1]\n: 2\n? {a: 1}\n: 3", "not valid YAML"),
        ("x" * (1 << 21), "more than 1,048,576 bytes"),
    ],
    ids=["laughs", "circle", "deep", "date", "int", "bool", "empty int", "digits", "key", "long"],
)
def test_a_recipe_has_bounds(tmp_path, content, part):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(PHFError) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "2020-13-45",
        "!!int x",
        "9" * 5000,
        "9" * 4000,
        "9" * 30,
        ".nan",
        ".inf",
        "1e400",
        "2020-01-02",
        "[" * 9999,
    ],
)
def test_an_override_has_bounds(value):
    base = {
        "corpus": "c",
        "reward_model": "pii",
        "segments": "lines",
        "tokens": 1,
        "objective": {"kind": "mle"},
    }
    for key in ("seed", "optim.learning_rate"):
        with pytest.raises(PHFError) as caught:
            parse(TrainConfig, apply_overrides(base, f"{key}={value}"), "test")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 11_000


def list_configs(base=StrictConfig):
    for config in base.__subclasses__():
        yield config
        yield from list_configs(config)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), 2**63], ids=repr
)
def test_no_setting_takes_a_number_that_is_none(value):
    for config in list_configs():
        for name, field in config.model_fields.items():
            if re.search(r"\b(int|float)\b", str(field.annotation)) and "dict" not in str(field.annotation):
                with pytest.raises(ValidationError) as caught:
                    config.model_validate({name: value})
                assert name in {error["loc"][0] for error in caught.value.errors()}, (config, name)


@pytest.mark.parametrize(
    "command",
    [
        "corpus stats corpus --budget nan",
        "corpus stats corpus --budget 1e30",
        "corpus balance corpus -r pii --threshold nan -o out",
        "corpus balance corpus -r pii --threshold 0 --ratio nan -o out",
        "corpus balance corpus -r pii --threshold 0 --ratio inf -o out",
        "corpus balance corpus -r pii --threshold -inf -o out",
        "corpus build t.jsonl -o out --max-documents 99999999999999999999",
        "corpus build t.jsonl -o out --validation-fraction nan",
        "label corpus -o out --seed -5",
        "label corpus -o out --seed 99999999999999999999",
        "reward check pii --threshold nan",
        "reward train labels.jsonl -o out --seed -5",
        "reward distill corpus --teacher pii -o out --threshold nan",
        "tokenize corpus -t train:99999999999999999999",
        "train default corpus=corpus seed=-5 -o out",
        "demo -o out --seed -5",
        "demo -o out --tokens 99999999999999999999",
    ],
)
def test_numbers_that_are_out_of_bounds_are_one_line(place, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(place)
    code, _, err = run_phf(monkeypatch, capsys, *command.replace(" out", f" {tmp_path}/out").split(" "))
    assert code == 2
    assert err.count("\n") == 1, err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_refused(place, tmp_path, monkeypatch, capsys, kind):
    endless = tmp_path / "endless.yaml"
    if kind == "pipe":
        os.mkfifo(endless)
    else:
        endless.symlink_to("/dev/zero")
    for arguments in (
        ["train", endless, "-o", tmp_path / "run"],
        ["annotate", place / "corpus", "-r", f"lexicon:{endless}"],
        ["label", "--import", endless, "-o", tmp_path / "l.jsonl"],
        ["reward", "train", place / "labels.jsonl", "-o", tmp_path / "r", "--counterfactual", endless],
    ):
        code, _, err = run_phf(monkeypatch, capsys, *arguments)
        assert (code, "is not a regular file" in err) == (2, True), err


def phf_process(*arguments, limit=None, **environment):
    """A real process, as a shell starts it; `limit` is set in it before."""
    return subprocess.run(
        [sys.executable, "-m", "phf", *map(str, arguments)],
        timeout=100,
        capture_output=True,
        preexec_fn=limit,
        env={**os.environ, **environment},
    )


def test_an_ascii_terminal_shows_what_it_can(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"id": "\u6a21", "text": "na\u00efve \u6a21\u578b \U0001f600."}) + "\n"
    )
    corpus = build_corpus([str(tmp_path / "t.jsonl")], tmp_path / "corpus", validation_fraction=0).path
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    for arguments in (
        ["annotate", corpus, "-r", "pii", "-s", "lines", "--workers", 1],
        ["corpus", "stats", corpus],
    ):
        done = phf_process(*arguments, **ascii_only)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert done.stdout.isascii()
    assert b"na\\xefve" in done.stdout


def limit_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path):
    release = start_command("release", run.folder, "-o", tmp_path / "release", prepare=limit_disk)
    code, errors = release.finish()
    assert code == 2
    assert "Traceback" not in errors
    assert "File too large; check the path, its permissions and the space on the disk" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "num_bytes"),
    [("annotate", 200_000_000), ("tokenize", 360_000_000), ("train", 1_900_000_000)],
)
def test_a_limit_on_memory_under_which_libraries_hang_is_one_line(tmp_path, command, num_bytes):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))

    done = phf_process(command, tmp_path / "corpus", limit=limit)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: not enough memory: this shell allows %.2f GB" % (num_bytes / 1e9))
    assert done.stderr.count(b"\n") == 1
    assert b"ulimit -v unlimited" in done.stderr


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (MemoryError(), "not enough memory (for one more object)"),
        (
            MemoryError("Unable to allocate 7.45 GiB for an array"),
            "not enough memory (Unable to allocate 7.45 GiB",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "tried to allocate 9 bytes",
        ),
        (RuntimeError("can't start new thread"), "not enough memory"),
        (RuntimeError("Unknown error: Failed to launch worker thread: Resource"), "not enough memory"),
        (OSError(12, "Cannot allocate memory"), "not enough memory"),
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device; check"),
        (
            Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on device; check",
        ),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, part):
    def fail(**_):
        raise error

    monkeypatch.setattr(cli, "app", fail)
    code, _, err = run_phf(monkeypatch, capsys, "show")
    assert (code, err.count("\n"), part in err) == (2, 1, True), err


def test_a_bug_shows_itself(monkeypatch):
    def fail(**_):
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ValueError, match="a bug"):
        cli.main()


def test_names_of_runs_cannot_steer_the_terminal(run, tmp_path, monkeypatch, capsys):
    odd = tmp_path / "\x1b[31mred\x1b[2J\u202e\r"
    odd.symlink_to(run.folder)
    for arguments in (
        ["show", odd],
        ["report", odd, "-o", odd.with_suffix(".html")],
        ["compare", odd, run.folder],
    ):
        check_run(monkeypatch, capsys, *arguments)


def test_the_home_folder_is_known_where_no_shell_expands_it(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(place))
    (tmp_path / "r.yaml").write_text("corpus: ~/corpus\nmodel: {init: ~/model}\n")
    base = {
        "segments": "lines",
        "tokens": 1,
        "objective": {"kind": "mle"},
        **read_recipe(tmp_path / "r.yaml"),
    }
    config = parse(TrainConfig, apply_overrides(base, "reward_model=0.5*lexicon:~/w.txt + 0.5*pii"), "test")
    assert (config.corpus, config.model.init) == (f"{place}/corpus", f"{place}/model")
    assert config.reward_model == f"0.5*lexicon:{place}/w.txt + 0.5*pii"
    assert run_phf(monkeypatch, capsys, "corpus", "stats", "~/corpus")[0] == 0
    assert run_phf(monkeypatch, capsys, "corpus", "build", "~/t.jsonl", f"--out={tmp_path}/c")[0] == 0


def test_an_import_gives_its_counts_as_json(place, tmp_path, monkeypatch, capsys):
    code, out, _ = run_phf(
        monkeypatch, capsys, "label", "--import", place / "export.json", "-o", tmp_path / "l.jsonl", "--json"
    )
    assert code == 0
    assert json.loads(out) == {
        "out": str(tmp_path / "l.jsonl"), "format": "label-studio", "question": "q", "num_judgements": 1, "left_out": {}, "unmapped": [],
    }  # fmt: skip
