"""Sends requests to an OpenAI-compatible server: many at once, patiently, within a budget; each answer is kept as it arrives."""

import contextlib
import json
import os
import random
import threading
import time
from typing import Any

import httpx

from phf.config.budget import Budget, Spent, price
from phf.config.judges import EngineSettings
from phf.reward_models.llm.answers import Answer, read_completion
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
_GOES_ON = "every answer that came is kept, and the same command goes on from here"


class Sender:
    """The client of one server. Safe for many threads."""

    def __init__(
        self,
        engine: EngineSettings,
        store: AnswerStore,
        budget: Budget | None = None,
        closing: threading.Event | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            closing: once it is set, nothing more is sent and no wait goes on; what is on its way still arrives.

        Raises:
            ScoringStoppedError: the key or the address cannot be one.
        """
        self._engine, self._store, self._budget = engine, store, budget
        self._closing = closing or threading.Event()
        key = os.environ.get(engine.key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            # Never shown: a header that cannot be sent is, in httpx's error.
            raise ScoringStoppedError(
                f"the key in {engine.key_env} holds characters that no key has; set it again"
            )
        self._url = f"{str(engine.base_url).rstrip('/')}/chat/completions"
        try:
            httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ScoringStoppedError(f"base_url {engine.base_url} is no address: {error}") from None
        num = engine.concurrency
        self._client = httpx.Client(
            timeout=httpx.Timeout(engine.timeout, connect=min(10.0, engine.timeout)),
            limits=httpx.Limits(max_connections=num, max_keepalive_connections=num),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._num_answered = self._num_refused = self._num_failed = 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def fetch(self, key: str, body: dict[str, Any]) -> str | None:
        """Let the answer to a request be in the store: by asking, or by waiting for another process that does.

        Returns:
            why there is none this time; None if there is one.

        Raises:
            ScoringStoppedError: the budget is spent, nobody answers, the key or the model is refused; it is closing time.
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

    def probe(self, body: dict[str, Any], without: dict[str, Any]) -> bool:
        """Whether a new server answers a request for log-probabilities with them. That it cannot is believed only if it answers
        the same request without.

        Raises:
            ScoringStoppedError: as `fetch`, or it answers neither.
        """
        answer = self._ask(body)
        if self._num_refused:
            answer = self._ask(without)
        if answer.problem is not None:
            raise ScoringStoppedError(
                f"{self._engine.base_url} answers no first request ({answer.problem}); look at its log, and at model and body"
            )
        return answer.tokens is not None

    def _ask(self, body: dict[str, Any]) -> Answer:
        """The answer of the server, after as many tries as it takes; or the problem, if it gives none."""
        data = json.dumps(body, ensure_ascii=False).encode(errors="replace")
        problem, pause = "", 0.0
        for attempt in range(self._engine.tries):
            self._wait(max(pause, self._not_before - time.monotonic()))
            reserve = self._reserve(len(data), body)
            response = None
            try:
                response = self._post(data)
            except httpx.ConnectError as error:
                self._correct(reserve, Spent())
                if not self._num_answered or attempt + 1 == self._engine.tries:
                    raise self._no_server(error) from None
            except httpx.RequestError as error:  # sent, and perhaps paid: what was reserved is spent
                problem = type(error).__name__
            else:
                if response.is_success:
                    try:
                        return self._take(response, reserve)
                    except ValueError as error:
                        problem = f"damaged answers ({str(error)[:60]})"
                else:
                    self._correct(reserve, Spent())
                    if response.status_code not in _FOR_NOW:
                        return self._refuse(response)
                    problem = f"status {response.status_code}"
            pause = self._find_pause(attempt, response)
        problem += f" after {self._engine.tries} tries"
        with self._lock:
            self._num_failed += 1
            is_down = self._num_failed >= _MAX_REFUSED
        if is_down or problem.startswith("status 429"):
            raise ScoringStoppedError(
                f"{self._engine.base_url} gives no answers for now ({problem}); {_GOES_ON}"
            )
        return Answer("", problem=f"no answer: {problem}")

    def _post(self, data: bytes) -> httpx.Response:
        """What the server sends back, whole. httpx's own limit is for each part of it alone."""
        deadline = time.monotonic() + self._engine.timeout
        parts = []
        with self._client.stream(
            "POST", self._url, content=data, headers={"Content-Type": "application/json"}
        ) as response:
            for part in response.iter_raw():
                parts.append(part)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole answer within {self._engine.timeout:g} s")
        return httpx.Response(response.status_code, headers=response.headers, content=b"".join(parts))

    def _take(self, response: httpx.Response, reserve: Spent) -> Answer:
        """The answer that came, counted; ValueError if it is damaged."""
        answer = read_completion(response.json())
        if answer.prompt_tokens is not None and answer.answer_tokens is not None:
            self._correct(reserve, price(self._engine, answer.prompt_tokens, answer.answer_tokens))
        with self._lock:
            self._num_answered += 1
            self._num_failed = 0
        return answer

    def _refuse(self, response: httpx.Response) -> Answer:
        url, name = self._engine.base_url, self._engine.key_env
        if response.status_code in (401, 403):
            state = "which it refuses" if os.environ.get(name) else "which is not set"
            raise ScoringStoppedError(
                f"{url} wants a key ({response.status_code}); it is read from the environment variable {name}, {state}; another "
                "one is named by ',key_env=NAME'"
            )
        with self._lock:
            self._num_refused += 1
            is_wrong = not self._num_answered and self._num_refused >= _MAX_REFUSED
        if response.status_code in _FOR_ALL or is_wrong:
            raise ScoringStoppedError(
                f"{url} refuses requests for model {self._engine.model} ({response.status_code}: "
                f"{' '.join(response.text.split())[:_SHOWN]}); check model and body"
            )
        return Answer("", problem=f"refused by the engine ({response.status_code})")

    def _no_server(self, error: Exception) -> ScoringStoppedError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return ScoringStoppedError(
            f"no server answers at {self._engine.base_url} ({reason}); start it, or name another with ',base_url=...'; {_GOES_ON}"
        )

    def _find_pause(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds until the next try: what the server says, else twice as long each time, with jitter."""
        pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt) * (0.5 + random.random() / 2)  # noqa: S311
        if response is None:
            return pause
        with contextlib.suppress(ValueError):
            said = float(response.headers.get("Retry-After", ""))
            pause = max(said, pause / 2) if 0 <= said < 3600 else pause
        if response.status_code == 429:  # all of us are too fast, not this request alone
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + pause)
        return pause

    def _wait(self, seconds: float) -> None:
        if self._closing.wait(max(seconds, 0.0)):
            raise ScoringStoppedError(f"the command was stopped; {_GOES_ON}")

    def _reserve(self, num_bytes: int, body: dict[str, Any]) -> Spent:
        cost = price(self._engine, num_bytes / CHARACTERS_PER_TOKEN, float(body.get("max_tokens") or 16))
        if self._budget is not None and not self._store.spend(self._budget, cost):
            raise ScoringStoppedError(
                f"the budget of {self._budget.text} is spent; every answer is kept, and the same command with another --budget "
                "goes on from here"
            )
        return cost

    def _correct(self, reserve: Spent, cost: Spent) -> None:
        if self._budget is not None:
            self._store.spend(self._budget, cost - reserve, at_most=False)
