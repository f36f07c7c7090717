"""Joint cost: label, boundary and text, against a sum over labels written one id at a time."""

import numpy as np
import pytest
import torch
from fake_runs import make_run, set_number
from scipy.special import logsumexp
from test_capability import CONTROL, VOCAB_SIZE, make_page
from test_generate import END, GOOD, create_bigram, create_llama
from tiny_models import next_logits

from phf.config.objectives import MLE, Additive, Conditional, Quantile, Tagging
from phf.control import ControlTokens
from phf.evaluate.measures.joint import joint_nll
from phf.evaluate.pages import mode_labels, segment_nll
from phf.objective_resolution import resolve_objective
from phf.records import BAD as BAD_LABEL
from phf.records import GOOD as GOOD_LABEL
from phf.records import NO_LABEL, Estimate
from phf.report.page import summary_lines, write_report
from phf.report.reading import read_runs
from phf.report.verdict import check_group, group_runs


def slow_cost(model, ids: list[int]) -> float:
    """-log p of all ids behind the end, control tokens too, one at a time: float64."""
    costs = []
    for place in range(len(ids)):
        logits = next_logits(model, [END, *ids[:place]], VOCAB_SIZE)
        costs.append(logsumexp(logits) - logits[ids[place]])
    return float(np.sum(costs))


@pytest.mark.parametrize("num_levels", [0, 1])
def test_a_page_of_one_segment_costs_the_sum_over_its_labels(num_levels: int) -> None:
    model = create_llama()
    control = ControlTokens(END, GOOD - num_levels, GOOD - num_levels + 1, num_levels)
    pages = [make_page([1, 2, 3]), make_page([4]), make_page([5, 6, 1, 1])]
    labels = [np.array([own], np.uint8) for own in (GOOD_LABEL, BAD_LABEL, GOOD_LABEL)]
    found = joint_nll(model, control, VOCAB_SIZE, pages, labels)
    for page, own in zip(pages, found, strict=True):
        text = page.segments[0].tolist()
        expected = -logsumexp([-slow_cost(model, [token, *text]) for token in control.all])
        assert own == pytest.approx([expected], abs=1e-4)
        assert own[0] < min(slow_cost(model, [token, *text]) for token in control.all)


def test_a_longer_page_pays_for_the_labels_it_has() -> None:
    """The chain rule: its segments add up to what the model gives to all of its ids, and no less than the sum over labels."""
    model = create_llama()
    page = make_page([1, 2], [3], [4, 5])
    labels = np.array([GOOD_LABEL, BAD_LABEL, GOOD_LABEL], np.uint8)
    (found,) = joint_nll(model, CONTROL, VOCAB_SIZE, [page], [labels])
    good, bad = CONTROL.all
    assert found.sum() == pytest.approx(slow_cost(model, [good, 1, 2, bad, 3, good, 4, 5]), abs=1e-4)
    assert found[0] == pytest.approx(slow_cost(model, [good, 1, 2]), abs=1e-4)
    ways = [
        -slow_cost(model, [one, 1, 2, two, 3, three, 4, 5])
        for one in (good, bad)
        for two in (good, bad)
        for three in (good, bad)
    ]
    assert found.sum() > -logsumexp(ways)


def test_a_label_that_says_nothing_costs_what_it_saves() -> None:
    """A model to which both tokens mean the same, and which writes one exactly where a segment starts, pays MLE's price."""
    text = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    text[list(CONTROL.all)] = -50.0
    table = text.repeat(VOCAB_SIZE, 1)
    table[END] = -50.0
    table[END, list(CONTROL.all)] = torch.tensor([1.0, -0.5])
    page = make_page([1, 2, 3])
    (joint,) = joint_nll(
        create_bigram(table), CONTROL, VOCAB_SIZE, [page], [np.array([GOOD_LABEL], np.uint8)]
    )
    (alone,) = segment_nll(
        create_bigram(text.repeat(VOCAB_SIZE, 1)), CONTROL, VOCAB_SIZE, [page], mode_labels([page], "none")
    )
    np.testing.assert_allclose(joint, alone, rtol=1e-5)


def test_tags_that_are_not_there_are_paid_for_too() -> None:
    """Without labels, what the model keeps for control tokens where text comes is its cost (tagging)."""
    model, page = create_llama(), make_page([1, 2, 3])
    (found,) = joint_nll(model, CONTROL, VOCAB_SIZE, [page], [np.array([NO_LABEL], np.uint8)])
    assert found == pytest.approx([slow_cost(model, [1, 2, 3])], abs=1e-4)


@pytest.mark.parametrize(
    ("config", "writes"),
    [
        (MLE(), False),
        (Conditional(threshold=0.5), True),
        (Conditional(threshold=0.5, control_loss=False), False),
        (Quantile(levels=2), True),
        (Tagging(threshold=0.5), True),
        (Additive(threshold=0.5), False),
    ],
)
def test_whoever_writes_control_tokens_pays_for_them(config, writes: bool) -> None:
    scores, ones = np.array([0.1, 0.9, 0.2, 0.8], np.float32), np.ones(4, np.int64)
    assert resolve_objective(config, scores, ones, ones, np.ones(4, bool)).writes_control_tokens == writes


def test_capability_is_held_against_mle_in_like_units(tmp_path) -> None:
    """Good mode predicts better with its labels given; with the labels paid for it predicts worse, and that counts."""
    runs = [make_run(tmp_path / kind, kind) for kind in ("mle", "conditional")]

    def check():
        mle, conditional = group_runs(read_runs(runs))
        return next(check for check in check_group(conditional, mle) if check.name == "Capability kept")

    assert check().passed
    assert "labels given for free" in check().detail
    for run, good in zip(runs, (2.0, 2.2), strict=True):
        for of, mean in (("good", good), (None, good + 0.1)):
            set_number(run, Estimate(mean, mean - 0.01, mean + 0.01, 400), "joint_bits_per_byte", of=of)
    assert check().passed is False
    assert check().detail.startswith(
        "joint bits per byte on good text, labels and boundaries paid for: 2.20, MLE 2.00"
    )
    set_number(runs[1], Estimate(2.01, 2.0, 2.02, 400), "bits_per_byte", mode="labelled", of="all")
    assert any("joint cost 2.30 [2.29, 2.31] bits per byte" in line for line in summary_lines(runs))
    page = write_report(runs, tmp_path / "report.html").read_text("utf-8")
    assert "Joint cost table" in page
    assert "2.30 [2.29, 2.31]" in page
