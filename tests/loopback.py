"""A server on the loopback interface that answers HTTP requests as a test scripts it."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Reply:
    """A scripted answer: status, JSON (or raw bytes) of the body, headers, and waits before it and before its bytes."""

    body: object = None
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    pause: float = 0.0


class Server(ThreadingHTTPServer):
    """Answers with `answer(method, path, body)`, a Reply, and records the requests and their headers."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.requests, self.headers, self.stopped = answer, [], [], threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(data) if data else None
        except ValueError:
            body = data
        self.server.requests.append((self.command, self.path, body))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        reply = self.server.answer(self.command, self.path, body)
        self.server.stopped.wait(reply.delay)
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **reply.headers,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if not reply.pause:
            self.wfile.write(content)
        for byte in content if reply.pause else b"":
            if self.server.stopped.wait(reply.pause):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    do_GET = do_POST = do_DELETE = _serve

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Start a server that answers as given; stopped at the end of the test."""
    servers = []

    def start(answer):
        server = Server(answer)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stopped.set()
        server.shutdown()
        server.server_close()
