"""Control tokens, and what each mode of generation may write (docs/evaluation.md, Samples)."""

from dataclasses import dataclass

from phf.errors import PHFError
from phf.records import GOOD, ControlStyle, Mode

END_TOKEN = "<|endoftext|>"  # noqa: S105 - a vocabulary entry, not a password
GOOD_TOKEN = "<|good|>"  # noqa: S105
BAD_TOKEN = "<|bad|>"  # noqa: S105


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Ids of the tokens that no text can produce. `good`, `bad` and the levels are the last used ids, in this order.

    Attributes:
        end: `<|endoftext|>`.
        good, bad: `<|good|>` and `<|bad|>`; with levels, the best and the worst of them.
        num_levels: how many levels lie between good and bad (Quantile): `<|level_1|>` is the next best.
    """

    end: int
    good: int
    bad: int
    num_levels: int = 0

    @property
    def all(self) -> tuple[int, ...]:
        """Every control token (`<|endoftext|>` is none)."""
        return tuple(range(self.good, self.bad + 1 + self.num_levels))

    def of_label(self, label: int) -> int:
        """The control token of a segment's label (GOOD, BAD, or a level)."""
        return self.all[label - GOOD]


def level_tokens(num_levels: int) -> tuple[str, ...]:
    """Names of the levels between good and bad, from better to worse."""
    return tuple(f"<|level_{level}|>" for level in range(1, num_levels + 1))


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
    """The rules of a mode (docs/evaluation.md, Samples).

    Raises:
        PHFError: the mode has no control token to force.
    """
    match mode:
        case "good" | "bad":
            own = tokens.good if mode == "good" else tokens.bad
            others = tuple(token for token in tokens.all if token != own)
            blocked = others if style == "free" else tokens.all
            return ModeRules((tokens.end, own), blocked, forced=own if style == "forced" else None)
        case "none" | "untagged" | "deleted":  # deleted: the model itself has nothing that could be blocked
            return ModeRules((tokens.end,), tokens.all if mode == "untagged" else (), forced=None)
    raise PHFError(f"mode '{mode}' is not known; choose good, bad, none, untagged or deleted")
