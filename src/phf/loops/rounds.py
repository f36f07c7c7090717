"""`phf online RUN`: generate, score, record, mix with human text, go on training; and the same without what should matter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from phf.annotate.annotation import Annotation
from phf.config.online import OnlineConfig
from phf.config.train import MixConfig, StartConfig, TrainConfig
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.evaluate.judges import LoadedJudge, choose_judges
from phf.evaluate.metric import bare
from phf.evaluate.pages import Page, PageReader
from phf.files import Place, read_sealed, write_sealed
from phf.folders import lock_folder
from phf.loops.measure import list_bits, measure_texts, read_pages
from phf.loops.own_labels import check_own_labels, write_labelled, write_own_scores
from phf.loops.results import LOOP, OWN_SHARE, LoopResults
from phf.loops.texts import OWN_TOKEN, SHUFFLED, write_round, write_shuffled
from phf.objectives import modes_of
from phf.paths import hide_settings
from phf.policies.draws import Draws, Library
from phf.policies.policy import Policy
from phf.policies.sources import Source, open_source
from phf.records import FORMAT_VERSION, Mode, Number, Progress
from phf.results import Measurement
from phf.reward_models import RewardModel, load_reward_model
from phf.train.data import TrainingData
from phf.train.folder import hash_recipe
from phf.train.loop import resume, train
from phf.train.optim import learning_rate_factor
from phf.train.run import Run
from phf.train.start import parse_place

SETTINGS_FILE = "loop.json"
_EXTENDABLE = {"rounds", "judges", "num_documents", "num_bootstrap"}
"""Settings that may be others when a loop goes on: they change no text and no weight of it."""

Say = Callable[[str], None]


def run_rounds(
    run: Place,
    out: Place,
    config: OnlineConfig | None = None,
    *,
    load: Callable[[str], RewardModel] = load_reward_model,
    say: Say = print,
    progress: Progress | None = None,
) -> LoopResults:
    """Train a run (or `RUN@STEP`) on its own text for some rounds, and measure each; writes OUT/online.json.

    OUT/rounds/NN holds the texts that round NN was trained on (a corpus) and the run that came of it. What is finished is
    kept: a stopped call goes on, and one with more rounds repeats nothing.

    Raises:
        PHFError: `run` is no run or has no checkpoint; its annotator cannot be asked here; a setting does not fit it; `out`
            holds another loop; another process writes into it.
    """
    with lock_folder(Path(out), "going online into"):
        loop = _Loop.open(run, Path(out), config or OnlineConfig(), load, say, progress)
        loop.policy_of_start[1].drawer  # noqa: B018  settings that no text can be drawn with are refused here
        _keep_settings(loop.folder, loop.config, loop.start, loop.step)
        for note in loop.notes:
            say(note)
        for number in range(1, loop.config.rounds + 1):
            loop.train_round(number)
        results = loop.measure()
        LOOP.write(Path(out), results)
    return results


@dataclass(frozen=True)
class _Loop:
    """One loop in its folder.

    Attributes:
        start: the run that it goes on from.
        step: of its checkpoint.
        data: that run's: the human text.
        library: texts and scores; the annotator is its first judge.
    """

    config: OnlineConfig
    folder: Path
    start: Run
    step: int
    data: TrainingData
    mode: Mode
    library: Library
    notes: list[str]
    say: Say
    progress: Progress | None

    @classmethod
    def open(
        cls,
        run: Place,
        out: Path,
        config: OnlineConfig,
        load: Callable[[str], RewardModel],
        say: Say,
        progress: Progress | None,
    ) -> "_Loop":
        folder, given = parse_place(run)
        start = Run.open(folder)
        step = start.resolve_step(given)
        data = start.data()
        mode = check_mode(start, config.mode)
        if config.control == "own-token":
            check_own_labels(data)
        if start.config.segments == "imported":
            raise PHFError(
                f"{start.folder} was trained on imported segments, which text that it writes has not; give a run on lines, "
                "sentences, paragraphs or documents"
            )
        judges, notes = choose_judges(data.annotation, config.judges, load)
        if judges[0].role != "annotator":
            raise PHFError(f"{notes[0]}; rounds need the annotator itself")
        library = Library(out, judges, progress)
        return cls(config, out, start, step, data, mode, library, notes, say, progress)

    @property
    def judges(self) -> Sequence[LoadedJudge]:
        """The annotator first."""
        return self.library.judges

    def find(self, number: int) -> Path:
        """The folder of a round."""
        return self.folder / "rounds" / f"{number:02d}"

    def run_of(self, number: int) -> Run:
        """The run that a round ended with; round 0 is the start."""
        return self.start if number == 0 else Run.open(self.find(number) / "run")

    def step_of(self, number: int) -> int:
        """The checkpoint of that run."""
        return self.step if number == 0 else self.run_of(number).resolve_step(None)

    def source_of(self, number: int) -> Source:
        """The model after a round."""
        return open_source(f"{self.run_of(number).folder}@{self.step_of(number)}")

    def policy_of(self, number: int) -> tuple[Source, Policy]:
        """The same, in the mode that is asked for."""
        source = self.source_of(number)
        return source, Policy(f"round-{number:02d}", source.writers[self.mode], self.config.sampling)

    @cached_property
    def policy_of_start(self) -> tuple[Source, Policy]:
        """Round 0's."""
        return self.policy_of(0)

    def draw(self, source: Source, policy: Policy, number: int) -> Draws:
        """The texts of the model after a round, which are measured there and trained on in the next one."""
        return self.library.draw(source, policy, self.config.sampling.num_samples, stream=number)

    # --- a round: texts, corpus, run -------------------------------------------------------------------------------

    def train_round(self, number: int) -> None:
        """What leads from the model before a round to the one after it."""
        place = self.find(number) / "run"
        if (place / "run.json").is_file() and Run.open(place).is_finished:
            return
        if self.config.control != "human":
            self.record(number)
        self.say(f"round {number} of {self.config.rounds}: training")
        if (place / "run.json").is_file():
            resume(place, say=lambda line: None, progress=self.progress)
        else:
            train(self.configure(number), place, say=lambda line: None, progress=self.progress)

    def record(self, number: int) -> Corpus:
        """The corpus of a round: what the model before it wrote, scored, and tokenized."""
        control = self.config.control
        provenance = {
            "run": self.start.name if number == 1 else f"{self.folder.resolve().name}/{number - 1:02d}",
            "mode": "none" if control == "own-token" else self.mode,
            "judge": self.judges[0].slug,
            "step": self.step_of(number - 1),
            "seed": self.config.sampling.seed,
            "round": number,
        }
        place = self.find(number) / "corpus"
        if control == "own-token":
            target, sampling = self.source_of(number - 1).writers["none"], self.config.sampling
            written = write_labelled(target, sampling, number)
            corpus = write_round(place, [text.text for text in written], provenance, self.data)
            write_own_scores(corpus, self.data, self._annotation(corpus), written)
            return corpus
        texts = [text.text for text in self.draw(*self.policy_of(number - 1), number - 1).texts]
        corpus = write_round(place, texts, provenance, self.data)
        if control == "shuffled":
            write_shuffled(corpus, self._annotation(corpus), self.config.sampling.seed + number)
        return corpus

    def _annotation(self, corpus: Corpus) -> Annotation:
        config = self.start.config
        return Annotation.open(corpus, config.reward_model, config.segments)

    def configure(self, number: int) -> TrainConfig:
        """The config of a round's run: the start's, with so many more steps, from the weights of the round before."""
        own, config, before = self.start.config, self.config, self.run_of(number - 1)
        optim = own.optim
        if config.schedule == "constant":
            rate = config.rate
            if rate is None:
                rate = learning_rate_factor(self.step, self.start.num_steps, optim)
            optim = optim.model_copy(
                update={
                    "learning_rate": rate * optim.learning_rate,
                    "muon_learning_rate": rate * optim.muon_learning_rate,
                    "warmup_fraction": 0.0,
                    "final_fraction": 1.0,
                }
            )
        mix = None
        if config.control != "human":
            first = 1 if config.keep == "accumulate" else number
            mix = MixConfig(
                corpora=tuple(str((self.find(at) / "corpus").resolve()) for at in range(first, number + 1)),
                share=config.share,
                reward_model={"shuffled": SHUFFLED, "own-token": OWN_TOKEN}.get(config.control),
                scored=config.control != "unscored",
            )
        start = StartConfig(
            run=str(before.folder.resolve()),
            step=self.step_of(number - 1),
            reset_optimizer=config.reset_optimizer and number == 1,
        )
        changes = {
            "corpus": str(self.start.find_corpus().resolve()),
            "tokens": (self.step + number * config.steps) * self.start.tokens_per_step,
            "optim": optim,
            "mix": mix,
            "start": start,
            "validate_every": 0,
            "checkpoint_every": 0,
            "trackers": (),
        }
        return own.model_copy(update=changes)

    # --- what is measured ------------------------------------------------------------------------------------------

    def measure(self) -> LoopResults:
        """All rounds, from round 0, the start."""
        rows = [row for number in range(self.config.rounds + 1) for row in self._measure_round(number)]
        names = [judge.model.identity.name for judge in self.judges]
        return LoopResults(
            settings=hide_settings(self.config.model_dump(mode="json"), names),
            run=self.start.name,
            objective=self.start.config.objective.kind,
            recipe=hash_recipe(self.start.record),
            seed=self.start.config.seed,
            step=self.step,
            mode=self.mode,
            control=self.config.control,
            judges=[judge.describe() for judge in self.judges],
            notes=self.notes,
            measurements=rows,
        )

    def _measure_round(self, number: int) -> list[Measurement]:
        source, policy = self.policy_of(number)
        draws, first = self.draw(source, policy, number), self.draw(*self.policy_of_start, 0)
        gaps = np.zeros(len(draws))
        if number > 0:
            gaps = draws.log_probs - self.library.read(*self.policy_of_start, draws, f"round-{number:02d}")
        rows = measure_texts(draws, first, gaps, self.judges, number, self.config.num_bootstrap)
        costs, before = (self._read_pages(*own) for own in ((source, policy), self.policy_of_start))
        threshold, num_bootstrap = self.data.threshold.value, self.config.num_bootstrap
        rows += list_bits(self.pages, costs, before, threshold, number, num_bootstrap)
        trained = number * self.config.steps
        share = 0.0 if self.config.control == "human" else self.config.share * trained / (self.step + trained)
        return [*rows, Measurement(OWN_SHARE.name, bare(share), at=number)]

    def _read_pages(self, source: Source, policy: Policy) -> list[list[float]]:
        return self.library.parts(source, policy).measure(
            "held-out",
            [self.config.num_documents, self.start.corpus_id, FORMAT_VERSION],
            lambda: read_pages(policy, self.pages, self.progress),
            list[list[Number]],
        )

    @cached_property
    def pages(self) -> list[Page]:
        """Held-out human text."""
        reader = PageReader.of(self.data)
        documents = reader.held_out_documents(0)[: self.config.num_documents]
        return [reader.read(int(document)) for document in documents]


def check_mode(run: Run, mode: Mode | None) -> Mode:
    """The mode that a loop asks for: the given one, or the run's best.

    Raises:
        PHFError: the run has no such mode.
    """
    modes = modes_of(run.config.objective)
    if mode is not None and mode not in modes:
        raise PHFError(
            f"{run.folder} was trained with {run.config.objective.kind}, which has no {mode} mode; give --mode {' or '.join(modes)}"
        )
    return mode or modes[0]


def _keep_settings(out: Path, config: OnlineConfig, start: Run, step: int) -> None:
    """Write what decides a loop's texts and weights, or check that it is what this folder's were made with.

    Raises:
        PHFError: names the first setting that differs.
    """
    path = out / SETTINGS_FILE
    kept = {"run": start.id, "step": step, **config.model_dump(mode="json", exclude=_EXTENDABLE)}
    if not path.is_file():
        write_sealed(path, kept)
        return
    found = read_sealed(path, f"delete {out} and begin again")
    for key, value in kept.items():
        if found.get(key) != value:
            raise PHFError(
                f"{out} holds a loop with {key}={found.get(key)!r}, not {value!r}; give that, or another folder with -o"
            )
