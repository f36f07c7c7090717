"""Tasks of EleutherAI's lm-evaluation-harness (extra `harness`), each mode with its own prefix.

The harness puts one token before a text (`prefix_token_id`). A page in good mode begins with two, `<|endoftext|>` and
`<|good|>`, which must be there for every request, survive truncation from the left, and never be scored. Here its `hf`
model sees requests that begin with `<|endoftext|>`; the rest of the prefix is put in where they enter the model.
"""

import contextlib
import functools
import io
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import yaml

from phf.config.evaluate import EvaluateConfig
from phf.config.recipes import parse_yaml
from phf.control import mode_rules
from phf.errors import PHFError
from phf.evaluate.metric import Measured, Metric
from phf.evaluate.pages import Conditions
from phf.files import hash_file
from phf.items import Itemised, Items, mean_items, name_item
from phf.model import lm
from phf.records import BAD, GOOD, Estimate, Mode, Progress
from phf.results import Measure, Measurement
from phf.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel

    from phf.evaluate.subject import Subject


def measure_harness(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    modes: Sequence[Mode],
    *,
    conditions: Conditions | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int,
    progress: Progress | None = None,
) -> Itemised:
    """The harness's numbers of each task, metric and mode; their intervals are 1.96 of its standard errors to both sides.

    Args:
        tasks: names of tasks or groups that the harness knows, or paths of task files (`.yaml`).
        conditions: for additive objectives, `phf.objectives.label_conditions`: the mode is folded into the weights.
        num_fewshot: examples before each question; None = what the task says.
        limit: questions of each task; None = all.
        seed: of the few-shot examples.

    Raises:
        PHFError: the harness is not installed, a task is not known, or its data cannot be had.
    """
    lm_eval = _import_harness()
    names, folders = _find_tasks(tasks)
    knows_all = any(
        name in tasks for name in names
    )  # indexing the harness's own thousands of tasks takes a while
    rows: list[Measurement] = []
    items: list[Items] = []
    with tempfile.TemporaryDirectory(prefix="phf-") as folder:
        tokenizer.save(Path(folder))
        for number, mode in enumerate(modes):
            if progress is not None:
                progress("harness", number, len(modes))
            try:
                with _quiet():
                    wrapped = create_harness_lm(
                        model, tokenizer, Path(folder), mode, conditions=conditions, batch_size=batch_size
                    )
                    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=knows_all)
                    found = lm_eval.simple_evaluate(
                        model=wrapped,
                        tasks=names,
                        task_manager=manager,
                        num_fewshot=num_fewshot,
                        limit=limit,
                        log_samples=True,
                        random_seed=seed,
                        numpy_random_seed=seed,
                        torch_random_seed=seed,
                        fewshot_random_seed=seed,
                    )
            except PHFError:
                raise
            except Exception as error:  # of the task, its data set or the Hub: each has its own
                reason = (str(error).strip() or "no message").splitlines()[0]
                raise PHFError(
                    f"lm-evaluation-harness cannot do {', '.join(tasks)} ({type(error).__name__}: {reason}); "
                    "'lm-eval ls tasks' lists the names, and most tasks fetch their data from the Hugging Face Hub"
                ) from None
            own = _list_rows(found, mode)
            rows += own
            items += [kept for row in own if (kept := _list_items(found["samples"], row)) is not None]
    if progress is not None:
        progress("harness", len(modes), len(modes))
    return Itemised(rows, items)


def create_harness_lm(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    folder: Path,
    mode: Mode,
    *,
    conditions: Conditions | None = None,
    batch_size: int = 16,
) -> "HFLM":
    """The harness's `hf` model around a model in a mode.

    Args:
        folder: where `tokenizer.save` wrote the tokenizer.
    """
    control = tokenizer.control
    prefix = mode_rules(mode, control).prefix
    if conditions is not None and mode in ("good", "bad"):
        model = lm.fold_condition(model, control, conditions[GOOD if mode == "good" else BAD])
        prefix = prefix[:1]
    num_rows = model.get_output_embeddings().weight.shape[0]
    left = [token for token in control.all if token < num_rows]  # some may have been deleted
    blocked = [*left, *range(tokenizer.vocab_size, num_rows)]
    return _harness_class()(model, folder, prefix, blocked, batch_size)


