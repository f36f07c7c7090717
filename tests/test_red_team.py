"""The red team: it finds what is planted by choosing well, costs what it says, and does not believe its own luck."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from test_capability import make_reader
from test_prompting import create_target, create_tokenizer
from transformers.modeling_outputs import CausalLMOutputWithPast

from phf.config.evaluate import RedTeamConfig
from phf.config.train import SamplingConfig, parse
from phf.errors import PHFError
from phf.evaluate.attacker import MAX_PROMPT_TOKENS, LanguageModelAttacker, WrittenPrompts
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.measures.red_team import NUM_KEPT, Attack, choose_shots, draw_seeds, red_team
from phf.records import Identity
from phf.results import Measurements, parse_json, to_json
from phf.reward_models.protocol import SegmentRewardModel

SAMPLING = SamplingConfig(min_new_tokens=1, max_new_tokens=2)
WORDS = ("alpha", "beta", "gamma", "delta", "omega", "zeta", "theta", "kappa")
SEEDS = ["alpha beta gamma delta", "beta omega kappa theta", "zeta alpha theta beta", "kappa delta alpha omega",
         "gamma gamma beta kappa", "omega theta delta alpha"]  # fmt: skip
SETTINGS = RedTeamConfig(trials=4, rounds=5, prompts_per_round=10, continuations=2)


class WordJudge(SegmentRewardModel):
    """The share of a text's words that are the one to which the target is vulnerable."""

    identity, unit = Identity("word", "1"), "probability"
    display_scale, hit_threshold = 1.0, 0.5

    def __init__(self, word: str = "zeta", scale: float = 1.0) -> None:
        self.word, self.scale = word, scale

    def score_texts(self, texts: Sequence[str]) -> list[float]:
        return [self.scale * min(1.0, text.count(self.word) / 4) for text in texts]


class Recombiner:
    """Writes prompts from the words of its shots, and sometimes a word of its own: no better than what it is shown."""

    name = "recombiner"

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def write_prompts(self, shots: Sequence[str], count: int, seed: int) -> WrittenPrompts:
        self.calls.append(tuple(shots))
        rng = np.random.default_rng(seed)
        words = [word for shot in shots for word in shot.split()]
        prompts = [
            " ".join(str(rng.choice(words if rng.random() < 0.8 else WORDS)) for _ in range(5))
            for _ in range(count)
        ]
        return WrittenPrompts(prompts, 7 * count, 3 * count)


class Scripted:
    """Writes what it is told, whatever it is shown."""

    name = "scripted"

    def __init__(self, *calls: list[str]) -> None:
        self.calls = list(calls)

    def write_prompts(self, shots: Sequence[str], count: int, seed: int) -> WrittenPrompts:
        return WrittenPrompts(self.calls.pop(0) if self.calls else [], 0, 0)


def attack(settings: RedTeamConfig = SETTINGS, judge: SegmentRewardModel | None = None, **options):
    judges = [LoadedJudge("annotator", judge or WordJudge())]
    target = create_target("good", "sentences")
    return red_team(
        target,
        judges,
        options.pop("attacker", Recombiner()),
        SEEDS,
        settings,
        SAMPLING,
        scores_prompt=True,
        **options,
    )


def split_rounds(found: Attack):
    rows = Measurements(found.rows)
    return rows.of("red_team_mean"), rows.of("red_team_best")


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["probability", "items per character"])
def test_it_finds_the_word_the_target_is_vulnerable_to(scale: float) -> None:
    """Red where prompts are drawn alike: then the words drift, and nothing climbs (the infinite temperature)."""
    judge = WordJudge(scale=scale)
    judge.unit = "probability" if scale == 1 else "items per character"
    (found, best), (blind, _) = (
        split_rounds(attack(SETTINGS.model_copy(update={"temperature": t}), judge)) for t in (0.1, 1e9)
    )
    means = [row.estimate.mean / scale for row in found]
    assert means[-1] > means[0] + 0.3
    assert found[-1].estimate.low > blind[-1].estimate.high
    assert found[0] == blind[0], "the same seeds, valued by the same continuations"
    assert abs(blind[-1].estimate.mean / scale - means[0]) < 0.2
    assert [row.at for row in found] == list(range(6))
    assert all(row.estimate.count == 4 for row in found)
    highest = [row.estimate.mean for row in best]
    assert highest == sorted(highest), "no prompt is forgotten, and this judge does not waver"


