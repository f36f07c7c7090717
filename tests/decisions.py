"""Control as inference (Levine 2018, arXiv 1805.00909) where all of it can be computed: small problems of decisions.

The *posterior* recipe conditions the joint distribution of actions and outcomes on reward: p0(a | s) P(s' | s, a) exp(reward
/ beta), normalised over whole trajectories. Backwards in time, in units of beta,

    Q(s, a) = log E_P[exp(r / beta + V(s'))],   V(s) = log E_p0[exp Q(s, a)],   pi(a | s) = p0(a | s) exp(Q - V).

Where the agent alone decides what comes next, as a language model that writes alone does, this is p0 exp(reward / beta) / Z,
token by token. Where it does not, the same conditioning tilts P too: the agent counts on luck that it cannot choose. The
*regularised* recipe holds P fixed (Levine's variational mend): Q = E_P[r / beta + V(s')]. Its policy maximises
E[return] - beta KL(pi || p0), and returns what it promises.

Shape suffixes: H steps to go (index 0: one), S states, A actions, O outcomes of an action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from phf.errors import PHFError

Recipe = Literal["posterior", "regularised"]
Outcome = tuple[float, int, float]
"""Its chance, the state it leads to (`END` ends), the reward it pays."""
END = -1

_Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A tabular problem of decisions with an end.

    Attributes:
        prior: float64 [S A], p0(a | s), the policy that costs nothing.
        chances: float64 [S A O], P(outcome | s, a).
        following: int64 [S A O], the state after the outcome; `END` where there is none.
        rewards: float64 [S A O].
        horizon: steps after which it ends anywhere; of a tree, at least its depth.
    """

    prior: _Values
    chances: _Values
    following: npt.NDArray[np.int64]
    rewards: _Values
    horizon: int

    def __post_init__(self) -> None:
        """Refuse what is no distribution."""
        for name, totals in (("prior", self.prior.sum(1)), ("chances", self.chances.sum(2)[self.prior > 0])):
            if not np.allclose(totals, 1):
                worst = totals.flat[np.abs(totals - 1).argmax()]
                raise PHFError(f"{name} of a problem sum to {worst:g}; make them sum to 1")

    @classmethod
    def create(
        cls, outcomes: Sequence[Sequence[Sequence[Outcome]]], horizon: int, prior: npt.ArrayLike | None = None
    ) -> "Problem":
        """A problem from the outcomes of each action in each state; every state has as many actions.

        Args:
            prior: [S A]; default: each action is as likely.
        """
        shape = (len(outcomes), len(outcomes[0]), max(len(one) for row in outcomes for one in row))
        chances, following, rewards = np.zeros(shape), np.full(shape, END, np.int64), np.zeros(shape)
        for state, row in enumerate(outcomes):
            for action, own in enumerate(row):
                for place, (chance, to, reward) in enumerate(own):
                    chances[state, action, place] = chance
                    following[state, action, place] = to
                    rewards[state, action, place] = reward
        given = np.full(shape[:2], 1 / shape[1]) if prior is None else np.asarray(prior, np.float64)
        return cls(given, chances, following, rewards, horizon)

    def expect(self, policy: _Values, chances: _Values, payoffs: _Values | None = None) -> _Values:
        """The expected sum of payoffs from each state on, with the whole horizon to go: float64 [S].

        Args:
            policy: [H S A], or what broadcasts to it.
            chances, payoffs: [H S A O]; payoffs are by default the rewards.
        """
        wide = (self.horizon, *self.rewards.shape)
        chances = np.broadcast_to(chances, wide)
        payoffs = np.broadcast_to(self.rewards if payoffs is None else payoffs, wide)
        totals = np.zeros(len(self.prior))
        for step, own in enumerate(np.broadcast_to(policy, wide[:3])):
            totals = np.einsum("sa,sao,sao->s", own, chances[step], payoffs[step] + self.look_up(totals))
        return totals

    def look_up(self, values: _Values) -> _Values:
        """The value of the state behind each outcome: [S] -> [S A O]; 0 at the end."""
        result: _Values = np.append(values, 0.0)[self.following]
        return result


