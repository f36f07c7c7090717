"""`phf dynamics`: a run as a chain of pages, beside the data it was trained on (docs/dynamics.md)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phf.chains.absorbing import keep_likeliest
from phf.chains.hidden import Confusion, count_confusion
from phf.chains.pages import Pages
from phf.chains.written import LOOPING, Judged, Segmented, cut_page, judge_pages, state_pages
from phf.config.dynamics import DynamicsConfig
from phf.corpus.store import Corpus
from phf.dynamics.chain_view import describe_errors, describe_pages, describe_returns
from phf.dynamics.own_view import describe_hazards, describe_relaxation
from phf.dynamics.positions import describe_positions, list_limits
from phf.dynamics.results import DYNAMICS, DynamicsResults
from phf.dynamics.subjects import Score, Subject, open_subjects
from phf.dynamics.symmetry import compare_symmetry, describe_symmetry
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge, choose_judges
from phf.evaluate.pages import PageReader
from phf.evaluate.parts import Parts
from phf.files import Place, hash_json
from phf.folders import lock_folder
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
_LEAST_PAGES = 10
"""Pages with a segment without which nothing is said of a mode."""
_SEGMENTS_PER_CALL = 4096


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
        if held_out is not None and (config.labels or judge is None or held_out.slug == judge.slug):
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
            if self.judge is not None:
                judged = self._judge(mode, samples, self._score_by(self.judge, mode))
                num_pages[mode] = len(judged.pages)
                rows += describe_pages(mode, judged.pages, None if data is None else data.pages, self.config)
                rows += self._describe_errors(mode, judged, data)
                rows += describe_returns(mode, self._truncate(mode, judged.pages, self.judge), self.config)
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
        changed = {"max_new_tokens": min(sampling.max_new_tokens, room), **changed}
        sampling = sampling.model_copy(update=changed)
        settings = sampling.model_dump(mode="json", exclude={"batch_size"})
        return self.parts.measure(
            f"pages-{mode}{truncation}",
            settings,
            lambda: target.write([()], sampling, self.progress),
            list[Sample],
        )

    def _truncate(self, mode: Mode, pages: Pages, judge: LoadedJudge) -> dict[str, Pages]:
        """Pages as the model is, and where its next tokens are truncated."""
        config, target, written = self.config, self.subject.targets[mode], {"all tokens": pages}

        def add(name: str, **changed: float) -> None:
            samples = self._write(mode, f"-{name}", num_samples=config.truncated, **changed)
            texts = [cut_page(own.text, own.ended, target.segments, config.longest) for own in samples]
            score = self._score_by(judge, f"{mode}-{name}")
            written[name] = judge_pages(texts, score, self.threshold, config.longest).pages

        for top_p in config.top_ps * (config.truncated > 0):
            add(f"top-p {top_p:g}", top_p=top_p)
        for top_k in config.top_ks * (config.truncated > 0 and config.sampling.engine == "phf"):
            with keep_likeliest(target.model, top_k):
                add(f"top-k {top_k}")
        return written

    def _find_confusion(self, name: str, judged: Judged) -> Confusion | None:
        """How many segments are good and bad, and judged so; None where nothing says."""
        config = self.config
        if config.labels and self.judge is not None:
            labels = read_labels(Path(config.labels))
            scores = np.array(self._score_by(self.judge, "labels")(labels.texts))
            texts = np.arange(len(scores))  # a page each
            return Confusion(
                count_confusion((labels.targets, 0.5), (scores, self.threshold), texts), is_own=False
            )
        if self.held_out is None:
            return None
        truth = np.array(self._score_by(self.held_out, f"held-out-{name}")(judged.texts))
        bad = config.held_out_threshold
        bad = self.held_out.model.hit_threshold if bad is None else bad
        there = judged.pages.is_there
        truth[judged.pages.states[there] == LOOPING] = np.nan  # no judge decides these
        counts = count_confusion((truth, bad), (judged.scores, self.threshold), np.nonzero(there)[0])
        return Confusion(counts, is_own=True)

    def _describe_errors(self, mode: Mode, judged: Judged, data: Judged | None) -> Iterator[Measurement]:
        """How often the judge errs, and rates without its errors."""
        judge = self._find_confusion(mode, judged)
        if judge is None:
            return
        beside = None if data is None else self._find_confusion("data", data)
        known = None if data is None or beside is None else (data.pages, beside)
        yield from describe_errors(mode, (judged.pages, judge), known, self.config)

    def _judge(self, mode: Mode, samples: Sequence[Sample], score: Score) -> Judged:
        """The states of their segments.

        Raises:
            PHFError: too few of them have a whole segment.
        """
        longest, target = self.config.longest, self.subject.targets[mode]
        pages = [cut_page(sample.text, sample.ended, target.segments, longest) for sample in samples]
        judged = judge_pages(pages, score, self.threshold, longest)
        if len(judged.pages) < _LEAST_PAGES:
            raise PHFError(
                f"{self.subject.name} {mode}: {len(judged.pages)} of {len(samples)} pages have a whole segment; "
                "give a larger --num-samples, or --max-new-tokens"
            )
        return judged

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
