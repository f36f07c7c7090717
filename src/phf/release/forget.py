"""Taking bad mode out of a model's weights before it is published (docs/release.md): delete, block, poison.

Shape suffixes: N texts, P places of the residual stream, T tokens, D width, R directions.
"""

import copy
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from phf.config.objectives import ObjectiveConfig
from phf.config.release import Block, Delete, ForgetConfig, Poison
from phf.config.train import write_spec
from phf.control import BAD_TOKEN, ControlTokens
from phf.errors import PHFError
from phf.evaluate.held_out import HeldOutSegments
from phf.evaluate.pages import PageReader
from phf.model import lm
from phf.model.residual import mean_differences, mode_differences, read_residual, residual_layers
from phf.objectives import label_conditions, modes_of, poison_of
from phf.records import GOOD
from phf.tokens.tokenizer import Tokenizer
from phf.train.run import Run

NUM_TEXTS = 256
"""Held-out segments that directions are estimated on, half of them good."""
TOLERANCE = 1e-4
"""Of a vector's length: what is left of it behind a projection, and still counts as nothing."""

_WRITERS = {
    "o_proj", "down_proj",  # Llama, Qwen, Mistral, SmolLM
    "c_proj",  # GPT-2, in attention and MLP
    "dense", "dense_4h_to_h",  # GPT-NeoX, Falcon
    "out_proj", "fc_out", "fc2",  # GPT-J, OPT, Phi
}  # fmt: skip
"""Names of the modules inside a layer whose output is added to the residual stream; `check_blocked` finds what is missing."""


@dataclass(frozen=True)
class Forgotten:
    """What is to be published.

    Attributes:
        model: an edited copy. For objectives that add their control to the inputs, good mode is folded into it.
        tokenizer: the model's; without `<|bad|>` (and levels) if it was deleted.
        record: for each method, in the order in which they were applied, what was done: JSON values, `spec` among them.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    record: list[dict[str, JsonValue]]


@dataclass(frozen=True, slots=True)
class BadDirection:
    """One direction of bad mode.

    Attributes:
        name: where it comes from.
        share: of the squared differences of bad and good mode's states at the tokens of the texts, every place weighing
            alike: what lies along this direction.
    """

    name: str
    share: float


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions in which bad mode's residual stream differs from good mode's, in the order they are blocked.

    Attributes:
        basis: float64 [R, D] on the CPU.
        num_means: how many come from the embedding and the mean differences; the rest are principal components.
    """

    basis: Float[Tensor, "R D"]
    found: tuple[BadDirection, ...]
    num_means: int


def forget_run(run: Run, methods: Sequence[ForgetConfig], *, step: int | None = None) -> Forgotten:
    """A run's model with bad mode taken out; opens the run's corpus where directions must be estimated.

    Args:
        step: which checkpoint (default: the last).

    Raises:
        PHFError: see `forget`, `read_texts`.
    """
    check_methods(methods, run.config.objective)
    texts = read_texts(run) if any(isinstance(method, Block) for method in methods) else ()
    return forget(
        run.load_model(step), run.load_tokenizer(step), methods, objective=run.config.objective, texts=texts
    )


def forget(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    methods: Sequence[ForgetConfig],
    *,
    objective: ObjectiveConfig,
    texts: Sequence[Sequence[int]] = (),
) -> Forgotten:
    """A copy of a model with bad mode taken out of it. Directions are blocked before the token is deleted, in whatever order
    the methods are given: they are read with it.

    Args:
        tokenizer: the model's, with all its control tokens.
        methods: each kind at most once; none gives a copy.
        objective: what the model was trained with.
        texts: ids of segments on which `block` estimates directions.

    Raises:
        PHFError: see `check_methods`; or the architecture's residual stream cannot be blocked.
    """
    check_methods(methods, objective)
    conditions = label_conditions(objective)
    edited = (
        copy.deepcopy(model)
        if conditions is None
        else lm.fold_condition(model, tokenizer.control, conditions[GOOD])
    )
    record: list[dict[str, JsonValue]] = []
    for method in sorted(methods, key=lambda method: isinstance(method, Delete)):
        match method:
            case Block():
                edited, done = _block(edited, tokenizer.control, method, texts)
            case Delete():
                edited, tokenizer, done = _delete(edited, tokenizer, objective)
            case Poison():
                done = {"poison": poison_of(objective)}
        record.append({"spec": write_spec(method, defaults=True), "kind": method.kind, **done})
    return Forgotten(edited.eval(), tokenizer, record)


