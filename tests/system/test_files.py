"""Files appear whole or not at all; every run gets its own number."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import save_file

from tokconv.errors import SweepError
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.remote import Root
from tokconv.system.files import atomic_path, new_numbered, newest_numbered, text_lines, write_json, write_text


def names(directory: Path) -> list[str]:
    """Return the names of everything below a directory, including hidden leftovers."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_concurrent_threads_get_different_numbers(tmp_path: Path) -> None:
    count = 16
    barrier = Barrier(count)

    def create(_: int) -> Path:
        barrier.wait()
        return new_numbered(tmp_path / "sweeps", "demo")

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(create, range(count)))
    assert len(set(found)) == count
    assert all(path.is_dir() for path in found)
    assert newest_numbered(tmp_path / "sweeps", "demo") in found


def test_numbers_continue_after_the_highest_of_the_same_name(tmp_path: Path) -> None:
    assert newest_numbered(tmp_path / "none", "demo") is None
    for name in ("demo-002", "demo-1000", "demo-03", "demo-x-2000", "demo-extra-4000", "xdemo-5000", "d.mo-001"):
        (tmp_path / name).mkdir()
    (tmp_path / "demo-7000").write_text("a file is no run")
    assert newest_numbered(tmp_path, "demo") == tmp_path / "demo-1000"
    assert new_numbered(tmp_path, "demo").name == "demo-1001"
    assert new_numbered(tmp_path, "d.mo").name == "d.mo-002"
    assert new_numbered(tmp_path, "fresh").name == "fresh-001"


def test_the_newest_sweep_is_the_one_created_last(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no run of 'demo'"):
        Root(tmp_path).newest("demo")
    created = [Root(tmp_path).new("demo") for _ in range(3)]
    assert [found.name for found in created] == ["demo-001", "demo-002", "demo-003"]
    assert Root(tmp_path).newest("demo") == created[-1]


def test_a_locked_sweep_refuses_a_second_driver(tmp_path: Path) -> None:
    directory = Root(tmp_path).new("demo")
    other = "import sys; from pathlib import Path; from tokconv.sweep.record.layout import SweepDirectory\n"
    other += "with SweepDirectory(Path(sys.argv[1])).lock(): pass"

    def second_process() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", other, str(directory.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with directory.lock():
        with pytest.raises(SweepError, match="another process"), SweepDirectory(directory.path).lock():
            pass
        refused = second_process()
    assert refused.returncode != 0
    assert "another process is running this sweep" in refused.stderr
    assert second_process().returncode == 0
    with directory.lock(), Root(tmp_path).new("demo").lock():
        pass


def test_an_error_under_the_lock_is_passed_on_and_frees_the_lock(tmp_path: Path) -> None:
    directory = Root(tmp_path).new("demo")
    with pytest.raises(TimeoutError, match="mine"), directory.lock():
        raise TimeoutError("mine")
    with directory.lock():
        pass


def test_a_file_replaces_the_older_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert names(tmp_path) == ["new", "new/file.txt"]


def test_a_directory_replaces_the_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for name in ("old", "new"):
        with atomic_path(path) as temporary:
            (temporary / "sub").mkdir(parents=True)
            (temporary / "sub" / name).write_text(name)
    assert names(tmp_path) == ["out", "out/sub", "out/sub/new"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("directory", [True, False])
def test_tensors_can_be_read_by_all_who_can_read_a_new_file(tmp_path: Path, umask: int, directory: bool) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "out") as temporary:
            if directory:
                temporary.mkdir()
            save_file({"x": torch.zeros(1)}, temporary / "x" if directory else temporary)
    finally:
        os.umask(before)
    assert names(tmp_path) == (["out", "out/x"] if directory else ["out"])
    written = tmp_path / "out" / "x" if directory else tmp_path / "out"
    assert written.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("directory", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_everything_is_as_before(
    tmp_path: Path, old: bool, directory: bool, error: type[BaseException]
) -> None:
    path = tmp_path / "out"

    def write(place: Path, text: str) -> None:
        if directory:
            place.mkdir()
            (place / text).write_text(text)
        else:
            place.write_text(text)

    if old:
        write(path, "old")
    before = names(tmp_path), None if directory or not old else path.read_text()

    def fail() -> None:
        with atomic_path(path) as temporary:
            write(temporary, "new")
            raise error

    with pytest.raises(error):
        fail()
    assert (names(tmp_path), None if directory or not old else path.read_text()) == before


def test_writing_nothing_is_an_error_that_keeps_the_old_file(tmp_path: Path) -> None:
    for path in (tmp_path / "file", tmp_path / "none"):
        write_text(tmp_path / "file", "old")
        with pytest.raises(FileNotFoundError), atomic_path(path):
            pass
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_never_replaces_a_directory(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious").write_text("kept")
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "runs", "text")
    assert names(tmp_path) == ["runs", "runs/precious"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_a_text_are_the_same_from_any_editor(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(f"What is it?{end}{end} Où ?{end}".encode(encoding))
    assert text_lines(tmp_path / "prompts.txt") == ["What is it?", "Où ?"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_that_not_every_reader_understands_is_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": value})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 84032 vs 83924",
        "basic_ios::clear: iostream error",
        "PytorchStreamWriter failed writing file data/0: file write failed",
    ],
)
def test_a_full_disk_is_one_error_however_torch_reports_it(tmp_path: Path, said: str) -> None:
    with pytest.raises(OSError, match="No space left on device"), atomic_path(tmp_path / "weights.pt"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), atomic_path(tmp_path / "weights.pt"):
        raise RuntimeError("the shapes do not fit")
    assert not list(tmp_path.iterdir())