@functools.cache
def _harness_class() -> type["HFLM"]:
    """A subclass of the harness's `HFLM`, which can only be named where the harness is installed."""
    _import_harness()
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    class ModeLM(HFLM):  # type: ignore[misc]  # lm_eval is untyped here
        """Requests hold text alone behind `<|endoftext|>`; the prefix's other tokens enter with it.

        Control tokens and padding of the vocabulary are left out of the softmax and are never generated.
        """

        def __init__(
            self,
            model: "PreTrainedModel",
            folder: Path,
            prefix: Sequence[int],
            blocked: Sequence[int],
            batch_size: int,
        ) -> None:
            self.prefix, self.blocked = list(prefix), list(blocked)
            context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
            super().__init__(
                pretrained=model,
                tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
                backend="causal",
                batch_size=batch_size,
                max_length=context - len(self.prefix) + 1,
                prefix_token_id=self.prefix[0],
                add_bos_token=False,
            )

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **kwargs: object,
        ) -> list[int]:
            """Ids of the text, without any prefix."""
            ids: list[int] = super().tok_encode(string, False, left_truncate_len, **kwargs)
            return ids

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Prompts to go on from: the prefix and the end of the text that fits, padded on the left."""
            room = (
                left_truncate_len - 1 if left_truncate_len else None
            )  # `max_length` counts the prefix as one
            rows = [self.tok_encode(string) for string in strings]
            rows = [
                [*self.prefix, *(row[max(len(row) - room, 0) :] if room is not None else row)] for row in rows
            ]
            longest = max(map(len, rows))
            pad = self.tokenizer.pad_token_id
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            return ids, mask

        def _loglikelihood_tokens(
            self,
            requests: list[tuple[object, list[int], list[int]]],
            disable_tqdm: bool = False,
            override_bs: int | None = None,
        ) -> list[tuple[float, bool]]:
            end = self.prefix[0]
            told = []
            for key, context, continuation in requests:
                text = context[1:] if context[:1] == [end] else context
                room = max(self.max_length - len(continuation), 0)
                told.append((key, [end, *text[max(len(text) - room, 0) :]], continuation))
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                told, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return found

        def _model_call(self, inps: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            rest = inps.new_tensor(self.prefix[1:]).expand(len(inps), -1)
            logits: torch.Tensor = super()._model_call(
                torch.cat([inps[:, :1], rest, inps[:, 1:]], dim=1), *args, **kwargs
            )
            # What follows <|endoftext|> is predicted by the prefix's last token.
            logits = logits[:, rest.shape[1] :].float()
            logits[..., self.blocked] = -torch.inf
            return logits

        def _model_generate(
            self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: object
        ) -> torch.Tensor:
            written: torch.Tensor = super()._model_generate(
                context, max_length, stop, suppress_tokens=self.blocked, **kwargs
            )
            return written

    return ModeLM


def _import_harness() -> ModuleType:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError:
        raise PHFError(
            "harness tasks need the lm-evaluation-harness; run: pip install 'phf[harness]'"
        ) from None
    harness: ModuleType = lm_eval
    return harness


def hash_tasks(tasks: Sequence[str]) -> list[str]:
    """What tells one measurement by the harness from another: its version, names of tasks, and the content of task files.

    Raises:
        PHFError: the harness is not installed, or a task file cannot be read.
    """
    _import_harness()
    _find_tasks(tasks)
    files = [Path(task).expanduser() for task in tasks if task.endswith((".yaml", ".yml"))]
    return [version("lm_eval"), *tasks, *map(hash_file, files)]


def _find_tasks(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of tasks, and the folders that hold those given as files."""
    names, folders = [], []
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
            continue
        path = Path(task).expanduser()
        try:
            content = parse_yaml(path.read_text(encoding="utf-8"), f"task file {task}", _TaskLoader)
            names.append(str(content["task"]))
        except FileNotFoundError:
            raise PHFError(
                f"task file {task} does not exist; give a .yaml file, or the name of a task"
            ) from None
        except (UnicodeDecodeError, KeyError, TypeError) as error:
            reason = (
                "it names no task" if isinstance(error, KeyError | TypeError) else str(error).splitlines()[0]
            )
            raise PHFError(f"task file {task} cannot be read: {reason}") from None
        folders.append(str(path.resolve().parent))
    return names, folders


