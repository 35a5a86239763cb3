"""Run the notebooks and store their outputs, so that they can be read without running them.

    python tools/run_notebooks.py                  # all of them, some minutes
    python tools/run_notebooks.py quickstart

Each runs in an empty folder outside the repository; `tests/repository/test_notebooks.py` checks what is stored.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return the notebook with the outputs of a run in this folder. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def tidied(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Return the notebook without what only its run knows: warnings, times, colours, the folder, tables as HTML."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        kept: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream":
                if output.name == "stderr":
                    continue
                output.text = COLOUR.sub("", output.text).replace(f"{folder}/", "")
                if kept and kept[-1].output_type == "stream":
                    kept[-1].text += output.text
                    continue
            data = output.get("data", {})
            # The same table as text is stored beside it; a picture's text says only that there is one.
            data.pop("text/html", None)
            if "image/png" in data:
                data.pop("text/plain", None)
            kept.append(output)
        cell.outputs = kept
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", default=names, metavar="NAME", help=f"default: {', '.join(names)}")
    args = parser.parse_args(arguments)
    if unknown := {*args.names} - {*names}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; allowed: {', '.join(names)}")
    # Shell lines find the tokconv of this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names:
            path = NOTEBOOKS / f"{name}.ipynb"
            nbformat.write(tidied(run(path, Path(folder)), Path(folder)), path)
            print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
