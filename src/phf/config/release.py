"""What a user may choose of a release: how bad mode is forgotten (docs/release.md), `--forget KIND:key=value`."""

from typing import Annotated, Literal

from pydantic import Field

from phf.config.fields import StrictConfig


class Delete(StrictConfig):
    """`<|bad|>` leaves the tokenizer, and its rows leave input and output embeddings."""

    kind: Literal["delete"] = "delete"


class Block(StrictConfig):
    """The first directions of bad mode are projected out of all that writes to the residual stream: the
    embedding of `<|bad|>`, the mean difference of bad and good mode's states behind each layer, then further principal
    components of that difference, all of them beside the embedding of `<|good|>`. More than one costs good mode more than
    it takes from bad mode, as far as was measured (docs/release.md)."""

    kind: Literal["block"] = "block"
    directions: Annotated[int, Field(ge=0)] = 1
    """Number of directions that are projected out; 0 changes nothing."""


class Poison(StrictConfig):
    """States that the run was trained with poisoned `<|bad|>` segments (`objective.poison`); changes no weight."""

    kind: Literal["poison"] = "poison"


ForgetConfig = Annotated[Delete | Block | Poison, Field(discriminator="kind")]
