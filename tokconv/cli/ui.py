"""`tokconv ui`: a sweep in the browser, its trials in MLflow or its page, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tokconv.cli.options import Commands, command
from tokconv.errors import ConfigError, SweepError, import_extra, printable

if TYPE_CHECKING:
    from tokconv.sweep.record.layout import SweepDirectory

Announce: TypeAlias = Callable[[str, str], None]
"""Told what is served, and its URL."""
LAST_PORT = 65_535


def add_ui(commands: Commands) -> None:
    parser = command(
        commands,
        "ui",
        "open a sweep in the browser: its trials in MLflow, or its page",
        "tokconv ui",
        "tokconv ui demo --report",
    )
    parser.add_argument("name", nargs="?", help="as for status (default: the sweep with the newest event)")
    parser.add_argument(
        "--report", action="store_true", help="the page instead of MLflow; it follows a sweep that is running"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of this machine (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("--storage", default="runs", help="the spec's storage (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C, which leaves no process behind. Raises ConfigError, SweepError."""
    from tokconv.sweep.judge.snapshot import all_sweeps, find_sweep

    if not 0 <= args.port <= LAST_PORT:
        raise ConfigError(f"--port: got {args.port}; must be from 1 to {LAST_PORT}, or 0 for a free one")
    if args.name is None:
        sweeps = all_sweeps(args.storage)
        if not sweeps:
            raise SweepError(f"{args.storage}: holds no sweep; tokconv sweep sweeps/demo.yaml starts one")
        directory = max(sweeps, key=lambda found: found.events.stat().st_mtime)
    else:
        directory = find_sweep(args.name, args.storage)

    def announce(what: str, url: str) -> None:
        print(f"{printable(directory.name)}: {what}: {url}", flush=True)
        if args.no_browser or not _has_display():
            host, port = socket.gethostname(), url.split(":")[2].split("/")[0]
            print(f"Ctrl-C ends it; from another machine: ssh -N -L {port}:127.0.0.1:{port} {host}", flush=True)
        else:
            print("Ctrl-C ends it", flush=True)
            webbrowser.open(url)

    # Whoever ends this command from outside must not leave its server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        (_serve_report if args.report else _serve_mlflow)(directory, args, announce)
    except KeyboardInterrupt:
        print("ended", flush=True)


def _serve_report(directory: SweepDirectory, args: argparse.Namespace, announce: Announce) -> None:
    from tokconv.sweep.report.serve import ReportServer

    import_extra("plotly", "sweep")
    try:
        server = ReportServer(directory, args.port)
    except OSError as error:
        raise SweepError(f"port {args.port}: cannot be used ({error.strerror}); leave out --port") from error
    with server:
        announce("its page", server.url)
        server.serve_forever()


def _serve_mlflow(directory: SweepDirectory, args: argparse.Namespace, announce: Announce) -> None:
    from tokconv.sweep.judge.snapshot import recorded_spec
    from tokconv.sweep.tracking.mlflow_connection import is_local, tracking_uri
    from tokconv.sweep.tracking.mlflow_ui import mlflow_server, views_of
    from tokconv.system.uris import without_credentials

    spec, root = recorded_spec(directory), directory.path.parents[1]
    uri, experiment = tracking_uri(spec.tracking.uri, root), spec.tracking.experiment or spec.name
    if not is_local(uri):
        for what, view in views_of(uri, experiment).items():
            print(f"{printable(directory.name)}: {what}: {without_credentials(uri).rstrip('/')}{view}")
        return
    print("MLflow's server starts, which takes a few seconds ...", flush=True)
    (first, path), *others = views_of(uri, experiment).items()
    with mlflow_server(uri, root, args.port or _free_port()) as address:
        for what, view in others:
            print(f"{printable(directory.name)}: {what}: {address}{view}")
        announce(first, f"{address}{path}")
        threading.Event().wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _has_display() -> bool:
    """Return whether a browser can open a window here; one in the terminal would be in the way."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
