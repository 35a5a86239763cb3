"""A directory mirrored to object storage: what arrives, in which order, and after a server was away."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.objects import URL, ObjectServer

from tokconv.errors import StorageError
from tokconv.system.mirror import Mirror, fetch_log
from tokconv.system.storage import Remote

pytestmark = pytest.mark.filterwarnings("ignore")  # from botocore, in its own threads


def test_a_mirror_follows_its_directory(server: ObjectServer, tmp_path: Path) -> None:
    work, remote = tmp_path / "work", Remote(f"{URL}/mirrored")
    (work / "report").mkdir(parents=True)
    lines = [b"%d\n" % number for number in range(300_000)]
    (work / "log").write_bytes(b"".join(lines) + b"torn")
    (work / "report" / "a").write_text("one")
    (work / "position").write_text("17")

    def ship() -> None:
        files = lambda: [f"report/{path.name}" for path in (work / "report").iterdir()]  # noqa: E731
        with Mirror(work, remote, files=files, logs=["log"], positions=["position"], digests=True):
            pass

    ship()
    assert fetch_log(remote, "log") == b"".join(lines)
    assert set(remote.files()) == {"log/00000", "log/00001", "position", "report/a", "report/a.sha256"}
    with (work / "log").open("ab") as log:
        log.write(b" no more\n")
    (work / "report" / "a").unlink()
    (work / "report" / "b").write_text("two")
    ship()
    assert fetch_log(remote, "log") == (work / "log").read_bytes()
    assert {name for name in remote.files() if name.startswith("report")} == {"report/b", "report/b.sha256"}


def test_files_arrive_before_the_log_lines_that_mention_them(tmp_path: Path) -> None:
    work, remote = tmp_path / "work", Remote(f"file://{tmp_path}/there")
    work.mkdir()
    (work / "picture").write_text("a picture")
    (work / "log").write_text("the picture is drawn\n")
    seen: list[bool] = []

    def files() -> list[str]:
        seen.append((remote / "log" / "00000").read() is None)
        return ["picture"]

    with Mirror(work, remote, files=files, logs=["log"]):
        pass
    assert seen[0]
    assert fetch_log(remote, "log") == b"the picture is drawn\n"


def test_a_server_that_is_away_holds_nothing_up_and_misses_nothing(server: ObjectServer, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"1\n")
    said: list[str] = []
    server.stop()
    mirror = Mirror(tmp_path, Remote(f"{URL}/away"), files=lambda: [], logs=["log"], on_message=said.append)
    with pytest.raises(StorageError, match=f"not everything arrived .*kept in {tmp_path}, and --resume uploads it"):
        mirror.close(8)
    assert len(said) == 1
    server.start()
    with Mirror(tmp_path, Remote(f"{URL}/away"), files=lambda: [], logs=["log"]):
        pass
    assert fetch_log(Remote(f"{URL}/away"), "log") == b"1\n"
