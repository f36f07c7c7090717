"""A judge behind an OpenAI-compatible server, reached through a courier; judges on this machine are in `local.py`."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import IO, Any

from phf.config.budget import Budget
from phf.config.judges import EngineSettings
from phf.files import hash_json
from phf.reward_models.llm.answers import TOP
from phf.reward_models.llm.prompt import Message, Request
from phf.reward_models.llm.store import AnswerStore
from phf.reward_models.protocol import ScoringStoppedError

_ASKS = ContextVar("asks", default=True)


def may_ask() -> bool:
    """Whether this is not inside `ask_nothing`."""
    return _ASKS.get()


@contextlib.contextmanager
def ask_nothing() -> Iterator[None]:
    """Inside, no judge asks for an answer, nor a new one whether its server gives log-probabilities, which it supposes."""
    token = _ASKS.set(False)
    try:
        yield
    finally:
        _ASKS.reset(token)


class ServerEngine:
    """A model behind the chat completions of an OpenAI-compatible server.

    Attributes:
        budget: what its answers may cost.
        gives_logprobs: of the tokens it writes.
        revision: of the model, if somebody has said it.
    """

    def __init__(self, settings: EngineSettings, store: AnswerStore) -> None:
        """Find out whether the server gives log-probabilities, once for each server and model.

        Raises:
            ScoringStoppedError: there is no server, the key is refused, or it gives none though `logprobs` is required.
        """
        self._settings = settings
        self.budget: Budget | None = None
        self.revision = settings.revision
        self.gives_logprobs = settings.logprobs != "never" and self._find_logprobs(store)

    def answer(
        self, requests: Sequence[Request], max_tokens: int, store: AnswerStore
    ) -> Iterator[tuple[str, str | None]]:
        """Keys as their answers have come to the store, each with the problem if none will.

        Raises:
            ScoringStoppedError: no answers can be had any more.
        """
        waiting = iter(requests)
        num_open = 0
        with _Courier(self._settings, store, self.budget) as courier:
            while True:
                while num_open < self._settings.concurrency and (request := next(waiting, None)) is not None:
                    body = self._build_body(request[1], max_tokens, logprobs=self.gives_logprobs)
                    courier.send({"key": request[0], "body": body})
                    num_open += 1
                if num_open == 0:
                    return
                line = courier.receive()
                num_open -= 1
                yield line["key"], line["problem"]

    def _build_body(self, messages: list[Message], max_tokens: int, *, logprobs: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": self._settings.temperature,
            **({"logprobs": True, "top_logprobs": TOP} if logprobs else {}),
            **self._settings.body,
        }
        return {key: value for key, value in body.items() if value is not None}

    def _find_logprobs(self, store: AnswerStore) -> bool:
        settings = self._settings
        key = hash_json(["logprobs", settings.base_url, settings.model, settings.body])
        known = store.find_fact(key)
        if not may_ask():
            return known != "no"
        if known is None or (known == "no" and settings.logprobs == "required"):
            from phf.reward_models.llm.sender import Sender

            question: list[Message] = [{"role": "user", "content": "Answer with 1."}]
            bodies = [self._build_body(question, 1, logprobs=logprobs) for logprobs in (True, False)]
            with contextlib.closing(Sender(settings, store)) as sender:
                known = "yes" if sender.probe(*bodies) else "no"
            store.keep_fact(key, known)
        if known == "no" and settings.logprobs == "required":
            raise ScoringStoppedError(
                f"{settings.base_url} gives no log-probabilities for {settings.model}; leave logprobs out to score "
                "by the number that is written"
            )
        return known == "yes"


class _Courier:
    """The other end of `phf.reward_models.llm.courier`."""

    def __init__(self, settings: EngineSettings, store: AnswerStore, budget: Budget | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "phf.reward_models.llm.courier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C, or a kill of the group, is not for it
        )
        self.send(
            {
                "engine": settings.model_dump(),
                "folder": str(store.path.parent),
                "budget": None if budget is None else dataclasses.asdict(budget),
            }
        )

    def __enter__(self) -> "_Courier":
        return self

    def __exit__(self, *_: object) -> None:
        """Let it finish what is on its way, which is paid for."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe(self._process.stdin).close()
        for _line in self._pipe(self._process.stdout):
            pass
        self._process.wait()
        self._pipe(self._process.stdout).close()

    def send(self, line: dict[str, Any]) -> None:
        """Hand a request over."""
        pipe = self._pipe(self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # `receive` says why
            pipe.write(json.dumps(line) + "\n")
            pipe.flush()

    def receive(self) -> dict[str, Any]:
        """The next request that is done with.

        Raises:
            ScoringStoppedError: none can be sent any more, or the courier was killed.
        """
        text = self._pipe(self._process.stdout).readline()
        if not text:
            raise ScoringStoppedError(
                f"the process that sends requests has ended ({self._process.wait()}); every answer that came is kept, and the "
                "same command goes on from here"
            )
        line: dict[str, Any] = json.loads(text)
        if "stop" in line:
            raise ScoringStoppedError(line["stop"])
        return line

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe
