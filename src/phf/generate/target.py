"""A run's model in one mode, continuing prompts that it reads the way training would have shown them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from phf.config.objectives import ObjectiveConfig
from phf.config.train import SamplingConfig, SegmentKind
from phf.control import ModeRules, mode_rules
from phf.corpus.segment import segment_ends
from phf.errors import NotApplicableError
from phf.generate.engine import Ids, TokenDrawer, Written, decode_behind, write_pages
from phf.generate.vllm import write_pages_with_vllm
from phf.model import lm
from phf.objectives import label_conditions
from phf.records import BAD, GOOD, ControlStyle, Mode, Progress, Sample
from phf.tokens.splitter import Splitter
from phf.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REDRAW = 1 << 32
"""Sample i + j * REDRAW is the j-th other draw of sample i: of the same prompt, with random numbers of its own."""


@dataclass(frozen=True)
class Target:
    """A model in one mode, ready to continue prompts.

    Attributes:
        mode: what a page starts with and what is blocked.
        model: the weights; the mode is folded into them where the objective adds its control to the inputs.
        tokenizer: the run's.
        segments: how the run's corpus is cut, and so a prompt.
        is_folded: whether the mode is in the weights, so that no control token is written.
        start: what its pages begin with; None: with the end token, as pages do that were packed here.
    """

    mode: Mode
    model: "PreTrainedModel"
    tokenizer: Tokenizer
    segments: SegmentKind
    is_folded: bool = False
    start: int | None = None

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

    @property
    def page_mode(self) -> Mode:
        """The mode whose rules its pages follow: without control tokens where the mode is in the weights."""
        return "untagged" if self.is_folded else self.mode

    def longest_prompt(self, sampling: SamplingConfig) -> int:
        """Tokens, control tokens included, that a prompt may have so that all new tokens fit into the context.

        Raises:
            PHFError: not one.
        """
        context: int = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        longest = context - sampling.max_new_tokens - len(self._rules(sampling.control).prefix)
        if longest < 1:
            raise NotApplicableError(
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
        self,
        prompts: Sequence[Ids],
        sampling: SamplingConfig,
        progress: Progress | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Sample]:
        """Draw `sampling.num_samples` texts by the engine of `sampling`.

        `min_new_tokens`, `max_new_tokens` and `Sample.num_tokens` count *text* tokens, so that modes compare at equal
        amounts of text: control tokens come on top of them, up to one per text token and the model's context. Until
        `min_new_tokens` the end token is blocked.

        Args:
            prompts: ids that follow the mode's prefix; sample i continues prompt i modulo their number. `[()]` is no prompt.
            progress: called with (description, finished samples, all samples).
            indices: which samples are drawn (default: the first `num_samples`); see `REDRAW`.

        Returns:
            the samples in the order of `indices`.

        Raises:
            PHFError: prefix, prompt and new tokens do not fit into the model's context; `control="forced"` and segments
                whose ends are not to be seen while writing; or the engine cannot be had.
        """
        indices = range(sampling.num_samples) if indices is None else indices
        own = [prompts[index % REDRAW % len(prompts)] for index in indices]
        drawer = self.drawer(sampling)

        def report(done: int) -> None:
            if progress is not None:
                progress(f"sampling {self.mode}", done, len(own))

        write = write_pages_with_vllm if sampling.engine == "vllm" else write_pages
        pages = [[*drawer.rules.prefix, *prompt] for prompt in own]
        written = write(self.model, drawer, pages, indices, report)
        return [self.sample(*each) for each in zip(indices, own, written, strict=True)]

    def drawer(self, sampling: SamplingConfig) -> TokenDrawer:
        """What draws the tokens of its pages.

        Raises:
            PHFError: `control="forced"` and segments whose ends are not to be seen while writing.
        """
        drawer = TokenDrawer.create(self.tokenizer, self.page_mode, sampling, self.segments)
        return replace(drawer, rules=self._rules(sampling.control))

    def sample(self, index: int, prompt: Ids, written: Written) -> Sample:
        """What was written behind a prompt as the sample of this index."""
        ids, ended = written
        text, prompted = decode_behind(self.tokenizer, prompt, ids), self.tokenizer.decode(prompt)
        return Sample(self.mode, index, text, len(ids), ended, prompted)

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
        rules = mode_rules(self.page_mode, self.tokenizer.control, control)
        return rules if self.start is None else replace(rules, prefix=(self.start, *rules.prefix[1:]))