class _TaskLoader(yaml.SafeLoader):
    """Task files may name Python functions (`!function module.name`), which only the harness itself loads."""


_TaskLoader.add_constructor("!function", lambda _, node: str(node.value))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log and bars."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


_Numbers = dict[str, dict[str, object]]


def _list_rows(found: dict[str, _Numbers], mode: Mode) -> list[Measurement]:
    """A measurement for each task and metric. The harness names a number `acc,none` (metric, filter) and its error `acc_stderr,none`."""
    rows = []
    for task, numbers in found["results"].items():
        for key, value in numbers.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{name}")
            margin = 1.96 * error if isinstance(error, int | float) else math.nan
            num_questions = found.get("n-samples", {}).get(task, {}).get("effective")
            count = num_questions if isinstance(num_questions, int) else 0
            shown = metric if name == "none" else f"{metric} ({name})"
            estimate = Estimate(float(value), value - margin, value + margin, count)
            rows.append(Measurement("harness", estimate, mode, of=f"{task}: {shown}"))
    return rows


def _list_items(samples: Mapping[str, Sequence[Mapping[str, object]]], row: Measurement) -> Items | None:
    """The questions of a task, by the harness's hashes of each, its prompt and its answer; None of a number that is no mean of theirs."""
    task, _, shown = (row.of or "").partition(": ")
    found = [
        (name_item(*(sample[f"{part}_hash"] for part in ("doc", "prompt", "target"))), float(value))
        for sample in samples.get(task, ())
        for metric, value in sample.items()
        if shown == (metric if sample["filter"] == "none" else f"{metric} ({sample['filter']})")
        and isinstance(value, int | float)
    ]
    if not found or not math.isclose(
        sum(value for _, value in found) / len(found), row.estimate.mean, abs_tol=1e-9
    ):
        return None
    return mean_items(row.place, *zip(*found, strict=True))


def measure_modes(subject: "Subject") -> Measured:
    """The tasks of the config in each of `subject.text_modes`."""
    config, seed = subject.config.harness, subject.config.sampling.seed
    found = subject.parts.measure(
        "harness",
        [config.model_dump(mode="json"), seed, hash_tasks(config.tasks)],
        lambda: measure_harness(
            subject.model,
            subject.tokenizer,
            config.tasks,
            subject.text_modes,
            conditions=subject.conditions,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            seed=seed,
            progress=subject.progress,
        ),
        Itemised,
    )
    return Measured(found.measurements, {"version": version("lm_eval")}, items=found.items)


def _check(config: EvaluateConfig) -> None:
    if config.harness.tasks:
        hash_tasks(config.harness.tasks)


METRIC = Metric(
    "harness",
    (
        Measure(
            "harness",
            "Tasks of lm-evaluation-harness",
            note="Each task's own metric, with the harness's standard error.",
            blind_spot="Tasks made for large models are noise for small ones; there is one prefix per request, also where its text "
            "has several segments.",
            lower_is_better=None,
            group="Tasks",
            of="task",
        ),
    ),
    measure_modes,
    is_wanted=lambda config: bool(config.harness.tasks),
    option="--task NAME",
    check=_check,
)
