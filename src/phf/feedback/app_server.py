"""Serving a page of ours (extra `app`): to this machine alone unless asked, and with nothing from or to any other."""

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from socket import AddressFamily, create_server
from threading import Event
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from phf.errors import PHFError

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
# Nothing may be fetched from, or sent to, another machine: Gradio's page itself names some.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'"

# What the pages ask for. Gradio has many more routes, among them uploads, files of this machine and a proxy.
_READ = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|(assets|static|svelte)/.*)?"
    r"|/gradio_api/(info|startup-events|app_id|theme\.css|queue/data|heartbeat/[^/]+)"
)
_WRITE = re.compile(r"/gradio_api/(queue/join|cancel|reset)")
_MAX_BODY = 1 << 20
"""Bytes of a request: a prompt or a query is far shorter."""


def import_gradio() -> ModuleType:
    """Gradio, its reports home turned off.

    Raises:
        PHFError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError:
        raise PHFError("a page in the browser needs Gradio; run: pip install 'phf[app]'") from None
    return gradio


def check_address(host: str, port: int) -> None:
    """Check that a page can be served there; Gradio itself would try for ten seconds.

    Raises:
        PHFError: the port is taken or not allowed; the host is not this machine.
    """
    if not 0 <= port < 1 << 16:
        raise PHFError(f"port {port} does not exist; give one from 1024 to 65535 with --port")
    family = AddressFamily.AF_INET6 if ":" in host else AddressFamily.AF_INET
    try:
        create_server((host, port), family=family).close()
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0  # below 0: of the look-up of a name
        reason = (os.strerror(number) if number > 0 else str(error)).lower()
        if is_loopback(host):
            raise PHFError(f"port {port} cannot be used ({reason}); give another one with --port") from None
        raise PHFError(
            f"{host} port {port} cannot be used ({reason}); give an address of this machine with --host, another port "
            "with --port, or leave --host out"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve_app(
    build: Callable[[], "gr.Blocks"],
    *,
    port: int,
    say: Callable[[str], None],
    css: str,
    head: str = "",
    verb: str,
    host: str = HOST,
) -> None:
    """Serve a page until Ctrl-C.

    Args:
        css, head: its style, and what else goes into its head.
        verb: what people do there, for the line that names the address.
        host: another one than `HOST` is said with a warning: the page asks for no password.

    Raises:
        PHFError: see `check_address`; Gradio is not installed.
    """
    check_address(host, port)
    gradio = import_gradio()
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    name = f"[{host}]" if ":" in host else host
    middleware = [Middleware(_PolicyHeader)]
    if is_loopback(host):
        # Another site's page must not get here by a name of its own that leads to this machine.
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", HOST, name]))
    else:
        say(
            f"warning: --host {host} shows this page to everybody who can reach that address, without a password: they "
            "read the text, write with the model and store labels"
        )
    fonts = ["system-ui", "sans-serif"]  # names: Gradio's own would come from Google
    app = build()
    try:
        server, address, _ = app.launch(
            server_name=name, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            footer_links=[], theme=gradio.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
            css=css, head=head, app_kwargs={"middleware": middleware},
        )  # fmt: skip
        # Outside of all that Gradio put around the app: its CORS answers every port of this machine.
        server.middleware_stack = _Guard(server.middleware_stack or server.build_middleware_stack())
        say(f"{verb} in the browser at {address}  (Ctrl-C ends)")
        Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        app.close(verbose=False)


class _Guard:
    """Answers the page that came from here, and of Gradio's routes those that it needs."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        refusal = _refuse(scope) if scope["type"] == "http" else 403
        if refusal is not None:
            answer = PlainTextResponse("not for this page\n", refusal)
            return await answer(scope, receive, send)
        return await self.app(scope, receive, send)


def _refuse(scope: "Scope") -> int | None:
    """The status that a request is refused with; None if it is answered."""
    from starlette.datastructures import Headers

    headers, path, is_write = Headers(scope=scope), scope["path"], scope["method"] == "POST"
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    is_ours = origin is None or urlsplit(origin).netloc == headers.get("host")
    if not is_ours or (site not in ("same-origin", "none") and path != "/"):  # a link may lead to the page
        return 403
    if scope["method"] not in ("GET", "HEAD", "POST") or not (_WRITE if is_write else _READ).fullmatch(path):
        return 404
    length = headers.get("content-length", "")
    if is_write and not (
        length.isascii() and length.isdecimal() and len(length) < 10 and int(length) <= _MAX_BODY
    ):
        return 413 if length else 411
    return None


class _PolicyHeader:
    """Puts the content security policy on every answer."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def send_with_policy(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)
