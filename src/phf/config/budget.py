"""What the answers of a language model may cost: calls, tokens or money, counted over all processes."""

import re
import uuid
from dataclasses import dataclass, field
from typing import Literal

from phf.config.judges import EngineSettings
from phf.errors import PHFError

Kind = Literal["calls", "tokens", "money"]
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True, slots=True)
class Spent:
    """Calls, tokens (read and written) and money; each may be an estimate."""

    calls: int = 0
    tokens: float = 0.0
    money: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.calls + other.calls, self.tokens + other.tokens, self.money + other.money)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.calls - other.calls, self.tokens - other.tokens, self.money - other.money)


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap for one command, in one of the three; `id`: under which its processes count together."""

    kind: Kind
    amount: float
    text: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def holds(self, spent: Spent) -> bool:
        """Whether so much may be spent in all."""
        return float(getattr(spent, self.kind)) <= self.amount * (1 + 1e-12)


def parse_budget(text: str) -> Budget:
    """A budget as it is written: `5000`, `5000calls`, `2Mtokens`, `3.50USD` (any word for money).

    Raises:
        PHFError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMB]?)\s*(calls?|tokens?|[A-Z]{3}|[$€£])?\s*", text)
    if match is None:
        raise PHFError(f"budget '{text}' is none; write it as 5000calls, 2Mtokens or 3.50USD")
    word = match[3] or "calls"
    kind: Kind = "calls" if word.startswith("call") else "tokens" if word.startswith("token") else "money"
    return Budget(kind, float(match[1]) * _FACTORS[match[2]], text.strip())


def price(engine: EngineSettings, prompt_tokens: float, answer_tokens: float) -> Spent:
    """The cost of one call; its money is 0 where no price is known (`check_price` refuses a budget then)."""
    money = (prompt_tokens * (engine.price_input or 0.0) + answer_tokens * (engine.price_output or 0.0)) / 1e6
    return Spent(1, prompt_tokens + answer_tokens, money)


def check_price(budget: Budget, engine: EngineSettings) -> None:
    """Refuse a budget in money where no price is known.

    Raises:
        PHFError: the engine has no price.
    """
    if budget.kind == "money" and (engine.price_input is None or engine.price_output is None):
        raise PHFError(
            f"budget {budget.text} is in money, but the engine has no prices; add "
            "',price_input=0.15,price_output=0.60' (of a million tokens) to the spec, or give calls or tokens"
        )
