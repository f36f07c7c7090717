"""Finetuning the pretrained model as a classifier, with and without the control prefix (the paper: GLUE).

What can be learned on top of the pretrained weights is a measure of what they hold, which needs no sampling. Each task is
trained from the same checkpoint over several seeds, which decide the new head and the order of the data.
"""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, assert_never

import numpy as np
import numpy.typing as npt
import torch
import transformers  # its classes are named where they are used: they take seconds to load
from pydantic import JsonValue

from phf.config.evaluate import DownstreamConfig, EvaluateConfig
from phf.control import mode_rules
from phf.errors import PHFError
from phf.evaluate.metric import Measured, Metric, bare
from phf.evaluate.pages import Conditions
from phf.files import hash_json
from phf.intervals import pooled_t
from phf.model import lm
from phf.records import BAD, GOOD, Progress
from phf.results import Measure, Measurement
from phf.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject
GlueMetric = Literal["accuracy", "f1", "mcc", "pearson"]
Prefix = Literal["none", "good", "bad"]

_METRICS: dict[str, GlueMetric] = {
    "cola": "mcc",
    "mrpc": "f1",
    "qqp": "f1",
    "stsb": "pearson",
    "sts-b": "pearson",
}
"""GLUE's own choice, by the task's name in lower case; all others: accuracy."""
_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("#1 String", "#2 String"),
    ("sentence",),
    ("text",),
)
_LABEL_COLUMNS = ("label", "gold_label", "is_duplicate", "score", "Quality")
_DEV_FILES = ("dev.tsv", "validation.tsv", "dev_matched.tsv")
_DEV_SPLITS = ("validation", "validation_matched", "dev")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text, or two of them, and its label as the data spells it."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """A task in GLUE's form.

    Attributes:
        metric: `accuracy`, `f1` (of the last label; of three and more labels the mean), `mcc` (Matthews), or `pearson`,
            for which labels are numbers.
        train, dev: labelled texts.
    """

    name: str
    metric: GlueMetric
    train: tuple[LabelledText, ...]
    dev: tuple[LabelledText, ...]

    @property
    def labels(self) -> list[str]:
        """The labels there are, in order; the head's outputs. Empty for `pearson`."""
        if self.metric == "pearson":
            return []
        return sorted({example.label for example in self.train}, key=lambda label: (len(label), label))


def read_task(source: str, metric: GlueMetric | None = None) -> ClassificationTask:
    """A task from a folder of GLUE's files (`train.tsv`, `dev.tsv`), or from the Hub (`nyu-mll/glue:sst2`).

    The text is the column `sentence` or `text`, or a pair such as `sentence1` and `sentence2`; the label is `label` (or as
    GLUE's own files name it).

    Args:
        metric: default, GLUE's own for a task of this name, else accuracy.

    Raises:
        PHFError: it cannot be read, has no such columns, or only one label.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        name = folder.name
        dev_file = next((file for file in _DEV_FILES if (folder / file).is_file()), _DEV_FILES[0])
        train, dev = _read_tsv(folder / "train.tsv"), _read_tsv(folder / dev_file)
    elif source.startswith((".", "/", "~")) or source.endswith(".tsv"):
        raise PHFError(f"task {source} is no folder; give one that holds train.tsv and dev.tsv, or a Hub id")
    else:
        name = source.rpartition(":")[2].rpartition("/")[2]
        train, dev = _read_hub(source)
    task = ClassificationTask(name, metric or _METRICS.get(name.lower(), "accuracy"), train, dev)
    if not train or not dev:
        raise PHFError(f"task {source} has {len(train)} training and {len(dev)} dev examples; it needs both")
    if task.metric == "pearson":
        _parse_numbers(task, source)
    elif len(task.labels) < 2 or len(task.labels) > 1000:
        raise PHFError(f"task {source} has {len(task.labels)} labels; a classifier needs 2 to 1,000")
    elif unknown := {example.label for example in dev} - set(task.labels):
        raise PHFError(
            f"task {source} has the label {min(unknown)!r} in dev alone; its training data needs it too"
        )
    return task


def measure_downstream(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    tasks: Sequence[ClassificationTask],
    prefixes: Sequence[Prefix],
    settings: DownstreamConfig,
    *,
    conditions: Conditions | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Every task with every prefix over seeds (Student's t), from the same weights, and its baseline: the best constant answer.

    Args:
        prefixes: what stands between `<|endoftext|>` and the text: nothing, `<|good|>` or `<|bad|>`.
        conditions: for additive objectives, `phf.objectives.label_conditions`: the prefix is folded into the weights.

    Returns:
        facts: for each task and prefix the score of each of the `seeds`, `num_train`, `num_dev`, and `cut_share`, the share of
            texts of dev that were cut to fit.

    Raises:
        PHFError: the architecture has no classifier in transformers, or accelerate is missing.
    """
    rows: list[Measurement] = []
    facts: list[JsonValue] = []
    num_done, num_all = 0, len(tasks) * len(prefixes) * settings.num_seeds
    for task in tasks:
        task = _draw_train(task, settings.max_train)
        for prefix in prefixes:
            own, start = model, mode_rules(prefix, tokenizer.control).prefix
            if conditions is not None and prefix != "none":
                own = lm.fold_condition(
                    model, tokenizer.control, conditions[GOOD if prefix == "good" else BAD]
                )
                start = start[:1]
            context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 512
            train, dev = (
                _encode(task, examples, tokenizer, start, context) for examples in (task.train, task.dev)
            )
            values = []
            for seed in range(settings.num_seeds):
                answers = finetune_classifier(own, tokenizer, task, train.rows, dev.rows, settings, seed)
                values.append(score_answers(task, answers))
                num_done += 1
                if progress is not None:
                    progress(f"finetuning on {task.name}", num_done, num_all)
            of = f"{task.name}: {task.metric}"
            rows += [
                Measurement("downstream", pooled_t(values), prefix, of=of),
                Measurement("downstream_baseline", bare(constant_baseline(task)), prefix, of=of),
            ]
            facts.append(
                {
                    "task": task.name,
                    "metric": task.metric,
                    "prefix": prefix,
                    "seeds": [*values],
                    "num_train": len(task.train),
                    "num_dev": len(task.dev),
                    "cut_share": dev.cut_share,
                }
            )
    return Measured(rows, facts)


