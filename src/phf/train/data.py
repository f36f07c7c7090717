"""The data of a run: corpus, annotation and tokens joined, and the objective resolved against them."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict, get_args

import numpy as np
import numpy.typing as npt

from phf.annotate.annotation import Annotation, find_unscored_documents, load_scores, refuse_unscored
from phf.config.train import TrainConfig
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.files import hash_bytes
from phf.model import lm
from phf.objective_resolution import Part, Parts, resolve_objective, resolve_report
from phf.objectives import (
    Objective,
    active_fractions,
    apply_objective,
    baseline,
    check_code,
    num_levels,
    warn_of_mle,
    without_documents,
)
from phf.records import Split, TrainingCorpus
from phf.thresholds import ResolvedThreshold, describe_epochs
from phf.tokens import tokens as token_cache
from phf.tokens.blocks import Blocks
from phf.tokens.mixture import MixedBlocks
from phf.tokens.phases import TrainingBlocks
from phf.tokens.scores import ShardScores, copy_scores
from phf.tokens.tokens import TokenCache, find_tokens
from phf.tokens.windows import AnyBlocks, BlockSettings, deal_windows
from phf.train.folder import count_steps
from phf.train.windows import PLAIN, WindowedParts


class StartRecord(TypedDict):
    """In run.json: the checkpoint whose weights a run started from, and the step and epoch that it went on at."""

    run: str
    step: int
    tokens: int
    objective: str
    files: dict[str, str]
    first_step: int
    epoch: float


@dataclass(frozen=True)
class TrainingData:
    """Everything a run reads, checked to belong together.

    Attributes:
        objective: the objective with its data rule and thresholds; of a corpus of many windows the rule's settings alone.
        threshold: where good ends in validation losses and reports: the objective's own, else `config.good`.
        code: what the user's own code of the objective is (`check_code`), if the data was opened to train.
        windows: what reads a corpus that is larger than memory.
        mixed: the other corpora of `config.mix`, each as data of its own under this one's objective.
    """

    config: TrainConfig
    corpus: Corpus
    annotation: Annotation
    tokens: TokenCache
    objective: Objective
    threshold: ResolvedThreshold
    code: dict[str, dict[str, str]] = field(default_factory=dict)
    windows: WindowedParts | None = None
    mixed: "tuple[TrainingData, ...]" = ()

    @cached_property
    def scores(self) -> npt.NDArray[np.float32]:
        """Float32 [num_segments] in corpus order; NaN = unscored (then its document is dropped).

        Of a corpus of many windows this is what training does without: it asks for all of them at once.
        """
        if self.windows is not None:
            return self.windows.scores.join(np.arange(len(self.tokens.shards)))
        return load_scores(self.corpus, self.annotation, missing="drop")[0]

    @property
    def stored_scores(self) -> npt.NDArray[np.float32] | ShardScores:
        """The same, of a corpus of many windows where they lie."""
        return self.scores if self.windows is None else self.windows.scores

    @property
    def parts(self) -> Parts:
        """Scores and sizes in corpus order, of a corpus of many windows one after the other."""
        if self.windows is not None:
            return self.windows.parts
        tokens = self.tokens
        return [lambda: Part(self.scores, tokens.segment_lengths, tokens.document_segments, tokens.is_train)]

    def read_window(self, seed: int) -> tuple[TokenCache, npt.NDArray[np.float32]]:
        """Tokens and scores in memory: of a corpus of many windows those of one, which the seed decides."""
        if self.windows is None:
            return self.tokens, self.scores
        tokens, part = self.windows.read(deal_windows(self.tokens, seed)[0])
        return tokens, part.scores

    def training_blocks(self, start: StartRecord | None = None) -> TrainingBlocks:
        """The training blocks in the order of the run's steps: the objective's where it is active, else plain MLE's.

        Args:
            start: of run.json (`resolve_start`): where the run that this one goes on from has stopped; its step and epoch
                are where these blocks begin.

        Raises:
            PHFError: `objective.start` and `objective.stop` leave the objective no step.
        """
        config = self.config
        num_steps = count_steps(config.tokens, config.optim.batch_blocks, config.data.context)
        first, stop = (round(share * num_steps) for share in active_fractions(config.objective))
        if first == stop:
            raise PHFError(
                f"objective.start and objective.stop leave {config.objective.kind} no step of {num_steps}; "
                "put them further apart, or give a larger budget"
            )
        batch_blocks = config.optim.batch_blocks
        phases = [(first * batch_blocks, self.active_blocks)]
        if first > 0 or stop < num_steps:
            before = [(0, self._plain_blocks)] if first > 0 else []
            after = [(stop * batch_blocks, self._plain_blocks)] if stop < num_steps else []
            phases = [*before, *phases, *after]
        first_row, epoch = (0, 0.0) if start is None else (start["first_step"] * batch_blocks, start["epoch"])
        if config.mix is None:
            return TrainingBlocks(phases, first_row=first_row, first_epoch=epoch)
        others = [other.active_blocks if config.mix.scored else other._plain_blocks for other in self.mixed]
        return MixedBlocks(phases, others, config.mix.share, first_row=first_row, first_epoch=epoch)

    # A layout holds arrays over all segments of the corpus, so that each is made once.
    @cached_property
    def active_blocks(self) -> AnyBlocks:
        return self._lay_out("train", self.objective)

    @cached_property
    def _plain_blocks(self) -> AnyBlocks:
        return self._lay_out("train", self.plain)

    @cached_property
    def validation_blocks(self) -> AnyBlocks:
        """The blocks of the validation split under the objective's rule, the same for all seeds."""
        return self._lay_out("validation", self.objective)

    def _lay_out(self, split: Split, objective: Objective) -> AnyBlocks:
        settings = BlockSettings(
            context=self.config.data.context,
            seed=self.config.seed if split == "train" else 0,
            isolate_documents=self.config.data.isolate_documents,
            is_active=objective is self.objective,
        )
        if self.windows is not None:
            return self.windows.lay_out(objective, split, **settings)
        return Blocks(self.tokens, objective.rule, self.scores, split=split, **settings)

    @cached_property
    def plain(self) -> Objective:
        """MLE on the same data: what the run does while its objective is not active."""
        return PLAIN if self.windows is not None else baseline(self.scores, self.tokens.document_segments)

    @cached_property
    def num_dropped_documents(self) -> int:
        """Documents that no objective uses because a segment of theirs is unscored."""
        if self.windows is not None:
            return self.windows.scores.num_unscored_documents
        return int(np.count_nonzero(find_unscored_documents(self.scores, self.tokens.document_segments)))

    def describe(self) -> list[str]:
        """What a person should know before the first step: the resolved threshold, what it keeps, the epochs."""
        objective = self.objective
        lines = [objective.threshold.message] if objective.threshold is not None else []
        if objective.levels:
            ends = ", ".join(
                f"{level.value:.4g} ({100 * level.token_share:.3g} %)" for level in objective.levels
            )
            lines.append(f"{len(objective.levels) + 1} levels end at {ends} of the tokens")
        if self.num_dropped_documents:
            lines.append(f"{self.num_dropped_documents:,} documents hold unscored segments and are dropped")
        start, stop = active_fractions(self.config.objective)
        if (start, stop) != (0, 1):
            lines.append(
                f"{self.config.objective.kind} from {100 * start:g} % to {100 * stop:g} % of the budget, MLE outside"
            )
        if (warning := warn_of_mle(objective)) is not None:
            lines.append(warning)
        budget = round((stop - start) * self.config.tokens)
        num_tokens = self.active_blocks.num_tokens_per_epoch
        lines.append(describe_epochs(objective.kept_share, num_tokens, budget))
        if (mix := self.config.mix) is not None:
            num_documents = sum(other.corpus.num_documents for other in self.mixed)
            whose = f"scored by {self.mixed[0].annotation.slug}" if mix.scored else "without their scores"
            lines.append(
                f"{100 * mix.share:.3g} % of the blocks are of {num_documents:,} documents in other corpora, {whose}"
            )
        return lines

    @property
    def scores_hash(self) -> str:
        """SHA-256 of the scores' bytes."""
        if self.windows is not None:
            return self.windows.scores.sha256
        return hash_bytes(np.ascontiguousarray(self.scores).data)

    def provenance(self) -> dict[str, object]:
        """Identities of everything the run reads, for run.json and for refusing to resume on other data."""
        return {
            "corpus": asdict(
                TrainingCorpus(
                    self.corpus.id,
                    self.corpus.num_documents,
                    [source["spec"] for source in self.corpus.manifest["sources"]],
                )
            ),
            "reward_model": self.annotation.identity.to_json(),
            # One identity may give other scores when it is asked again, such as a user's own function.
            "annotation": self.scores_hash,
            "tokenizer": self.tokens.manifest["tokenizer"],  # without levels, which belong to the objective
            "segment_ends": self.tokens.segment_ends_hash,
            **({"window_rows": token_cache.WINDOW_ROWS} if self.windows is not None else {}),
            **self.code,
            **({"mix": [_name_mixed(other) for other in self.mixed]} if self.mixed else {}),
        }


