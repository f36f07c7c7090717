"""The reward model `llm:RUBRIC[#AXIS][,KEY=VALUE...]`: a language model that judges each segment by a rubric."""

import re
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from phf.config.budget import Budget, Spent, check_price, price
from phf.config.judges import EngineSettings, Rubric, complete_engine
from phf.config.recipes import parse_yaml
from phf.errors import PHFError
from phf.files import hash_bytes, hash_json
from phf.records import Identity, Progress
from phf.reward_models.combination import Combination, Component
from phf.reward_models.llm.answers import Answer, score_answer
from phf.reward_models.llm.engines import ServerEngine, may_ask
from phf.reward_models.llm.prompt import PROMPT_VERSION, Request, build_messages
from phf.reward_models.llm.rubric import read_rubric
from phf.reward_models.llm.store import AnswerStore
from phf.reward_models.protocol import RewardModel, SegmentRewardModel, Unit, Unscored

if TYPE_CHECKING:
    from phf.reward_models.llm.local import FolderEngine, VLLMEngine

    Engine = ServerEngine | FolderEngine | VLLMEngine

_CHARACTERS_PER_TOKEN = 4.0
"""Of English, until the engine has counted."""
_MIN_TIMED = 100
_TEXTS = ("kind", "model", "revision", "base_url", "key_env", "logprobs")
"""Keys whose values are taken as they are written; those of others are YAML."""


class LLMJudge(SegmentRewardModel):
    """One axis of a rubric, as a language model sees it: its level scaled to [0, 1], 1 = the bad end of the scale.

    The expected level over the token probabilities of the scale where the engine gives them, else the level that was written.
    All axes of a rubric come from the same answer.

    Attributes:
        rubric: its name.
        progress: told of answers as they come.
    """

    unit: Unit = "share of the scale"
    display_scale = 1.0
    hit_threshold = 0.5
    has_own_engine = True

    def __init__(
        self, rubric: Rubric, axis: str, settings: EngineSettings, engine: "Engine", store: AnswerStore
    ) -> None:
        """Judge an axis of a rubric by an engine; answers lie in a store."""
        self._rubric, self._axis, self._settings = rubric, axis, settings
        self._engine, self._store = engine, store
        self.rubric = rubric.name
        self.progress: Progress | None = None
        enough = 8 if rubric.form == "number" else 16 + 12 * len(rubric.axes)
        self._max_tokens = int(settings.body.get("max_tokens") or enough)
        model = str(settings.model)
        if settings.kind != "server" and Path(model).is_dir():
            # A folder's path says nothing that its hash does not, and tells of this machine.
            model = Path(model).resolve().name
        self._question = {
            "model": model,
            "revision": engine.revision,
            "rubric": rubric.hash,
            "sampling": {
                "temperature": settings.temperature,
                "max_tokens": self._max_tokens,
                "body": settings.body,
                "logprobs": engine.gives_logprobs,
                "prompt_version": PROMPT_VERSION,
            },
        }
        several = len(rubric.axes) > 1
        self.identity = Identity(
            f"llm-{rubric.name}-{axis}" if several else f"llm-{rubric.name}",
            "1",
            parameters={**self._question, "axis": axis},
        )

    def set_budget(self, budget: Budget) -> None:
        """Let no more than this be spent.

        Raises:
            PHFError: the engine is not paid for, or a budget in money has no prices.
        """
        if not isinstance(self._engine, ServerEngine):
            raise PHFError(f"budget {budget.text} is for a server; {self._settings.model} runs here")
        check_price(budget, self._settings)
        self._engine.budget = budget

    def score_texts(self, texts: Sequence[str]) -> Sequence[float]:
        """Score of each text, by the answers that are kept and, if it may ask, those that come now."""
        keys = [self._find_key(text) for text in texts]
        answers = self._store.read(list(dict.fromkeys(keys)))
        missing = {
            key: text
            for key, text in zip(keys, texts, strict=True)
            if key not in answers and not text.isspace()
        }
        if missing and may_ask():
            answers |= self._ask(missing)
        none = Answer("", problem="no answer is kept")
        return [
            Unscored("white space alone")
            if text.isspace()
            else score_answer(
                self._rubric, self._axis, answers.get(key, none), logprobs=self._engine.gives_logprobs
            )
            for key, text in zip(keys, texts, strict=True)
        ]

    def find_cost(self, texts: Sequence[str]) -> Spent:
        """What the kept answers to some texts have cost, each different one once."""
        cost = Spent()
        for answer in self._store.read(list(dict.fromkeys(map(self._find_key, texts)))).values():
            cost += price(self._settings, answer.prompt_tokens or 0, answer.answer_tokens or 0)
        return cost

    def find_rate(self) -> float:
        """Answers per second on the clock, when this model was last asked for a hundred or more; 1 if it never was."""
        return float(self._store.find_fact(self._name_fact("answers per second")) or 1.0)

    def _ask(self, missing: dict[str, str]) -> dict[str, Answer]:
        """The answers to texts that have none yet, by key."""
        requests = [(key, build_messages(self._rubric, text)) for key, text in missing.items()]
        problems: dict[str, Answer] = {}
        start = monotonic()
        for num_done, (key, problem) in enumerate(
            self._engine.answer(requests, self._max_tokens, self._store), 1
        ):
            if problem is not None:
                problems[key] = Answer("", problem=problem)
            if self.progress is not None:
                self.progress(f"answers of {self._question['model']}", num_done, len(requests))
        if len(requests) >= _MIN_TIMED:
            rate = len(requests) / (monotonic() - start)
            self._store.keep_fact(self._name_fact("answers per second"), repr(rate))
        found = self._store.read(list(missing))
        self._keep_ratio(requests, found)
        return problems | found

    def _find_key(self, text: str) -> str:
        judged = text[: self._rubric.max_characters]
        return hash_json([self._question, hash_bytes(judged.encode(errors="surrogatepass"))])

    def _keep_ratio(self, requests: Sequence[Request], found: dict[str, Answer]) -> None:
        """Remember how many tokens a character of a prompt has, for the next estimate."""
        counted = [
            (found[key].prompt_tokens, sum(len(own["content"]) for own in messages))
            for key, messages in requests
            if key in found and found[key].prompt_tokens
        ]
        if counted:
            ratio = sum(tokens or 0 for tokens, _ in counted) / sum(length for _, length in counted)
            self._store.keep_fact(self._name_fact("tokens per character"), repr(ratio))

    @property
    def question(self) -> str:
        """What all axes of a rubric have in common, hashed: model, rubric, sampling."""
        return hash_json(self._question)

    def _name_fact(self, what: str) -> str:
        return hash_json([what, self._question["model"], self._question["revision"]])

    def find_missing(self, texts: Sequence[str]) -> tuple[list[str], int]:
        """Those of some texts that would be asked for, each once, and how many others have kept answers."""
        different = {self._find_key(text): text for text in texts if not text.isspace()}
        kept = self._store.read(list(different))
        return [text for key, text in different.items() if key not in kept], len(kept)

    def estimate_cost(self, texts: Sequence[str]) -> tuple[float, float, float | None]:
        """Prompt tokens, answered tokens and money that answers to some texts would cost; None: no price is known."""
        characters = sum(len(own["content"]) for text in texts for own in build_messages(self._rubric, text))
        ratio = float(
            self._store.find_fact(self._name_fact("tokens per character")) or 1 / _CHARACTERS_PER_TOKEN
        )
        answer_tokens = len(texts) * (2.0 if self._rubric.form == "number" else 8.0 * len(self._rubric.axes))
        cost = price(self._settings, characters * ratio, answer_tokens)
        is_priced = self._settings.price_input is not None and self._settings.price_output is not None
        return characters * ratio, answer_tokens, cost.money if is_priced else None


