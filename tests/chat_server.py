"""A local server of chat completions that misbehaves as a test asks it to."""

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

GOOD_STEPS = (
    ("Move the open gripper over the block", "it has to be above the block to reach it"),
    ("Lower the gripper to the block", "the fingers have to be on both sides of the block"),
    ("Close the gripper around the block", "a firm hold lets the block follow the hand"),
    ("Move the block to its goal in the drawer", "the instruction asks for this change"),
)
GOOD_ANSWER = "\n".join(
    f"{number}. What: {what}. Why: {why}." for number, (what, why) in enumerate(GOOD_STEPS, 1)
)


def good_reply(body: dict[str, Any], count: int) -> str:
    """Answer well, with a text that depends on the request's seed alone."""
    digest = hashlib.sha256(str(body["seed"]).encode()).hexdigest()[:8]
    name = digest.translate(str.maketrans("0123456789", "ghijklmnop"))
    return GOOD_ANSWER.replace("a firm hold", f"a firm hold called {name}")


class Misbehaviour:
    """A status, a body and headers instead of a completion.

    Attributes:
        wait_s: before the answer, or before each of its pieces.
        pieces: sent one after another in the place of a body, until the client hangs up.
    """

    def __init__(
        self,
        status: int,
        body: str = "",
        headers: dict[str, str] | None = None,
        wait_s: float = 0,
        pieces: Sequence[bytes] = (),
    ):
        self.status, self.body, self.headers, self.wait_s = status, body, headers or {}, wait_s
        self.pieces = pieces


class ChatServer:
    """What the server does, and what it has seen.

    Attributes:
        reply: called with the request's body and the number of requests before it; returns the text
            to answer with, or a `Misbehaviour`.
        latency_s: wait before every answer.
        bodies, times, keys: of the requests so far.
        at_once: the most requests that were in work at one time.
    """

    def __init__(self, reply: Callable[[dict[str, Any], int], Any] = good_reply, latency_s=0.0):
        self.reply, self.latency_s = reply, latency_s
        self.models, self.models_status = ["tiny-vl"], 200
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.at_once = 0
        self.lock = threading.Lock()
        self._in_work = 0

    @contextmanager
    def counted(self):
        with self.lock:
            self._in_work += 1
            self.at_once = max(self.at_once, self._in_work)
        try:
            yield
        finally:
            with self.lock:
                self._in_work -= 1


def completion(text: str, finish_reason: str = "stop") -> str:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": len(text.split())}})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ChatServer

    def do_GET(self) -> None:
        names = [{"id": name} for name in self.owner.models]
        # So that a client whose server is gone has no connection left to it.
        self.close_connection = True
        headers = {"Connection": "close"}
        self._send(self.owner.models_status, json.dumps({"data": names}), headers)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        # As servers on FastAPI do, which then do not read the body at all.
        if self.headers["Content-Type"] != "application/json":
            self._send(415, "expected application/json", {})
            return
        with self.owner.lock:
            count = len(self.owner.bodies)
            self.owner.bodies.append(body)
            self.owner.times.append(time.monotonic())
            self.owner.keys.append(self.headers.get("Authorization"))
        with self.owner.counted():
            time.sleep(self.owner.latency_s)
            reply = self.owner.reply(body, count)
            if isinstance(reply, Misbehaviour) and reply.pieces:
                self._drip(reply)
            elif isinstance(reply, Misbehaviour):
                time.sleep(reply.wait_s)
                self._send(reply.status, reply.body, reply.headers)
            else:
                self._send(200, completion(reply), {})

    def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
        content = body.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _drip(self, reply: Misbehaviour) -> None:
        self.close_connection = True
        self.send_response(reply.status)
        self.end_headers()
        for piece in reply.pieces:
            time.sleep(reply.wait_s)
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _HttpServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up is what some tests are about


@contextmanager
def serving(server: ChatServer):
    """Yield the address of a server."""
    handler = type("Handler", (_Handler,), {"owner": server})
    http_server = _HttpServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http_server.server_port}/v1"
    finally:
        http_server.shutdown()
        http_server.server_close()
