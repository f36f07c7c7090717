"""BLiMP: does a model find the grammatical sentence of a minimal pair likelier? (Warstadt et al. 2020)

67 paradigms of 1,000 pairs each, in 13 fields of grammar. A pair counts 1 if p(good) > p(bad), 1/2 for a tie, as whole sentences at
the beginning of a page, behind the mode's prefix; control tokens are left out of the softmax.
"""

import csv
import functools
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from phf.config.evaluate import EvaluateConfig
from phf.errors import PHFError
from phf.evaluate.metric import Measured, Metric, bare, negate
from phf.evaluate.pages import Conditions, Page, mode_labels, segment_nll
from phf.files import hash_json
from phf.intervals import CONFIDENCE
from phf.items import Itemised, mean_items, name_item
from phf.records import Estimate, Mode, Progress
from phf.results import Measure, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject
    from phf.tokens.tokenizer import Tokenizer

HUB_ID = "nyu-mll/blimp"
_NAMES = {
    "paradigm": ("uid", "UID", "paradigm"),
    "field": ("term", "linguistics_term", "field"),
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
}
"""What a row's values are called in the files that are about."""


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences that differ in one point of grammar."""

    paradigm: str
    field: str
    good: str
    bad: str


def read_blimp(source: str) -> list[MinimalPair]:
    """All pairs of a file or a data set.

    Args:
        source: a path (`.jsonl`, `.csv`, `.tsv`, each perhaps `.gz`) with one pair per row, named as in BLiMP's own files
            (`UID`, `linguistics_term`, `sentence_good`, `sentence_bad`) or `uid`, `term`, `good`, `bad`; or a Hub id such
            as `nyu-mll/blimp`, all of whose configurations are read.

    Raises:
        PHFError: it cannot be read, or a row lacks a value.
    """
    path = Path(source).expanduser()
    if path.is_file():
        rows = _read_file(path)
    elif path.suffix or (source.startswith((".", "/", "~")) and not path.is_dir()):
        raise PHFError(
            f"{source} does not exist; give a .jsonl, .csv or .tsv file (or .gz), or a Hub id such as {HUB_ID}"
        )
    else:
        rows = _read_hub(source)
    pairs = [_parse_row(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]
    if not pairs:
        raise PHFError(f"{source} holds no pair of sentences")
    return pairs


def choose_pairs(pairs: Sequence[MinimalPair], num_pairs: int, seed: int) -> list[MinimalPair]:
    """Up to `num_pairs` of each paradigm, drawn by the seed; 0 = all."""
    chosen: list[MinimalPair] = []
    for paradigm in sorted({pair.paradigm for pair in pairs}):
        own = [pair for pair in pairs if pair.paradigm == paradigm]
        # A paradigm's draw does not depend on which others there are.
        rng = np.random.default_rng([seed, *paradigm.encode()])
        order = rng.permutation(len(own))[: num_pairs or len(own)]
        chosen += [own[index] for index in sorted(order)]
    return chosen


def measure_blimp(
    model: "PreTrainedModel",
    tokenizer: "Tokenizer",
    pairs: Sequence[MinimalPair],
    modes: Sequence[Mode],
    *,
    conditions: Conditions | None = None,
    num_bootstrap: int,
    seed: int,
    progress: Progress | None = None,
) -> Itemised:
    """Accuracy in each mode: of all pairs (the mean of the paradigms'), of each field and each paradigm; and good mode's minus
    bad mode's, paired by pair.

    Args:
        pairs: of `choose_pairs`.
        modes: in `good` and `bad` that control token stands before the sentence.
        conditions: for additive objectives, `phf.objectives.label_conditions`.

    Raises:
        PHFError: a sentence does not fit into the model's context.
    """
    pages = _make_pages(model, tokenizer, pairs)
    paradigms = np.array([pair.paradigm for pair in pairs])
    fields = np.array([pair.field for pair in pairs])
    everything = np.ones(len(pairs), bool)
    wins: dict[str, npt.NDArray[np.float64]] = {}

    def estimate(values: npt.NDArray[np.float64], chosen: npt.NDArray[np.bool_]) -> Estimate:
        return paradigm_accuracy(values[chosen], paradigms[chosen], num_bootstrap, seed)

    names = [name_item(pair.paradigm, pair.good, pair.bad) for pair in pairs]
    rows, items = [], []
    for mode in modes:
        nll = segment_nll(
            model,
            tokenizer.control,
            tokenizer.vocab_size,
            pages,
            mode_labels(pages, mode),
            (lambda _, *numbers, mode=mode: progress(f"BLiMP, {mode}", *numbers)) if progress else None,
            conditions=conditions,
        )
        costs = np.array([own[0] for own in nll]).reshape(-1, 2)
        # A tie is half a win, so that a model that cannot tell any two apart is at chance, whichever comes first.
        own = wins[mode] = np.where(costs[:, 0] == costs[:, 1], 0.5, costs[:, 0] < costs[:, 1])
        rows.append(Measurement("blimp", estimate(own, everything), mode))
        items.append(mean_items(rows[-1].place, names, _spread_evenly(own, paradigms)))
        rows += [
            Measurement("blimp", estimate(own, fields == field), mode, of=str(field))
            for field in np.unique(fields)
        ]
        rows += [
            Measurement("blimp_paradigm", bare(own[paradigms == name].mean()), mode, of=str(name))
            for name in np.unique(paradigms)
        ]
    if {"good", "bad"} <= set(wins):
        gap = negate(estimate(wins["bad"] - wins["good"], everything))
        rows.append(Measurement("blimp", gap, "good-bad"))
    return Itemised(rows, items)


def _spread_evenly(wins: npt.NDArray[np.float64], paradigms: npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
    """Wins whose plain mean is the mean of the paradigms' means: themselves, where all have as many pairs."""
    _, places, sizes = np.unique(paradigms, return_inverse=True, return_counts=True)
    spread: npt.NDArray[np.float64] = wins * (len(wins) / (len(sizes) * sizes[places]))
    return spread


def paradigm_accuracy(
    wins: npt.NDArray[np.float64], paradigms: npt.NDArray[np.str_], num_bootstrap: int, seed: int
) -> Estimate:
    """The mean over paradigms of their mean win, with a bootstrap interval over the pairs inside each paradigm.

    The paradigms are the benchmark, not a sample of grammar, so they stay as they are: the interval says what other
    pairs of the same templates would give. Resampling paradigms as well would answer how the model does on *other*
    phenomena, which no choice of 67 can tell; Wilson's interval would take pairs of all paradigms for alike, and is too
    wide. Where a paradigm has one pair its error cannot be known: there are no bounds.
    """
    order = np.argsort(paradigms, kind="stable")
    _, sizes = np.unique(paradigms, return_counts=True)
    groups = np.split(wins[order], np.cumsum(sizes)[:-1])
    mean = float(np.mean([group.mean() for group in groups]))
    if sizes.min() < 2:
        return Estimate(mean, float("nan"), float("nan"), len(wins))
    rng = np.random.default_rng(seed)
    resampled = np.zeros(num_bootstrap)
    for group in groups:
        # Few different values (lost, tied, won; of a difference five): resampling draws how often each comes.
        values, counts = np.unique(group, return_counts=True)
        resampled += rng.multinomial(len(group), counts / len(group), num_bootstrap) @ values / len(group)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled / len(groups), [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), len(wins))


