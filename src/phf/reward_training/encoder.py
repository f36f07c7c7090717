"""A reward model finetuned from a Hugging Face encoder (extra `encoder`): a plain sequence classifier with one output.

The output is the logit of "bad". Labels are learnt by cross-entropy, which takes probabilities too; pairs by the likelihood of
Bradley and Terry, with a pull of the two logits' sum towards 0, so that sigmoid(0) is an ordinary text (arXiv 2312.09244,
equation 2). TRL's RewardTrainer does the second alone; it leaves out, unsaid, pairs that are longer than the window, and puts
an end-of-text token behind each text that the scorer would not.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from phf.errors import PHFError
from phf.records import Identity, Progress
from phf.reward_models.hugging_face import HuggingFaceClassifier, find_snapshot
from phf.reward_models.linear import ModelRecord
from phf.reward_training.split import Examples

# Its report of weights that a new head lacks, and of those that an old one leaves behind, is no news here.
transformers.utils.logging.set_verbosity_error()


MAX_TOKENS = 512
"""A training text is cut after so many tokens (fewer where the model's window is shorter); scoring reads all of it."""
CENTRE = 0.01


def finetune_encoder(
    examples: Examples,
    folder: Path,
    *,
    base: str,
    seed: int,
    name: str,
    trained_on: dict[str, object],
    epochs: float = 3,
    learning_rate: float = 5e-5,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ModelRecord:
    """Finetune on labels or pairs and write a Hugging Face folder.

    Args:
        base: a folder or an id of the Hub: an encoder, or a classifier whose head is replaced.

    Returns:
        The content of `reward_model.json`, which the caller writes last.

    Raises:
        PHFError: the base cannot be loaded, is not in safetensors, or accelerate is not installed.
    """
    source = find_snapshot(base)
    if not any(source.glob("*.safetensors")):
        raise PHFError(f"{base} has no weights in safetensors; phf reads no pickle: choose another base")
    with torch.random.fork_rng():
        transformers.set_seed(seed)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                source,
                num_labels=1,
                id2label={0: "bad"},
                label2id={"bad": 0},
                problem_type="multi_label_classification",
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
        except (OSError, ValueError) as error:
            raise PHFError(
                f"{base} cannot be loaded by transformers: {' '.join(str(error).split())[:200]}"
            ) from None
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        window = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS) - 2)
        with tempfile.TemporaryDirectory(prefix="phf-") as scratch:
            try:
                settings = transformers.TrainingArguments(
                    output_dir=scratch,
                    num_train_epochs=epochs,
                    learning_rate=learning_rate,
                    per_device_train_batch_size=batch_size,
                    seed=seed,
                    report_to=[],
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                    remove_unused_columns=False,
                    dataloader_pin_memory=torch.cuda.is_available(),
                )
            except ImportError:
                raise PHFError(
                    "finetuning needs the package 'accelerate'; run: pip install 'phf[encoder]'"
                ) from None
            trainer = _Trainer(
                model=model,
                args=settings,
                train_dataset=_list_rows(examples),
                data_collator=_Collator(tokenizer, window),
            )
            trainer.remove_callback(transformers.PrinterCallback)  # prints a dictionary among the results
            if progress is not None:
                trainer.add_callback(_ShowProgress(progress))
            trainer.train()
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    classifier = HuggingFaceClassifier(folder, labels=("bad",), name=name)
    identity = classifier.identity
    identity = Identity(
        name, identity.version, identity.weights_hash, {**identity.parameters, "trained_on": trained_on}
    )
    return {
        "kind": "encoder",
        "identity": identity.to_json(),
        "hit_threshold": 0.5,
    }


class _Trainer(transformers.Trainer):  # type: ignore[misc]
    """The two losses. Rows of a batch of pairs: the chosen texts [B], then the rejected [B]."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], **_: object) -> Tensor:
        """The mean loss of a batch."""
        targets = inputs.pop("targets", None)
        logits: Tensor = model(**inputs).logits.squeeze(-1)
        if targets is not None:
            return F.binary_cross_entropy_with_logits(logits, targets)
        chosen, rejected = logits.chunk(2)
        return (CENTRE * (chosen + rejected) ** 2 - F.logsigmoid(rejected - chosen)).mean()


class _ShowProgress(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(
        self, args: object, state: transformers.TrainerState, control: object, **_: object
    ) -> None:
        self._progress("finetuning steps", state.global_step, state.max_steps)


class _Row(TypedDict):
    text: str
    rejected: NotRequired[str]
    target: NotRequired[float]


class _Collator:
    """Rows to padded tensors."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase, window: int) -> None:
        self._tokenizer, self._window = tokenizer, window

    def __call__(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        texts = [row["text"] for row in rows] + [row["rejected"] for row in rows if "rejected" in row]
        clean = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates
        batch: dict[str, Tensor] = dict(
            self._tokenizer(
                clean, truncation=True, max_length=self._window, padding=True, return_tensors="pt"
            )
        )
        if "target" in rows[0]:
            batch["targets"] = torch.tensor([row["target"] for row in rows], dtype=torch.float32)
        return batch


def _list_rows(examples: Examples) -> list[_Row]:
    if examples.rejected:
        return [
            {"text": chosen, "rejected": rejected}
            for chosen, rejected in zip(examples.texts, examples.rejected, strict=True)
        ]
    return [
        {"text": text, "target": target}
        for text, target in zip(examples.texts, examples.targets.tolist(), strict=True)
    ]
