"""Any Hugging Face sequence classifier as a reward model: `hf:<id or folder>[@revision][#LABEL,...]`."""

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
import transformers  # its classes are named where they are used: they take seconds to load
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from phf.errors import PHFError
from phf.files import hash_file, hash_json
from phf.records import Identity
from phf.reward_models.protocol import SegmentRewardModel, Unit, Unscored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

transformers.utils.logging.disable_progress_bar()

BAD_LABELS = (
    *("toxic", "toxicity", "offensive", "abusive", "hate", "hateful", "hatespeech", "profanity"),
    *("bad", "harmful", "unsafe", "nsfw", "spam"),
)
"""Labels whose meaning is beyond doubt; of any other a user says whether it is bad. `LABEL_1` may be either."""
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
CHAT_FILES = ("chat_template.jinja", "generation_config.json")
"""What a language model that converses has besides."""
MAX_WINDOW = 4096
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}

Activation = Literal["softmax", "sigmoid", "none"]


class HuggingFaceClassifier(SegmentRewardModel):
    """Probability that a text has one of the bad labels.

    Labels that exclude each other (softmax): the sum of their probabilities. Labels that do not (sigmoid): the largest. A
    model of problem type `regression`: its output. A text longer than the model's window is read in windows, side by
    side, and the worst counts. The weights are loaded when the first text is scored.
    """

    display_scale = 1.0

    def __init__(self, folder: Path, *, labels: Sequence[str] = (), name: str | None = None) -> None:
        """Read a model's configuration and tokenizer, and hash its weights.

        Args:
            folder: where config.json, safetensors and tokenizer are.
            labels: those that are bad, or, each with a `-` in front, those that are good; by default the one label
                with a name in `BAD_LABELS`.
            name: the identity's name; by default the folder's.

        Raises:
            PHFError: the folder is no sequence classifier in safetensors, its code is not part of transformers, or
                the labels are not the model's.
        """
        self._folder = folder
        name = name or folder.resolve().name
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise PHFError(f"{name} cannot be loaded by transformers: {_first_line(error)}") from error
        if not any("ForSequenceClassification" in made for made in config.architectures or ()):
            raise PHFError(
                f"{name} is no sequence classifier (config.json: architectures {config.architectures}); choose a model "
                "of the Hub's task text-classification"
            )
        if not any(folder.glob("*.safetensors")):
            raise PHFError(
                f"{name} has no weights in safetensors; phf reads no pickle: convert them with "
                "https://huggingface.co/spaces/safetensors/convert"
            )
        if not self._tokenizer.is_fast:
            raise PHFError(f"{name} has no fast tokenizer (tokenizer.json), which phf needs")
        self._tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._names = [str(config.id2label[index]) for index in range(config.num_labels)]
        self.activation: Activation = _choose_activation(config)
        self.labels = tuple(labels) or _choose_label(name, self._names)
        self._columns, self._signs = self._find_columns(name)
        self.max_length = _find_max_length(self._tokenizer, config)
        self.unit: Unit = "arbitrary units" if self.activation == "none" else "probability"
        self.hit_threshold = 0.0 if self.activation == "none" else 0.5
        self.identity = Identity(
            name,
            "1",
            weights_hash=hash_model_files(folder),
            parameters={
                "labels": list(self.labels),
                "activation": self.activation,
                "max_length": self.max_length,
            },
        )

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Score of each text, in batches of texts of like length.

        What else is in a batch moves a score by float noise (1e-7 in float32): the same call gives the same bits.
        """
        encoded = self._tokenizer(
            [text.encode("utf-8", "replace").decode() for text in texts],  # lone surrogates
            truncation=True,
            max_length=self.max_length,
            return_overflowing_tokens=True,
        )
        owners = np.asarray(encoded.pop("overflow_to_sample_mapping"), np.int64)
        scores = np.full(len(texts), -np.inf, np.float32)
        for rows in self.split_batches([len(ids) for ids in encoded["input_ids"]]):
            batch = {key: [values[row] for row in rows] for key, values in encoded.items()}
            with np.errstate(invalid="ignore"):  # NaN wins
                np.maximum.at(scores, owners[rows], self._score_windows(batch))
        return [
            score
            if np.isfinite(score)
            else Unscored("no tokens" if score == -np.inf else "the model's output is not finite")
            for score in scores.tolist()
        ]

    def split_batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of each batch, shortest first; empty windows are in none."""
        order = sorted((row for row, length in enumerate(lengths) if length), key=lengths.__getitem__)
        start = 0
        budget = TOKENS_PER_BATCH[self._device.type]
        while start < len(order):
            stop = start + 1
            while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= budget:
                stop += 1
            yield order[start:stop]
            start = stop

    @torch.inference_mode()
    def _score_windows(self, batch: dict[str, list[list[int]]]) -> npt.NDArray[np.float32]:
        """Scores [B] of B windows."""
        padded = self._tokenizer.pad(batch, pad_to_multiple_of=8, return_tensors="pt").to(self._device)
        logits = self._model(**padded).logits.float()
        values: Tensor
        if self.activation == "softmax":
            values = logits.softmax(-1)[:, self._columns].sum(-1).clamp(max=1.0)
        else:
            chosen = logits[:, self._columns] * self._signs.to(logits.device)
            values = (chosen.sigmoid() if self.activation == "sigmoid" else chosen).amax(-1)
        scores: npt.NDArray[np.float32] = values.cpu().numpy()
        return scores

    @functools.cached_property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @functools.cached_property
    def _model(self) -> "PreTrainedModel":
        """The model, ready: float32 on a CPU, bfloat16 on a GPU.

        Raises:
            PHFError: weights are missing, such as those of the classification head.
        """
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            self._folder,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.bfloat16 if self._device.type == "cuda" else torch.float32,
            output_loading_info=True,
        )
        if missing := sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])}):
            raise PHFError(
                f"{self.identity.name} lacks the weights {', '.join(missing[:3])}; it is no trained classifier"
            )
        if model.config.pad_token_id is None:  # decoders classify at the last token that is no padding
            model.config.pad_token_id = self._tokenizer.pad_token_id
        return model.eval().to(self._device)

    def _find_columns(self, name: str) -> tuple[list[int], Tensor]:
        """Outputs that enter the score, and for each +1 (bad) or -1 (good)."""
        chosen: dict[int, float] = {}
        for label in self.labels:
            sign = -1.0 if label.startswith("-") and label not in self._names else 1.0
            bare = label if sign > 0 else label[1:]
            if bare not in self._names:
                raise PHFError(f"{name} has no label {bare!r}; it has {', '.join(self._names)}")
            chosen[self._names.index(bare)] = sign
        columns, signs = list(chosen), list(chosen.values())
        if self.activation == "softmax":
            if len(set(signs)) > 1:
                raise PHFError(
                    f"labels {','.join(self.labels)} of {name} exclude each other: name the bad ones alone"
                )
            if len(columns) == len(self._names):
                raise PHFError(
                    f"{name} gives one of {','.join(self._names)} to every text: choose fewer labels"
                )
            if signs[0] < 0:
                columns = [column for column in range(len(self._names)) if column not in chosen]
        return columns, torch.tensor(signs)