def open_data(config: TrainConfig, *, to_train: bool = False) -> TrainingData:
    """Open and join what a run needs.

    Args:
        to_train: whether the user's own code of the objective is loaded and checked, too: only training needs it.

    Raises:
        PHFError: the corpus, its annotation or its tokens are not there (names the command that makes them), damaged,
            or do not fit each other, or `init` cannot be trained; see also `resolve_objective` and `check_code`.
    """
    corpus = Corpus.open(Path(config.corpus))
    annotation = Annotation.open(corpus, config.reward_model, config.segments)
    try:
        tokens = find_tokens(corpus, config.tokenizer, config.segments)
    except PHFError:
        if to_train and config.model.init is not None:  # refused before time goes into its tokens, if at all
            lm.load_init(config.model.init, isolate_documents=config.data.isolate_documents)
        raise
    if (more := num_levels(config.objective)) > 0:
        tokens = tokens.with_levels(more)
    if annotation.segment_ends_hash != tokens.segment_ends_hash:
        raise PHFError(
            f"{annotation.path} and {tokens.path} do not have the same segment ends; delete the older of the two and "
            "make it again"
        )
    if tokens.is_large:
        windows = WindowedParts(tokens, copy_scores(tokens, annotation, config.data.missing))
        objective, threshold = windows.resolve(config.objective, config.good)
        code = check_code(objective, windows.first_scores()) if to_train else {}
        data = TrainingData(config, corpus, annotation, tokens, objective, threshold, code, windows)
    else:
        data = _open_small(config, corpus, annotation, tokens, to_train)
    if config.mix is not None:
        data = replace(data, mixed=tuple(_open_mixed(data, place) for place in config.mix.corpora))
    # A split without tokens is refused here, before anything is written.
    data.training_blocks()
    data.validation_blocks  # noqa: B018  laid out when first read
    return data


