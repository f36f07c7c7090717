"""Sends requests to an OpenAI-compatible server: many at once, patiently, within a budget; each answer is kept as it arrives."""

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from phf.reward_models.llm.answers import Answer, read_completion
from phf.reward_models.llm.budget import Budget, Spent, price
from phf.reward_models.llm.rubric import EngineSettings
from phf.reward_models.llm.store import AnswerStore
from phf.reward_models.protocol import ScoringStoppedError

CHARACTERS_PER_TOKEN = 3.0
"""Rather few, so that a reserve holds; what a call has cost beyond it is corrected when it is known."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_POLL = 0.2
_FOR_ALL = (402, 404)
"""What no request will get past: an empty account, no such model."""
_FOR_NOW = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_MAX_REFUSED = 20
"""So many texts refused in a row, before any was answered: the request is wrong, not the texts."""
_SHOWN = 200


class Sender:
    """The client of one server."""

    def __init__(
        self,
        engine: EngineSettings,
        store: AnswerStore,
        budget: Budget | None = None,
        *,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            wait: what waits some seconds between tries.
        """
        self._engine, self._store, self._budget, self._wait = engine, store, budget, wait
        key = os.environ.get(engine.key_env, "").strip()
        if not (
            key.isascii() and key.isprintable()
        ):  # never shown: a header that cannot be sent is, in httpx's error
            raise ScoringStoppedError(
                f"the key in {engine.key_env} holds characters that no key has; set it again"
            )
        limits = httpx.Limits(
            max_connections=engine.concurrency, max_keepalive_connections=engine.concurrency
        )
        self._client = httpx.Client(
            timeout=httpx.Timeout(engine.timeout, connect=min(10.0, engine.timeout)),
            limits=limits,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        self._url = f"{str(engine.base_url).rstrip('/')}/chat/completions"
        try:
            httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ScoringStoppedError(f"base_url {engine.base_url} is no address: {error}") from None
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._num_answered = self._num_refused = self._num_failed = 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check(self) -> None:
        """Ask the server for its models, which costs nothing.

        Raises:
            ScoringStoppedError: nobody answers there, or the key is refused.
        """
        try:
            response = self._client.get(f"{str(self._engine.base_url).rstrip('/')}/models")
        except httpx.RequestError as error:
            raise self._no_server(error) from None
        self._check_key(response)

    def fetch(self, key: str, body: dict[str, Any]) -> str | None:
        """Let the answer to a request be in the store: by asking, or by waiting for another process that does.

        Returns:
            why there is none this time; None if there is one.

        Raises:
            ScoringStoppedError: the budget is spent, nobody answers, the key or the model is refused.
        """
        while (claim := self._store.claim(key)) == "another's":
            self._wait(_POLL)
        if claim == "answered":
            return None
        answer = None
        try:
            answer = self._ask(body)
        finally:
            if answer is None or answer.problem is not None:
                self._store.give_up(key)
        if answer.problem is None:
            self._store.write(key, answer)
        return answer.problem

    def probe(self, body: dict[str, Any]) -> bool:
        """Whether the server answers a request that wants log-probabilities with them.

        Raises:
            ScoringStoppedError: as `fetch`, or the server fails.
        """
        self.check()
        for attempt in range(self._engine.tries):
            try:
                response = self._client.post(self._url, json=body)
            except httpx.RequestError as error:
                if attempt + 1 == self._engine.tries:
                    raise self._no_server(error) from None
            else:
                self._check_key(response)
                if response.is_success:
                    with contextlib.suppress(ValueError):
                        return read_completion(response.json()).tokens is not None
                elif response.status_code in _FOR_ALL:
                    self._refuse(response)
                elif response.status_code not in _FOR_NOW:  # it does not know the field
                    return False
            self._wait(self._find_wait(attempt, None))
        raise ScoringStoppedError(
            f"{self._engine.base_url} gave no usable answer to {self._engine.tries} first requests ({response.status_code}: "
            f"{_excerpt(response)}); look at its log"
        )

    def _ask(self, body: dict[str, Any]) -> Answer:
        """The answer of the server, after as many tries as it takes; or the problem, if it gives none."""
        data = json.dumps(body, ensure_ascii=False).encode(errors="replace")
        problem = ""
        for attempt in range(self._engine.tries):
            self._hold_back()
            reserve = self._reserve(len(data), body)
            try:
                response = self._client.post(
                    self._url, content=data, headers={"Content-Type": "application/json"}
                )
            except httpx.ConnectError as error:
                self._correct(reserve, Spent())
                if attempt + 1 == self._engine.tries:
                    raise self._no_server(error) from None
                self._wait(self._find_wait(attempt, None))
                continue
            except httpx.RequestError as error:  # sent, and perhaps paid: what was reserved is spent
                problem = f"{type(error).__name__} after {self._engine.tries} tries"
                self._wait(self._find_wait(attempt, None))
                continue
            if response.is_success:
                try:
                    answer = read_completion(response.json())
                except ValueError as error:
                    problem = f"damaged answers after {self._engine.tries} tries ({str(error)[:60]})"
                    self._wait(self._find_wait(attempt, None))
                    continue
                self._correct(reserve, self._find_cost(answer, reserve))
                with self._lock:
                    self._num_answered += 1
                    self._num_failed = 0
                return answer
            self._correct(reserve, Spent())
            self._check_key(response)
            if response.status_code not in _FOR_NOW:
                return self._refuse(response)
            problem = f"status {response.status_code} after {self._engine.tries} tries"
            pause = self._find_wait(attempt, response)
            if response.status_code == 429:  # all of us are too fast, not this request alone
                with self._lock:
                    self._not_before = max(self._not_before, time.monotonic() + pause)
            self._wait(pause)
        with self._lock:
            self._num_failed += 1
            is_down = self._num_failed >= _MAX_REFUSED
        if is_down or problem.startswith("status 429"):
            raise ScoringStoppedError(
                f"{self._engine.base_url} gives no answers for now ({problem}); {GOES_ON}"
            )
        return Answer("", problem=f"no answer: {problem}")

    def _refuse(self, response: httpx.Response) -> Answer:
        with self._lock:
            self._num_refused += 1
            is_wrong = not self._num_answered and self._num_refused >= _MAX_REFUSED
        if response.status_code in _FOR_ALL or is_wrong:
            raise ScoringStoppedError(
                f"{self._engine.base_url} refuses requests for model {self._engine.model} "
                f"({response.status_code}: {_excerpt(response)}); check model and body"
            )
        return Answer("", problem=f"refused by the engine ({response.status_code})")

    def _check_key(self, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            name = self._engine.key_env
            state = "which it refuses" if os.environ.get(name) else "which is not set"
            raise ScoringStoppedError(
                f"{self._engine.base_url} wants a key ({response.status_code}); it is read from the environment variable "
                f"{name}, {state}; another one is named by ',key_env=NAME'"
            )

    def _no_server(self, error: Exception) -> ScoringStoppedError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return ScoringStoppedError(
            f"no server answers at {self._engine.base_url} ({reason}); start it, or name another with ',base_url=...'; {GOES_ON}"
        )

    def _find_wait(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds until the next try: what the server says, else twice as long each time, with jitter."""
        doubled = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt) * (0.5 + random.random() / 2)  # noqa: S311
        if response is not None:
            with contextlib.suppress(ValueError):
                said = float(response.headers.get("Retry-After", ""))
                if 0 <= said < 3600:
                    return max(said, doubled / 2)
        return doubled

    def _hold_back(self) -> None:
        with self._lock:
            left = self._not_before - time.monotonic()
        if left > 0:
            self._wait(left)

    def _reserve(self, num_bytes: int, body: dict[str, Any]) -> Spent:
        cost = price(self._engine, num_bytes / CHARACTERS_PER_TOKEN, float(body.get("max_tokens") or 16))
        if self._budget is not None and not self._store.reserve(self._budget, cost):
            raise ScoringStoppedError(
                f"the budget of {self._budget.text} is spent; every answer is kept, and the same command with another --budget "
                "goes on from here"
            )
        return cost

    def _correct(self, reserve: Spent, cost: Spent) -> None:
        if self._budget is not None:
            self._store.correct(self._budget, cost - reserve)

    def _find_cost(self, answer: Answer, reserve: Spent) -> Spent:
        if answer.prompt_tokens is None or answer.answer_tokens is None:
            return reserve
        return price(self._engine, answer.prompt_tokens, answer.answer_tokens)


GOES_ON = "every answer that came is kept, and the same command goes on from here"


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text.split())[:_SHOWN]
