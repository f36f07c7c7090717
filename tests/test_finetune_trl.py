"""What `phf finetune` shares with TRL: the gradient of RLOO, the losses of DPO and KTO, and the traps of end and control tokens."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from compare_runs import quiet
from release_runs import get_run
from test_finetune import drawing, run_command, settings
from tiny_models import bytes_alone, tiny_llama

from phf.errors import PHFError
from phf.finetune.loop import finetune
from phf.finetune.pairs import Judged, read_preferences, take_samples, take_segments
from phf.finetune.pool import Pool
from phf.finetune.results import FINETUNE
from phf.finetune.rloo import find_advantages, rloo_loss
from phf.finetune.start import Start
from phf.finetune.trl import list_pairs, list_texts, load_plain_tokenizer, restrict_heads
from phf.report.reading import read_runs
from phf.reward_models import load_reward_model
from phf.train.run import Run


@pytest.fixture
def places(small_config, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [get_run(name, small_config, folder).folder for name in ("mle", "conditional")]


def make_trl_rloo(model, reference, tokenizer, rewards, group, beta, folder):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RLOOConfig, RLOOTrainer

    tokenizer.save(folder / "tokenizer")
    plain = AutoTokenizer.from_pretrained(
        str(folder / "tokenizer"), split_special_tokens=False, padding_side="left"
    )
    config = RLOOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(rewards),
        num_generations=group,
        beta=0.0,  # or it would fetch a reference of its own
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
    )
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: rewards,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        processing_class=plain,
    )
    trainer.ref_model, trainer.beta = reference, beta
    return trainer


def list_gradients(model):
    return {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("behind", [0.0, 0.03])
def test_the_gradient_of_rloo_is_that_of_trl(behind, tmp_path, monkeypatch):
    """One batch, fixed: texts, scores (one missing), policy, start; and the policy a step away from the one that wrote, or not."""
    import copy

    from trl.trainer.utils import add_fused_lm_head

    tokenizer = bytes_alone()
    own = drawing("untagged", "sampling.min_new_tokens=0", "sampling.max_new_tokens=12")
    writer = own.target.model
    reference = tiny_llama(tokenizer, seed=2)
    texts = own.write(writer, [()] * 8, range(8))
    scores = torch.tensor([0.1, 0.9, 0.3, torch.nan, 0.5, 0.2, 0.8, 0.4], dtype=torch.float64)
    beta, group = 0.05, 4

    learner = copy.deepcopy(writer)
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            torch.manual_seed(number)
            parameter += behind * torch.randn_like(parameter)

    laid = own.lay_out([()] * 8, texts)
    with torch.no_grad():
        old = own.log_probs(writer, laid).double().sum(1)
        kl = old - own.log_probs(reference, laid).double().sum(1)
    ours = copy.deepcopy(learner)
    advantages = find_advantages(-scores - beta * kl, group)
    rloo_loss(own.log_probs(ours, laid).double().sum(1), old, advantages, 0.2).backward()

    rewards = [None if math.isnan(score) else -float(score) for score in scores]
    trainer = make_trl_rloo(writer, reference, tokenizer, rewards, group, beta, tmp_path)
    add_fused_lm_head(reference)
    end = own.drawer.control.end
    completions = [[*ids, *([end] if ended else [])] for ids, ended in texts]
    monkeypatch.setattr(
        trainer,
        "_generate",
        lambda prompts: ([[end]] * 8, completions, [tokenizer.decode(ids) for ids in completions]),
    )
    with restrict_heads([writer, reference], own):
        inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * 8)
        add_fused_lm_head(learner, outputs=("log_probs", "entropy"))
        with restrict_heads([learner], own):
            trainer._compute_loss(learner, inputs).backward()
    assert torch.allclose(inputs["advantages"].double(), advantages, rtol=1e-5, atol=1e-6)
    found, expected = list_gradients(ours), list_gradients(learner)
    assert found.keys() == expected.keys()
    norm = torch.cat([value.flatten() for value in expected.values()]).norm()
    gap = torch.cat([(found[name] - expected[name]).flatten() for name in found]).norm()
    assert gap / norm < 1e-5
    assert norm > 0.1


def test_the_last_trained_token_is_the_end_and_no_text_reaches_a_control_token(places):
    conditional = places[1]
    start = Start.open(conditional, settings(), load_reward_model)
    plain, control = load_plain_tokenizer(start), start.tokenizer.control
    assert plain("a<|endoftext|>")["input_ids"][-1] == control.end
    reached = plain("<|good|><|bad|>", add_special_tokens=False)["input_ids"]
    assert not set(reached) & set(control.all)
    # And as the start's own tokenizer has it, the end's name is text, which is why TRL's own preparation is not used.
    assert control.end not in start.tokenizer.encode("<|endoftext|>")


def test_samples_keep_their_ids_and_cut_ones_have_no_end(places, tmp_path):
    mle, _ = places
    start = Start.open(mle, settings("pool=80", "sampling.max_new_tokens=48"), load_reward_model)
    pool = Pool.draw(start, tmp_path, "run")
    assert len({text.ended for text in pool.texts}) == 2
    found = take_samples(start, pool)
    end, good = start.tokenizer.control.end, start.tokenizer.control.good
    by_ids = {(tuple(text.ids), text.ended): text.score for text in pool.texts}
    for better, worse in found.pairs:
        assert better.prompt == worse.prompt == [end]
        scores = [by_ids[tuple(i for i in one.ids if i != end), end in one.ids] for one in (better, worse)]
        assert scores[0] < scores[1]
        assert end not in better.ids[:-1]
        assert max(better.ids) < good
    rows = list_pairs(found.pairs[:1])
    assert rows[0]["chosen_ids"] == found.pairs[0][0].ids
    assert list_texts(found.texts[:2])[1]["KL_completion_ids"] == found.texts[0][0].ids


def test_segments_of_the_corpus_cost_no_calls_where_they_are_scored(places):
    mle, _ = places
    found = take_segments(Start.open(mle, settings("sampling.max_new_tokens=48"), load_reward_model))
    assert found.calls == 0
    assert found.pairs
    assert {is_good for _, is_good in found.texts} == {True, False}


def test_a_blocked_token_has_no_mass_in_the_heads_of_a_step_and_has_it_again():
    own = drawing("untagged")
    model = own.target.model
    ids = torch.tensor([[own.drawer.control.end, 97]])
    before = model(input_ids=ids).logits
    with restrict_heads([model], own):
        share = model(input_ids=ids).logits.softmax(-1)[..., own.blocked].sum()
    assert float(share.detach()) == 0
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preferences_are_learned_and_blocked_tokens_stay_blocked(method, places, tmp_path):
    """The better texts grow likelier beside the worse ones, by the policy that writes."""
    mle, _ = places
    config = settings(f"method.kind={method}", "steps=16", "pool=64", "learning_rate=1e-2")
    run = finetune(mle, tmp_path / method, config, say=quiet)
    assert run.objective == f"mle + {method}"
    lines = [line for line in run.read_metrics() if line["kind"] == "train"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["loss"] == pytest.approx(math.log(2) if method == "dpo" else 0.5, abs=1e-3)
    found = FINETUNE.read(run.folder).results
    assert found.find("finetune_calls").mean == 64
    assert found.find("finetune_kl_text").mean > 0
    assert [row.at for row in found.of("best_of_score")] == [1, 2, 4, 8, 16]


def test_a_summarisation_set_is_read_as_preferences(places, tmp_path, capsys):
    from phf import cli

    mle, _ = places
    rows = [
        {"post": "a long post", "summary_0": "short", "summary_1": "long and bad", "preference": 0},
        {"prompt": "a post", "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1, "worker": "x"},
        {"info": {"post": "third"}, "summary_a": "bad", "summary_b": "good", "preference": "b"},
        {"prompt": "", "chosen": "yes", "rejected": "no"},
    ]
    path = tmp_path / "summaries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = Start.open(mle, settings(), load_reward_model)
    found = read_preferences(start, str(path))
    decode, end = start.tokenizer.decode, start.tokenizer.control.end
    assert [decode(better.ids) for better, _ in found.pairs] == [" short", " good", " good", "yes"]
    assert [decode(worse.ids) for _, worse in found.pairs] == [" long and bad", " bad", " bad", "no"]
    assert [decode(better.prompt) for better, _ in found.pairs] == ["a long post", "a post", "third", ""]
    assert found.pairs[-1][0] == Judged([end], [*start.tokenizer.encode("yes"), end]), (
        "an empty prompt is the page's start"
    )
    run = finetune(
        mle, tmp_path / "dpo", settings("method.kind=dpo", f"method.data={path}", "steps=2"), say=quiet
    )
    found = FINETUNE.read(run.folder)
    assert found.results.find("finetune_calls").mean == 0
    assert found.reward == ""
    (facts,) = (own.record.finetune for own in read_runs(run.folder, must_be_evaluated=False))
    assert facts.reward_model is None
    run_command(["phf", "show", str(run.folder)], cli)
    assert f"on {facts.source}, 2 x 8 texts" in " ".join(capsys.readouterr().out.split())
    assert facts.source == "preferences that people gave"

    path.write_text('{"post": "a", "summary_0": "b"}\n')
    with pytest.raises(PHFError, match="is no preference; give columns"):
        finetune(mle, tmp_path / "other", settings("method.kind=dpo", f"method.data={path}"), say=quiet)
    assert not (tmp_path / "other").exists()


def test_without_trl_one_line_says_what_to_install(places, tmp_path, monkeypatch, capsys):
    from phf import cli

    mle, _ = places
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(SystemExit) as ended:
        run_command(["phf", "finetune", str(mle), "-o", str(tmp_path / "dpo"), "--method", "dpo"], cli)
    assert ended.value.code == 2
    (line,) = [own for own in capsys.readouterr().err.splitlines() if own.startswith("error")]
    assert "pip install 'phf[rl]'" in line
    assert not (tmp_path / "dpo").exists()


def test_dpo_gone_on_with_is_the_same_run(places, tmp_path, monkeypatch):
    from phf.finetune.trl import Preferring

    mle, _ = places
    config = settings("method.kind=dpo", "steps=4")
    whole = finetune(mle, tmp_path / "whole", config, say=quiet)
    step = Preferring.step

    def fail(self, model, number, update):
        if number == 3:
            raise RuntimeError
        return step(self, model, number, update)

    monkeypatch.setattr(Preferring, "step", fail)
    with pytest.raises(RuntimeError):
        finetune(mle, tmp_path / "again", config, say=quiet)
    monkeypatch.undo()
    again = finetune(mle, tmp_path / "again", config, say=quiet)
    one, other = (json.loads((run.folder / "finetune.json").read_text()) for run in (whole, again))
    assert one["measurements"] == other["measurements"]
    assert Run.open(whole.folder).is_finished
