"""The same prompt written in every mode side by side, token by token, with P(`<|bad|>`) at each segment end."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

from phf.config.train import SamplingConfig, parse
from phf.control import BAD_TOKEN, GOOD_TOKEN
from phf.explore.html import escape_text
from phf.generate.engine import decode_behind
from phf.generate.stream import WrittenToken, read_bad_share, stream_sample
from phf.generate.target import Target
from phf.objectives import has_control_tokens, is_additive, modes_of, num_levels
from phf.records import Mode
from phf.tokens.tokenizer import Tokenizer
from phf.train.run import Run

MAX_NEW_TOKENS = 1024
_STARTS = {
    "good": f"the page begins with {GOOD_TOKEN}; {BAD_TOKEN} is blocked",
    "bad": f"the page begins with {BAD_TOKEN}; {GOOD_TOKEN} is blocked",
    "none": "nothing is asked for",
    "untagged": "tags are blocked",
}


@dataclass(slots=True)
class WrittenSegment:
    """A part of a continuation, up to the next control token.

    Attributes:
        control: the token before it: a control token, the end of the page (then no text follows), or None at the
            beginning.
        bad_share: P(`<|bad|>`) where that token stands (see `WrittenToken`).
        ids: its text.
    """

    control: int | None
    bad_share: float | None
    ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Continuation:
    """What a mode has written so far: until the page ended, or the length limit stopped it."""

    mode: Mode
    segments: list[WrittenSegment]
    is_ended: bool = False
    is_stopped: bool = False

    def add(self, written: WrittenToken) -> None:
        """Take the next token in."""
        if written.kind == "text":
            self.segments[-1].ids.append(written.token)
        else:
            self.segments.append(WrittenSegment(written.token, written.bad_share))
            self.is_ended = written.kind == "end"

    @property
    def ids(self) -> list[int]:
        """The text's ids."""
        return [token for segment in self.segments for token in segment.ids]


class Playground:
    """Writes with the last checkpoint of a run, which is loaded when it is first asked to."""

    def __init__(self, run: Run) -> None:
        self.run = run
        modes = modes_of(run.config.objective)
        self.modes = tuple(mode for mode in modes if "good" not in modes or mode != "untagged")
        self._loading = Lock()

    @property
    def explanation(self) -> str:
        """What a reader must know about the control tokens of this run."""
        objective = self.run.config.objective
        if is_additive(objective):
            return (
                f"This run was trained with {objective.kind}, which adds good and bad to the inputs: the model writes in "
                f"the modes, but it writes no control tokens, so there is no P({BAD_TOKEN}) at segment ends."
            )
        if has_control_tokens(objective):
            levels = " (the best and the worst of its levels)" if num_levels(objective) > 0 else ""
            return (
                f"◆ stands where the model ended a segment and chose what comes next. P(bad) = "
                f"p({BAD_TOKEN}) / (p({GOOD_TOKEN}) + p({BAD_TOKEN})){levels} there, before a mode blocks one of the two: "
                "what the model expects of the NEXT segment, not what it thinks of the text before."
            )
        if "untagged" in self.modes:
            return (
                f"This run was trained with {objective.kind}, which strews {BAD_TOKEN} into bad text. ◆ is such a tag: it "
                f"marks no segment end, so there is no P({BAD_TOKEN}) of a next segment. Without tags they are blocked."
            )
        return (
            f"This run was trained with {objective.kind}, which learns no control tokens: it writes in one mode, without "
            f"good and bad, and there is no P({BAD_TOKEN}) at segment ends."
        )

    def write(
        self, prompt: str, *, seed: int, temperature: float, top_p: float, max_new_tokens: int
    ) -> Iterator[list[Continuation]]:
        """Write in all modes at once; gives what there is after each token of each mode. All modes see the same random
        numbers, those of sample 0 of `phf sample --seed`.

        Raises:
            PHFError: a setting is out of range, the prompt is too long, or the run has no sound checkpoint.
        """
        given = {
            "num_samples": 1,
            "seed": seed,
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": min(10, max_new_tokens),
        }
        sampling = parse(SamplingConfig, given, "playground")
        with self._loading:
            targets = self._targets
        streams = {
            target.mode: stream_sample(target, sampling, prompt=target.encode(prompt, sampling.control))
            for target in targets
        }
        written = [Continuation(mode, [WrittenSegment(None, None)]) for mode in self.modes]
        yield written
        while streams:
            for continuation in written:
                stream = streams.get(continuation.mode)
                token = next(stream, None) if stream is not None else None
                if token is not None:
                    continuation.add(token)
                elif stream is not None:
                    del streams[continuation.mode]
                    continuation.is_stopped = not continuation.is_ended
            yield written

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.run.load_tokenizer()

    @cached_property
    def _targets(self) -> list[Target]:
        model, config = self.run.load_model(), self.run.config
        return [
            Target.create(mode, model, self.tokenizer, config.objective, config.segments)
            for mode in self.modes
        ]

    @cached_property
    def _first_bad_share(self) -> float | None:
        """P(`<|bad|>`) where a page begins."""
        objective = self.run.config.objective
        if is_additive(objective) or not has_control_tokens(objective):
            return None
        return read_bad_share(self._targets[0])

    def render(self, prompt: str, written: list[Continuation]) -> str:
        """The continuations as HTML, a column for each mode."""
        first = self._first_bad_share
        told = (
            f"<p class='phf-count'>Where a page begins this model expects {escape_text(BAD_TOKEN)} with P(bad) "
            f"{_render_share(first)}</p>"
            if first is not None
            else ""
        )
        columns = "".join(self._render_mode(prompt, continuation) for continuation in written)
        return f"{told}<div class='columns'>{columns}</div>"

    def _render_mode(self, prompt: str, continuation: Continuation) -> str:
        body, shown = "", self.tokenizer.encode(prompt)
        for segment in continuation.segments:
            body += self._render_segment(segment, shown[-8:])
            shown += segment.ids
        state = "writing …"
        if continuation.is_ended or continuation.is_stopped:
            state = "the page ended" if continuation.is_ended else "stopped at the length limit"
        return (
            f"<section><h3 class='mode-{continuation.mode}'>{continuation.mode} mode "
            f"<small>{escape_text(_STARTS[continuation.mode])}</small></h3>"
            f"<article><div class='document' dir='auto'><span class='prompt'>{escape_text(prompt)}</span>{body}</div>"
            f"<p class='phf-cut'>{len(continuation.ids)} tokens; {state}</p></article></section>"
        )

    def _render_segment(self, segment: WrittenSegment, before: list[int]) -> str:
        text = f"<span class='text'>{escape_text(decode_behind(self.tokenizer, before, segment.ids))}</span>"
        if segment.control is None:
            return text
        is_end = segment.control == self.tokenizer.control.end
        name = "page ends" if is_end else escape_text(self.tokenizer.pieces[segment.control])
        if segment.bad_share is None or self._first_bad_share is None:
            return f"<span class='ending'>◆ {name}</span>{text}"
        return f"<span class='ending'>◆ P(bad) {_render_share(segment.bad_share)} → {name}</span>{text}"


def _render_share(share: float) -> str:
    return f"<span class='share' style='--share:{100 * share:.1f}%'>{100 * share:.0f} %</span>"
