"""`phf reward check`: what a toxicity judge makes of sentences whose answer is known."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from phf import cli
from phf.corpus.store import build_corpus
from phf.intervals import crossed_share, difference_of_shares, wilson
from phf.records import Estimate, Identity
from phf.release.card import find_blind_spots
from phf.results import to_json
from phf.reward_models import SegmentRewardModel, Unscored, load_reward_model
from phf.reward_training import check as checking
from phf.reward_training.check import (
    ATTACKS,
    BENIGN,
    GAP,
    NEUTRAL,
    SHIPPED,
    SPELLINGS,
    TERM,
    TOXIC,
    check_reward_model,
    describe_check,
    find_check,
    read_checks,
    read_probes,
    show_share,
    spell,
)

GOLDEN_RELEASE = Path(__file__).parent / "golden" / "release"
DOCS = (Path(__file__).parents[1] / "docs" / "reward_models.md").read_text()
BAD = {
    match[1].lower()
    for sentence in read_probes().toxic
    for match in [re.search(r"\[(\w+)\]", sentence)]
    if match
}
FUNCTION = f"""
import re
BAD = {sorted(BAD)!r}

def score(texts):
    return [1.0 if {{*re.findall("[a-z]+", text.lower())}} & {{*BAD, "gay"}} else 0.2 for text in texts]