def score_answers(task: ClassificationTask, answers: npt.NDArray[np.float64]) -> float:
    """The task's metric of a model's answers on dev: indices of labels, or numbers for `pearson`; float64 [dev]."""
    from scipy.stats import pearsonr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef  # slow to import

    truth = _targets(task, task.dev)
    match task.metric:
        case "accuracy":
            return float(accuracy_score(truth, answers))
        case "f1":
            if len(task.labels) == 2:
                return float(f1_score(truth, answers, pos_label=1, zero_division=0))
            return float(f1_score(truth, answers, average="macro", zero_division=0))
        case "mcc":
            return float(matthews_corrcoef(truth, answers))
        case "pearson":
            constant = np.ptp(answers) == 0 or np.ptp(truth) == 0  # no correlation is defined
            return 0.0 if constant else float(pearsonr(truth, answers).statistic)
        case _:
            assert_never(task.metric)


def constant_baseline(task: ClassificationTask) -> float:
    """The best score on dev of one and the same answer to everything (for accuracy, the share of the largest class)."""
    constants = range(max(len(task.labels), 1))
    return max(score_answers(task, np.full(len(task.dev), float(answer))) for answer in constants)


def _targets(task: ClassificationTask, examples: Sequence[LabelledText]) -> npt.NDArray[np.float64]:
    if task.metric == "pearson":
        return np.array([float(example.label) for example in examples])
    index = {label: place for place, label in enumerate(task.labels)}
    return np.array([index[example.label] for example in examples], np.float64)


def _draw_train(task: ClassificationTask, max_train: int) -> ClassificationTask:
    if max_train == 0 or max_train >= len(task.train):
        return task
    order = np.random.default_rng(0).permutation(len(task.train))[:max_train]
    return ClassificationTask(task.name, task.metric, tuple(task.train[i] for i in sorted(order)), task.dev)


class _Row(TypedDict):
    input_ids: list[int]
    labels: float


@dataclass(frozen=True, slots=True)
class _Encoded:
    rows: list[_Row]
    cut_share: float


def _encode(
    task: ClassificationTask,
    examples: Sequence[LabelledText],
    tokenizer: Tokenizer,
    prefix: Sequence[int],
    context: int,
) -> _Encoded:
    """Inputs: the prefix and the text; two texts are joined by a line feed. What does not fit is cut off at the end."""
    ids = [tokenizer.encode("\n".join(example.texts)) for example in examples]
    room = context - len(prefix)
    targets = _targets(task, examples)
    kind = float if task.metric == "pearson" else int
    rows: list[_Row] = [
        {"input_ids": [*prefix, *own[:room]], "labels": kind(target)}
        for own, target in zip(ids, targets, strict=True)
    ]
    return _Encoded(rows, float(np.mean([len(own) > room for own in ids])))


def create_classifier(model: "PreTrainedModel", num_labels: int, pad: int) -> "PreTrainedModel":
    """A sequence classifier with a copy of a language model's trunk and a new head, from torch's global generator.

    Args:
        pad: id of the padding; the head reads the last id that is another one.

    Raises:
        PHFError: transformers has no classifier of this architecture.
    """
    config = type(model.config).from_dict({**model.config.to_dict(), "architectures": None})
    config.num_labels, config.pad_token_id = num_labels, pad
    try:
        classifier = transformers.AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise PHFError(
            f"transformers has no sequence classifier for {type(model).__name__}; leave out the downstream tasks"
        ) from None
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    return classifier.to(model.device)


