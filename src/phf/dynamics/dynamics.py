"""`phf dynamics`: a run as a chain of pages, beside the data it was trained on (docs/dynamics.md)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.config.dynamics import DynamicsConfig
from phf.corpus.store import Corpus
from phf.dynamics.absorbing import estimate_returns, keep_likeliest
from phf.dynamics.ergodicity import intraclass_correlation, measure_ergodicity
from phf.dynamics.hidden import count_confusion
from phf.dynamics.orders import choose_order, count_contexts
from phf.dynamics.own_view import describe_hazards, describe_relaxation
from phf.dynamics.pages import Pages
from phf.dynamics.places import compare_places, estimate_drift
from phf.dynamics.positions import describe_positions, list_limits
from phf.dynamics.results import (
    AVERAGE,
    DRIFT,
    DYNAMICS,
    FAR_EXCESS,
    FAR_P,
    HAZARD,
    HIDDEN,
    HIDDEN_EXCESS,
    HIDDEN_OF_DATA,
    JUDGE_ERROR,
    LAW,
    LAW_EXCESS,
    LAW_OF_DATA,
    ORDER,
    PLACES_P,
    RATE,
    RATE_EXCESS,
    RATE_OF_DATA,
    RETURN,
    SHARE_BETWEEN,
    STAY,
    DynamicsResults,
)
from phf.dynamics.subjects import Score, Subject, open_subjects
from phf.dynamics.switching import LAWS, compare_chains, compare_hidden, compare_rates
from phf.dynamics.symmetry import compare_symmetry, describe_symmetry
from phf.dynamics.written import (
    BAD,
    GOOD,
    LOOPING,
    STATES,
    Judged,
    Segmented,
    cut_page,
    judge_pages,
    state_pages,
)
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge, choose_judges
from phf.evaluate.metric import bare
from phf.evaluate.pages import PageReader
from phf.evaluate.parts import Parts
from phf.files import Place, hash_json
from phf.folders import lock_folder
from phf.intervals import bootstrap_mean, bootstrap_ratio, wilson
from phf.paths import hide_settings
from phf.records import FORMAT_VERSION, Mode, Number, Progress, Sample
from phf.results import Measurement
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.reward_training.labels import read_labels
from phf.train.data import TrainingData

_Values = npt.NDArray[np.float64]

PARTS_FOLDER = "parts"
_DOCUMENTS_PER_TRIPLE = 10
"""That are read, at most: of some the beginnings are too short."""
_LEAST_AT_RISK = 20
"""Segments without which a place on the page has no hazard."""
_LEAST_PAGES = 10
"""Pages with a segment without which nothing is said of a mode."""
_SEGMENTS_PER_CALL = 4096
_MOST_FITS = 200
"""Resamples of hidden chains, each of which is fitted in some rounds."""
_TURNS = ((GOOD, BAD, "good -> bad"), (BAD, GOOD, "bad -> good"))


def measure_dynamics(
    place: Place,
    out: Place = "dynamics",
    config: DynamicsConfig | None = None,
    *,
    beside: Sequence[Place] = (),
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> DynamicsResults:
    """Measure a model as a chain of pages; writes OUT/dynamics.json. What is finished is kept in OUT/parts.

    Args:
        place: a run, `RUN@STEP`, a release, or the folder of any causal language model with its tokenizer.
        beside: such places, too, for what the end of a page makes each of them forget.

    Raises:
        PHFError: it is none of these, its corpus is not there, it has not that mode, or another process writes into `out`.
    """
    with lock_folder(Path(out), "measuring into"):
        study = _Study.open(place, beside, Path(out), config or DynamicsConfig(), load, progress)
        results = study.measure()
        for note in results.notes:
            say(note)
        DYNAMICS.write(Path(out), results)
    return results


@dataclass(frozen=True)
class _Study:
    """A model, its data and its judge, as far as it has them, and those that stand beside it."""

    subject: Subject
    beside: Sequence[Subject]
    data: TrainingData | None
    judge: LoadedJudge | None
    held_out: LoadedJudge | None
    threshold: float
    config: DynamicsConfig
    notes: list[str]
    parts: Parts
    progress: Progress | None

    @classmethod
    def open(
        cls,
        place: Place,
        beside: Sequence[Place],
        out: Path,
        config: DynamicsConfig,
        load: Callable[[str], RewardModel],
        progress: Progress | None,
    ) -> "_Study":
        subject, *others = open_subjects([place, *beside])
        if missing := [mode for mode in config.modes if mode not in subject.targets]:
            raise PHFError(
                f"{subject.name} has no {missing[0]} mode; give one of: {', '.join(subject.targets)}"
            )
        if any(target.segments == "imported" for target in subject.targets.values()):
            raise PHFError(
                "segments that came with the documents cannot be cut in what a model writes; use a corpus with sentences or lines"
            )
        data = None if subject.run is None else subject.run.data()
        if data is not None:
            judges, notes = choose_judges(data.annotation, [config.judge] if config.judge else [], load)
        else:
            judges, notes = [LoadedJudge("held-out", load(config.judge))] if config.judge else [], []
        judge = None if not judges else judges[-1 if config.judge else 0]
        if judge is not None and judge.role != "annotator" and config.threshold is None:
            raise PHFError(
                f"{judge.model.identity.name} did not annotate this corpus, and where its scores are bad is not known; give --threshold"
            )
        held_out = LoadedJudge("held-out", load(config.held_out)) if config.held_out else None
        if held_out is not None and (judge is None or config.labels or held_out.slug == judge.slug):
            raise PHFError(
                "how often the judge errs is measured against one other: another --held-out judge, or --labels"
            )
        threshold = data.threshold.value if config.threshold is None and data else config.threshold
        key = [subject.key, judge.slug if judge else "", FORMAT_VERSION, version("phf")]
        parts = Parts(out / PARTS_FOLDER, key)
        return cls(
            subject,
            others,
            data,
            judge,
            held_out,
            np.nan if threshold is None else threshold,
            config,
            notes,
            parts,
            progress,
        )

    def measure(self) -> DynamicsResults:
        """All there is to measure."""
        subject, rows, notes = self.subject, list[Measurement](), list(self.notes)
        data = None if self.data is None else self._read_data(self.data)
        num_pages, texts = {}, list[str]()
        if data is not None:
            num_pages["data"] = len(data.pages)
            notes += _list_notes("the data", data)
        for mode in self.config.modes or tuple(subject.targets):
            samples = self._write(mode)
            num_pages[mode] = len(samples)
            score = self._score(mode)
            if score is not None:
                judged = self._judge(mode, samples, score)
                num_pages[mode] = len(judged.pages)
                rows += self._describe_pages(mode, judged.pages, None if data is None else data.pages)
                rows += self._describe_errors(mode, judged, data)
                rows += self._describe_returns(mode, judged.pages)
                notes += _list_notes(f"{subject.name} {mode}", judged)
            texts = texts or self._find_documents(samples)
            rows += self._describe_own(mode, texts)
        if self.beside:
            all_of = [subject, *self.beside]
            key = [hash_json(texts), *(other.key for other in self.beside)]
            rows += self._keep("beside", key, lambda: compare_symmetry(all_of, texts, self.config))
        notes += list_limits(subject, rows, self.config)
        names = [] if self.judge is None else [self.judge.model.identity.name]
        return DynamicsResults(
            settings=hide_settings(self.config.model_dump(mode="json"), names),
            run=subject.name,
            run_id=subject.key if subject.run is None else subject.run.id,
            step=subject.step,
            judge=None if self.judge is None else self.judge.describe(),
            threshold=self.threshold,
            isolated=None if subject.run is None else subject.run.config.data.isolate_documents,
            context=subject.context,
            num_pages=num_pages,
            notes=notes,
            measurements=rows,
        )

    def _score(self, name: str) -> Score | None:
        """Scores by the judge; None where there is none."""
        return None if self.judge is None else self._score_by(self.judge, name)

    def _score_by(self, judge: LoadedJudge, name: str) -> Score:
        def score(texts: list[str]) -> list[float]:
            found: list[float] = []
            for start in range(0, len(texts), _SEGMENTS_PER_CALL):
                chunk = texts[start : start + _SEGMENTS_PER_CALL]
                found += map(float, score_samples(judge.model, chunk))
                if self.progress is not None:
                    self.progress(f"scoring segments, {name}", len(found), len(texts))
            return found

        return lambda texts: self.parts.measure(f"scores-{name}", texts, lambda: score(texts), list[Number])

    def _write(self, mode: Mode, truncation: str = "", **changed: float) -> list[Sample]:
        """The mode's pages, with some settings of sampling changed."""
        target, sampling = self.subject.targets[mode], self.config.sampling
        room = self.subject.context - len(target.drawer(sampling).rules.prefix)
        sampling = sampling.model_copy(
            update={"max_new_tokens": min(sampling.max_new_tokens, room), **changed}
        )
        settings = sampling.model_dump(mode="json", exclude={"batch_size"})
        return self.parts.measure(
            f"pages-{mode}{truncation}",
            settings,
            lambda: target.write([()], sampling, self.progress),
            list[Sample],
        )

    def _judge(self, mode: Mode, samples: Sequence[Sample], score: Score) -> Judged:
        """The states of their segments.

        Raises:
            PHFError: too few of them have a whole segment.
        """
        judged = self._cut(mode, samples, score)
        if len(judged.pages) < _LEAST_PAGES:
            raise PHFError(
                f"{self.subject.name} {mode}: {len(judged.pages)} of {len(samples)} pages have a whole segment; "
                "give a larger --num-samples, or --max-new-tokens"
            )
        return judged

    def _cut(self, mode: Mode, samples: Sequence[Sample], score: Score) -> Judged:
        longest, segments = self.config.longest, self.subject.targets[mode].segments
        pages = [cut_page(sample.text, sample.ended, segments, longest) for sample in samples]
        return judge_pages(pages, score, self.threshold, longest)

    def _read_data(self, data: TrainingData) -> Judged:
        """Documents of the training split, cut as the model's pages are; as many as there are pages of a mode, or all."""
        tokens, longest = data.tokens, self.config.longest
        reader = PageReader(tokens, data.scores, self.subject.context)
        there = np.flatnonzero(tokens.split_mask("train") & (tokens.document_segments > 0))
        order = np.random.default_rng(self.config.sampling.seed).permutation(there)
        pages, scores = [], []
        for document in order[: 4 * self.config.sampling.num_samples]:
            page = reader.read(int(document))
            texts = [tokens.tokenizer.decode(ids) for ids in page.segments[:longest]]
            whole = len(page.segments) == tokens.document_segments[document]
            pages.append(Segmented(texts, bool(whole) and len(page.segments) < longest))
            scores.append(page.scores[:longest].astype(np.float64))
        score = self._score("data")
        if score is not None and self.judge is not None and self.judge.role != "annotator":
            return judge_pages(pages, score, self.threshold, longest)
        return state_pages(pages, scores, self.threshold, longest)

    def _find_confusion(self, name: str, judged: Judged) -> npt.NDArray[np.float64] | None:
        """How many segments are good and bad, and judged so; None where nothing says."""
        if self.judge is not None and self.config.labels:
            labels = read_labels(Path(self.config.labels))
            scores = self._score_by(self.judge, "labels")(labels.texts)
            return count_confusion((labels.targets, 0.5), (np.array(scores), self.threshold))
        if self.held_out is None:
            return None
        threshold = self.config.held_out_threshold
        bad = self.held_out.model.hit_threshold if threshold is None else threshold
        scores = self._score_by(self.held_out, f"held-out-{name}")(judged.texts)
        return count_confusion((np.array(scores), bad), (judged.scores, self.threshold))

    def _describe_errors(self, mode: Mode, judged: Judged, data: Judged | None) -> Iterator[Measurement]:
        """How often the judge errs, and rates without its errors."""
        own = self._find_confusion(mode, judged)
        other = None if data is None else self._find_confusion("data", data)
        if own is None or data is None or other is None:
            return
        for true, name in ((GOOD, "good"), (BAD, "bad")):
            yield Measurement(JUDGE_ERROR.name, wilson(own[true, 1 - true], own[true].sum()), mode, of=name)
        num = min(self.config.num_bootstrap, _MOST_FITS)
        compared = compare_hidden(judged.pages, own, data.pages, other, num, self.config.sampling.seed)
        for name, *numbers in compared:
            for measure, number in zip((HIDDEN, HIDDEN_OF_DATA, HIDDEN_EXCESS), numbers, strict=True):
                yield Measurement(measure.name, number, mode, of=name)

    def _describe_returns(self, mode: Mode, pages: Pages) -> Iterator[Measurement]:
        """Whether pages come back from a state, as the model is and where its tokens are truncated."""
        config = self.config
        written = {"all tokens": pages}
        for top_p in config.top_ps * (config.truncated > 0):
            name = f"top-p {top_p:g}"
            written[name] = self._write_truncated(mode, name, top_p=top_p)
        for top_k in config.top_ks * (config.truncated > 0):
            name = f"top-k {top_k}"
            with keep_likeliest(self.subject.targets[mode].model, top_k):
                written[name] = self._write_truncated(mode, name)
        for name, own in written.items():
            for state in (BAD, LOOPING):
                returned, stays = estimate_returns(own, state, GOOD, config.within)
                for segments, number in enumerate(returned, start=1):
                    if number.count and (name == "all tokens" or segments == config.within):
                        yield Measurement(
                            RETURN.name, number, mode, of=f"{STATES[state]}, {name}", at=float(segments)
                        )
                if stays.count:
                    yield Measurement(
                        STAY.name, stays, mode, of=f"{STATES[state]}, {name}", at=float(config.within)
                    )

    def _write_truncated(self, mode: Mode, name: str, **changed: float) -> Pages:
        samples, score = (
            self._write(mode, f"-{name}", num_samples=self.config.truncated, **changed),
            self._score(f"{mode}-{name}"),
        )
        assert score is not None
        return self._cut(mode, samples, score).pages

    def _find_documents(self, samples: Sequence[Sample]) -> list[str]:
        """Texts to be read: of a named corpus, else the run's held-out ones, else what the model has written."""
        num = _DOCUMENTS_PER_TRIPLE * self.config.triples
        if self.config.documents:
            documents = Corpus.open(self.config.documents).iterate_documents()
            return [document.text for document in islice(documents, num)]
        if self.data is None:
            return [sample.text for sample in samples]
        tokens = self.data.tokens
        reader = PageReader(tokens, self.data.scores, self.subject.context)
        return [
            tokens.tokenizer.decode(np.concatenate(reader.read(int(document)).segments))
            for document in reader.held_out_documents(self.config.sampling.seed)[:num]
        ]

    def _describe_own(self, mode: Mode, texts: Sequence[str]) -> list[Measurement]:
        """What the model makes of ends of pages, of many pages together, and of its own labels."""
        subject, config, key = self.subject, self.config, hash_json(texts)
        score = self._score(f"streams-{mode}")
        rows = self._keep(f"ends-{mode}", key, lambda: describe_symmetry(subject, mode, texts, config))
        rows += self._keep(
            f"positions-{mode}", key, lambda: describe_positions(subject, mode, texts, config, score)
        )
        if mode == "none" and subject.has_labels:
            score = self._score("labelled")
            rows += self._keep(
                "hazards", self.threshold, lambda: describe_hazards(subject, config, score, self.threshold)
            )
            rows += self._keep("relaxation", None, lambda: describe_relaxation(subject, config))
        return rows

    def _keep(
        self, name: str, settings: object, describe: Callable[[], Iterator[Measurement]]
    ) -> list[Measurement]:
        """Numbers that took long, with the settings and all else that they depend on."""
        own = self.config.model_dump(
            mode="json", exclude={"modes": True, "sampling": {"num_samples", "batch_size"}}
        )
        return self.parts.measure(name, [own, settings], lambda: list(describe()), list[Measurement])

    def _describe_pages(self, mode: Mode, pages: Pages, data: Pages | None) -> Iterator[Measurement]:
        num, seed = self.config.num_bootstrap, self.config.sampling.seed
        other, num_known = (
            (pages, 1) if data is None else (data, 3)
        )  # without data, the model's own numbers alone
        for measures, compared in (
            ((RATE, RATE_OF_DATA, RATE_EXCESS), compare_rates(pages, other, num, seed)),
            ((LAW, LAW_OF_DATA, LAW_EXCESS), compare_chains(pages, other, LAWS, num, seed)),
        ):
            for name, *numbers in compared:
                for measure, number in zip(measures[:num_known], numbers[:num_known], strict=True):
                    yield Measurement(measure.name, number, mode, of=name)
        order = float(choose_order(count_contexts(pages).sum(axis=0)))
        yield Measurement(ORDER.name, bare(order, len(pages)), mode)
        values = np.zeros(pages.num_states)
        values[BAD] = 1
        yield Measurement(SHARE_BETWEEN.name, intraclass_correlation(pages, values, num, seed), mode)
        bad = pages.states == BAD
        yield Measurement(
            AVERAGE.name, bootstrap_mean(bad.sum(axis=1) / pages.lengths, num, seed), mode, of="over pages"
        )
        yield Measurement(
            AVERAGE.name, bootstrap_ratio(bad.sum(axis=1), pages.lengths, num, seed), mode, of="over segments"
        )
        far = measure_ergodicity(pages, values, min(num, 500), seed, self.config.far)
        if far is not None:
            yield Measurement(FAR_EXCESS.name, far.excess, mode)
            yield Measurement(FAR_P.name, bare(far.p, far.num_pairs), mode)
        yield Measurement(PLACES_P.name, bare(compare_places(pages, min(num, 500), seed), len(pages)), mode)
        for first, second, name in _TURNS:
            yield Measurement(DRIFT.name, estimate_drift(pages, first, second, num, seed), mode, of=name)
        yield from self._describe_hazards(mode, pages)

    def _describe_hazards(self, mode: Mode, pages: Pages) -> Iterator[Measurement]:
        """By place on the page."""
        for first, second, name in _TURNS:
            for place in range(self.config.longest - 1):
                here = pages.states[:, place] == first
                here &= (pages.states[:, place + 1] >= 0) | (pages.ended & (pages.lengths == place + 1))
                if here.sum() < _LEAST_AT_RISK:
                    break
                hits = here & (pages.states[:, place + 1] == second)
                found = bootstrap_mean(hits[here], self.config.num_bootstrap, self.config.sampling.seed)
                yield Measurement(HAZARD.name, found, mode, of=name, at=float(place + 1))


def _list_notes(name: str, judged: Judged) -> list[str]:
    """What was left out."""
    notes = []
    if judged.num_empty:
        notes.append(
            f"{name}: {judged.num_empty:,} pages have no whole segment with a score, and are left out"
        )
    if judged.num_unscored:
        notes.append(f"{name}: {judged.num_unscored:,} pages are cut before a segment without a score")
    return notes
