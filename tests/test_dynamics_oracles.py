"""Numbers of chains beside those of deeptime and hmmlearn (development only)."""

import numpy as np
import pytest

from phf.chains.chain import Chain, count_steps, fit_chain
from phf.chains.hidden import fit_hidden
from phf.chains.truths import BAD, CONFUSION, LONGEST, judge_pages, make_chain

CHAIN = Chain(np.array([0.7, 0.2, 0.1]), np.array([[0.6, 0.2, 0.05], [0.3, 0.4, 0.1], [0.05, 0.05, 0.8]]))
END = 3


def close(chain: Chain) -> np.ndarray:
    """Steps between segments and the end, behind which the next page begins: deeptime wants every state to have a way out."""
    return np.vstack([np.column_stack([chain.steps, chain.ends]), np.append(chain.initial, 0)])


def test_laws_of_a_chain_beside_deeptime() -> None:
    markov = pytest.importorskip("deeptime.markov")
    analysis = markov.tools.analysis
    model = markov.msm.MarkovStateModel(CHAIN.closed)
    assert CHAIN.stationary == pytest.approx(model.stationary_distribution, abs=1e-10)
    assert CHAIN.timescale == pytest.approx(model.timescales()[0], rel=1e-8)
    assert CHAIN.hitting_time(BAD) == pytest.approx(analysis.mfpt(CHAIN.closed, [BAD]), rel=1e-8)
    found = analysis.committor(close(CHAIN), [BAD], [END])
    assert CHAIN.end_before(BAD) == pytest.approx(found[:END], abs=1e-10)


def test_a_fitted_chain_beside_deeptime() -> None:
    markov = pytest.importorskip("deeptime.markov")
    pages = CHAIN.simulate(3000, 200, np.random.default_rng(0))
    assert pages.ended.all()
    stream = np.concatenate([[*row[row >= 0], END] for row in pages.states])
    counts = markov.TransitionCountEstimator(lagtime=1, count_mode="sliding").fit_fetch(stream)
    model = markov.msm.MaximumLikelihoodMSM(reversible=False).fit_fetch(counts)
    own = count_steps(pages).sum(axis=0)
    own[END, pages.states[0, 0]] -= 1  # no end stands before the stream
    assert own.tolist() == counts.count_matrix.tolist()
    assert close(fit_chain(own)) == pytest.approx(model.transition_matrix, abs=1e-3)


def test_a_hidden_chain_beside_hmmlearn() -> None:
    hmm = pytest.importorskip("hmmlearn.hmm")
    rng = np.random.default_rng(0)
    pages = judge_pages(make_chain(0.92, 0.85).simulate(250, LONGEST, rng), rng)
    rows = [
        [*row[row >= 0], *([2] if ended else [])]
        for row, ended in zip(pages.states, pages.ended, strict=True)
    ]
    model = hmm.CategoricalHMM(3, params="st", init_params="", n_iter=400, tol=1e-7)
    model.n_features = 3
    model.emissionprob_ = np.block([[CONFUSION, np.zeros((2, 1))], [np.zeros(2), 1]])
    model.startprob_ = np.array([0.5, 0.5, 0])
    model.transmat_ = np.array([[0.8, 0.15, 0.05], [0.15, 0.8, 0.05], [0, 0, 1]])
    with np.errstate(divide="ignore"):
        model.fit(np.concatenate(rows)[:, None], [len(row) for row in rows])
    found = fit_hidden(pages, CONFUSION)
    assert found.steps == pytest.approx(model.transmat_[:2, :2], abs=2e-4)
    assert found.initial == pytest.approx(model.startprob_[:2], abs=1e-3)