def _open_small(
    config: TrainConfig, corpus: Corpus, annotation: Annotation, tokens: TokenCache, to_train: bool
) -> TrainingData:
    """The data of a corpus of one window, all of it in memory."""
    scores, num_segments = load_scores(corpus, annotation, missing=config.data.missing)
    assert np.array_equal(num_segments, tokens.document_segments)
    is_unscored = find_unscored_documents(scores, num_segments)
    for split in get_args(Split):
        refuse_unscored(
            annotation, is_unscored[tokens.split_mask(split)], f"the {split} split of {corpus.path}"
        )
    part = Part(scores, tokens.segment_lengths, tokens.document_segments, tokens.is_train)
    objective = resolve_objective(config.objective, *part)
    threshold = objective.segment_threshold
    if threshold is None:
        threshold = resolve_report(config.good, [lambda: part])
    code = check_code(objective, scores) if to_train else {}
    data = TrainingData(config, corpus, annotation, tokens, objective, threshold, code)
    data.__dict__["scores"] = scores  # as if they had been asked for
    return data


def _open_mixed(data: TrainingData, place: str) -> TrainingData:
    """Another corpus under the objective that was resolved on the run's own; its unscored documents are left out.

    Raises:
        PHFError: it is not scored, not tokenized by the run's tokenizer, or none of its text can be trained on.
    """
    config, mix = data.config, data.config.mix
    assert mix is not None
    corpus = Corpus.open(place)
    annotation = Annotation.open(corpus, mix.reward_model or config.reward_model, config.segments)
    tokens = find_tokens(corpus, str(data.tokens.path / "tokenizer"), config.segments)
    if (more := num_levels(config.objective)) > 0:
        tokens = tokens.with_levels(more)
    if tokens.is_large:
        windows = WindowedParts(tokens, copy_scores(tokens, annotation, "drop"))
        objective = without_documents(data.objective)
    else:
        windows = None
        scores, _ = load_scores(corpus, annotation, missing="drop")
        refuse_unscored(
            annotation, find_unscored_documents(scores, tokens.document_segments), f"all of {corpus.path}"
        )
        objective = apply_objective(data.objective, scores, tokens.document_segments, tokens.is_train)
    other = replace(
        data,
        corpus=corpus,
        annotation=annotation,
        tokens=tokens,
        objective=objective,
        windows=windows,
        mixed=(),
    )
    other.active_blocks if mix.scored else other._plain_blocks  # noqa: B018  without text it is refused here
    return other


def _name_mixed(other: TrainingData) -> dict[str, object]:
    """What tells another corpus and its scores from all others."""
    return {
        "corpus": other.corpus.id,
        "reward_model": other.annotation.identity.to_json(),
        "annotation": other.scores_hash,
    }
