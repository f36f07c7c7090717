"""Texts of policies with their scores and probabilities, kept on disk as they are finished; and texts that are drawn and scored in calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.config.train import SamplingConfig
from phf.errors import NotApplicableError
from phf.evaluate.drawn import Drawn
from phf.evaluate.judges import LoadedJudge
from phf.evaluate.parts import Parts
from phf.generate.engine import Ids, Written, write_pages
from phf.generate.target import REDRAW, Target
from phf.policies.policy import Policy
from phf.policies.sources import Source
from phf.records import FORMAT_VERSION, Number, Progress, Sample
from phf.reward_models import score_samples
from phf.steer.streams import Score

_Values = npt.NDArray[np.float64]

PARTS_FOLDER = "parts"
_CHUNK = 2000
"""Draws that are kept together: what a stopped command repeats at most."""


@dataclass(frozen=True)
class Text:
    """A text of a policy.

    Attributes:
        ids, ended: see `phf.policies.policy`.
        text: the same, decoded.
        log_prob: by the policy that wrote it.
    """

    ids: list[int]
    ended: bool
    text: str
    log_prob: float


@dataclass(frozen=True)
class Draws:
    """Texts of a policy, and their scores [judges, N], the annotator's first; NaN = unscored."""

    texts: list[Text]
    scores: _Values

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def written(self) -> list[Written]:
        """As policies read them."""
        return [(text.ids, text.ended) for text in self.texts]

    @property
    def log_probs(self) -> _Values:
        """By the policy that wrote them, [N]."""
        return np.array([text.log_prob for text in self.texts])

    def __add__(self, others: "Draws") -> "Draws":
        return Draws(self.texts + others.texts, np.concatenate([self.scores, others.scores], 1))

    def take(self, chosen: Sequence[int] | npt.NDArray[np.int64]) -> "Draws":
        """Some of them."""
        return Draws([self.texts[index] for index in chosen], self.scores[:, chosen])

    def describe(self, scenario: str, policy: Policy, slugs: Sequence[str]) -> Drawn:
        """As samples.parquet has them."""
        samples = [
            Sample(policy.target.mode, index, text.text, len(text.ids), text.ended, "")
            for index, text in enumerate(self.texts)
        ]
        columns = {slug: own.tolist() for slug, own in zip(slugs, self.scores, strict=True)}
        return Drawn(scenario, policy.target.mode, samples, columns)


@dataclass(frozen=True)
class Library:
    """Draws of policies in a folder: what is there is not made again.

    Attributes:
        judges: the annotator first.
    """

    folder: Path
    judges: Sequence[LoadedJudge]
    progress: Progress | None = None

    @property
    def slugs(self) -> list[str]:
        """Of the judges."""
        return [judge.slug for judge in self.judges]

    def draw(self, source: Source, policy: Policy, num: int, stream: int, first: int = 0) -> Draws:
        """So many draws of a policy, of a stream of random numbers, from the first one on."""
        found = [
            self._draw(
                self.parts(source, policy), policy, range(start, min(start + _CHUNK, first + num)), stream
            )
            for start in range(first, first + num, _CHUNK)
        ]
        return Draws(
            [text for own in found for text in own.texts], np.concatenate([own.scores for own in found], 1)
        )

    def read(self, source: Source, policy: Policy, draws: Draws, name: str) -> _Values:
        """log-probabilities of the draws of another policy, which `name` names, by this one: [N]."""

        def read() -> list[float]:
            found: list[float] = policy.log_probs(draws.written, self.progress).tolist()
            return found

        ids = [[text.ids, text.ended] for text in draws.texts]
        return np.array(self.parts(source, policy).measure(f"of-{name}", ids, read, list[float]))

    def weigh(self, policy: Policy, texts: Sequence[Written], bound: float, beta: float) -> _Values:
        """-(score - bound) / beta of texts of a policy, by the annotator; -inf without a score: [N]."""
        scores = np.array(
            score_samples(self.judges[0].model, [policy.decode(text) for text in texts]), np.float64
        )
        return np.where(np.isnan(scores), -np.inf, -(scores - bound) / beta)

    def parts(self, source: Source, policy: Policy) -> Parts:
        """The finished parts of a policy."""
        settings = policy.sampling.model_dump(mode="json", exclude={"batch_size", "num_samples"})
        steer = None if policy.guidance is None else policy.guidance.model_dump(mode="json")
        subject = [source.key, policy.target.mode, steer, settings, FORMAT_VERSION, version("phf")]
        return Parts(self.folder / PARTS_FOLDER / policy.name.replace("/", "--"), subject)

    def _draw(self, parts: Parts, policy: Policy, indices: range, stream: int) -> Draws:
        where = [indices.start, indices.stop, stream]

        def write() -> list[Text]:
            written = policy.write(indices, stream, self.progress)
            log_probs = policy.log_probs(written, self.progress)
            return [
                Text(list(text[0]), text[1], policy.decode(text), float(value))
                for text, value in zip(written, log_probs, strict=True)
            ]

        name = f"{stream}-{indices.start}"
        texts = parts.measure(f"texts-{name}", where, write, list[Text])
        scores = []
        for judge in self.judges:

            def score(judge: LoadedJudge = judge) -> list[float]:
                return score_samples(judge.model, [text.text for text in texts])

            scores.append(parts.measure(f"{judge.slug}-{name}", [*where, judge.slug], score, list[Number]))
        return Draws(texts, np.array(scores, np.float64))


def write_behind(target: Target, starts: Sequence[Ids], sampling: SamplingConfig, call: int) -> list[Written]:
    """What a target writes behind texts; with the seed, the number of the call decides the random numbers."""
    drawer = target.drawer(sampling)
    pages = [[*drawer.rules.prefix, *start] for start in starts]
    indices = [call * REDRAW + place for place in range(len(pages))]
    return write_pages(target.model, drawer, pages, indices, lambda done: None)


def score_texts(target: Target, score: Score, texts: Sequence[Ids]) -> npt.NDArray[np.float64]:
    """Scores of texts given as ids.

    Raises:
        NotApplicableError: one has none.
    """
    scores = np.asarray(score([target.tokenizer.decode(ids) for ids in texts]), np.float64)
    if num_unscored := int(np.isnan(scores).sum()):
        raise NotApplicableError(
            f"{num_unscored} of {len(texts)} texts have no score; give a reward model that scores every text"
        )
    return scores
