"""What is computed once beside a store: by one process, written whole, read only by the store it was computed from."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from support.stores import write_store

from tokconv.errors import StoreError
from tokconv.store.cache import JsonFigures, Rows, Tensors, computed_once
from tokconv.store.reader import TokenStore

FORM = JsonFigures("figures")
ROWS = {"pooling": {"val/fvu": 0.5}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=8).path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> TokenStore:
    return TokenStore.open(shutil.copytree(written, tmp_path / "store"))


def not_again() -> Rows:
    pytest.fail("computed again")


def test_a_second_call_reads_what_the_first_one_wrote(store: TokenStore) -> None:
    assert computed_once(store, "f.json", lambda: ROWS, FORM, origin={"version": 1}) == ROWS
    assert computed_once(store, "f.json", not_again, FORM, origin={"version": 1}) == ROWS
    content = json.loads((store.derived_dir / "f.json").read_text())
    assert content == {"version": 1, "store": store.fingerprint, "figures": ROWS}


def test_tensors_come_back_bit_for_bit(store: TokenStore) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(0.1, dtype=torch.float64)}
    for _ in range(2):
        found = computed_once(store, "t.safetensors", lambda: tensors, Tensors())
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_threads_that_ask_at_once_compute_once(store: TokenStore) -> None:
    calls: list[int] = []
    both_started = threading.Barrier(2)

    def ask() -> None:
        both_started.wait(timeout=10)
        computed_once(store, "f.json", lambda: calls.append(1) or ROWS, FORM)  # type: ignore[func-returns-value]

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert calls == [1]


def test_an_error_while_computing_leaves_no_file(store: TokenStore) -> None:
    def fail() -> Rows:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        computed_once(store, "f.json", fail, FORM)
    assert [path.name for path in store.derived_dir.iterdir()] == ["f.json.lock"]
    assert computed_once(store, "f.json", lambda: ROWS, FORM) == ROWS


def test_a_copied_folder_is_refused_by_another_store(store: TokenStore, tmp_path: Path) -> None:
    computed_once(store, "f.json", lambda: ROWS, FORM)
    other = write_store(tmp_path / "other", num_images=8, seed=1)
    shutil.copytree(store.derived_dir, other.derived_dir)
    with pytest.raises(StoreError, match=rf"f\.json: was computed from something else \(store '{store.fingerprint}'"):
        computed_once(other, "f.json", not_again, FORM)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"7", b"null"], ids=range(6))
@pytest.mark.parametrize("form", [FORM, Tensors()], ids=["json", "tensors"])
def test_a_damaged_file_is_one_sentence(store: TokenStore, form: JsonFigures | Tensors, content: bytes) -> None:
    path = store.derived_dir / "file"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"^{path}: damaged \(.+\); remove it and it is computed again$"):
        computed_once(store, "file", not_again, form)  # type: ignore[arg-type, misc]


def test_a_value_that_the_caller_rejects_is_damage(store: TokenStore) -> None:
    def reject(rows: Rows) -> None:
        raise ValueError("a row is missing")

    with pytest.raises(StoreError, match=r"damaged \(a row is missing\); remove it"):
        computed_once(store, "f.json", lambda: ROWS, FORM, check=reject)


def test_what_is_there_is_read_without_writing(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared store may be read-only."""
    computed_once(store, "f.json", lambda: ROWS, FORM)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("tokconv.store.cache.FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert computed_once(store, "f.json", not_again, FORM) == ROWS
