"""`phf dynamics`: a run as a chain of pages, beside the data it was trained on (docs/dynamics.md)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.config.dynamics import DynamicsConfig
from phf.dynamics.absorbing import estimate_returns, keep_likeliest
from phf.dynamics.ergodicity import intraclass_correlation, measure_ergodicity
from phf.dynamics.hidden import count_confusion
from phf.dynamics.orders import choose_order, count_contexts
from phf.dynamics.pages import Pages
from phf.dynamics.places import compare_places, estimate_drift
from phf.dynamics.results import (
    AVERAGE,
    DIVERGENCE,
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
from phf.dynamics.switching import LAWS, compare_chains, compare_hidden, compare_rates
from phf.dynamics.symmetry import choose_triples, measure_symmetry
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
from phf.files import Place
from phf.folders import lock_folder
from phf.generate.target import Target
from phf.intervals import bootstrap_mean, bootstrap_ratio, wilson
from phf.objectives import modes_of
from phf.paths import hide_settings
from phf.records import FORMAT_VERSION, Mode, Number, Progress, Sample
from phf.results import Measurement
from phf.reward_models import RewardModel, load_reward_model, score_samples
from phf.reward_training.labels import read_labels
from phf.train.data import TrainingData
from phf.train.run import Run

_Values = npt.NDArray[np.float64]

PARTS_FOLDER = "parts"
_BEFORE = 64
"""Tokens that stand before an end, at most."""
_LEAST_AT_RISK = 20
"""Segments without which a place on the page has no hazard."""
_LEAST_PAGES = 10
"""Pages with a segment without which nothing is said of a mode."""
_SEGMENTS_PER_CALL = 4096
_MOST_FITS = 200
"""Resamples of hidden chains, each of which is fitted in some rounds."""
_TURNS = ((GOOD, BAD, "good -> bad"), (BAD, GOOD, "bad -> good"))


def measure_dynamics(
    run: Place,
    out: Place = "dynamics",
    config: DynamicsConfig | None = None,
    *,
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> DynamicsResults:
    """Measure a run as a chain of pages; writes OUT/dynamics.json. What is finished is kept in OUT/parts.

    Raises:
        PHFError: it is no run, its corpus is not there, it has not that mode, or another process writes into `out`.
    """
    with lock_folder(Path(out), "measuring into"):
        subject = _Subject.open(Run.open(run), Path(out), config or DynamicsConfig(), load, progress)
        results = subject.measure()
        for note in results.notes:
            say(note)
        DYNAMICS.write(Path(out), results)
    return results


@dataclass(frozen=True)
class _Subject:
    """A run, its data and its judge."""

    run: Run
    step: int
    data: TrainingData
    judge: LoadedJudge
    held_out: LoadedJudge | None
    threshold: float
    config: DynamicsConfig
    notes: list[str]
    parts: Parts
    progress: Progress | None

    @classmethod
    def open(
        cls,
        run: Run,
        out: Path,
        config: DynamicsConfig,
        load: Callable[[str], RewardModel],
        progress: Progress | None,
    ) -> "_Subject":
        data, step = run.data(), run.resolve_step(None)
        has = modes_of(run.config.objective)
        if missing := [mode for mode in config.modes if mode not in has]:
            raise PHFError(f"{run.name} has no {missing[0]} mode; give one of: {', '.join(has)}")
        judges, notes = choose_judges(data.annotation, [config.judge] if config.judge else [], load)
        judge = judges[-1] if config.judge else judges[0]
        held_out = LoadedJudge("held-out", load(config.held_out)) if config.held_out else None
        if held_out is not None and (config.labels or held_out.slug == judge.slug):
            raise PHFError(
                "how often the judge errs is measured against one other: another --held-out judge, or --labels"
            )
        if judge.role != "annotator" and config.threshold is None:
            raise PHFError(
                f"{judge.model.identity.name} did not annotate this corpus, and where its scores are bad is not known; give --threshold"
            )
        threshold = data.threshold.value if config.threshold is None else config.threshold
        key = [run.id, step, judge.slug, FORMAT_VERSION, version("phf")]
        return cls(
            run,
            step,
            data,
            judge,
            held_out,
            threshold,
            config,
            notes,
            Parts(out / PARTS_FOLDER, key),
            progress,
        )

    def measure(self) -> DynamicsResults:
        """All there is to measure."""
        modes = self.config.modes or modes_of(self.run.config.objective)
        model, tokenizer = self.run.load_model(self.step), self.run.load_tokenizer(self.step)
        objective, segments = self.run.config.objective, self.run.config.segments
        if segments == "imported":
            raise PHFError(
                "segments that came with the documents cannot be cut in what a model writes; use a corpus with sentences or lines"
            )
        rows: list[Measurement] = []
        notes, num_pages = list(self.notes), {}
        data = self._read_data()
        num_pages["data"] = len(data.pages)
        for mode in modes:
            target = Target.create(mode, model, tokenizer, objective, segments)
            judged = self._write(target)
            if len(judged.pages) < _LEAST_PAGES:
                raise PHFError(
                    f"{self.run.name} {mode}: {len(judged.pages)} of {self.config.sampling.num_samples} pages have a whole segment; "
                    "give a larger --num-samples, or --max-new-tokens"
                )
            num_pages[mode] = len(judged.pages)
            rows += [
                *self._describe_pages(mode, judged.pages, data.pages),
                *self._describe_errors(mode, judged, data),
                *self._describe_returns(mode, target, judged.pages),
                *self._describe_ends(mode, target),
            ]
            notes += _list_notes(f"{self.run.name} {mode}", judged)
        names = [self.judge.model.identity.name]
        return DynamicsResults(
            settings=hide_settings(self.config.model_dump(mode="json"), names),
            run=self.run.name,
            run_id=self.run.id,
            step=self.step,
            judge=self.judge.describe(),
            threshold=self.threshold,
            isolated=self.run.config.data.isolate_documents,
            num_pages=num_pages,
            notes=[*notes, *_list_notes("the data", data)],
            measurements=rows,
        )

    def _score(self, name: str, judge: LoadedJudge | None = None) -> Callable[[list[str]], list[float]]:
        model = (judge or self.judge).model

        def score(texts: list[str]) -> list[float]:
            found: list[float] = []
            for start in range(0, len(texts), _SEGMENTS_PER_CALL):
                chunk = texts[start : start + _SEGMENTS_PER_CALL]
                found += map(float, score_samples(model, chunk))
                if self.progress is not None:
                    self.progress(f"scoring segments, {name}", len(found), len(texts))
            return found

        return lambda texts: self.parts.measure(f"scores-{name}", texts, lambda: score(texts), list[Number])

    def _write(self, target: Target, truncation: str = "", **changed: float) -> Judged:
        """The mode's pages, with some settings of sampling changed."""
        longest, sampling = self.config.longest, self.config.sampling
        room = self.run.config.data.context - len(target.drawer(sampling).rules.prefix)
        changed = {"max_new_tokens": min(sampling.max_new_tokens, room), **changed}
        sampling = sampling.model_copy(update=changed)
        settings = sampling.model_dump(mode="json", exclude={"batch_size"})
        samples = self.parts.measure(
            f"pages-{target.mode}{truncation}",
            settings,
            lambda: target.write([()], sampling, self.progress),
            list[Sample],
        )
        pages = [cut_page(sample.text, sample.ended, target.segments, longest) for sample in samples]
        return judge_pages(pages, self._score(f"{target.mode}{truncation}"), self.threshold, longest)

    def _read_data(self) -> Judged:
        """Documents of the training split, cut as the model's pages are; as many as there are pages of a mode, or all."""
        tokens, longest = self.data.tokens, self.config.longest
        reader = PageReader(tokens, self.data.scores, self.run.config.data.context)
        there = np.flatnonzero(tokens.split_mask("train") & (tokens.document_segments > 0))
        order = np.random.default_rng(self.config.sampling.seed).permutation(there)
        pages, scores = [], []
        for document in order[: 4 * self.config.sampling.num_samples]:
            page = reader.read(int(document))
            texts = [tokens.tokenizer.decode(ids) for ids in page.segments[:longest]]
            whole = len(page.segments) == tokens.document_segments[document]
            pages.append(Segmented(texts, bool(whole) and len(page.segments) < longest))
            scores.append(page.scores[:longest].astype(np.float64))
        if self.judge.role != "annotator":
            return judge_pages(pages, self._score("data"), self.threshold, longest)
        return state_pages(pages, scores, self.threshold, longest)

    def _find_confusion(self, name: str, judged: Judged) -> npt.NDArray[np.float64] | None:
        """How many segments are good and bad, and judged so; None where nothing says."""
        if self.config.labels:
            labels = read_labels(Path(self.config.labels))
            scores = self._score("labels")(labels.texts)
            return count_confusion((labels.targets, 0.5), (np.array(scores), self.threshold))
        if self.held_out is None:
            return None
        threshold = self.config.held_out_threshold
        bad = self.held_out.model.hit_threshold if threshold is None else threshold
        scores = self._score(f"held-out-{name}", self.held_out)(judged.texts)
        return count_confusion((np.array(scores), bad), (judged.scores, self.threshold))

    def _describe_errors(self, mode: Mode, judged: Judged, data: Judged) -> Iterator[Measurement]:
        """How often the judge errs, and rates without its errors."""
        tables = self._find_confusion(mode, judged), self._find_confusion("data", data)
        own, other = tables
        if own is None or other is None:
            return
        for true, name in ((GOOD, "good"), (BAD, "bad")):
            yield Measurement(JUDGE_ERROR.name, wilson(own[true, 1 - true], own[true].sum()), mode, of=name)
        num = min(self.config.num_bootstrap, _MOST_FITS)
        compared = compare_hidden(judged.pages, own, data.pages, other, num, self.config.sampling.seed)
        for name, *numbers in compared:
            for measure, number in zip((HIDDEN, HIDDEN_OF_DATA, HIDDEN_EXCESS), numbers, strict=True):
                yield Measurement(measure.name, number, mode, of=name)

    def _describe_returns(self, mode: Mode, target: Target, pages: Pages) -> Iterator[Measurement]:
        """Whether pages come back from a state, as the model is and where its tokens are truncated."""
        config = self.config
        written = {"all tokens": pages}
        for top_p in config.top_ps * (config.truncated > 0):
            name = f"top-p {top_p:g}"
            written[name] = self._write(target, f"-{name}", top_p=top_p, num_samples=config.truncated).pages
        for top_k in config.top_ks * (config.truncated > 0):
            name = f"top-k {top_k}"
            with keep_likeliest(target.model, top_k):
                written[name] = self._write(target, f"-{name}", num_samples=config.truncated).pages
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

    def _describe_pages(self, mode: Mode, pages: Pages, data: Pages) -> Iterator[Measurement]:
        num, seed = self.config.num_bootstrap, self.config.sampling.seed
        for measures, compared in (
            ((RATE, RATE_OF_DATA, RATE_EXCESS), compare_rates(pages, data, num, seed)),
            ((LAW, LAW_OF_DATA, LAW_EXCESS), compare_chains(pages, data, LAWS, num, seed)),
        ):
            for name, *numbers in compared:
                for measure, number in zip(measures, numbers, strict=True):
                    yield Measurement(measure.name, number, mode, of=name)
        yield Measurement(
            ORDER.name, bare(float(choose_order(count_contexts(pages).sum(axis=0))), len(pages)), mode
        )
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

    def _describe_ends(self, mode: Mode, target: Target) -> Iterator[Measurement]:
        """What the end of a page makes the model forget."""
        config, tokens = self.config, self.data.tokens
        behind = max(config.distances) + 1
        reader = PageReader(tokens, self.data.scores, self.run.config.data.context)
        documents = [
            np.concatenate(reader.read(int(document)).segments).tolist()
            for document in reader.held_out_documents(config.sampling.seed)[: 10 * config.triples]
        ]
        rng = np.random.default_rng(config.sampling.seed)
        triples = choose_triples(documents, config.triples, _BEFORE, behind, rng)
        if len(triples) < 2:
            return
        prefix = list(target.drawer(config.sampling).rules.prefix)
        for has_end, name in ((True, "an end"), (False, "nothing")):

            def report(done: int, name: str = name) -> None:
                if self.progress is not None:
                    self.progress(f"reading behind {name}, {mode}", done, len(triples))

            found = measure_symmetry(target.model, prefix, triples, config.distances, has_end, report)
            for place, distance in enumerate(config.distances):
                number = bootstrap_mean(found[:, place], config.num_bootstrap, config.sampling.seed)
                yield Measurement(DIVERGENCE.name, number, mode, of=name, at=float(distance))


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
