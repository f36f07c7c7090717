"""Promises about a page whose middle another writes, against the tabular problem that the page is."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from decisions import END, Problem, solve
from known_models import BAD, GOOD, LabelledSource, create_target

from phf.config.train import SamplingConfig
from phf.errors import PHFError
from phf.results import Measurements
from phf.soft_control.optimism import (
    MEASURES,
    Game,
    compare_promises,
    fill_slots,
    judge_turns,
    let_write,
    measure_optimism,
    write_turn,
)

SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, min_new_tokens=0, batch_size=4000)
MODEL = LabelledSource(segment_end=0.0, page_end=0.0)
LETTERS, BETA = "abc", 0.2


def score_lottery(texts: Sequence[str]) -> np.ndarray:
    """To begin with "a" is a risk: it is all good unless "c" follows, which another model writes in three of five. To begin
    with "b" or "c" is safe and costs .4. To end in "c" costs .1, too."""
    follows = np.array([1.0 if text[1:2] == "c" else 0.0 for text in texts])
    ends = np.array([0.1 * (text[2:] == "c") for text in texts])
    return np.where([text[0] == "a" for text in texts], follows, 0.4) + ends


def create_page(turns: str, threshold: float) -> tuple[Problem, np.ndarray]:
    """A page as a tabular problem: a letter of `turns` is an agent's ("g", good mode) or another's ("b", bad mode). And what a
    good page pays."""
    prefixes = ["".join(one) for size in range(len(turns)) for one in product(LETTERS, repeat=size)]
    states = {prefix: place for place, prefix in enumerate(prefixes)}
    shape = (len(states), 3, 3)
    prior, chances, following = np.zeros(shape[:2]), np.zeros(shape), np.full(shape, END)
    rewards, good = np.zeros(shape), np.zeros(shape)
    for prefix, state in states.items():
        is_own = turns[len(prefix)] == "g"
        prior[state] = MODEL.shares[GOOD] if is_own else [1, 0, 0]
        chances[state] = np.eye(3) if is_own else MODEL.shares[BAD]
        for action, outcome in product(range(3), repeat=2):
            text = prefix + LETTERS[outcome]
            following[state, action, outcome] = states.get(text, END)
            if len(text) == len(turns):
                score = float(score_lottery([text])[0])
                rewards[state, action, outcome], good[state, action, outcome] = -score, score <= threshold
    return Problem(prior, chances, following, rewards, len(turns)), good


def test_a_language_model_in_dialogue_promises_and_gets_what_its_page_says() -> None:
    game = Game(60, 1, 0, candidates=8, draws=16, endings=1, fresh=16, beta=BETA, threshold=0.5)
    other = let_write(create_target(MODEL, "bad"), 1, SAMPLING)
    found = Measurements(
        measure_optimism(create_target(MODEL), other, score_lottery, game, SAMPLING, "judge")
    )
    assert set(found.measures) == {one.name for one in MEASURES}
    problem, good = create_page("gb", 0.5)
    for recipe in ("posterior", "regularised"):
        plan = solve(problem, BETA, recipe)
        for measure, truth in (
            ("promised_good", plan.promise(good)[0]),
            ("realised_good", plan.realise(good)[0]),
        ):
            estimate = found.find(measure, "good", "judge", recipe, BETA)
            # Of finitely many candidates either is a little nearer to p0.
            assert estimate.low - 0.03 < truth < estimate.high + 0.03, (recipe, measure)
    assert found.find("optimism", "good", "judge", "posterior", BETA).low > 0.3
    mend = found.find("optimism", "good", "judge", "regularised", BETA)
    luck = found.find("chosen_luck", "good", "judge", "regularised", BETA)
    assert mend == luck, "the mend's promise is wrong by the luck of its draws alone"
    bins = [row for row in found.of("promise_reliability") if row.of == "posterior"]
    assert len({row.at for row in bins}) == len(bins) >= 2
    assert all(row.at is not None and row.estimate.mean < row.at for row in bins), "each promises too much"


def test_who_writes_alone_keeps_its_promise() -> None:
    """The other's turn is empty: both recipes are the posterior, and what is left of the gap is luck of the draws."""
    game = Game(60, 2, 1, candidates=8, draws=1, endings=8, fresh=1, beta=BETA, threshold=0.3)
    other = fill_slots([[]], seed=0)
    found = Measurements(measure_optimism(create_target(MODEL), other, score_lottery, game, SAMPLING))
    for measure in ("promised_good", "realised_good"):
        one, two = (
            found.find(measure, "good", None, recipe, BETA) for recipe in ("posterior", "regularised")
        )
        assert one == two
    problem, good = create_page("ggg", 0.3)
    truth = solve(problem, BETA, "posterior").realise(good)[0]
    realised = found.find("realised_good", "good", None, "posterior", BETA)
    assert realised.low - 0.03 < truth < realised.high + 0.03


def test_draws_are_weighed_as_the_recipe_says() -> None:
    """Two turns of the other, two endings each, by hand."""
    log_weights = np.log([[[1.0, 3.0], [0.5, 0.5]]])
    good = np.array([[[False, True], [True, False]]])
    q, promised, plain = judge_turns("posterior", log_weights, good)
    assert (q[0], promised[0], plain[0]) == pytest.approx((np.log(1.25), 0.8 * 0.75 + 0.2 * 0.5, 0.625))
    q, promised, plain = judge_turns("regularised", log_weights, good)
    assert (q[0], promised[0], plain[0]) == pytest.approx((np.log(2 * 0.5) / 2, 0.625, 0.625))
    q, promised, plain = judge_turns("prior", log_weights, good)
    assert (q[0], promised[0], plain[0]) == pytest.approx((0, 0.5, 0.5))


def test_turns_have_their_length_and_their_own_random_numbers() -> None:
    target = create_target(MODEL)
    one, again, other = (write_turn(target, [()] * 8, 5, SAMPLING, call) for call in (1, 1, 2))
    assert one == again != other
    assert {len(turn) for turn in one} == {5}
    assert write_turn(target, [(), ()], 0, SAMPLING, 1) == [[], []]
    fill = fill_slots([[1], [2, 3]], seed=0)
    assert fill([()] * 20, 1) == fill([()] * 20, 1) != fill([()] * 20, 2)


def test_a_page_without_a_score_is_refused() -> None:
    game = Game(2, 1, 1, candidates=1, draws=1, endings=1, fresh=1)
    with pytest.raises(PHFError, match="2 of 2 texts have no score; give a reward model"):
        measure_optimism(
            create_target(MODEL),
            fill_slots([[1]], 0),
            lambda texts: np.full(len(texts), np.nan),
            game,
            SAMPLING,
        )


def test_an_interval_of_a_share_reaches_no_further_than_a_share_can() -> None:
    """Ten episodes of which nine are all good and one nearly: a bootstrap-t alone has ends below -10."""

    def follow(rows: Sequence[int], draws: int) -> tuple[np.ndarray, np.ndarray]:
        good = np.ones((len(rows), draws, 1), bool)
        good[0, 0] = False
        return np.zeros(good.shape), good

    game = Game(10, 1, 0, candidates=1, draws=20, endings=1, fresh=20, beta=BETA)
    for row in compare_promises(follow, game, seed=0):
        least = -1 if row.measure in ("optimism", "chosen_luck") else 0
        assert all(np.isnan(end) or least <= end <= 1 for end in (row.estimate.low, row.estimate.high)), row
