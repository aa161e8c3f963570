"""An OpenAI-compatible endpoint on this machine, which misbehaves as a test wants it to."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class FakeEndpoint:
    """What a server does with each request: the script's behaviours first, then what its judge says.

    Attributes:
      script: behaviours of the next requests, in order.
      judge: text for a request's body.
      requests: bodies of all requests so far.
      headers: of all requests so far.
    """

    def __init__(self, url: str, script: tuple[Behaviour, ...], judge: Callable[[dict], str]):
        self.url, self.script, self.judge = url, list(script), judge
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def says(text: str | None, usage: dict[str, int] | None = None) -> Behaviour:
    """A chat completion."""
    value: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if usage is not None:
        value["usage"] = usage
    return lambda handler: send(handler, 200, json.dumps(value).encode())


def fails(status: int, message: str = "", code: str | None = None, **headers: str) -> Behaviour:
    """An error with a message; `Retry_After` becomes Retry-After."""
    content = json.dumps({"error": {"message": message, "code": code}}).encode()
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: send(handler, status, content, shown)


def garbage(content: bytes, status: int = 200) -> Behaviour:
    return lambda handler: send(handler, status, content)


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    """The connection is closed without an answer."""
    handler.close_connection = True


def sleeps(seconds: float) -> Behaviour:
    return lambda handler: time.sleep(seconds)


def drips(handler: BaseHTTPRequestHandler) -> None:
    """An answer whose bytes come one after the other, without end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


@contextmanager
def endpoint(*script: Behaviour, judge: Callable[[dict], str] = lambda body: "Rating: [[7]]"):
    """A server of its own, which ends with the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                fake.requests.append(body)
                fake.headers.append(dict(self.headers))
                behaviour = fake.script.pop(0) if fake.script else None
            if behaviour is None:
                behaviour = says(fake.judge(body), {"prompt_tokens": 100, "completion_tokens": 10})
            try:
                behaviour(self)
            except OSError:
                self.close_connection = True

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = FakeEndpoint(f"http://127.0.0.1:{server.server_port}/v1", script, judge)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
