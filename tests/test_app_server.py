"""What the server of our pages answers: its own page, and nothing to others; with real requests to `phf label --app`."""

import http.client
import importlib.util
import json
import signal
import socket

import pytest
from command_processes import start_command, wait_for_page

from phf.corpus.store import build_corpus

if importlib.util.find_spec("gradio") is None:  # importing it takes seconds, and only the server needs it
    pytest.skip("gradio is not installed", allow_module_level=True)
JOIN = "/gradio_api/queue/join"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"Text number {n}."}) + "\n" for n in range(40))
    )
    corpus = build_corpus([str(folder / "t.jsonl")], folder / "corpus", validation_fraction=0).path
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    server = start_command("label", corpus, "-o", folder / "l.jsonl", "--app", "--port", number)
    wait_for_page(server)
    yield number
    server.send_signal(signal.SIGINT)
    assert server.finish()[0] == 0


def ask(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def press(port, **headers):
    """What the button `b` sends."""
    body = json.dumps({"data": [0], "fn_index": 1, "session_hash": "abc"})
    return ask(port, "POST", JOIN, body, Content_Type="application/json", **headers)[0]


def test_the_page_and_its_own_requests_are_answered(port):
    for path in ("/", "/config", "/gradio_api/startup-events"):
        assert ask(port, "GET", path)[0] == 200, path
    own = f"http://127.0.0.1:{port}"
    assert press(port, Origin=own, Sec_Fetch_Site="same-origin") == 200
    assert press(port, Origin=f"http://localhost:{port}", Host=f"localhost:{port}") == 200, (
        "by its other name"
    )
    assert ask(port, "GET", "/", Sec_Fetch_Site="cross-site")[0] == 200, "a link leads here"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost:9999", "http://127.0.0.1:1", "null", "x", ""]
)
def test_a_page_of_another_origin_is_refused(port, origin):
    assert press(port, Origin=origin) == 403
    assert ask(port, "GET", "/config", Origin=origin)[0] == 403
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    status, headers = ask(port, "OPTIONS", JOIN, Origin=origin, **asked)
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control")]


def test_another_site_gets_nothing_that_names_no_origin_either(port):
    for site in ("cross-site", "same-site"):
        assert ask(port, "GET", "/config", Sec_Fetch_Site=site)[0] == 403
        assert press(port, Sec_Fetch_Site=site) == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/upload"),
        ("GET", "/gradio_api/file=/etc/hostname"),
        ("HEAD", "/gradio_api/file=/etc/hostname"),
        ("GET", "/gradio_api/proxy=http://example.org"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/stream/a/b/c/playlist.m3u8"),
        ("POST", "/gradio_api/call/show"),
        ("POST", "/gradio_api/run/show"),
        ("POST", "/gradio_api/api/show"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
        ("DELETE", JOIN),
    ],
)
def test_what_no_tab_uses_is_closed(port, method, path):
    assert ask(port, method, path, "{}" if method == "POST" else None)[0] == 404


def test_a_request_has_a_bound(port):
    assert ask(port, "POST", JOIN, b" " * ((1 << 20) + 1))[0] == 413
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"POST {JOIN} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 411"), (
            "of a length that is not said nothing is read"
        )
