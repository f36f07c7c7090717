"""A causal language model that was trained elsewhere as a run folder, which all that reads runs can then measure.

Its run.json has no setting of a training that `phf` has not seen, and its one checkpoint, at step 0, holds the weights as they were,
in their own precision.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from phf.annotate.annotation import Annotation
from phf.config.train import SegmentKind
from phf.corpus.store import Corpus
from phf.errors import PHFError
from phf.files import Place, hash_bytes
from phf.folders import create_beside
from phf.model import lm
from phf.records import Progress
from phf.tokens.tokenizer import Tokenizer, load_tokenizer
from phf.tokens.tokens import tokenize
from phf.train.checkpoint import Checkpointer, TrainState
from phf.train.data import open_data
from phf.train.distributed import Ranks, Trained
from phf.train.run import Run, describe_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEARNED_MASS = 0.5
"""Where a page begins, a model that learned to write control tokens gives them most of the mass; padding gets next to none."""


@dataclass(frozen=True)
class Yardstick:
    """What a model is measured on: texts, their scores, and where good ends.

    Attributes:
        corpus: its held-out documents are read.
        reward_model: whose annotation of it says what is good; None: the only one that there is.
        segments: of that annotation; None likewise.
        threshold: good text ends at this score; None: at the median of the training tokens.
        context: tokens of a held-out page.
    """

    corpus: Place
    reward_model: str | None = None
    segments: SegmentKind | None = None
    threshold: float | None = None
    context: int = 256

    def find_annotation(self) -> Annotation:
        """The annotation that is meant.

        Raises:
            PHFError: there is none, or more than one.
        """
        corpus = Corpus.open(self.corpus)
        named = {
            f"--reward-model {found.manifest['reward_model_spec']} --segments {found.segments}": found
            for found in Annotation.list(corpus)
        }
        fitting = [
            found
            for found in named.values()
            if self.reward_model in (None, found.manifest["reward_model_spec"])
            and self.segments in (None, found.segments)
        ]
        if len(fitting) == 1:
            return fitting[0]
        if not named:
            raise PHFError(
                f"{corpus.path} has no annotation, and nothing says which of its texts are good; make one with: "
                f"phf annotate {corpus.path} --reward-model NAME --segments sentences"
            )
        what = "none of that reward model and segments" if not fitting else f"{len(fitting)} that are meant"
        raise PHFError(f"{corpus.path} has {what}; give {' or '.join(named)}")


def adopt_model(place: str, folder: Path, yardstick: Yardstick, *, progress: Progress | None = None) -> Run:
    """A run folder of a model that was trained elsewhere; the same one again is that folder as it is.

    The corpus gets the ids of the model's tokenizer, where it has none yet. Control tokens count as learned where the model writes
    them at the beginning of a page (`LEARNED_MASS`), or its config.json says so as one trained by `phf` does.

    Args:
        place: the model's folder or Hub id; nothing is written there.
        folder: new, or made of this model before.

    Raises:
        PHFError: no such model, tokenizer, corpus or annotation; `folder` holds something else.
    """
    annotation = yardstick.find_annotation()
    model, tokenizer = lm.load_model(place), load_tokenizer(place)
    num_rows = model.get_input_embeddings().weight.shape[0]
    if num_rows < tokenizer.control.good:
        raise PHFError(
            f"{place} has {num_rows} embeddings, and its tokenizer {tokenizer.control.good} ids; give a model with its own tokenizer"
        )
    is_conditional = _writes_control(model, tokenizer)
    if is_conditional:
        model.config.control_tokens = list(tokenizer.control.all)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or yardstick.context
    good = {"good_fraction": 0.5} if yardstick.threshold is None else {"threshold": yardstick.threshold}
    settings: dict[str, Any] = {
        "corpus": os.fspath(yardstick.corpus),
        "reward_model": annotation.manifest["reward_model_spec"],
        "segments": annotation.segments,
        "tokenizer": place,
        "objective": {"kind": "conditional", **good} if is_conditional else {"kind": "mle"},
        "good": good,
        "model": {"init": place},
        "data": {"context": min(yardstick.context, longest)},
    }
    origin = {
        "model": place,
        "revision": lm.hub_revision(place),
        "weights": _hash_weights(model),
        "architecture": type(model).__name__,
        "notes": _list_notes(place, lm.hub_revision(place), tokenizer, is_conditional),
    }
    if (folder / "run.json").is_file():
        return _check_same(Run.open(folder), settings, origin, tokenizer)
    Run.check_new(folder)
    tokens = tokenize(annotation.corpus, place, annotation.segments, progress=progress)
    record: dict[str, Any] = {"name": folder.name, "config": settings, "elsewhere": origin}
    data = open_data(Run(folder, record).config)
    if data.tokens.path != tokens.path:
        raise PHFError(
            f"{data.tokens.path} is of another tokenizer that was at {place}; delete it, and start again"
        )
    record |= describe_run(data, lm.num_parameters(model))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with create_beside(folder, "adopting") as made:
        Run(made, record).write()
        with Checkpointer(
            made, Trained(lm.narrow(model), None), [], tokenizer, Ranks(), keep=None
        ) as checkpointer:
            checkpointer.save(TrainState())
            checkpointer.wait()
        if folder.exists():
            folder.rmdir()  # empty, or it would have been refused
        made.rename(folder)
    return Run.open(folder)


@torch.inference_mode()
def _writes_control(model: "PreTrainedModel", tokenizer: Tokenizer) -> bool:
    """Whether it learned `<|good|>` and `<|bad|>`: by what it writes first, or by its config.json."""
    control = tokenizer.control
    if control.num_levels or model.get_input_embeddings().weight.shape[0] <= control.bad:
        return False
    if getattr(model.config, "control_tokens", None) == list(control.all):
        return True
    logits = model.eval()(input_ids=torch.tensor([[control.end]], device=model.device)).logits[0, -1]
    return float(logits.float().softmax(-1)[[control.good, control.bad]].sum()) > LEARNED_MASS


def _list_notes(place: str, revision: str | None, tokenizer: Tokenizer, is_conditional: bool) -> list[str]:
    """What a reader of its numbers must know."""
    from transformers import AutoTokenizer  # slow to import

    end = str(tokenizer.backend.id_to_token(tokenizer.control.end))
    known = (
        "it writes control tokens, so each mode is measured"
        if is_conditional
        else "it knows no control tokens"
    )
    of = f", revision {revision}" if revision is not None else ""
    notes = [f"trained elsewhere ({place}{of}); {known}"]
    start = AutoTokenizer.from_pretrained(place, trust_remote_code=False).bos_token
    if start not in (None, end):
        notes.append(f"pages begin with its end token {end}, as those of phf do, not with {start}")
    return notes


def _hash_weights(model: "PreTrainedModel") -> str:
    weights = model.state_dict()
    return hash_bytes(
        "".join(hash_bytes(weights[name].cpu().numpy().data) for name in sorted(weights)).encode()
    )


def _check_same(run: Run, settings: dict[str, Any], origin: dict[str, Any], tokenizer: Tokenizer) -> Run:
    """The run that was made of this model before.

    Raises:
        PHFError: it is another.
    """
    known = run.record.get("elsewhere")
    if known is None:
        raise PHFError(f"{run.folder} is a run that phf trained; choose another -o")
    changed = [
        f"another {name}" for name, value in settings.items() if run.record["config"].get(name) != value
    ]
    if run.record["tokenizer"] != tokenizer.identity.to_json():  # its place may hold other files by now
        changed = ["another tokenizer", *changed]
    if known["weights"] != origin["weights"]:
        changed = ["other weights", *changed]
    if changed:
        raise PHFError(f"{run.folder} was made with {changed[0]}; choose another -o, or delete that folder")
    return run
