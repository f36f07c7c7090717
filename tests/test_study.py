"""`phf study`: what runs, what is kept, and how it goes on."""

import json
import shutil

import pytest
import yaml
from compare_runs import quiet
from typer.testing import CliRunner

from phf.cli import app
from phf.errors import PHFError
from phf.study.loop import State, run_study
from phf.study.plan import Plan, read_study
from phf.terminal import be_quiet
from phf.train import sweep

ARMS = {
    "mle": {"set": {"objective": {"kind": "mle"}}},
    "conditional": {},
    "bestofn": {
        "finetune": "{mle}",
        "set": {
            "method": "bestofn",
            "steps": 1,
            "pool": 16,
            "sampling.num_samples": 8,
            "sampling.max_new_tokens": 8,
        },
        "seeds": [0],
    },
}
CLAIMS = [
    {"text": "Bits are as MLE's", "contrasts": ["joint_bits_per_byte(good) conditional < 1.5 mle"]},
    {"text": "GLUE is as MLE's", "why_not": "too small"},
]


@pytest.fixture
def make_study(small_config, tmp_path):
    """Writes a study of two arms with two seeds and one with one; returns its path."""

    def make(**changes):
        shared = small_config("objective.kind=mle").model_dump(
            mode="json", exclude_none=True, exclude={"objective", "good", "seed"}
        )
        shared |= {
            "objective": {"kind": "conditional", "good_fraction": 0.5},
            "good": {"good_fraction": 0.5},
            "checkpoint_every": 0,
        }
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(shared))
        study = {
            "title": "Small",
            "recipe": str(recipe),
            "seeds": [0, 1],
            "evaluate": {
                "sampling": {"num_samples": 8, "min_new_tokens": 2, "max_new_tokens": 8},
                "capability_documents": 8,
                "gain_segments": 8,
                "data_samples": 8,
                "num_bootstrap": 100,
            },
            "arms": ARMS,
            "claims": CLAIMS,
        } | changes
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    return make


@pytest.fixture
def calls(monkeypatch):
    """Commands run in this process; returns the list of those that were run, and one may be made to fail by its name."""
    done = []

    def run_command(arguments, environment, folder=None, lifeline=None):
        done.append(arguments)
        if any(word in run_command.broken for word in arguments):
            return "the machine has burnt down"
        ended = CliRunner().invoke(app, arguments)
        be_quiet(False)  # of this process, as --quiet leaves it
        return None if ended.exit_code == 0 else f"{ended.exception} {ended.output}"

    run_command.broken = ()
    monkeypatch.setattr(sweep, "run_command", run_command)
    done.append(run_command)
    return done


def test_a_study_runs_what_is_missing_keeps_it_and_goes_on_elsewhere(make_study, calls, tmp_path):
    out, study = tmp_path / "out", make_study()
    calls[0].broken = (str(out / "runs" / "mle-seed1"),)
    first = run_study(study, out, say=quiet)
    assert first.failures == {"mle-seed1": "the machine has burnt down"}
    assert {path.stem for path in out.glob("results/*")} == {
        "mle-seed0",
        "conditional-seed0",
        "conditional-seed1",
        "bestofn-seed0",
    }
    assert "Not run yet: mle-seed1." in first.page.read_text()
    (verdict, untestable) = first.verdicts
    assert (verdict.answer, untestable.answer) == ("reproduced", "not testable here")
    assert verdict.tested[0].ratio.count == 1

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(out / "results", elsewhere / "results")
    calls[0].broken = ()
    num_calls = len(calls)
    second = run_study(study, elsewhere, say=quiet)
    assert not second.failures
    assert [(call[0], "mle-seed1" in " ".join(call)) for call in calls[num_calls:]] == [
        ("train", True),
        ("evaluate", True),
    ]
    assert second.verdicts[0].tested[0].ratio.count == 2
    page = second.page.read_text()
    assert "Not run yet" not in page
    assert "| Bits are as MLE's | **reproduced** |" in page
    assert json.loads((elsewhere / "study.json").read_text())["verdicts"][0]["answer"] == "reproduced"
    num_calls = len(calls)
    again = run_study(study, elsewhere, say=quiet)
    assert len(calls) == num_calls
    assert again.page.read_text() == page


