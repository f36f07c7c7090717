"""What answers for a judge: an OpenAI-compatible server, reached through a courier; local engines are in `local.py`."""

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from phf.errors import PHFError
from phf.files import hash_json
from phf.reward_models.llm.answers import TOP
from phf.reward_models.llm.budget import Budget
from phf.reward_models.llm.prompt import Message
from phf.reward_models.llm.rubric import EngineSettings
from phf.reward_models.llm.store import AnswerStore
from phf.reward_models.protocol import ScoringStoppedError

if TYPE_CHECKING:
    from phf.reward_models.llm.sender import Sender

Request = tuple[str, list[Message]]
"""The key under which an answer is kept, and the conversation that asks for it."""


class Engine(Protocol):
    """Answers requests, and keeps each answer in a store as it comes.

    Attributes:
        gives_logprobs: of the tokens it writes.
        revision: of the model, as far as it is known.
    """

    gives_logprobs: bool
    revision: str | None

    def answer(
        self, requests: Sequence[Request], max_tokens: int, store: AnswerStore
    ) -> Iterator[tuple[str, str | None]]:
        """Keys as their answers have come to the store, each with the problem if none will.

        Raises:
            ScoringStoppedError: no answers can be had any more.
        """
        ...


class ServerEngine:
    """A model behind the chat completions of an OpenAI-compatible server."""

    def __init__(self, settings: EngineSettings, store: AnswerStore) -> None:
        """Find out whether the server gives log-probabilities, once for each server and model.

        Raises:
            ScoringStoppedError: there is no server, the key is refused, or it gives none though `logprobs` is required.
        """
        self._settings = settings
        self.budget: Budget | None = None
        self.revision = settings.revision
        self.gives_logprobs = settings.logprobs != "never" and self._probe(store)

    def answer(
        self, requests: Sequence[Request], max_tokens: int, store: AnswerStore
    ) -> Iterator[tuple[str, str | None]]:
        """See `Engine.answer`."""
        waiting = iter(requests)
        num_open = 0
        with _Courier(self._settings, store.path.parent, self.budget) as courier:
            while True:
                while num_open < self._settings.concurrency and (request := next(waiting, None)) is not None:
                    courier.send(request[0], self._build_body(request[1], max_tokens))
                    num_open += 1
                if num_open == 0:
                    return
                line = courier.receive()
                num_open -= 1
                yield line["key"], line["problem"]

    def _build_body(self, messages: list[Message], max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": self._settings.temperature,
        }
        if self.gives_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP}
        laid = {**body, **self._settings.body}
        return {key: value for key, value in laid.items() if value is not None}

    def _probe(self, store: AnswerStore) -> bool:
        key = hash_json(["logprobs", self._settings.base_url, self._settings.model, self._settings.body])
        if (known := store.find_fact(key)) is None:
            self.gives_logprobs = True
            body = self._build_body([{"role": "user", "content": "Answer with 1."}], 1)
            with contextlib.closing(_create_sender(self._settings, store)) as sender:
                known = "yes" if sender.probe(body) else "no"
            store.keep_fact(key, known)
        if known == "no" and self._settings.logprobs == "required":
            raise ScoringStoppedError(
                f"{self._settings.base_url} gives no log-probabilities for {self._settings.model}; leave logprobs out to score "
                "by the number that is written"
            )
        return known == "yes"


def _create_sender(settings: EngineSettings, store: AnswerStore) -> "Sender":
    try:
        from phf.reward_models.llm.sender import Sender
    except ModuleNotFoundError:
        raise PHFError("a server as judge needs httpx; run: pip install 'phf[llm]'") from None
    return Sender(settings, store)


class _Courier:
    """The other end of `phf.reward_models.llm.courier`."""

    def __init__(self, settings: EngineSettings, folder: Path, budget: Budget | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "phf.reward_models.llm.courier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C, or a kill of the group, is not for it
        )
        self._write(
            {
                "engine": settings.model_dump(),
                "folder": str(folder),
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

    def send(self, key: str, body: dict[str, Any]) -> None:
        """Hand a request over."""
        self._write({"key": key, "body": body})

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

    def _write(self, line: dict[str, Any]) -> None:
        pipe = self._pipe(self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # `receive` says why
            pipe.write(json.dumps(line) + "\n")
            pipe.flush()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe
