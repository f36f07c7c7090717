"""Control as inference against closed forms, whole trajectories one by one, and a source whose every text is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from decisions import END as THE_END
from decisions import Problem, Recipe, list_examples, solve
from known_models import BAD, END, GOOD, LabelledSource, TinyTokenizer
from scipy.special import logsumexp

from phf.errors import PHFError

BETA = 0.5
DOCS = Path(__file__).parents[1] / "docs" / "control_as_inference.md"


def list_trajectories(problem: Problem) -> Iterator[tuple[float, float, float, tuple[int, int]]]:
    """Of every trajectory from state 0: log p0 of its actions, log P of its outcomes, its return, its first action and outcome."""

    def go_on(
        state: int, steps: int, own: float, luck: float, total: float, first: tuple[int, ...]
    ) -> Iterator[tuple[float, float, float, tuple[int, int]]]:
        if state == THE_END or steps == 0:
            yield own, luck, total, first[:2]
            return
        for action in np.flatnonzero(problem.prior[state]):
            for outcome in np.flatnonzero(problem.chances[state, action]):
                yield from go_on(
                    int(problem.following[state, action, outcome]),
                    steps - 1,
                    own + np.log(problem.prior[state, action]),
                    luck + np.log(problem.chances[state, action, outcome]),
                    total + problem.rewards[state, action, outcome],
                    (*first, int(action), int(outcome)),
                )

    yield from go_on(0, problem.horizon, 0.0, 0.0, 0.0, ())


def test_the_lottery_by_hand() -> None:
    """Safe pays 0; risky pays +1 or -3 at even odds, -1 on average."""
    problem = list_examples()["lottery"]
    hope = (np.exp(1 / BETA) + np.exp(-3 / BETA)) / 2
    risk = hope / (1 + hope)
    plan = solve(problem, BETA, "posterior")
    assert plan.policy[0, 0] == pytest.approx([1 - risk, risk], abs=1e-9)
    won = np.exp(1 / BETA) / (np.exp(1 / BETA) + np.exp(-3 / BETA))
    assert plan.promise()[0] == pytest.approx(risk * (won - 3 * (1 - won)), abs=1e-9)
    assert plan.realise()[0] == pytest.approx(-risk, abs=1e-9)
    mend = solve(problem, BETA, "regularised")
    careful = np.exp(-1 / BETA) / (1 + np.exp(-1 / BETA))
    assert mend.policy[0, 0] == pytest.approx([1 - careful, careful], abs=1e-9)
    assert mend.promise()[0] == pytest.approx(-careful, abs=1e-9)
    assert mend.realise()[0] == pytest.approx(-careful, abs=1e-9)
    figures = [risk, plan.promise()[0], plan.realise()[0], careful, mend.realise()[0]]
    assert np.round(figures, 3).tolist() == [0.787, 0.786, -0.787, 0.119, -0.119]


@pytest.mark.parametrize("name", list_examples())
def test_the_posterior_recipe_is_the_posterior_over_whole_trajectories(name: str) -> None:
    problem = list_examples()[name]
    own, luck, total = np.array([one[:3] for one in list_trajectories(problem)]).T
    first = np.array([one[3][0] for one in list_trajectories(problem)])
    log_weights = own + luck + total / BETA
    weights = np.exp(log_weights - logsumexp(log_weights))
    plan = solve(problem, BETA, "posterior")
    assert plan.v[-1, 0] == pytest.approx(logsumexp(log_weights), abs=1e-12)
    assert plan.policy[-1, 0] == pytest.approx(np.bincount(first, weights, problem.prior.shape[1]), abs=1e-12)
    assert plan.promise()[0] == pytest.approx(weights @ total, abs=1e-12)


@pytest.mark.parametrize("name", list_examples())
def test_the_regularised_recipe_keeps_its_promise_and_is_the_optimum(name: str) -> None:
    problem = list_examples()[name]
    plan = solve(problem, BETA, "regularised")
    assert plan.promise() == pytest.approx(plan.realise(), abs=1e-12)
    # What its value says is what it gets, less what it pays.
    assert BETA * plan.v[-1] == pytest.approx(plan.realise() - BETA * plan.kl(), abs=1e-12)
    posterior = solve(problem, BETA, "posterior")
    assert (posterior.realise() - BETA * posterior.kl() <= BETA * plan.v[-1] + 1e-12).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        policy = plan.policy * np.exp(0.1 * rng.normal(size=plan.policy.shape))
        policy /= policy.sum(-1, keepdims=True)
        paid = problem.expect(policy, problem.chances, np.log(policy / problem.prior)[..., None])
        got = problem.expect(policy, problem.chances, problem.rewards)
        assert (got - BETA * paid < BETA * plan.v[-1]).all()


def test_only_luck_makes_a_gap() -> None:
    gaps = {}
    for name, problem in list_examples().items():
        plan = solve(problem, BETA, "posterior")
        gaps[name] = float(plan.promise()[0] - plan.realise()[0])
    assert gaps.pop("typing") == pytest.approx(0, abs=1e-12)
    assert min(gaps.values()) > 0.3
    problem = list_examples()["typing"]
    one, other = solve(problem, BETA, "posterior"), solve(problem, BETA, "regularised")
    assert one.q == pytest.approx(other.q, abs=1e-12)
    assert one.policy == pytest.approx(other.policy, abs=1e-12)


def test_the_table_of_the_docs_is_what_the_recipes_find() -> None:
    rows = {
        line.split("|")[1].partition(":")[0].strip(): [
            float(cell.split()[0]) for cell in line.split("|")[2:5]
        ]
        for line in DOCS.read_text().splitlines()
        if line.startswith("|") and line.split("|")[1].partition(":")[0].strip() in list_examples()
    }
    assert rows.keys() == list_examples().keys()
    for name, found in rows.items():
        plans = [solve(list_examples()[name], BETA, recipe) for recipe in get_args(Recipe)]
        expected = [plans[0].promise()[0], plans[0].realise()[0], plans[1].promise()[0]]
        assert found == pytest.approx(expected, abs=5.1e-4), name


def test_what_is_no_problem_is_refused() -> None:
    with pytest.raises(PHFError, match=r"chances of a problem sum to 0\.9; make them sum to 1"):
        Problem.create([[[(0.9, THE_END, 1.0)]]], 1)
    with pytest.raises(PHFError, match="beta 0 must be above 0"):
        solve(list_examples()["lottery"], 0.0, "posterior")


def enumerate_pages(model: LabelledSource, longest: int) -> dict[tuple[int, ...], float]:
    """Every page of up to `longest` ids, control tokens and the end among them, and its probability."""
    pages: dict[tuple[int, ...], float] = {}

    def go_on(page: tuple[int, ...], mass: float) -> None:
        if page and (page[-1] == END or len(page) == longest):
            pages[page] = mass
            return
        probs = model.next_logits([END, *page]).double().softmax(-1).numpy()
        for token in np.flatnonzero(probs > 1e-12):
            go_on((*page, int(token)), mass * probs[token])

    go_on((), 1.0)
    return pages


def score_page(page: tuple[int, ...]) -> float:
    text = TinyTokenizer().decode([token for token in page if token not in (END, GOOD, BAD)])
    return (text.count("c") + 0.1 * text.count("b")) / max(len(text), 1)


def sum_prefixes(weights: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """The sum over the pages that begin so, of every prefix and every page."""
    sums: dict[tuple[int, ...], float] = {}
    for page, weight in weights.items():
        for size in range(len(page) + 1):
            sums[page[:size]] = sums.get(page[:size], 0.0) + weight
    return sums


def test_a_language_model_alone_factorises_into_the_posterior() -> None:
    """Of a source with several segments and control tokens: pi(a | s) = p0(a | s) exp(Q - V) is p*, text by text."""
    beta = 0.2
    pages = enumerate_pages(LabelledSource(), 5)
    assert len(pages) > 500
    assert any(GOOD in page and BAD in page for page in pages)
    mass = sum_prefixes(pages)
    tilted = sum_prefixes({page: p * np.exp(-score_page(page) / beta) for page, p in pages.items()})
    states = {prefix: place for place, prefix in enumerate(one for one in mass if one not in pages)}
    shape = (len(states), 12, 1)
    prior, following, rewards = np.zeros(shape[:2]), np.full(shape, THE_END), np.zeros(shape)
    for page in mass.keys() - {()}:
        place = states[page[:-1]], page[-1]
        prior[place] = mass[page] / mass[page[:-1]]
        following[place] = states.get(page, THE_END)
        rewards[place] = -score_page(page) if page in pages else 0.0
    plan = solve(Problem(prior, np.ones(shape), following, rewards, 5), beta, "posterior")
    assert plan.q == pytest.approx(solve(plan.problem, beta, "regularised").q, abs=1e-9)
    # Q and V are what enumeration says: log of the mean of exp(-score / beta) over what can follow.
    log_policy = np.log(np.maximum(plan.policy[-1], 1e-300))
    for page in mass.keys() - {()}:
        state, token = states[page[:-1]], page[-1]
        assert plan.v[-1, state] == pytest.approx(np.log(tilted[page[:-1]] / mass[page[:-1]]), abs=1e-9)
        assert plan.q[-1, state, token] == pytest.approx(np.log(tilted[page] / mass[page]), abs=1e-9)
        # And the policy, token by token, is p*.
        by_tokens = sum(log_policy[states[page[:size]], one] for size, one in enumerate(page))
        assert by_tokens == pytest.approx(np.log(tilted[page] / tilted[()]), abs=1e-9)
    stars = np.array([tilted[page] for page in pages]) / tilted[()]
    scores = np.array([score_page(page) for page in pages])
    assert -plan.promise()[0] == pytest.approx(stars @ scores, abs=1e-9)
    assert -plan.realise()[0] == pytest.approx(stars @ scores, abs=1e-9)
    assert plan.kl()[0] == pytest.approx(stars @ np.log(stars / np.array(list(pages.values()))), abs=1e-9)
