"""A run's model in one mode, continuing prompts that it reads the way training would have shown them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phf import lm
from phf.config import ObjectiveConfig, SamplingConfig, SegmentKind
from phf.control import ModeRules, mode_rules
from phf.corpus.segment import segment_ends
from phf.corpus.tokenizer import Tokenizer
from phf.corpus.tokens import Splitter
from phf.errors import PHFError
from phf.generate.engine import generate
from phf.generate.vllm import generate_with_vllm
from phf.objectives import label_conditions
from phf.records import BAD, GOOD, ControlStyle, Mode, Progress, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = Sequence[int]


@dataclass(frozen=True)
class Target:
    """A model in one mode, ready to continue prompts.

    Attributes:
        mode: what a page starts with and what is blocked.
        model: the weights; the mode is folded into them where the objective adds its control to the inputs.
        tokenizer: the run's.
        segments: how the run's corpus is cut, and so a prompt.
        is_folded: whether the mode is in the weights, so that no control token is written.
    """

    mode: Mode
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    segments: SegmentKind
    is_folded: bool = False

    @classmethod
    def create(
        cls,
        mode: Mode,
        model: "PreTrainedModel",
        tokenizer: Tokenizer,
        objective: ObjectiveConfig,
        segments: SegmentKind,
    ) -> "Target":
        """A model that was trained with an objective, in a mode: with the mode folded into a copy where the objective adds
        its control to the inputs, a copy without control tokens for `deleted`."""
        conditions = label_conditions(objective)
        if conditions is not None and mode in ("good", "bad"):
            model = lm.fold_condition(model, tokenizer.control, conditions[GOOD if mode == "good" else BAD])
        if mode == "deleted":
            model = lm.delete_control_tokens(model, tokenizer.control)
        return cls(mode, model, tokenizer, segments, conditions is not None)

    def longest_prompt(self, sampling: SamplingConfig) -> int:
        """Tokens, control tokens included, that a prompt may have so that all new tokens fit into the context.

        Raises:
            PHFError: not one.
        """
        context: int = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        longest = context - sampling.max_new_tokens - len(self._rules(sampling.control).prefix)
        if longest < 1:
            raise PHFError(
                f"max_new_tokens {sampling.max_new_tokens} leaves no room for a prompt in the model's context of "
                f"{context}; give at most {context // 2}"
            )
        return longest

    def encode(self, text: str, control: ControlStyle) -> list[int]:
        """The ids of a prompt, to follow the mode's prefix; never a control token for what the text spells.

        The text is tokenized in one piece and cut into segments as the run's corpus was. In good and bad mode the mode's
        control token stands before every segment, as in training; with `control="prefix"`, before the first alone.
        """
        kind = "document" if self.segments == "imported" else self.segments
        ends = segment_ends(text, kind)
        ids, lengths, _ = Splitter(self.tokenizer).tokenize(
            [text], np.array([len(ends)]), np.array(ends, int)
        )
        return self.join([part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])], control)

    def join(self, segments: Sequence[Ids], control: ControlStyle) -> list[int]:
        """A prompt made of segments of text ids: see `encode`."""
        prefix = self._rules(control).prefix
        own = list(prefix[1:]) if control != "prefix" else []
        joined = [token for segment in segments for token in (*own, *segment)]
        return joined[len(own) :]  # the first one's is in the prefix

    def write(
        self, prompts: Sequence[Ids], sampling: SamplingConfig, progress: Progress | None = None
    ) -> list[Sample]:
        """`sampling.num_samples` continuations; sample i continues prompt i modulo their number. `[()]` is no prompt."""
        write = generate_with_vllm if sampling.engine == "vllm" else generate
        return write(
            self.model,
            self.tokenizer,
            self.mode,
            sampling,
            segments=self.segments,
            prompts=prompts,
            is_folded=self.is_folded,
            progress=progress,
        )

    def write_each(
        self,
        prompts: Sequence[Ids],
        continuations: int,
        sampling: SamplingConfig,
        progress: Progress | None = None,
    ) -> list[list[Sample]]:
        """As many continuations of each prompt."""
        size = {"num_samples": len(prompts) * continuations}
        samples = self.write(prompts, sampling.model_copy(update=size), progress)
        return [samples[place :: len(prompts)] for place in range(len(prompts))]

    def _rules(self, control: ControlStyle) -> ModeRules:
        return mode_rules("untagged" if self.is_folded else self.mode, self.tokenizer.control, control)
