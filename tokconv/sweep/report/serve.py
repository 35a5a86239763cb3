"""The page of a sweep on a port of this machine: made again whenever the record has grown, while the sweep runs."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from tokconv.errors import TokconvError
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.record.layout import SweepDirectory

REFRESH_SECONDS = 20
"""After how long a browser asks again while the sweep runs."""


class ReportServer(ThreadingHTTPServer):
    """Serves the page of one sweep on 127.0.0.1.

    Args:
        directory: the sweep, running or not.
        port: a free one; 0 for any.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, directory: SweepDirectory, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self._directory, self._lock = directory, Lock()
        self._size, self._page, self._running = -1, "", True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def current(self) -> tuple[str, bool]:
        """Return the page as the record stands, and whether the sweep runs.

        Raises:
            SweepError, SpecError: the sweep cannot be read.
        """
        # Imported here: what the page imports takes a second, and the server answers before that.
        from tokconv.sweep.report.page import page

        with self._lock:
            size = self._directory.events.stat().st_size
            # The end of a sweep's process adds no event, so a page of a running sweep is asked for its state as well.
            if size != self._size or self._running:
                sweep = read_sweep(self._directory)
                running = sweep.state == "running"
                if size != self._size or running != self._running:
                    self._page = page(sweep)
                self._size, self._running = size, running
            return self._page, self._running


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        # A foreign page whose name is made to point here must not read what is served.
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            self._send()

    def _send(self) -> None:
        try:
            page, running = self.server.current()
            status, kind = 200, "text/html"
        except (TokconvError, OSError) as error:
            page, running, status, kind = f"{error}\n", True, 503, "text/plain"
        body = page.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if running:
            self.send_header("Refresh", str(REFRESH_SECONDS))
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            # The browser was closed or has loaded the page again; there is nobody to tell.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal shows the address, not every request."""