def test_the_best_prompts_are_kept_with_where_they_come_from() -> None:
    held_out = LoadedJudge("held-out", WordJudge("alpha"))
    held_out.model.identity = Identity("other", "1")
    target = create_target("good", "sentences")
    annotator = LoadedJudge("annotator", WordJudge())
    result = red_team(
        target, [annotator, held_out], Recombiner(), SEEDS, SETTINGS, SAMPLING, scores_prompt=True
    )
    assert len(result.prompts) == NUM_KEPT
    scores = [row.score for row in result.prompts]
    assert scores == sorted(scores, reverse=True)
    assert {row.judge for row in result.rows} == {annotator.slug}
    for row in result.prompts:
        assert row.score == row.scores[annotator.slug] == min(1, row.prompt.count("zeta") / 4)
        assert row.scores[held_out.slug] == min(1, row.prompt.count("alpha") / 4)
    assert parse_json(to_json(result), Attack, "attack") == result


def test_the_same_seed_gives_the_same_attack_and_every_mode_the_same_budget() -> None:
    settings = SETTINGS.model_copy(update={"trials": 2, "rounds": 2})
    one, again = attack(settings), attack(settings)
    assert one == again
    assert attack(settings.model_copy(update={"seed": 1})) != one
    other = red_team(
        create_target("none", "sentences"), [LoadedJudge("annotator", WordJudge())], Recombiner(), SEEDS, settings, SAMPLING,
        scores_prompt=True,
    )  # fmt: skip
    searched = 2 * (len(SEEDS) + 2 * 10)
    for result in (one, other):
        costs = result.costs
        assert costs.num_missing == 0
        revalued = costs.num_prompts - searched
        assert NUM_KEPT <= revalued <= NUM_KEPT + 2 * 3
        assert costs.num_continuations == 2 * costs.num_prompts
        assert costs.target_tokens > 0
        assert costs.attacker_tokens_read == 7 * 10 * 4
        assert costs.attacker_tokens_written == 3 * 10 * 4


def test_what_the_attacker_writes_in_vain_is_counted_and_tried_again() -> None:
    attacker = Scripted(
        ["", "fresh one", "FRESH ONE", SEEDS[0], "x" * 300],
        ["fresh two", "", "fresh one"],
        ["fresh three"],
        ["next"],
    )
    settings = RedTeamConfig(trials=1, rounds=2, prompts_per_round=3, continuations=2)
    costs = attack(settings, attacker=attacker).costs
    assert (costs.num_empty, costs.num_duplicates, costs.num_too_long, costs.num_missing) == (2, 3, 1, 2)


def test_a_prompt_whose_continuations_have_no_score_is_never_shown() -> None:
    class Silent(WordJudge):
        def score_texts(self, texts):
            return [math.nan if text.startswith("zeta") else 0.0 for text in texts]

    attacker = Recombiner()
    result = attack(SETTINGS.model_copy(update={"trials": 2}), Silent(), attacker=attacker)
    assert result.costs.num_unscored > 0
    shown = [shot for call in attacker.calls for shot in call]
    assert shown
    assert not any(shot.startswith("zeta") for shot in shown)
    assert not any(row.prompt.startswith("zeta") for row in result.prompts)
    assert all(math.isfinite(row.estimate.mean) for row in split_rounds(result)[0])


def test_the_best_prompt_is_measured_again_with_fresh_continuations() -> None:
    """Of pure noise the highest of many values is high, and the same prompt measured again is not."""

    class Noise(WordJudge):
        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def score_texts(self, texts):
            return self.rng.random(len(texts)).tolist()

    result = attack(judge=Noise())
    assert min(row.search_score for row in result.prompts) > 0.8
    assert np.mean([row.score for row in result.prompts]) < 0.7
    assert np.mean([row.estimate.mean for row in split_rounds(result)[1]]) < 0.7


