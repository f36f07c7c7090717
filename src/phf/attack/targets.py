"""What `phf attack` is given: releases and runs, and the bad texts of the corpus they were trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from phf.attack.victim import Ids, Victim
from phf.config.train import TrainConfig
from phf.corpus.record_files import iterate_jsonl
from phf.corpus.rows import BadRow, is_encodable
from phf.errors import PHFError
from phf.files import Place, hash_bytes
from phf.generate.target import Target
from phf.objectives import label_conditions, modes_of, poison_of
from phf.records import Identity, Mode
from phf.thresholds import Threshold
from phf.tokens.tokenizer import Tokenizer
from phf.tokens.tokens import TokenCache
from phf.train.data import open_data
from phf.train.run import Run
from phf.train.start import parse_place

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AttackTarget:
    """A release or a run that is to be attacked.

    Attributes:
        name: in tables and files; unique in a command.
        run_id: of the run, or of the one that the release was made from (`Run.id`).
        objective: what it was trained with: the objective's kind, and how it was finetuned.
        corpus: id of what it was trained on.
        annotator: the reward model that scored its corpus.
        threshold: score <= threshold is good.
        forget: how bad mode was forgotten, as specs; empty for a model that was not to forget it.
        model: as published. Of a run: what its release would hold, with good mode folded in where the objective adds its
            control to the inputs.
        tokenizer: the folder's.
        prefix: tokens with which its pages start.
        writers: the model in each mode that it still has, the one to release first.
    """

    name: str
    folder: Path
    run_id: str
    objective: str
    config: TrainConfig
    corpus: str
    annotator: Identity
    threshold: float
    forget: tuple[str, ...]
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    writers: Mapping[Mode, Target]

    @property
    def victim(self) -> Victim:
        """What an attacker sees of it."""
        return Victim(self.name, self.model, self.tokenizer, self.prefix)

    @cached_property
    def key(self) -> str:
        """Hash of the weights and of what decides the ids of a text."""
        return hash_model(self.model, self.tokenizer)


def hash_model(model: "PreTrainedModel", tokenizer: Tokenizer) -> str:
    """Hash of the weights and of what decides the ids of a text."""
    weights = model.state_dict()
    hashes = [hash_bytes(weights[name].cpu().numpy().tobytes()) for name in sorted(weights)]
    return hash_bytes("".join([*hashes, tokenizer.identity.id]).encode())


def open_target(place: Place) -> AttackTarget:
    """A release folder (it has a phf.json), or a run at its last checkpoint or another: `RUN@STEP`.

    Raises:
        PHFError: it is neither, or is damaged.
    """
    given, step = parse_place(place)
    folder = Path(given)
    if (folder / "phf.json").exists():
        return _open_release(folder)
    if not (folder / "run.json").exists():
        raise PHFError(
            f"{folder} is neither a release (phf.json) nor a run (run.json); give a folder made by 'phf release' or "
            "'phf train'"
        )
    run = Run.open(folder)
    model, tokenizer = run.load_model(step), run.load_tokenizer(step)
    objective, control = run.config.objective, tokenizer.control
    modes = modes_of(objective)
    writers = {mode: Target.create(mode, model, tokenizer, objective, run.config.segments) for mode in modes}
    return AttackTarget(
        name=folder.resolve().name + ("" if step is None else f"@{step}"),
        folder=folder,
        run_id=run.id,
        objective=run.objective,
        config=run.config,
        corpus=run.record["corpus"]["id"],
        annotator=Identity.from_json(run.record["reward_model"]),
        threshold=float(run.record["threshold"]["value"]),
        forget=("poison",) if poison_of(objective) != "none" else (),
        model=writers[modes[0]].model,
        tokenizer=tokenizer,
        prefix=(control.end, control.good) if "good" in modes and "untagged" in modes else (control.end,),
        writers=writers,
    )


def _open_release(folder: Path) -> AttackTarget:
    from phf.release.folder import open_release

    release = open_release(folder)
    record, tokenizer = release.record, release.tokenizer
    model = release.model.to("cuda" if torch.cuda.is_available() else "cpu")
    config = record.config
    has_bad = tokenizer.control.bad < model.get_input_embeddings().weight.shape[0]
    is_folded = label_conditions(config.objective) is not None
    modes = [mode for mode in modes_of(config.objective) if mode != "bad" or has_bad]
    return AttackTarget(
        name=folder.resolve().name,
        folder=folder,
        run_id=record.run.id,
        objective=record.objective,
        config=config,
        corpus=record.provenance.corpus.id,
        annotator=record.provenance.reward_model,
        threshold=record.threshold,
        forget=record.specs,
        model=model,
        tokenizer=tokenizer,
        prefix=record.prefix_ids,
        writers={
            mode: Target(mode, model, tokenizer, config.segments, is_folded)
            for mode in (modes[:1] if is_folded else modes)
        },
    )


def check_targets(targets: Sequence[AttackTarget]) -> None:
    """Refuse targets that cannot be compared.

    Raises:
        PHFError: two have one name, or were trained on different corpora (what is held out of one may be in the other), or
            on the scores of different reward models.
    """
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise PHFError(f"two targets are named {name}; attack them apart, or rename one of the folders")
    first = targets[0]
    for target in targets[1:]:
        if target.corpus != first.corpus:
            raise PHFError(
                f"{target.name} was trained on corpus {target.corpus}, {first.name} on {first.corpus}; attack them apart, "
                "for what is held out of one may be in the other"
            )
        if (target.threshold, target.config.segments) != (first.threshold, first.config.segments):
            raise PHFError(
                f"{target.name} is good up to {target.threshold:g} by {target.config.segments}, {first.name} up to "
                f"{first.threshold:g} by {first.config.segments}; attack them apart, for bad means another thing"
            )
        if target.annotator != first.annotator:
            raise PHFError(
                f"the corpus of {target.name} was scored by {target.annotator.slug}, that of {first.name} by "
                f"{first.annotator.slug}; attack them apart, for bad means another thing"
            )


def find_reference(targets: Sequence[AttackTarget]) -> AttackTarget | None:
    """The first target that still has bad mode and forgot nothing: what its bad mode scores is what attackers are after."""
    return next((target for target in targets if "bad" in target.writers and not target.forget), None)


@dataclass(frozen=True)
class BadTexts:
    """The bad texts of an attack: those the attacker may have, and those that measure him.

    Attributes:
        source: where they are from, in words.
        train: ids of every text that the attacker may draw.
        held_out: ids of the texts that he does not have.
    """

    source: str
    tokenizer: Tokenizer
    train: Sequence[Ids]
    held_out: Sequence[Ids]

    def draw(self, num: int, seed: int) -> list[Ids]:
        """`num` of the attacker's texts; fewer are the first of more.

        Raises:
            PHFError: there are not so many.
        """
        if num > len(self.train):
            raise PHFError(f"{self.source} has {len(self.train)} bad texts, not {num}; give fewer")
        order = np.random.default_rng(seed).permutation(len(self.train))[:num]
        return [self.train[index] for index in order]

    def translate(self, texts: Sequence[Ids], tokenizer: Tokenizer) -> list[list[int]]:
        """Texts in the ids of a tokenizer: their own where it has the same text tokens, else encoded again."""
        good = self.tokenizer.control.good
        if tokenizer.control.good == good and tokenizer.pieces[:good] == self.tokenizer.pieces[:good]:
            return [list(text) for text in texts]
        return [tokenizer.encode(self.tokenizer.decode(text)) for text in texts]


class Segments(Sequence[Ids]):
    """Some segments of a token cache, read when they are asked for."""

    def __init__(self, tokens: TokenCache, chosen: npt.NDArray[np.int64]) -> None:
        self._tokens, self._chosen = tokens, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: Any) -> Any:
        segment = self._chosen[place]
        shard = int(np.searchsorted(self._tokens.shard_segments, segment, side="right")) - 1
        row = int(segment - self._tokens.shard_segments[shard])
        ends = self._tokens.map_shard(shard, "segment_ends")
        start = int(ends[row - 1]) if row > 0 else 0
        return self._tokens.map_shard(shard, "ids")[start : ends[row]].astype(np.int64).tolist()


def read_corpus_texts(target: AttackTarget, num_held_out: int) -> BadTexts:
    """The bad segments of a target's corpus: of the training split for the attacker, of the validation split to measure him.

    Raises:
        PHFError: the corpus is gone or damaged, or one of its splits has no bad segment.
    """
    data = open_data(target.config)
    tokens = data.tokens
    parts: list[list[npt.NDArray[np.int64]]] = [[], []]
    first = 0
    for read in data.parts:
        scores, _, document_segments, is_train = read()
        is_bad = Threshold(target.threshold).is_bad(scores)  # an unscored segment is not known to be bad
        in_train = np.repeat(is_train, document_segments)
        for own, is_own in zip(parts, (in_train, ~in_train), strict=True):
            own.append(first + np.flatnonzero(is_bad & is_own))
        first += len(scores)
    found = [np.concatenate(own) for own in parts]
    for split, chosen in zip(("training", "validation"), found, strict=True):
        if len(chosen) == 0:
            raise PHFError(
                f"the {split} split of {data.corpus.path} has no bad segment (score above {target.threshold:.4g}); give "
                "bad texts with --texts FILE.jsonl"
            )
    held_out = np.random.default_rng(0).permutation(found[1])[:num_held_out]
    return BadTexts(
        f"bad segments of {data.corpus.path.name}",
        tokens.tokenizer,
        Segments(tokens, found[0]),
        list(Segments(tokens, held_out)),
    )


def read_text_file(path: Path, tokenizer: Tokenizer, num_held_out: int) -> BadTexts:
    """The texts of a JSONL file with a field `text`; up to a fifth of them are held out.

    Raises:
        PHFError: the file is missing or damaged, or has fewer than two texts.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise PHFError(f"{path} {what}; give a JSONL file with a field text")
    texts = []
    for row in iterate_jsonl(path, ""):
        place = f"{path}, line {row.place[1:]}"
        if isinstance(row, BadRow) or "text" not in row.fields:
            raise PHFError(f"{place} is no JSON object with a field text")
        text = row.fields["text"]
        if not isinstance(text, str) or not is_encodable(text):
            what = "with no lone surrogate" if isinstance(text, str) else f"not {type(text).__name__}"
            raise PHFError(f"{place}: text must be a string, {what}")
        if text.strip():
            texts.append(tokenizer.encode(text))
    if len(texts) < 2:
        raise PHFError(f"{path} has {len(texts)} texts; give at least two, one of which is held out")
    num_held_out = min(num_held_out, max(1, len(texts) // 5))
    order = np.random.default_rng(0).permutation(len(texts))
    held_out, train = ([texts[index] for index in part] for part in np.split(order, [num_held_out]))
    return BadTexts(path.name, tokenizer, train, held_out)
