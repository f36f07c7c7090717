"""Steering by subtraction: a direction of bad mode is taken out of the residual stream while the model writes.

`of=difference` is the mean of bad mode's states less good mode's at that place, over held-out segments; at the input it is
the embedding of `<|bad|>` less that of `<|good|>`. `of=bad` is the embedding of `<|bad|>` at *every* place: layers add to the
stream and leave in it what the input wrote, so behind layer l it is what the skip path carries of that embedding.

What is subtracted at one place goes on to all later ones. With `layer=all` the vectors therefore add up: `scale` 1 there
moves the last layer's stream by about as many vectors as there are places.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from phf.config.steer import Direction
from phf.config.train import SamplingConfig
from phf.control import ControlTokens
from phf.errors import NotApplicableError, PHFError
from phf.generate.engine import Ids
from phf.generate.target import Target
from phf.model.residual import add_to_residual, mean_differences, residual_layers
from phf.records import Progress
from phf.steer.streams import Steered, count_passes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_directions(
    model: "PreTrainedModel", control: ControlTokens, config: Direction, texts: Sequence[Sequence[int]]
) -> dict[int, Tensor]:
    """What a method subtracts at `scale` 1: float32 [D] by place (0 = input, l = behind layer l).

    Args:
        texts: token ids of segments for `of="difference"`, each short enough to be read behind a page's start.

    Raises:
        PHFError: the model has no `<|bad|>` or no such layer, or there is no text to estimate the difference on.
    """
    embedding = model.get_input_embeddings().weight.detach()
    if control.bad >= len(embedding):
        raise NotApplicableError(
            "direction: this model has no <|bad|> any more; steer the run that it came from"
        )
    last = len(residual_layers(model))
    if config.layer != "all" and config.layer > last:
        raise NotApplicableError(
            f"direction: layer {config.layer} does not exist; give layer=0 for the input, or 1 to {last}"
        )
    places = range(last + 1) if config.layer == "all" else (config.layer,)
    if config.of == "bad":
        return dict.fromkeys(places, embedding[control.bad].float().cpu())
    if not texts:
        raise PHFError("direction: of=difference needs held-out segments to estimate it on; give of=bad")
    means = mean_differences(model, control, texts)
    return {place: means[place] for place in places}


@contextmanager
def subtract_directions(
    model: "PreTrainedModel", directions: dict[int, Tensor], scale: float
) -> Iterator[None]:
    """While it is open, `scale` times each direction is taken from the stream at its place."""
    with add_to_residual(model, {place: -scale * vector for place, vector in directions.items()}):
        yield


def generate_with_direction(
    target: Target,
    sampling: SamplingConfig,
    config: Direction,
    texts: Sequence[Ids] = (),
    *,
    prompts: Sequence[Ids] = ((),),
    progress: Progress | None = None,
) -> Steered:
    """Samples written with the directions subtracted: one pass per token.

    Raises:
        PHFError: see `find_directions` and `Target.write`.
    """
    directions = find_directions(target.model, target.tokenizer.control, config, texts)
    with (
        subtract_directions(target.model, directions, config.scale),
        count_passes(target.model) as passes,
    ):
        samples = target.write(prompts, sampling, progress)
    norms = [round(abs(config.scale) * float(vector.norm()), 4) for vector in directions.values()]
    facts = {"layers": list(directions), "norms": norms, "num_texts": len(texts)}
    return Steered.create(samples, passes.count, facts)