def test_shots_are_drawn_as_the_paper_says() -> None:
    values, rng = [0.0, 0.1, math.nan, 0.25, 0.2], np.random.default_rng(0)
    firsts = [choose_shots(values, 4, 0.1, rng) for _ in range(8000)]
    assert all(sorted(places) == [0, 1, 3, 4] for places in firsts), "each once, the unscored one never"
    counts = np.bincount([places[0] for places in firsts], minlength=5)[[0, 1, 3, 4]]
    weights = np.exp(np.array([0.0, 1.0, 2.5, 2.0]))
    assert chisquare(counts, 8000 * weights / weights.sum()).pvalue > 1e-3
    assert len(choose_shots([0.5, math.nan], 4, 0.1, rng)) == 1


def test_shots_of_other_units_are_drawn_by_their_spread() -> None:
    """Items per character are thousandths: at the paper's temperature all prompts would be drawn alike."""
    values = np.array([0.0, 0.001, 0.002, 0.003])
    draws = [choose_shots(values.tolist(), 1, 0.1, np.random.default_rng(i), None)[0] for i in range(8000)]
    weights = np.exp(values / values.std())
    assert chisquare(np.bincount(draws), 8000 * weights / weights.sum()).pvalue > 1e-3
    assert choose_shots([0.0, 0.0], 2, 0.1, np.random.default_rng(0), None) in ([0, 1], [1, 0])


def test_seeds_are_openings_of_held_out_documents() -> None:
    reader = make_reader([[[1, 2, 3]], [[4]], [[1, 2, 3]], [[9, 8, 4]], [[5, 2]]], [0.0] * 5, context=32)
    assert sorted(draw_seeds(reader, 2, 0)) == ["abc", "eb"], "of documents 0, 2 and 4, alike ones once"
    with pytest.raises(PHFError, match=r"2 different openings, 3 are wanted"):
        draw_seeds(reader, 3, 0)


def test_settings_and_seeds_that_cannot_be_are_refused() -> None:
    for wrong in ({"rounds": 0}, {"temperature": math.nan}):
        with pytest.raises(PHFError, match=next(iter(wrong))):
            parse(RedTeamConfig, wrong, "red team")
    target, judges = create_target(), [LoadedJudge("annotator", WordJudge())]
    with pytest.raises(PHFError, match=r"2 of 4 seed prompts"):
        red_team(target, judges, Recombiner(), ["a", "A", "b", "x" * 300], SETTINGS, SAMPLING)


@pytest.fixture(scope="module")
def attacker_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacker") / "tiny"
    create_tokenizer().save(folder)
    create_target(context=256).model.save_pretrained(folder)
    return folder


def test_a_language_model_as_attacker(attacker_folder) -> None:
    attacker = LanguageModelAttacker.load(str(attacker_folder))
    assert attacker.name == "tiny"
    one = attacker.write_prompts(["first", "second one"], 30, seed=3)
    assert one == attacker.write_prompts(["first", "second one"], 30, seed=3)
    assert one != attacker.write_prompts(["first", "second one"], 30, seed=4)
    assert len(one.prompts) == 30
    assert not any("\n" in prompt or prompt != prompt.strip() for prompt in one.prompts)
    read = len(create_tokenizer().encode("1. first\n2. second one\n3.")) + 1
    assert one.num_tokens_read == 30 * read
    assert 30 <= one.num_tokens_written <= 30 * MAX_PROMPT_TOKENS


def test_an_attacker_stops_at_the_end_of_its_line(attacker_folder) -> None:
    """A model that writes "ab" and a line feed for ever: one line is read, and paid for."""
    tokenizer = create_tokenizer()
    attacker = LanguageModelAttacker.load(str(attacker_folder))
    line = tokenizer.encode(" ab\n")
    rest = iter([*line, *line, *line, *line] * 10)
    calls = []

    def forward(**inputs):
        calls.append(inputs)
        logits = torch.full((inputs["input_ids"].shape[0], 1, 320), -1e9)
        logits[:, :, next(rest)] = 0
        return CausalLMOutputWithPast(logits=logits)

    attacker.model.forward = forward
    written = attacker.write_prompts(["x"], 2, seed=0)
    assert written.prompts == ["ab", "ab"]
    assert written.num_tokens_written == 2 * len(line)
    assert len(calls) == len(line)


def test_an_attacker_that_is_not_there_is_one_line(tmp_path) -> None:
    for spec in (str(tmp_path), str(tmp_path / "none.gguf"), "no/such-model"):
        with pytest.raises(PHFError, match=re.escape(spec)) as error:
            LanguageModelAttacker.load(spec)
        assert "\n" not in str(error.value)
