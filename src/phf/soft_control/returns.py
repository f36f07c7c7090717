"""Return conditioning: what a quantile or scalar run is asked for, by level, and what it writes.

Asked for a level, a model writes what went with that level in training. If part of a score is luck (a noisy annotator, a sentence
whose end decides), that is not what brings the score about, and the level is not reached ("You can't count on luck",
Paster, McIlraith and Ba 2022, arXiv 2205.15967).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from phf.config.train import SamplingConfig
from phf.control import ModeRules
from phf.corpus.segment import segment_ends
from phf.errors import NotApplicableError
from phf.evaluate.metric import bare
from phf.generate.engine import write_pages
from phf.generate.target import REDRAW, Target
from phf.intervals import bootstrap_mean
from phf.model import lm
from phf.objectives import Objective, is_additive, segment_rewards
from phf.results import Measure, Measurement
from phf.steer.streams import Score
from phf.thresholds import resolve_levels
from phf.train.run import Run

NUM_LEVELS = 5
"""Of a scalar run, by equal shares of the training tokens; a quantile run has its own."""
_NUM_BOOTSTRAP = 1000

MEASURES = tuple(
    Measure(name, title, "", note, "A level's first segments alone are read, without a prompt.", True, "Return conditioning", of="run", at="level")
    for name, title, note in (
        ("promised_level", "Mean score of the level in training", "Level 0 is the best there is to ask for."),
        ("realised_level", "Mean score of what is written for it", "Of first segments, by the judge that scored the training text."),
        ("level_shortfall", "Realised less promised", "Above 0: the level was luck in part, or was not learned."),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Level:
    """A level that can be asked for.

    Attributes:
        target: writes, the level's condition folded into its weights if the objective adds it to the inputs.
        rules: of a page in this level.
        promised: scores [S] of the training segments that had it.
    """

    target: Target
    rules: ModeRules
    promised: npt.NDArray[np.float32]


def find_levels(
    target: Target, objective: Objective, scores: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]
) -> list[Level]:
    """The levels of a model of this objective, best first.

    Args:
        target: the model without a condition, its tokenizer with the objective's levels.
        scores, tokens: of the training segments [S].

    Raises:
        NotApplicableError: the objective is neither quantile nor scalar.
    """
    config, control = objective.config, target.tokenizer.control
    is_folded = is_additive(config) and objective.reward_scale is not None
    if not objective.levels and not is_folded:
        raise NotApplicableError(f"{config.kind} is not asked for a return; give a run of quantile or scalar")
    thresholds = objective.levels or resolve_levels(scores, tokens, NUM_LEVELS)
    places = np.searchsorted(np.array([one.value for one in thresholds], np.float32), scores)
    levels = []
    for place in range(len(thresholds) + 1):
        own = scores[places == place]
        if not is_folded:
            order = [control.good, *control.all[2:], control.bad]
            others = tuple(token for token in control.all if token != order[place])
            levels.append(Level(target, ModeRules((control.end, order[place]), others, None), own))
        else:
            asked = np.array([segment_rewards(objective, own).mean(), 0], np.float32)
            folded = replace(target, model=lm.fold_condition(target.model, control, asked), is_folded=True)
            levels.append(Level(folded, ModeRules((control.end,), control.all, None), own))
    return levels


def measure_levels(
    levels: Sequence[Level], score: Score, sampling: SamplingConfig, judge: str | None = None
) -> list[Measurement]:
    """Promised and realised mean scores by level, with bootstrap intervals over what is written.

    Args:
        score: of texts; the judge that scored the training text.
        judge: its slug.
    """
    found: list[Measurement] = []
    for place, level in enumerate(levels):
        target = level.target
        drawer = replace(target.drawer(sampling), rules=level.rules)
        indices = [place * REDRAW + index for index in range(sampling.num_samples)]
        written = write_pages(
            target.model, drawer, [level.rules.prefix] * len(indices), indices, lambda done: None
        )
        texts = [target.tokenizer.decode(ids) for ids, _ in written]
        firsts = [text[: segment_ends(text, target.segments)[0]] for text in texts if text]
        # What a level is worth in training is known, not estimated: it has no interval.
        scores, promised = score(firsts), float(level.promised.mean(dtype=np.float64))
        for name, estimate in (
            ("promised_level", bare(promised, len(level.promised))),
            ("realised_level", bootstrap_mean(scores, _NUM_BOOTSTRAP, sampling.seed)),
            ("level_shortfall", bootstrap_mean(scores - promised, _NUM_BOOTSTRAP, sampling.seed)),
        ):
            found.append(Measurement(name, estimate, judge=judge, at=place))
    return found


def measure_run(
    run: Run, score: Score, sampling: SamplingConfig, judge: str | None = None
) -> list[Measurement]:
    """`measure_levels` of a run's last checkpoint.

    Raises:
        PHFError: it was not trained with quantile or scalar (`NotApplicableError`), or its data is gone; see `Run.data`.
    """
    data = run.data()
    used = np.repeat(data.tokens.is_train, data.tokens.document_segments) & ~np.isnan(data.scores)
    target = Target("untagged", run.load_model(), run.load_tokenizer(), run.config.segments)
    levels = find_levels(target, data.objective, data.scores[used], data.tokens.segment_lengths[used])
    return measure_levels(levels, score, sampling, judge)