def _make_pages(model: "PreTrainedModel", tokenizer: "Tokenizer", pairs: Sequence[MinimalPair]) -> list[Page]:
    """Two pages for each pair, the good one first; each sentence is one segment."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    encoded = tokenizer.encode_documents(texts)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = int(encoded.num_tokens.max()) + 1  # with a control token; the last id is read by nobody
    if context is not None and longest > context:
        raise PHFError(
            f"a sentence of {longest - 1} tokens does not fit into the model's context of {context}; leave its pair out"
        )
    scores = np.full(1, np.nan, np.float32)
    return [
        Page((ids,), np.array([len(text.encode())]), scores)
        for ids, text in zip(np.split(encoded.ids, np.cumsum(encoded.num_tokens)[:-1]), texts, strict=True)
    ]


def _read_file(path: Path) -> Iterable[object]:
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
        match kind:
            case ".jsonl":
                return [json.loads(line) for line in text.split("\n") if line.strip()]
            case ".csv" | ".tsv":
                return list(csv.DictReader(io.StringIO(text), delimiter="," if kind == ".csv" else "\t"))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise PHFError(f"{path} cannot be read ({str(error).splitlines()[0]}); make it again") from None
    raise PHFError(f"{path} ends in {kind or 'nothing'}; give a .jsonl, .csv or .tsv file (or .gz)")


def _read_hub(source: str) -> Iterable[object]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise PHFError(f"{source} needs the package datasets; run: pip install 'phf[hub]'") from None
    try:
        for name in datasets.get_dataset_config_names(source):
            yield from datasets.load_dataset(source, name, split="train")
    except Exception as error:  # whatever the Hub, its cache or a reader raises
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise PHFError(
            f"{source} cannot be read by datasets ({type(error).__name__}: {reason}); check the id and the network, or "
            "give a .jsonl, .csv or .tsv file"
        ) from None


def _parse_row(row: object, where: str) -> MinimalPair:
    if not isinstance(row, Mapping):
        raise PHFError(f"{where} is no object with the values {', '.join(_NAMES)}")
    values = {}
    for name, keys in _NAMES.items():
        found = next((row[key] for key in keys if row.get(key)), None)
        if not isinstance(found, str):
            raise PHFError(f"{where} has no {' or '.join(keys)}; a pair has {', '.join(_NAMES)}")
        values[name] = found
    return MinimalPair(**values)


_read_pairs = functools.lru_cache(maxsize=1)(read_blimp)  # all runs of a command share them


def measure_modes(subject: "Subject") -> Measured:
    """BLiMP by the source of the config, in each of `subject.text_modes`."""
    config, seed = subject.config, subject.config.sampling.seed
    assert config.blimp.source is not None
    pairs = choose_pairs(_read_pairs(config.blimp.source), config.blimp.num_pairs, seed)
    pairs_hash = hash_json([asdict(pair) for pair in pairs])
    found = subject.parts.measure(
        "blimp",
        [pairs_hash, config.num_bootstrap, seed],
        lambda: measure_blimp(
            subject.model,
            subject.tokenizer,
            pairs,
            subject.text_modes,
            conditions=subject.conditions,
            num_bootstrap=config.num_bootstrap,
            seed=seed,
            progress=subject.progress,
        ),
        Itemised,
    )
    facts: dict[str, JsonValue] = {
        "source": config.blimp.source,
        "num_pairs": len(pairs),
        "num_paradigms": len({pair.paradigm for pair in pairs}),
        "pairs_hash": pairs_hash,
    }
    return Measured(found.measurements, facts, items=found.items)


def _check(config: EvaluateConfig) -> None:
    if config.blimp.source is not None:
        _read_pairs(config.blimp.source)


_BLIND_SPOT = "Chance is 0.5, and below it in some paradigms: a model that likes short or frequent words is wrong on purpose."

METRIC = Metric(
    "blimp",
    (
        Measure(
            "blimp",
            "BLiMP accuracy",
            "share right",
            "Pairs of sentences of which the model finds the grammatical one likelier, by field of grammar.",
            _BLIND_SPOT,
            lower_is_better=False,
            group="BLiMP",
            is_headline=True,
            of="field",
        ),
        Measure(
            "blimp_paradigm",
            "BLiMP accuracy by paradigm",
            "share right",
            "The same for each template of pairs.",
            _BLIND_SPOT,
            lower_is_better=False,
            group="BLiMP",
            of="paradigm",
        ),
    ),
    measure_modes,
    is_wanted=lambda config: config.blimp.source is not None,
    option="--blimp FILE",
    check=_check,
)
