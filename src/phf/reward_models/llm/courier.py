"""A process of its own that sends requests for another: when that one is killed, what is on its way still arrives and is kept.

Lines of JSON. It reads the engine and the budget, then requests `{"key", "body"}` as they may be sent; it writes `{"key", "problem"}`
when an answer is in the store (or will not come), or `{"stop"}` with the reason why none can be sent any more. When the other
end is closed it sends nothing more, not even a request that a busy server wants to have again.
"""

import contextlib
import json
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from phf.config.budget import Budget
from phf.config.judges import EngineSettings
from phf.errors import PHFError
from phf.reward_models.llm.sender import Sender
from phf.reward_models.llm.store import AnswerStore


def main() -> None:
    """Send what comes in, until nothing more comes; then wait for what is on its way."""
    first = json.loads(sys.stdin.readline())
    engine = EngineSettings.model_validate(first["engine"])
    budget = None if first["budget"] is None else Budget(**first["budget"])
    requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    closing = threading.Event()
    lock = threading.Lock()

    def report(**line: object) -> None:
        # Perhaps nobody listens any more; the answers are kept all the same.
        with lock, contextlib.suppress(BrokenPipeError, ValueError):
            print(json.dumps(line), flush=True)

    def send(sender: Sender) -> None:
        while (request := requests.get()) is not None and not closing.is_set():
            try:
                report(key=request["key"], problem=sender.fetch(request["key"], request["body"]))
            except PHFError as error:
                report(stop=str(error))
            except BaseException as error:
                report(stop=f"the courier failed ({type(error).__name__}: {error})")
                raise

    try:
        store = AnswerStore(Path(first["folder"]))
        sender = Sender(engine, store, budget, closing)
    except PHFError as error:
        report(stop=str(error))
        return
    threads = [threading.Thread(target=send, args=(sender,)) for _ in range(engine.concurrency)]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        requests.put(json.loads(line))
    closing.set()
    for _ in threads:
        requests.put(None)
    for thread in threads:
        thread.join()
    sender.close()
    store.close()


if __name__ == "__main__":
    main()