@dataclass(frozen=True)
class Plan:
    """What a recipe finds, in units of beta.

    Attributes:
        q: float64 [H S A].
        v: float64 [H S].
        believed: float64 [H S A O], the chances of outcomes that the recipe counts on.
    """

    problem: Problem
    beta: float
    q: _Values
    v: _Values
    believed: _Values

    @property
    def policy(self) -> _Values:
        """pi(a | s) = p0(a | s) exp(Q - V), float64 [H S A]."""
        result: _Values = self.problem.prior * np.exp(self.q - self.v[..., None])
        return result

    def promise(self, payoffs: _Values | None = None) -> _Values:
        """What the plan expects of itself from each state: the return, or the sum of other payoffs [S A O]; float64 [S]."""
        return self.problem.expect(self.policy, self.believed, payoffs)

    def realise(self, payoffs: _Values | None = None) -> _Values:
        """What its policy gets under the true chances; see `promise`."""
        return self.problem.expect(self.policy, self.problem.chances, payoffs)

    def kl(self) -> _Values:
        """KL(pi || p0) of the actions on the way, under the true chances, in nats, from each state: float64 [S]."""
        return self.realise((self.q - self.v[..., None])[..., None])


def solve(problem: Problem, beta: float, recipe: Recipe) -> Plan:
    """Soft values by backward recursion; see the head of this file.

    Raises:
        PHFError: beta is not above 0.
    """
    if not beta > 0:
        raise PHFError(f"beta {beta:g} must be above 0")
    q, v, believed = [], [], []
    values = np.zeros(len(problem.prior))
    for _ in range(problem.horizon):
        gains = problem.rewards / beta + problem.look_up(values)
        if recipe == "posterior":
            q.append(logsumexp(gains, axis=2, b=problem.chances))
            # Of an action that cannot be taken Q is -inf, and what it leads to is believed as little.
            shift = np.where(np.isfinite(q[-1]), q[-1], np.inf)
            believed.append(problem.chances * np.exp(gains - shift[..., None]))
        else:
            q.append((problem.chances * gains).sum(2))
            believed.append(problem.chances)
        values = logsumexp(q[-1], axis=1, b=problem.prior)
        v.append(values)
    return Plan(problem, beta, np.stack(q), np.stack(v), np.stack(believed))


def list_examples() -> dict[str, Problem]:
    """Small problems; each is looked at from state 0. In `typing` nothing is left to chance."""
    lottery = [[[(1.0, END, 0.0)], [(0.5, END, 1.0), (0.5, END, -3.0)]]]
    # Five places beside a cliff. Forward pays at the far end; one step in five slips, and off the first two places falls.
    forward, back = 0.8, 0.2
    cliff: list[list[list[Outcome]]] = []
    for place in range(5):
        ahead: Outcome = (forward, END, 1.0) if place == 4 else (forward, place + 1, -0.05)
        slip: Outcome = (back, END, -2.0) if place < 2 else (back, place - 1, -0.05)
        cliff.append([[ahead, slip], [(1.0, place, -0.05)]])
    # To ask bluntly (0) or politely (1); the other is kind or rude; then to answer (0) or to leave (1).
    dialogue: list[list[list[Outcome]]] = [
        [[(0.6, 1, 0.3), (0.4, 2, 0.0)], [(0.8, 1, 0.0), (0.2, 2, 0.0)]],
        [[(0.9, END, 1.0), (0.1, END, -1.0)], [(1.0, END, 0.0)]],
        [[(0.2, END, 1.0), (0.8, END, -2.0)], [(1.0, END, -0.2)]],
    ]
    # Four letters of two kinds: the second kind pays when it comes twice in a row, and costs .1 each time.
    typing: list[list[list[Outcome]]] = [
        [[(1.0, 0, 0.0)], [(1.0, 1, -0.1)]],
        [[(1.0, 0, 0.0)], [(1.0, 1, 0.4)]],
    ]
    return {
        "lottery": Problem.create(lottery, 1),
        "cliff": Problem.create(cliff, 8),
        "dialogue": Problem.create(dialogue, 2),
        "typing": Problem.create(typing, 4),
    }