def load_judge(spec: str) -> RewardModel:
    """Load `RUBRIC[#AXIS][,KEY=VALUE...]`. A rubric of several axes without one is their mean, a combination.

    Raises:
        PHFError: the rubric, axis, a key or the engine is not known; as the engine.
    """
    place, *given = re.split(r",(?=\w+=)", spec)
    name, _, axis = place.partition("#")
    rubric = read_rubric(name)
    if axis and axis not in rubric.axes:
        raise PHFError(f"rubric {name} has no axis '{axis}'; it has {', '.join(rubric.axes)}")
    engine, settings, store = _open_engine(rubric, given, name)
    if not axis and len(rubric.axes) > 1:
        rest = "".join(f",{part}" for part in given)
        specs = {own: f"llm:{name}#{own}{rest}" for own in rubric.axes}
        return Combination(
            [
                Component(1 / len(specs), own, LLMJudge(rubric, axis, settings, engine, store))
                for axis, own in specs.items()
            ]
        )
    return LLMJudge(rubric, axis or next(iter(rubric.axes)), settings, engine, store)


def list_judges(model: RewardModel) -> list[LLMJudge]:
    """The language models among a reward model and its components."""
    if isinstance(model, Combination):
        return [judge for part in model.components for judge in list_judges(part.model)]
    inner = getattr(model, "model", None)
    return [model] if isinstance(model, LLMJudge) else list_judges(inner) if inner is not None else []


def set_budget(model: RewardModel, budget: Budget) -> None:
    """Let the language models among a reward model and its components spend no more than this together.

    Raises:
        PHFError: there is none; or as `LLMJudge.set_budget`.
    """
    judges = list_judges(model)
    if not judges:
        raise PHFError(
            f"budget {budget.text} is for a language model as judge; {model.identity.name} is none"
        )
    for judge in judges:
        judge.set_budget(budget)


def _open_engine(
    rubric: Rubric, given: Sequence[str], name: str
) -> tuple["Engine", EngineSettings, AnswerStore]:
    """The engine of a rubric with what a spec says laid over it."""
    laid: dict[str, object] = {}
    for part in given:
        key, _, value = part.partition("=")
        laid[key] = value if key in _TEXTS else parse_yaml(value, f"{key} of llm:{name}")
    settings = complete_engine(rubric.engine, laid, f"llm:{name}")
    store = AnswerStore()
    if settings.kind == "server":
        return ServerEngine(settings, store), settings, store
    from phf.reward_models.llm.local import FolderEngine, VLLMEngine

    return (FolderEngine if settings.kind == "folder" else VLLMEngine)(settings), settings, store
