"""A run's model as it is published: control tokens may be gone, and bad mode forgotten."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import JsonValue

from phf.records import Mode
from phf.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Edited:
    """A run's model as it is published.

    Attributes:
        model: in evaluation mode, float32, on the CPU, with one row per id of the tokenizer.
        tokenizer: without the tokens that were deleted.
        prefix: ids that a page starts with.
        suppressed: control ids that are still there and must not be written.
        forget: what each forgetting method did (`phf.release.forget`).
        mode: the run's mode that this is.
    """

    model: "PreTrainedModel"
    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    suppressed: tuple[int, ...]
    forget: list[dict[str, JsonValue]]
    mode: Mode

    @property
    def control(self) -> tuple[int, ...]:
        """Control ids that are still there."""
        return tuple(token for token in self.tokenizer.control.all if token < self.tokenizer.vocab_size)

    def name(self, token: int) -> str:
        """How the vocabulary spells a token."""
        return str(self.tokenizer.backend.id_to_token(token))
