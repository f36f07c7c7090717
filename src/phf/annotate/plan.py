"""What scoring a corpus would cost, by scoring some of it: `phf annotate --dry-run`. Writes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from time import perf_counter

from threadpoolctl import threadpool_limits

from phf.annotate.annotation import ANNOTATION_SCHEMA
from phf.annotate.scorer import Scorer, Turn, list_turns
from phf.config.train import SegmentKind
from phf.corpus.store import Corpus, open_parquet_writer
from phf.errors import PHFError
from phf.processes import count_cores
from phf.reward_models import load_reward_model
from phf.reward_models.llm.engines import ask_nothing
from phf.reward_models.llm.judge import list_judges
from phf.reward_models.protocol import split_segments
from phf.reward_models.scoring import score_segments
from phf.terminal import format_duration

SAMPLE_SECONDS = 10.0
_MANY_SHARDS = 16


@dataclass(frozen=True, slots=True)
class AnnotationPlan:
    """Row groups (1 MB of text each), evenly spread over a corpus, and what scoring them took.

    Attributes:
        num_documents, num_bytes: of the whole corpus; bytes of text.
        sample_documents, sample_segments, sample_bytes: of what was scored.
        seconds: of one core for the sample, without loading the reward model.
        file_bytes: what the sample's scores take on the disk.
    """

    num_documents: int
    num_bytes: int
    sample_documents: int
    sample_segments: int
    sample_bytes: int
    seconds: float
    file_bytes: int
    workers: int

    def describe(self) -> list[str]:
        """Lines to read."""
        share = self.sample_documents / self.num_documents
        return [
            f"sample  {self.sample_documents:,} of {self.num_documents:,} documents, {self.sample_segments:,} segments, "
            f"{self.sample_bytes / 1e6:.3g} of {self.num_bytes / 1e6:.3g} MB of text",
            f"rate    {self.sample_segments / self.seconds:,.0f} segments/s and {self.sample_bytes / 1e6 / self.seconds:.3g} MB/s "
            "by one worker",
            f"time    about {format_duration(self.seconds / share / self.workers)} by {self.workers} "
            f"worker{'s' if self.workers > 1 else ''}, if each has a core",
            f"disk    about {self.file_bytes / share / 1e6:.3g} MB for the annotation",
        ]


def plan_annotation(
    corpus: Corpus,
    reward_model: str,
    segments: SegmentKind,
    *,
    workers: int | None = None,
    seconds: float = SAMPLE_SECONDS,
) -> AnnotationPlan:
    """Score row groups from all over a corpus, for about so many seconds and at least one.

    Raises:
        PHFError: the reward model is unknown or fails on a document; the corpus is empty.
    """
    scorer = Scorer(corpus, reward_model, segments)
    shards = _list_filled(corpus)
    score_segments(
        scorer.model, ["A first text."], [[13]]
    )  # what a model loads at its first call is not its rate
    file, spent = BytesIO(), 0.0
    documents = num_segments = num_bytes = 0
    with open_parquet_writer(file, ANNOTATION_SCHEMA) as writer, threadpool_limits(1):
        for turn in _list_spread(corpus, shards):
            rows, _ = corpus.read_segments(*turn, ["text"], segments)
            start = perf_counter()
            scored = scorer.score(turn)
            spent += perf_counter() - start
            writer.write_table(scored.table)
            documents += len(scored.table)
            num_segments += scored.num_segments
            num_bytes += sum(len(text.encode()) for text in rows["text"].to_pylist())
            if spent >= seconds:
                break
    return AnnotationPlan(
        num_documents=corpus.num_documents,
        num_bytes=sum(shard.num_bytes for shard in corpus.shards),
        sample_documents=documents,
        sample_segments=num_segments,
        sample_bytes=num_bytes,
        seconds=spent,
        file_bytes=file.tell(),
        workers=workers or count_cores(),
    )


def _list_filled(corpus: Corpus) -> list[int]:
    shards = [index for index, shard in enumerate(corpus.shards) if shard.num_documents > 0]
    if not shards:
        raise PHFError(f"{corpus.path} has no documents, so there is nothing to score")
    return shards


@dataclass(frozen=True, slots=True)
class CallEstimate:
    """By rubric: calls that are left to make, answers that are kept already, tokens, and money (None: no price is known)."""

    rubric: str
    calls: int
    kept: int
    prompt_tokens: float
    answer_tokens: float
    money: float | None
    is_sampled: bool

    def describe(self) -> str:
        """In one line."""
        money = "no price is known" if self.money is None else f"{self.money:,.2f} in money"
        about = "about " if self.is_sampled else ""
        return (
            f"{self.rubric}: {about}{self.calls:,} calls ({self.kept:,} answers are kept already), about {self.prompt_tokens:,.0f} prompt and "
            f"{self.answer_tokens:,.0f} answered tokens; {money}"
        )


def estimate_calls(corpus: Corpus, reward_model: str, segments: SegmentKind) -> list[CallEstimate]:
    """What the language models of a reward model would be asked to judge a corpus, by up to 16 MB of it spread evenly.

    Asks nothing. Axes of one rubric share their calls, so that there is one estimate for each rubric; none without a judge.

    Raises:
        PHFError: the reward model is unknown; the corpus is empty.
    """
    if "llm:" not in reward_model:  # others may take long to load
        return []
    with ask_nothing():
        judges = {judge.question: judge for judge in list_judges(load_reward_model(reward_model))}
    texts: list[str] = []
    num_bytes, total = 0, sum(shard.num_bytes for shard in corpus.shards)
    for turn in islice(_list_spread(corpus, _list_filled(corpus)), _MANY_SHARDS):
        rows, ends = corpus.read_segments(*turn, ["text"], segments)
        for text, stops in zip(rows["text"].to_pylist(), ends, strict=True):
            num_bytes += len(text.encode())
            texts += split_segments(text, stops)
    factor = max(1.0, total / max(1, num_bytes))
    estimates = []
    for judge in judges.values():
        missing, num_kept = judge.find_missing(texts)
        read, written, money = judge.estimate_cost(missing)
        estimates.append(
            CallEstimate(
                judge.rubric,
                round(len(missing) * factor),
                round(num_kept * factor),
                read * factor,
                written * factor,
                None if money is None else money * factor,
                factor > 1,
            )
        )
    return estimates


def _list_spread(corpus: Corpus, shards: list[int]) -> Iterator[Turn]:
    """Row groups in an order that is spread evenly wherever it is cut: of a large corpus one in each shard."""
    if len(shards) > _MANY_SHARDS:
        for place in _spread(len(shards)):
            turns = list_turns(corpus, shards[place])
            yield turns[len(turns) // 2]
        return
    turns = [turn for shard in shards for turn in list_turns(corpus, shard)]
    yield from (turns[place] for place in _spread(len(turns)))


def _spread(num: int) -> list[int]:
    """0 to num - 1, the far apart first: in the order of their binary digits read backwards (van der Corput)."""
    return sorted(range(num), key=lambda place: f"{place:064b}"[::-1])
