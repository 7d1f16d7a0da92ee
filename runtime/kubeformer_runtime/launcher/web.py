"""The launcher's HTTP: GET /progress, /metrics and /health for the operator, POST /group for the other workers.

`GroupLink` is the other end of /group: it reports to worker 0 in a thread of its own, because looking up a
name or connecting to a worker that is not there yet may take seconds, and the launcher must not stand still.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kubeformer_runtime.launcher.group import Order, Report
from kubeformer_runtime.launcher.record import prometheus

_MAX_BODY_BYTES = 65536
HEALTHY_SECONDS = 60.0


class Board:
    """What the main loop shows to the HTTP threads: whole documents, replaced in one assignment."""

    def __init__(self, progress: dict[str, Any]) -> None:
        self.progress = progress
        self.beats: dict[int, float] = {}  # when each rank last spoke
        self.tick = time.monotonic()  # when the main loop last went round


class ProgressServer(ThreadingHTTPServer):
    """Serves a Board, and on worker 0 the group."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], board: Board, uid: str, hear: Callable[[Report], Order] | None
    ) -> None:
        self.board = board
        self.uid = uid
        self.hear = hear
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Listen on IPv4 too where the address is `::`, whatever the system's default."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: ProgressServer
    timeout = 10
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Progress, metrics, health."""
        board = self.server.board
        if self.path == "/progress":
            self._answer(200, json.dumps(board.progress), "application/json")
        elif self.path == "/metrics":
            ages = {rank: time.monotonic() - heard for rank, heard in board.beats.items()}
            self._answer(200, prometheus(board.progress, ages), "text/plain; version=0.0.4")
        elif self.path == "/health":
            well = time.monotonic() - board.tick < HEALTHY_SECONDS
            self._answer(200 if well else 503, "ok\n" if well else "the launcher's loop stands still\n", "text/plain")
        else:
            self._answer(404, "there are /progress, /metrics and /health\n", "text/plain")

    def do_POST(self) -> None:
        """A report of another worker."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            self._answer(413, "a report is a small JSON object\n", "text/plain")
            return
        body = self.rfile.read(int(length))
        if self.path != "/group" or self.server.hear is None:
            self._answer(404, "only worker 0 takes reports, at /group\n", "text/plain")
            return
        try:
            message = json.loads(body)
            if message["uid"] != self.server.uid:  # an address that belonged to another job's worker before
                self._answer(409, "another job's worker\n", "text/plain")
                return
            order = self.server.hear(Report.from_json(message["report"]))
        except (ValueError, KeyError, TypeError) as error:
            self._answer(400, f"not a report: {error}\n", "text/plain")
            return
        self._answer(200, json.dumps(order.to_json()), "application/json")

    def _answer(self, status: int, text: str, content_type: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: there is one every few hundred milliseconds."""


class GroupLink:
    """Reports to worker 0 until closed. `ask` gives its answer to a report, once there is one."""

    def __init__(self, address: str, port: int, uid: str, interval: float = 0.3, timeout: float = 5.0) -> None:
        self._address, self._port, self._uid = address, port, uid
        self._interval, self._timeout = interval, timeout
        self._lock = threading.Condition()
        self._report: Report | None = None
        self._answer: tuple[Report, Order] | None = None
        self._closed = False
        self.heard = time.monotonic()  # when worker 0 last answered
        self.error = ""
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, report: Report) -> Order | None:
        """The newest answer to exactly this report; None while there is none."""
        with self._lock:
            if report != self._report:
                self._report = report
                self._lock.notify()
            return self._answer[1] if self._answer is not None and self._answer[0] == report else None

    def close(self) -> None:
        """Stop reporting."""
        with self._lock:
            self._closed = True
            self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._report is None or (self._answer is not None and self._answer[0] == self._report):
                    self._lock.wait(self._interval)
                if self._closed:
                    return
                report = self._report
            if report is None:
                continue
            try:
                order = self._post(report)
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                self.error = str(error) or type(error).__name__
                time.sleep(self._interval)
                continue
            with self._lock:
                self._answer = (report, order)
                self.heard = time.monotonic()
                self.error = ""

    def _post(self, report: Report) -> Order:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=self._timeout)
        try:
            body = json.dumps({"uid": self._uid, "report": report.to_json()})
            connection.request("POST", "/group", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise OSError(f"worker 0 answered {response.status}: {text.decode(errors='replace').strip()}")
            return Order.from_json(json.loads(text))
        finally:
            connection.close()
