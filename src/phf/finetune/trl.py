"""DPO and KTO by the losses of TRL 1.16, in our own loop: steps, checkpoints and metrics are as RLOO's.

TRL normalises over the whole vocabulary. What is never drawn must not count, so for the length of a step both heads get a bias that takes
these ids out.
"""

import importlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phf.config.finetune import DPO, KTO
from phf.errors import PHFError
from phf.finetune.pairs import Judged, Preferences
from phf.finetune.start import Start
from phf.policies.drawing import Drawing
from phf.train.checkpoint import checkpoint_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from phf.finetune.learners import Update

_NEVER = -1e9


def import_trl() -> Any:
    """The package trl.

    Raises:
        PHFError: it is not installed.
    """
    try:
        return importlib.import_module("trl")
    except ImportError:
        raise PHFError(
            "--method dpo and kto need trl; run: pip install 'phf[rl]' (rloo and bestofn need nothing)"
        ) from None


def check_trl(start: Start) -> None:
    """Refuse what TRL cannot do here, before anything is drawn.

    Raises:
        PHFError: it is not installed; texts are drawn at another temperature than it learns at.
    """
    import_trl()
    if (temperature := start.config.sampling.temperature) != 1:
        raise PHFError(
            f"--method {start.config.method.kind} learns at temperature 1, not {temperature:g}; give --set sampling.temperature=1"
        )


def load_plain_tokenizer(start: Start) -> "PreTrainedTokenizerBase":
    """The start's tokenizer as transformers reads it, for which the end token's name is the end token; those of control tokens stay text."""
    from transformers import AutoTokenizer

    folder = checkpoint_folder(start.run.folder, start.step)
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), split_special_tokens=False)
    return found


class Preferring:
    """DPO on pairs, or KTO on good and bad texts."""

    def __init__(self, start: Start, settings: DPO | KTO, preferences: Preferences) -> None:
        self._trl = import_trl()
        self._start, self._settings, self._preferences = start, settings, preferences
        self._trainer: Any = None

    def step(self, model: "PreTrainedModel", step: int, update: "Update") -> dict[str, float]:
        """The next texts of an order that is drawn anew for each epoch."""
        if self._trainer is None:
            self._trainer = self._make_trainer(model)
        rows = self._list_rows(step)
        with restrict_heads([model, self._start.model], self._start.drawing), _ignore_renaming():
            inputs = {
                name: value.to(model.device) for name, value in self._trainer.data_collator(rows).items()
            }
            loss = self._trainer.compute_loss(model, inputs)
            norm = update(loss)
        logged = self._trainer._metrics["eval"]  # the model is not in training mode, which would drop out
        margin = next(
            (values[-1] for name, values in logged.items() if name.endswith("rewards/margins")), float("nan")
        )
        logged.clear()
        key = "chosen_ids" if isinstance(self._settings, DPO) else "completion_ids"
        return {
            "loss": float(loss.detach()),
            "margin": float(margin),
            "length": float(np.mean([len(row[key]) for row in rows])),
            "calls": self._preferences.calls,
            "grad_norm": norm,
        }

    def _list_rows(self, step: int) -> list[dict[str, Any]]:
        preferences, config = self._preferences, self._start.config
        own: Sequence[Any] = preferences.pairs if isinstance(self._settings, DPO) else preferences.texts
        num = min(config.texts, len(own))
        chosen = []
        for place in range(step * num, (step + 1) * num):
            epoch, offset = divmod(place, len(own))
            chosen.append(own[np.random.default_rng([config.seed or 0, epoch]).permutation(len(own))[offset]])
        return list_pairs(chosen) if isinstance(self._settings, DPO) else list_texts(chosen)

    def _make_trainer(self, model: "PreTrainedModel") -> Any:
        """TRL's trainer, of which only the loss and the collation are used."""
        from datasets import Dataset

        is_dpo = isinstance(self._settings, DPO)
        trainer, config = (
            (self._trl.DPOTrainer, self._trl.DPOConfig)
            if is_dpo
            else (self._trl.KTOTrainer, self._trl.KTOConfig)
        )

        class Prepared(trainer):  # type: ignore[misc, valid-type]
            """Our rows have their ids already."""

            def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
                return dataset

        with tempfile.TemporaryDirectory() as folder, _ignore_renaming():
            arguments = config(
                output_dir=folder,
                beta=self._settings.beta,
                max_length=None,
                per_device_train_batch_size=max(2, self._start.config.texts),
                use_cpu=model.device.type == "cpu",
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                disable_tqdm=True,
            )
            return Prepared(
                model=model,
                ref_model=self._start.model,
                args=arguments,
                train_dataset=Dataset.from_list(self._list_rows(0)),
                processing_class=load_plain_tokenizer(self._start),
            )


def list_pairs(pairs: Sequence[tuple[Judged, Judged]]) -> list[dict[str, Any]]:
    """Pairs as TRL's collator of DPO takes them."""
    return [
        {"prompt_ids": better.prompt, "chosen_ids": better.ids, "rejected_ids": worse.ids}
        for better, worse in pairs
    ]


def list_texts(texts: Sequence[tuple[Judged, bool]]) -> list[dict[str, Any]]:
    """Texts as TRL's collator of KTO takes them, each with its neighbour's as the one that the KL is estimated on."""
    return [
        {
            "prompt_ids": text.prompt,
            "completion_ids": text.ids,
            "KL_completion_ids": texts[place - 1][0].ids,
            "label": is_good,
        }
        for place, (text, is_good) in enumerate(texts)
    ]


@contextmanager
def _ignore_renaming() -> Iterator[None]:
    """TRL asks transformers for names that will go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def restrict_heads(models: "Sequence[PreTrainedModel]", drawing: Drawing) -> Iterator[None]:
    """While it is open, ids that are never drawn have no mass in the models. (That a text may not end at once moves DPO's two texts
    alike, and is left out.)"""
    heads = [model.get_output_embeddings() for model in models]
    before = [head.bias for head in heads]
    for head, own in zip(heads, before, strict=True):
        bias = (
            torch.zeros(head.weight.shape[0], device=head.weight.device)
            if own is None
            else own.detach().clone()
        )
        bias[torch.from_numpy(drawing.blocked).to(bias.device)] = _NEVER
        head.bias = torch.nn.Parameter(bias, requires_grad=False)
    try:
        yield
    finally:
        for head, own in zip(heads, before, strict=True):
            head.bias = own