def load_hugging_face(source: str) -> HuggingFaceClassifier:
    """Load `<id or folder>[@revision][#LABEL,...]`.

    Raises:
        PHFError: it is neither a folder nor to be had from the Hub; or as `HuggingFaceClassifier`.
    """
    place, _, labels = source.partition("#")
    folder = find_snapshot(place)
    name = folder.resolve().name if Path(place).expanduser().is_dir() else place.split("@")[0].split("/")[-1]
    chosen = [label.strip() for label in labels.split(",") if label.strip()]
    return HuggingFaceClassifier(folder, labels=chosen, name=name)


def find_snapshot(source: str, *, download: bool = True) -> Path:
    """The folder itself, or the local copy of a model of the Hugging Face Hub, fetched if it is not there yet.

    Args:
        source: a folder, or `<id>[@revision]`.

    Raises:
        PHFError: there is no such folder; or the Hub has no such model or cannot be reached.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return folder
    if source.startswith((".", "~", "/")) or source.count("/") > 1 or not source:
        raise PHFError(f"no folder {source!r}; write hf:<folder> or hf:<owner>/<model>")
    name, _, revision = source.partition("@")
    fetch = functools.partial(
        snapshot_download,
        name,
        revision=revision or None,
        allow_patterns=[*MODEL_FILES, *TOKENIZER_FILES, *CHAT_FILES],
        ignore_patterns=["*/*"],
    )
    try:
        if not download:
            return Path(fetch(local_files_only=True))
        if re.fullmatch("[0-9a-f]{40}", revision):  # a commit never changes
            with contextlib.suppress(LocalEntryNotFoundError):
                return Path(fetch(local_files_only=True))
            # Without a network this fails at once, where fetching a commit would try for 23 s.
            HfApi().model_info(name, revision=revision)
        return Path(fetch())
    except Exception as error:  # of the network, the Hub, the name or the disk: each has classes of its own
        raise PHFError(
            f"{source} is no local folder and cannot be had from the Hugging Face Hub: {_first_line(error)}; "
            f"where there is a network, 'hf download {name}' fetches it"
        ) from error


def _choose_activation(config: "PreTrainedConfig") -> Activation:
    """What transformers' own text-classification pipeline applies."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _choose_label(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    bad = [label for label in labels if "".join(filter(str.isalpha, label.lower())) in BAD_LABELS]
    if len(bad) != 1:
        raise PHFError(
            f"which label of {name} is bad? it has {', '.join(labels)}; write hf:...#{(bad or labels)[-1]}, or "
            f"#-{labels[0]} if that one is good"
        )
    return (bad[0],)


def _find_max_length(tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig") -> int:
    """Tokens in a window, special ones included."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    if tokenizer.model_max_length > positions:  # unset, or wrong
        return min(positions - 2, MAX_WINDOW)  # RoBERTa's kin lose two positions to padding
    return min(int(tokenizer.model_max_length), MAX_WINDOW)


def hash_model_files(folder: Path, *more: str) -> str:
    """SHA-256 over the configuration, weights and tokenizer of a model's folder, and more files (by pattern)."""
    patterns = (*MODEL_FILES, *TOKENIZER_FILES, *more)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return hash_json({path.name: hash_file(path) for path in files if path.is_file()})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