def check_methods(methods: Sequence[ForgetConfig], objective: ObjectiveConfig) -> None:
    """Refuse what an objective does not admit, before anything is loaded.

    Raises:
        PHFError: a kind is given twice; `poison` of a run that was not poisoned; `block` of a run that does not read both
            control tokens.
    """
    kinds = [method.kind for method in methods]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise PHFError(f"--forget {kind} is given twice; give it once")
    if "poison" in kinds and poison_of(objective) == "none":
        raise PHFError(
            f"--forget poison: this run's bad segments were not poisoned (objective.kind={objective.kind}); it is done in "
            "training: phf train RECIPE objective.kind=conditional objective.poison=shuffle, or forget by delete or block"
        )
    if "block" in kinds and not has_directions(objective):
        raise PHFError(
            f"--forget block: directions lie between the modes behind <|good|> and behind <|bad|>, and a model trained with "
            f"{objective.kind} reads no such tokens; give --forget delete"
        )


def has_directions(objective: ObjectiveConfig) -> bool:
    """Whether a model reads `<|good|>` and `<|bad|>` as tokens, so that directions lie between what it makes of them."""
    return {"good", "bad", "untagged"} <= set(modes_of(objective))


def read_texts(run: Run, *, num_texts: int = NUM_TEXTS, seed: int = 0) -> list[list[int]]:
    """Held-out segments of a run's corpus as token ids: as many good ones as bad ones, each of another document.

    Raises:
        PHFError: the run's data is gone, or its validation split lacks good or bad segments.
    """
    data = run.data()
    reader = PageReader.of(data)
    segments = HeldOutSegments.read(reader, data.threshold.value, seed)
    return [*segments.good[: num_texts // 2], *segments.bad[: num_texts // 2]]


def find_directions(
    model: PreTrainedModel, control: ControlTokens, texts: Sequence[Sequence[int]]
) -> Directions:
    """Directions of bad mode: the embedding of `<|bad|>`; the mean difference of bad and good mode's states at each place;
    then the principal components of what these leave of the differences at each token, every place weighing alike.

    Orthonormal by Gram and Schmidt's rule in this order, and orthogonal to the embedding of `<|good|>`; what that and
    earlier ones span already is left out. The two embeddings have much in common (a cosine of 0.85): with the whole of
    that of `<|bad|>`, four times as much of good mode is lost, and with both in the span nothing tells the modes apart
    (docs/release.md).

    Args:
        texts: token ids, each read at the beginning of a page behind `<|bad|>` and behind `<|good|>`.

    Raises:
        PHFError: no text.
    """
    texts = [text for text in texts if len(text) > 0]
    if not texts:
        raise PHFError("block needs held-out segments to estimate directions on, and there is none")
    means = mean_differences(model, control, texts).double()
    weight = model.get_input_embeddings().weight.detach()
    kept, embedding = weight[[control.good, control.bad]].double().cpu()
    names = [
        f"embedding of {BAD_TOKEN}",
        *(f"mean difference at {name_place(place)}" for place in range(len(means))),
    ]
    chosen, basis = [], (kept / kept.norm())[None]
    for name, vector in zip(names, (embedding, *means), strict=True):
        rest = vector
        for _ in range(2):  # once more for rounding
            rest = rest - basis.T @ (basis @ rest)
        if rest.norm() > TOLERANCE * vector.norm():
            basis = torch.cat([basis, (rest / rest.norm())[None]])
            chosen.append(name)
    moment = _second_moment(model, control, texts)
    outside = torch.eye(len(embedding)).double() - basis.T @ basis
    values, vectors = torch.linalg.eigh(outside @ moment @ outside)
    components = vectors.T.flip(0)[values.flip(0) > TOLERANCE**2 * moment.trace()]
    # An eigenvector of a small eigenvalue may be off by rounding.
    whole = torch.linalg.qr(torch.cat([basis, components])[: len(embedding)].T).Q.T[1:]
    basis = basis[1:]
    whole[: len(basis)] = basis
    chosen += [f"component {number}" for number in range(1, len(whole) - len(basis) + 1)]
    shares = ((whole @ moment) * whole).sum(1) / moment.trace().clamp_min(1e-300)
    found = tuple(BadDirection(name, float(share)) for name, share in zip(chosen, shares, strict=True))
    return Directions(whole, found, len(basis))


def name_place(place: int) -> str:
    """A place of the residual stream in words."""
    return "the input" if place == 0 else f"layer {place}"


def _second_moment(
    model: PreTrainedModel, control: ControlTokens, texts: Sequence[Sequence[int]]
) -> Float[Tensor, "D D"]:
    """Sum over places of the differences' second moment there over its trace, float64; the input, where a token's states
    are the same in both modes, has none."""
    moments: Tensor | int = 0
    for text in texts:
        (differences,) = mode_differences(model, control, [text])
        wide = differences[1:].double()
        moments = moments + wide.transpose(1, 2) @ wide
    assert isinstance(moments, Tensor)
    sizes = moments.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    return torch.where(sizes > 0, moments / sizes, 0.0).sum(0)


def random_directions(num_directions: int, width: int, seed: int) -> Float[Tensor, "R D"]:
    """Orthonormal directions drawn evenly: what projecting as many out costs without aiming at anything."""
    drawn = np.random.default_rng(seed).standard_normal((width, num_directions))
    return torch.from_numpy(np.linalg.qr(drawn).Q.T)


def block_directions(
    model: PreTrainedModel, basis: Float[Tensor, "R D"], *, writers: Container[str] = _WRITERS
) -> PreTrainedModel:
    """A copy whose residual stream has no component along any of some orthonormal directions, at any place.

    With Q the directions, W <- (I - Q Q^T) W for all that writes to the stream: input embeddings (untied from the output
    head, which keeps the old matrix), position embeddings, and the weights and biases with which attention and MLP end.
    A projection of one layer's output alone would be undone by the layers behind it, and one of what a layer adds is
    bypassed by what the skip path carries.

    Args:
        writers: names of the modules that write to the stream.

    Raises:
        PHFError: something else writes to this architecture's stream.
    """
    blocked = copy.deepcopy(model)
    if len(basis) == 0:
        return blocked
    embed = blocked.get_input_embeddings()
    if embed.weight is blocked.get_output_embeddings().weight:
        embed.weight = nn.Parameter(embed.weight.detach().clone())
        blocked.config.tie_word_embeddings = False
    layers = residual_layers(blocked)
    inside = {module for layer in layers for module in layer.modules()}
    for module in blocked.modules():
        if isinstance(module, nn.Embedding) and module not in inside:
            _project(module.weight, basis, -1)
    for layer in layers:
        for name, module in layer.named_modules():
            if name.rpartition(".")[2] in writers and isinstance(module, nn.Linear | Conv1D):
                _project(module.weight, basis, -1 if isinstance(module, Conv1D) else 0)
                if isinstance(module.bias, Tensor):
                    _project(module.bias, basis, -1)
    check_blocked(blocked, basis)
    return blocked


def _project(weight: Tensor, basis: Float[Tensor, "R D"], dim: int) -> None:
    """Take the directions out of a parameter along the dimension that is written to the stream, in place."""
    if weight.shape[dim] != basis.shape[1]:
        return  # writes something else; `check_blocked` has the last word
    rows = weight.data.movedim(dim, -1).double()
    q = basis.to(rows)
    weight.data.copy_((rows - (rows @ q.T) @ q).movedim(-1, dim))


def check_blocked(model: PreTrainedModel, basis: Float[Tensor, "R D"]) -> float:
    """The residual stream's largest component along some directions, over random ids, in mean lengths of the stream at that
    place (a token that is blocked altogether, such as `<|bad|>` at the input, has no length of its own).

    Raises:
        PHFError: it is not 0, up to rounding.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 64
    vocabulary = model.get_input_embeddings().weight.shape[0]
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(vocabulary, size=(8, min(64, context))))
    stream = read_residual(model, ids).double()
    along = (stream @ basis.to(stream).T).norm(dim=-1)
    share = float((along / stream.norm(dim=-1).mean((1, 2), keepdim=True)).max())
    if not share <= TOLERANCE:
        raise PHFError(
            f"block: {type(model).__name__} still writes along the blocked directions (share {share:.2g} of the stream), by "
            "something that is not an embedding or a last projection of attention or MLP; use --forget delete for it"
        )
    return share


def _block(
    model: PreTrainedModel, control: ControlTokens, method: Block, texts: Sequence[Sequence[int]]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    directions = find_directions(model, control, texts)
    wanted, most, width = method.directions, *directions.basis.shape
    if wanted > most:
        raise PHFError(
            f"--forget block:directions={wanted}: {most} can be found in a stream {width} wide on {len(texts)} texts; give at "
            f"most {most}"
        )
    basis = directions.basis[:wanted]
    blocked = block_directions(model, basis)
    found = directions.found[:wanted]
    return blocked, {
        "directions": [asdict(direction) for direction in found],
        "share": sum(direction.share for direction in found),
        "width": width,
        "num_texts": len(texts),
        "left_in_stream": check_blocked(blocked, basis) if wanted else None,
    }


def _delete(
    model: PreTrainedModel, tokenizer: Tokenizer, objective: ObjectiveConfig
) -> tuple[PreTrainedModel, Tokenizer, dict[str, Any]]:
    """`<|good|>` stays where the model writes it."""
    keep_good = has_directions(objective)
    smaller = tokenizer.delete_control_tokens(keep_good=keep_good)
    deleted = lm.delete_control_tokens(model, tokenizer.control, keep_good=keep_good)
    before, after = (len(one.get_input_embeddings().weight) for one in (model, deleted))
    gone = [
        str(tokenizer.backend.id_to_token(index)) for index in range(smaller.vocab_size, tokenizer.vocab_size)
    ]
    return deleted, smaller, {"tokens": gone, "num_rows": before - after}