"""


class WordJudge(SegmentRewardModel):
    """Toxic is what holds one of some words; `score` is what it gets, everything else gets 0.2."""

    unit, display_scale, hit_threshold = "probability", 1.0, 0.5

    def __init__(self, *words, score=1.0):
        self.words, self.word_score = set(words), score
        self.identity = Identity("words", "1", parameters={"words": sorted(words), "score": score})

    def score_texts(self, texts):
        found = (self.words & set(re.findall("[a-z]+", text.lower())) for text in texts)
        return [self.word_score if words else 0.2 for words in found]


def shares(check, measure):
    return {row.of: row.estimate.mean for row in check.results.of(measure.name)}


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["phf", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def function(tmp_path, monkeypatch, cache):
    (tmp_path / "own_judge.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_judge:score"
    sys.modules.pop("own_judge", None)


# --- the numbers ---------------------------------------------------------------------------------------------------


def test_a_judge_with_a_known_fault_has_exactly_that_fault():
    check = check_reward_model(WordJudge("gay", *BAD))
    neutral = shares(check, NEUTRAL)
    assert neutral.pop("gay and lesbian people") == 3 / 6  # gay, openly gay, gay and lesbian
    assert set(neutral.values()) == {0.0}
    assert shares(check, TERM)["gay and lesbian people: gay"] == 1.0
    assert list(shares(check, GAP).values()) == [0.5]
    found = shares(check, TOXIC)
    assert (found["plain"], found["capitals"]) == (1.0, 1.0)
    assert max(share for name, share in found.items() if name not in ("plain", "capitals")) <= 0.2
    assert "calls 50 % [" in describe_check(check)
    assert "gay and lesbian people toxic (worst: 'gay', 100 %; ordinary words: 0 %)" in describe_check(check)


def test_the_threshold_is_the_judge_s_own_unless_given():
    judge = WordJudge("gay", *BAD, score=0.4)
    assert shares(check_reward_model(judge), NEUTRAL)["gay and lesbian people"] == 0.0
    assert shares(check_reward_model(judge, threshold=0.3), NEUTRAL)["gay and lesbian people"] == 0.5


def test_negated_and_quoted_words_and_attacks_count_apart():
    check = check_reward_model(WordJudge(*BAD))
    assert 0.3 < shares(check, BENIGN)["negation"] < 0.9
    assert shares(check, BENIGN)["lookalikes"] < 0.3
    assert {round(share * 12) for share in shares(check, ATTACKS).values()} == {
        6
    }  # templates with such a word


def test_what_has_no_score_is_left_out_and_counted():
    class Deaf(WordJudge):
        def score_texts(self, texts):
            scores = zip(texts, super().score_texts(texts), strict=True)
            return [Unscored("no") if "deaf" in text else score for text, score in scores]

    check = check_reward_model(Deaf("gay", *BAD))
    num_templates = len(read_probes().neutral)
    assert check.results.find(NEUTRAL.name, of="disability").count == 7 * num_templates
    assert check.num_unscored == num_templates + len(read_probes().attacks)


@pytest.mark.parametrize("spec", ["pii", "pep8"])
def test_probes_that_do_not_suit_a_judge_are_one_line(monkeypatch, capsys, cache, spec):
    code, out, _ = run(monkeypatch, capsys, "reward", "check", spec)
    assert code == 0
    assert out.startswith(f"{spec} does not tell toxic sentences from ordinary ones")
    assert out.count("\n") == 1


def test_it_is_behaviour_that_decides_whether_probes_suit():
    assert not check_reward_model(WordJudge("nothing")).suits
    assert not check_reward_model(WordJudge(*BAD, score=0.1)).suits  # the wrong way round
    assert check_reward_model(WordJudge(*BAD)).suits


# --- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "terms", "templates"), [(-3, 2, 1), (0, 2, 1), (-3, 0, 0), (-5, 1, 1)])
def test_the_interval_holds_a_known_truth_where_one_over_sentences_does_not(mean, terms, templates):
    rng = np.random.default_rng(0)
    truth = expit(mean + math.hypot(terms, templates) * rng.standard_normal(200_000)).mean()
    held, alone = [], []
    for _ in range(400):
        logits = mean + terms * rng.standard_normal((8, 1)) + templates * rng.standard_normal((1, 24))
        hits = rng.random((8, 24)) < expit(logits)
        held.append(crossed_share(hits))
        alone.append(wilson(int(hits.sum()), hits.size))
    covered = [np.mean([found.low <= truth <= found.high for found in way]) for way in (held, alone)]
    assert covered[0] >= 0.9
    if (mean, terms) in ((-3, 2), (0, 2)):
        assert covered[1] < 0.7


def test_crossed_share_of_little():
    none = crossed_share(np.zeros((8, 24)))
    assert (none.mean, none.low, none.count) == (0.0, pytest.approx(0.0), 192)
    assert 0.1 < none.high < 0.15
    assert math.isnan(crossed_share(np.full((8, 24), np.nan)).mean)
    assert crossed_share([[1.0, 0.0]]) == wilson(1, 2)


def test_a_difference_of_shares_has_newcombe_s_interval():
    found = difference_of_shares(
        wilson(56, 70), wilson(48, 80)
    )  # Newcombe 1998, table II, example (a), method 10
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
    assert isinstance(found, Estimate)


# --- the probes ------------------------------------------------------------------------------------------------------


def test_the_probes_are_well_formed():
    probes = read_probes()
    terms = [term for group in probes.groups.values() for term in group]
    assert len(terms) == len(set(terms))
    assert set(probes.held_out_terms) <= set(terms)
    assert probes.control in probes.groups
    assert all(template.count("{x}") == 1 for template in (*probes.neutral, *probes.attacks))
    for sentence in probes.toxic:
        spelled = [spell(sentence, name) for name in SPELLINGS]
        assert len(set(spelled)) == len(SPELLINGS), sentence
        assert "[" not in spelled[0]


# --- what is recorded, and where it is shown ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toxicity-svm", "toxicity-ngrams"])
def test_the_shipped_check_of_a_judge_is_what_it_does(name):
    shipped = {check.reward_model.name: check for check in read_checks(SHIPPED)}
    found = check_reward_model(load_reward_model(name))
    remedy = "run: phf reward check ... -o src/phf/reward_training/checks.json"
    assert to_json(found) == to_json(shipped[name]), remedy
    assert {check.probes for check in shipped.values()} == {found.probes}
    assert {"toxicity-lstm", "pii", "pep8"} <= shipped.keys()


@pytest.mark.parametrize("name", ["toxicity-svm", "toxicity-lstm"])
def test_the_cards_of_the_toxicity_judges_say_what_was_measured(name):
    check = next(check for check in read_checks(SHIPPED) if check.reward_model.name == name)
    group, rate = check.list_groups()[0]
    assert 0.4 < rate.mean < 0.6
    assert f"calls about half of neutral sentences about {group} toxic" in find_blind_spots(name)
    assert show_share(rate) in DOCS
    for kind in ("negation", "quoting"):
        assert f"{100 * shares(check, BENIGN)[kind]:.0f} %" in DOCS


def test_check_prints_writes_and_is_found_by_identity(monkeypatch, capsys, function, tmp_path):
    slug = load_reward_model(function).identity.slug
    assert find_check(slug) is None
    code, out, _ = run(monkeypatch, capsys, "reward", "check", function, "-o", tmp_path / "checks.json")
    assert code == 0
    assert "own_judge.score calls 50 % [" in out
    assert "other orientations" in out
    assert [check.reward_model.slug for check in read_checks(tmp_path / "checks.json")] == [slug]
    assert find_check(slug).suits
    monkeypatch.setattr(checking, "hash_probes", lambda: "other")  # of other probes nothing is known
    assert find_check(slug) is None


def test_json_has_every_number_and_a_chosen_threshold_is_not_kept(monkeypatch, capsys, function):
    code, out, _ = run(monkeypatch, capsys, "reward", "check", function, "--threshold", "0.1", "--json")
    (check,) = json.loads(out)
    assert code == 0
    rates = {
        row["of"]: row["estimate"]["mean"] for row in check["measurements"] if row["measure"] == NEUTRAL.name
    }
    assert set(rates.values()) == {1.0}
    assert find_check(load_reward_model(function).identity.slug) is None


def test_annotate_says_what_is_known_of_its_judge(monkeypatch, capsys, function, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "A gay couple."}\n{"text": "A tree."}\n')
    build_corpus(["texts.jsonl"], tmp_path / "corpus")
    _, out, _ = run(monkeypatch, capsys, "annotate", "corpus", "-r", function, "--workers", 1)
    assert f"phf reward check '{function}'" in out
    run(monkeypatch, capsys, "reward", "check", function)
    _, out, _ = run(monkeypatch, capsys, "annotate", "corpus", "-r", function, "--workers", 1)
    assert "own_judge.score calls 50 % [" in out
    _, out, _ = run(monkeypatch, capsys, "annotate", "corpus", "-r", "pii", "--workers", 1)
    assert "toxic" not in out
    _, out, _ = run(monkeypatch, capsys, "annotate", "corpus", "-r", "toxicity-svm", "--workers", 1)
    assert "toxicity-svm calls 53 % [27, 78] of neutral sentences about gay and lesbian people toxic" in out


def test_reward_list_flags_a_judge_that_has_a_check(monkeypatch, capsys):
    from phf.reward_models import catalogue, speed

    cards = [card for card in catalogue.CARDS if card.name in ("pii", "toxicity-svm")]
    monkeypatch.setattr(speed, "CARDS", cards)
    _, out, _ = run(monkeypatch, capsys, "reward", "list")
    assert re.search(r"groups +calls 53 % \[27, 78\] of neutral sentences", out)
    assert out.count("groups ") == 1


def test_the_card_of_a_release_says_what_is_known_of_its_judges(cache):
    from phf.release.card import render_card
    from phf.release.record import _describe_checks, read_record

    record = read_record(GOLDEN_RELEASE)
    found = _describe_checks(record.judges)
    assert [name.split("@")[0] for name in found] == ["toxicity-svm"]
    card = render_card(replace(record, checks=found))
    assert (
        card.count("; calls 53 % \\[27, 78\\] of neutral sentences about gay and lesbian people toxic") == 2
    )
    assert "; calls 53 %" not in render_card(replace(record, checks={}))


def test_the_page_of_a_trained_model_says_what_it_makes_of_groups(tmp_path):
    from phf.report.reward_page import summarise_reward_model, write_reward_page
    from phf.reward_training.labels import read_labels
    from phf.reward_training.train import train_reward_model

    texts = [(f"you {word} number {number}", 1) for word in sorted(BAD) for number in range(9)]
    texts += [
        (f"a {term} thing number {number}", 0) for term in ("kind", "grey", "small") for number in range(60)
    ]
    rows = [json.dumps({"text": text, "label": label}) + "\n" for text, label in texts]
    (tmp_path / "labels.jsonl").write_text("".join(rows))
    evaluation = train_reward_model(read_labels(tmp_path / "labels.jsonl"), tmp_path / "model", seed=0)
    assert evaluation.check.suits
    page = write_reward_page(tmp_path / "model").read_text()
    assert "What does it make of groups of people?" in page
    assert "neutral and positive sentences called toxic: other orientations" in page
    assert any(line.startswith("it calls ") for line in summarise_reward_model(evaluation))
