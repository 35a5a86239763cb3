"""`tokconv evaluate` and `tokconv dynamic` find the token store of an export in the same places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.champions_folders import write_champions
from support.stores import write_store

from tokconv.cli.main import main
from tokconv.store.remote import stores_dir

CHAMPIONS = Path("storage/sweeps/demo-001/champions")


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKCONV_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "stores",
    [lambda: Path("runs/stores"), lambda: Path("storage/stores"), stores_dir],
    ids=["runs", "storage of the sweep", "copies of remote stores"],
)
def test_the_store_of_an_export_is_found(stores: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(stores() / "own", num_images=100)
    write_store(stores() / "another", num_images=100, seed=1)
    write_champions(CHAMPIONS, store, (2, 3))
    assert main(["evaluate", str(CHAMPIONS / "grid-02"), "--device", "cpu"]) == 0
    assert f"{Path('stores', 'own')}: held-out figures" in capsys.readouterr().out
    assert main(["dynamic", str(CHAMPIONS), "--device", "cpu"]) == 0
    assert f"{Path('stores', 'own')} (" in capsys.readouterr().out


def test_a_store_that_is_not_found_names_the_places(capsys: pytest.CaptureFixture[str]) -> None:
    write_champions(CHAMPIONS, write_store(Path("elsewhere"), num_images=100), (2, 3))
    for command in (["evaluate", str(CHAMPIONS / "grid-02")], ["dynamic", str(CHAMPIONS)]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "its token store is not below runs/stores or " in told
        assert "storage/stores; name " in told
        assert f"tokconv {' '.join(command)} STORE" in told