def test_a_run_whose_folder_is_gone_is_trained_again_for_those_that_read_it(make_study, calls, tmp_path):
    out, study = tmp_path / "out", make_study(seeds=[0])
    run_study(study, out, say=quiet)
    kept = (out / "results" / "mle-seed0.json").read_bytes()
    shutil.rmtree(out / "runs")
    (out / "results" / "bestofn-seed0.json").unlink()
    num_calls = len(calls)
    assert not run_study(study, out, say=quiet).failures
    assert [call[0] for call in calls[num_calls:]] == ["train", "finetune", "evaluate"]
    assert (out / "results" / "mle-seed0.json").read_bytes() == kept


def test_a_plan_says_what_fits_into_the_hours_and_cuts_from_the_end(make_study, tmp_path):
    arms = {name: {**arm, "minutes": 30} for name, arm in ARMS.items()}
    plan = Plan.create(read_study(make_study(arms=arms, hours=1.6)), tmp_path)
    assert [run.id for run in plan.runs] == ["mle-seed0", "mle-seed1", "conditional-seed0"]
    assert [run.id for run in plan.cut] == ["conditional-seed1", "bestofn-seed0"]
    assert plan.minutes_left == 90
    ended = CliRunner().invoke(
        app, ["study", str(make_study(arms=arms)), "-o", str(tmp_path / "out"), "--plan", "--json"]
    )
    assert json.loads(ended.stdout)["minutes"] == 150
    assert not (tmp_path / "out").exists()


def test_results_of_other_settings_are_refused(make_study, calls, tmp_path):
    out = tmp_path / "out"
    only = {"mle": ARMS["mle"]}
    run_study(make_study(arms=only, seeds=[0], claims=[]), out, say=quiet)
    changed = {"mle": {"set": {"objective": {"kind": "mle"}, "optim.learning_rate": 0.01}}}
    with pytest.raises(PHFError, match="is of other settings than mle has"):
        run_study(make_study(arms=changed, seeds=[0], claims=[]), out, say=quiet)
    assert (
        run_study(make_study(arms=only, seeds=[0], claims=CLAIMS[1:]), out, say=quiet).verdicts[0].answer
        == "not testable here"
    )


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "state.jsonl"
    path.write_text(
        '{"run": "a", "command": "train", "seconds": 2.0, "failure": null}\n{"run": "a", "failure": "{}'
    )
    State(path).add("a", "evaluate", 3.0, None)
    state = State(path)
    assert state.seconds("a") == 5.0
    assert not state.has("train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"Mle!": {}}}, "no name of a folder"),
        ({"arms": {"a": {"finetune": "{mle}"}}}, r"arm a reads \{mle\}, which is no arm before it"),
        ({"arms": {"a": {"command": "attack {own}", "set": {"seed": 1}}}}, "leave set and finetune out"),
        (
            {"arms": {"a": {}, "b": {"finetune": "{a}", "seeds": [3]}}},
            r"arm b reads \{a\} with seed 3, which a does not have",
        ),
        ({"claims": [{"text": "a"}]}, "has contrasts, or why_not"),
        ({"claims": [{"text": "a", "contrasts": ["b"]}]}, "is not of the form"),
        ({"hours": 0}, "hours"),
        (
            {"prepare": ["corpus build nothing.jsonl -o {out}/corpus"]},
            "'phf corpus build nothing.jsonl -o {out}/corpus' failed: source 'nothing.jsonl'",
        ),
    ],
)
def test_a_study_that_is_none_is_refused_in_a_line(changes, message, make_study, tmp_path):
    with pytest.raises(PHFError, match=message):
        run_study(make_study(**changes), tmp_path / "out", say=quiet)
    assert not (tmp_path / "out" / "runs").exists()
