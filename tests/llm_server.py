"""An OpenAI-compatible server in this process: polite, or as rude as a test wants it. It counts what it answers."""

import contextlib
import hashlib
import json
import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from phf import cli
from phf.corpus.store import build_corpus

Reply = tuple[int, dict[str, str], bytes | Iterator[bytes]] | None
"""Status, headers and body, perhaps in parts; None closes the connection without a word."""
KEY = "sk-secret-of-the-test"


def read_text(body: dict[str, Any]) -> str:
    """The text between the fences of a request."""
    lines = body["messages"][-1]["content"].split("\n")
    return "\n".join(line[2:] for line in lines if line.startswith("| "))


def judge_level(text: str, num_levels: int = 5) -> int:
    """The level that the server gives a text: any, but always the same."""
    return 1 + hashlib.sha256(text.encode()).digest()[0] % num_levels


def complete(content: str, logprobs: list[dict[str, Any]] | None = None) -> Reply:
    """A chat completion."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    usage = {"prompt_tokens": 200, "completion_tokens": 1}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()


def answer_politely(body: dict[str, Any], number: int) -> Reply:
    """The level of the text, or of each axis as JSON, with log-probabilities where they are asked for: 0.8 for the level, 0.2 for
    level 1."""
    axes = re.findall(r'"(\w+)": LEVEL', body["messages"][-1]["content"])
    level = judge_level(read_text(body))
    content = json.dumps(dict.fromkeys(axes, level)) if axes else str(level)
    tokens = [
        {
            "token": character,
            "logprob": math.log(0.8),
            "top_logprobs": [
                {"token": character, "logprob": math.log(0.8)},
                {"token": "1" if character != "1" else " x", "logprob": math.log(0.2)},
            ],
        }
        for character in content
    ]
    return complete(content, tokens if body.get("logprobs") else None)


def expect_score(text: str) -> float:
    """The score of a text by `answer_politely` with log-probabilities, on a scale of 1 to 5 whose high end is bad."""
    return 0.8 * (judge_level(text) - 1) / 4


class Server:
    """A running server.

    Attributes:
        url: up to and with /v1.
        asked: how often each text was asked for, whatever came of it.
        answered: how often each text was answered with status 200.
        bodies: all requests.
        reply: what answers them.
    """

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply], key: str | None) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._num_at_once = 0
        self.reply = reply
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.asked[read_text(body)] += 1
                    number = server.asked[read_text(body)]
                    server._num_at_once += 1
                    server.most_at_once = max(server.most_at_once, server._num_at_once)
                given = server.reply(body, number)
                with lock:
                    server._num_at_once -= 1
                    if given is not None and given[0] == 200:
                        server.answered[read_text(body)] += 1
                self._send(given)

            def _send(self, given: Reply) -> None:
                if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
                    given = 401, {}, b'{"error": "no such key"}'
                if given is None:
                    self.close_connection = True
                    return
                status, headers, data = given
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    is_whole = isinstance(data, bytes)
                    first = {"Content-Length": str(len(data))} if is_whole else {"Connection": "close"}
                    for name, value in {**first, **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for part in [data] if is_whole else data:
                        self.wfile.write(part)
                    self.close_connection = not is_whole

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...  # who asked was killed

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def num_paid(self) -> int:
        """Answers that were given, without those to the question whether there are log-probabilities."""
        return sum(count for text, count in self.answered.items() if text)


@contextlib.contextmanager
def serve(
    reply: Callable[[dict[str, Any], int], Reply] = answer_politely, key: str | None = None
) -> Iterator[Server]:
    """A server for the time of a block."""
    server = Server(reply, key)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def be_rude(body: dict[str, Any], number: int) -> Reply:
    """Each text meets something else first, by its hash, and its answer at the second try; one in ten gets prose."""
    text = read_text(body)
    if not text:
        return answer_politely(body, number)
    kind = hashlib.sha256(text.encode()).digest()[1] % 10
    if kind == 0:
        return complete("I would rather talk about the weather.")
    if number > 1:
        return answer_politely(body, number)
    match kind:
        case 1:
            return None
        case 2:
            return 429, {"Retry-After": "0.1"}, b"slow down"
        case 3:
            return 500, {}, b"oops"
        case 4:
            return 503, {"Retry-After": "soon"}, b"<html>busy</html>"
        case 5:
            return 207, {}, b'{"choices": [{"mess'
        case 6:
            time.sleep(1.5)
            return 500, {}, b"too late"
        case _:
            return answer_politely(body, number)


MULTI = """
name: tone
axes:
  rude:
    question: How rude?
    bad: high
    levels: {1: none, 2: a bit, 3: some, 4: much, 5: very}
  clear:
    question: How clear?
    bad: low
    levels: {1: none, 2: a bit, 3: some, 4: much, 5: very}
  kind:
    question: How kind?
    bad: low
    levels: {1: none, 2: a bit, 3: some, 4: much, 5: very}
"""


def own_cache(folder, monkeypatch):
    """A cache folder of a test's own, and no server or key from outside."""
    monkeypatch.setenv("PHF_CACHE", str(folder / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder / "cache"


def make_corpus(folder, num_texts=40):
    texts = [f"text {number}: something to judge" for number in range(num_texts)]
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build_corpus([str(source)], folder / "corpus", validation_fraction=0), texts


def run_phf(monkeypatch, *arguments):
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["phf", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


def spec(server, rubric="toxicity", **settings):
    given = {"model": "m", "base_url": server.url, **settings}
    return f"llm:{rubric}" + "".join(f",{key}={value}" for key, value in given.items())
