"""Control tokens, and what each mode of generation may write (contract: Modes)."""

from dataclasses import dataclass

from phf.errors import PHFError
from phf.records import BAD, GOOD, ControlStyle, Mode

END_TOKEN = "<|endoftext|>"  # noqa: S105 - a vocabulary entry, not a password
GOOD_TOKEN = "<|good|>"  # noqa: S105
BAD_TOKEN = "<|bad|>"  # noqa: S105


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Ids of the three tokens that no text can produce. `good` and `bad` are the last used ids of the vocabulary."""

    end: int
    good: int
    bad: int

    def of_label(self, label: int) -> int:
        """The control token of a segment's label (GOOD or BAD)."""
        return {GOOD: self.good, BAD: self.bad}[label]


@dataclass(frozen=True, slots=True)
class ModeRules:
    """How generation in one mode starts and what it must not write.

    Attributes:
        prefix: ids a page starts with.
        blocked: ids that are never sampled.
        forced: id inserted at each segment end, or None.
    """

    prefix: tuple[int, ...]
    blocked: tuple[int, ...]
    forced: int | None


def mode_rules(mode: Mode, tokens: ControlTokens, style: ControlStyle = "free") -> ModeRules:
    """The rules of a mode (contract: Modes).

    Raises:
        PHFError: the mode has no control token to force.
    """
    good, bad = tokens.good, tokens.bad
    match mode:
        case "good" | "bad":
            own, other = (good, bad) if mode == "good" else (bad, good)
            blocked = (other,) if style == "free" else (good, bad)
            return ModeRules((tokens.end, own), blocked, forced=own if style == "forced" else None)
        case "none" | "untagged":
            return ModeRules((tokens.end,), () if mode == "none" else (good, bad), forced=None)
    raise PHFError(f"mode '{mode}' is not known; choose good, bad, none or untagged")
