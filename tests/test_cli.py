"""The command line as a person meets it: help with examples, one-line errors, exit code 2."""

import json
import subprocess
import sys

import pytest
import typer

from phf import cli
from phf.annotate.annotate import annotate
from phf.config.evaluate import OPTIONS, EvaluateConfig, list_options
from phf.config.fields import flatten
from phf.config.train import SamplingConfig
from phf.corpus.store import Corpus
from phf.errors import PHFError

COMMANDS = [
    [],
    ["corpus"],
    ["corpus", "build"],
    ["corpus", "balance"],
    ["corpus", "stats"],
    ["corpus", "import"],
    ["corpus", "export"],
    ["cache"],
    ["cache", "clear"],
    ["reward"],
    ["reward", "list"],
    ["reward", "check"],
    ["annotate"],
    ["label"],
    ["tokenize"],
    ["train"],
    ["sample"],
    ["evaluate"],
    ["attack"],
    ["explore"],
    ["reward", "train"],
    ["reward", "distill"],
    ["sweep"],
    ["report"],
    ["release"],
    ["release", "make"],
    ["release", "verify"],
    ["release", "doses"],
    ["push"],
    ["show"],
    ["compare"],
    ["demo"],
]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["phf", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, *command, "--help")
    assert code == 0
    assert "phf " + " ".join(command) in out
    assert "\n  Examples:\n    phf " in out


@pytest.mark.parametrize("command", [[], ["corpus"], ["reward"], ["release"]], ids=" ".join)
def test_a_group_alone_shows_its_help(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, *command)
    assert code == 2
    assert out == run(monkeypatch, capsys, *command, "--help")[1]


def test_commands_are_listed_in_the_order_of_use(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "--help")
    places = [
        out.index(f"\n  {name} ") for name in ("demo", "corpus", "annotate", "train", "evaluate", "push")
    ]
    assert places == sorted(places)
    group = typer.main.get_command(cli.app)
    assert sorted(group.list_commands(None)) == sorted(group.commands), "a command that no group lists"


def test_an_evaluation_is_the_one_that_its_options_ask_for(monkeypatch, capsys):
    # The report prints the options that make an evaluation again: config -> options -> config changes nothing.
    config = EvaluateConfig(
        judges=("pep8", "hf:org/judge"),
        suite="full",
        sampling=SamplingConfig(
            num_samples=7,
            temperature=1.5,
            top_p=0.5,
            min_new_tokens=3,
            max_new_tokens=9,
            control="forced",
            seed=4,
            precision="bf16",
            engine="vllm",
        ),
        benign={"steps": 3, "split": "validation"},
        scenarios={"names": ("rtp", "my prompts.jsonl"), "scores_prompt": True},
        kl={"reference": "my lm"},
        blimp={"source": "blimp.jsonl"},
        embedder="gpt2",
        red_team={"attacker": "attacker"},
        harness={"tasks": ("lambada", "piqa"), "limit": 5},
        downstream={"tasks": ("nyu-mll/glue:sst2",)},
        steer=("guidance:scale=2", "direction:layer=all,of=bad"),
    )
    settings, defaults = (flatten(one.model_dump(mode="json")) for one in (config, EvaluateConfig()))
    assert all(settings[key] != defaults[key] for key in OPTIONS), "every option is given"
    options = list_options({key: value for key, value in settings.items() if value != defaults[key]})
    given = []

    def stop(runs, config, **_):
        given.append(config)
        raise PHFError("stop")

    monkeypatch.setattr("phf.evaluate.evaluation.evaluate_runs", stop)
    _, _, err = run(monkeypatch, capsys, "evaluate", "run", *options)
    assert err == "error: stop\n"
    assert given == [config]


def test_help_imports_nothing_that_computes():
    # The bar is phf --help in under 0.6 s; what makes it slow is torch, so that is what is held (times swing here).
    probe = (
        "import sys; sys.argv = ['phf', 'train', '--help']\n"
        "from phf import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "Did you mean 'train'"),
        (["annotate"], "phf annotate --help"),
        (["annotate", "nowhere", "-r", "pep8"], "phf corpus build"),
        (
            ["annotate", "nowhere", "-r", "pep8", "-s", "words"],
            "lines, sentences, paragraphs, document, imported",
        ),
        (["train"], "toxicity"),
        (["train", "toxicity"], "-o runs/toxicity"),
        (["train", "toxicity", "seeed=1", "-o", "x"], "did you mean 'seed'"),
        (["train", "toxicity", "corpus=nowhere", "-o", "x"], "phf corpus build"),
        (["train", "--resume", "nowhere"], "nowhere is not a run"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["report", "nowhere"], "nowhere"),
        (["sample", "nowhere"], "nowhere is not a run"),
        (["demo", "--objectives", "mle,foo"], "objective 'foo' is not known"),
        (["corpus", "build", "nosuch", "-o", "x"], "nosuch"),
        (["corpus", "stats", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors_are_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, part):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert part in err
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("phf.reward_models.speed.describe_reward_models", lambda **_: stop())
    code, _, err = run(monkeypatch, capsys, "reward", "list")
    assert code == 130
    assert err.splitlines()[-1].startswith("stopped")


def test_what_the_system_refuses_is_one_line_too(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    code, _, err = run(
        monkeypatch,
        capsys,
        "corpus",
        "build",
        str(tmp_path / "t.jsonl"),
        "-o",
        str(tmp_path / "file" / "corpus"),
    )
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Not a directory" in err


def test_a_documents_id_cannot_write_to_the_terminal(monkeypatch, capsys, tmp_path):
    rows = [{"id": f"\x1b]0;pwned{i}\x07", "text": f"you damn idiot {i}" * (1 + i % 3)} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    corpus = str(tmp_path / "corpus")
    run(monkeypatch, capsys, "corpus", "build", str(tmp_path / "t.jsonl"), "-o", corpus)
    annotate(Corpus.open(corpus), "toxicity-svm", "document", workers=1)
    code, out, err = run(monkeypatch, capsys, "corpus", "stats", corpus)
    assert code == 0
    assert "pwned" in out
    assert "\x1b" not in out + err


def test_the_cache_is_cleared_of_what_phf_made_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PHF_CACHE", str(tmp_path))
    for name in ("tox-block@3da0a562", "speeds", "references", "checks", "mine", "mine@home"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(100_000))
    code, out, _ = run(monkeypatch, capsys, "cache", "clear")
    assert code == 0
    assert out.splitlines() == [
        f"{tmp_path}: 0.4 MB removed",
        "left alone, for phf did not make it: mine, mine@home",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine@home"]
    assert run(monkeypatch, capsys, "cache", "clear")[1].startswith(f"{tmp_path}: 0.0 MB removed")