def finetune_classifier(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    task: ClassificationTask,
    train: list[_Row],
    dev: list[_Row],
    settings: DownstreamConfig,
    seed: int,
) -> npt.NDArray[np.float64]:
    """The answers on dev of a classifier trained with one seed; float64 [dev]."""
    transformers.set_seed(seed)  # before the classifier: its head is drawn from the global generator
    pad = tokenizer.control.end
    classifier = create_classifier(model, max(len(task.labels), 1), pad)
    steps = settings.epochs * -(-len(train) // settings.batch_size)
    with tempfile.TemporaryDirectory(prefix="phf-") as folder:
        try:
            arguments = transformers.TrainingArguments(
                folder,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                per_device_eval_batch_size=4 * settings.batch_size,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                warmup_steps=round(0.06 * steps),
                lr_scheduler_type="linear",
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                use_cpu=model.device.type == "cpu",
            )
        except ImportError as error:
            raise PHFError(
                f"finetuning needs the package accelerate ({str(error).strip().splitlines()[0]}); run: pip install accelerate"
            ) from None
        trainer = transformers.Trainer(
            classifier,
            arguments,
            train_dataset=train,
            data_collator=lambda rows: _collate(rows, pad),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        logits = np.asarray(trainer.predict(dev).predictions, np.float64)
    return logits[:, 0] if task.metric == "pearson" else logits.argmax(axis=1).astype(np.float64)


def _collate(rows: Sequence[_Row], pad: int) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    padded = [row["input_ids"] + [pad] * (longest - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def _read_tsv(path: Path) -> tuple[LabelledText, ...]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # GLUE's files quote nothing.
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        raise PHFError(f"{path} does not exist; a task's folder holds train.tsv and dev.tsv") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise PHFError(f"{path} is no tab-separated UTF-8 text ({error})") from None
    return _parse_rows(rows, str(path))


def _read_hub(source: str) -> tuple[tuple[LabelledText, ...], tuple[LabelledText, ...]]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise PHFError(f"task {source} needs the package datasets; run: pip install 'phf[hub]'") from None
    name, _, config = source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None)
        dev = next(split for split in _DEV_SPLITS if split in found)
        parts = list(found["train"]), list(found[dev])
    except Exception as error:  # whatever the Hub, its cache or a reader raises
        reason = (str(error).strip() or "no train or no validation split").splitlines()[0]
        raise PHFError(
            f"task {source} cannot be read by datasets ({type(error).__name__}: {reason}); check the id and the network, "
            "or give a folder that holds train.tsv and dev.tsv"
        ) from None
    return _parse_rows(parts[0], f"{source}, train"), _parse_rows(parts[1], f"{source}, {dev}")


def _parse_rows(rows: Sequence[dict[str, object]], where: str) -> tuple[LabelledText, ...]:
    if not rows:
        return ()
    texts = next((names for names in _TEXT_COLUMNS if all(name in rows[0] for name in names)), None)
    label = next((name for name in _LABEL_COLUMNS if name in rows[0]), None)
    if texts is None or label is None:
        raise PHFError(
            f"{where} has the columns {', '.join(map(str, rows[0]))}; a task has sentence (or sentence1 and sentence2) "
            "and label"
        )
    examples = []
    for number, row in enumerate(rows, start=1):
        values = [row[name] for name in (*texts, label)]
        if any(value is None for value in values):
            raise PHFError(f"{where}, row {number} has too few columns")
        examples.append(LabelledText(tuple(str(value) for value in values[:-1]), str(values[-1])))
    return tuple(examples)


def _parse_numbers(task: ClassificationTask, source: str) -> None:
    for example in (*task.train, *task.dev):
        try:
            float(example.label)
        except ValueError:
            raise PHFError(
                f"task {source}: label {example.label!r} is no number, which the metric pearson needs"
            ) from None


def measure_prefixes(subject: "Subject") -> Measured:
    """The tasks of the config, with the control prefixes that the model has."""
    config = subject.config.downstream
    prefixes: list[Prefix] = ["none", "good", "bad"] if "good" in subject.modes else ["none"]
    tasks = [read_task(source) for source in config.tasks]
    settings = config.model_dump(mode="json")
    found = subject.parts.measure(
        "downstream",
        [settings, hash_json([asdict(task) for task in tasks])],
        lambda: measure_downstream(
            subject.model,
            subject.tokenizer,
            tasks,
            prefixes,
            config,
            conditions=subject.conditions,
            progress=subject.progress,
        ),
        Measured,
    )
    return Measured(found.measurements, {"settings": settings, "tasks": found.facts})


def _check(config: EvaluateConfig) -> None:
    for source in config.downstream.tasks:
        read_task(source)


METRIC = Metric(
    "downstream",
    (
        Measure(
            "downstream",
            "Finetuned classifiers",
            note="GLUE's metric on dev after finetuning, over seeds; the mode is the prefix of the text.",
            blind_spot="The seeds share one checkpoint and one dev set: the interval says nothing of other pretraining seeds.",
            lower_is_better=False,
            group="Tasks",
            of="task",
        ),
        Measure(
            "downstream_baseline",
            "The best constant answer",
            note="What guessing one and the same label gives.",
            blind_spot="It is chosen on dev.",
            lower_is_better=None,
            group="Tasks",
            of="task",
        ),
    ),
    measure_prefixes,
    is_wanted=lambda config: bool(config.downstream.tasks),
    option="--glue FOLDER",
    check=_check,
)
