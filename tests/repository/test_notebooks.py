"""Every notebook runs from the first cell to the last, is stored with its outputs, and uses only public names."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

import tokconv

ROOT = Path(tokconv.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
USED = {*tokconv.__all__, "__file__", "hf", "integrations", "kind"}
"""The public names, and the tag `tokconv.kind` of MLflow's runs."""


MOST_BYTES = 60_000
"""Of a stored notebook, which a diff still bears."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_as_it_ran_and_uses_the_public_api(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # From the first to the last, in a new kernel: tools/run_notebooks.py.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert cells[-1].outputs
    for cell in cells:
        assert not re.search(r"(from|import) tokconv\.(?!hf\b|integrations\b)", cell.source)
        assert set(re.findall(r"(?<!import )\btokconv\.(\w+)", cell.source)) <= USED
        for output in cell.outputs:
            assert output.output_type != "error"
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(r"/(tmp|home|root|var|work|Users)/", text), "a path of the machine"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All notebooks run in one folder, as a person runs them: they share a store, and nothing else collides."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Jupyter warns
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its shell lines must find the tokconv of this environment, from a directory outside the repository.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.syspath_prepend(ROOT / "tools")
    notebook = importlib.import_module("run_notebooks").run(path, folder)
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "Traceback" not in printed
    assert not re.search(r"\x1b\[\d*[A-K]", printed), "cursor movements, which a notebook would show as lines"
    assert "tokconv: " not in printed, printed
