"""What the package costs to import, and what its public names say of themselves."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

import tokconv

HEAVY = {"ray", "mlflow", "optuna", "transformers", "torch", "pandas", "matplotlib", "sklearn", "skimage"}


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


LIGHT = ["tokconv", "tokconv.errors", "tokconv.config.tree", "tokconv.config.overrides", "tokconv.training.runtime"]


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert "tokconv" in loaded
    assert not loaded & HEAVY


PUBLIC = {
    "tokconv": [name for name in tokconv.__all__ if name != "__version__"],
    "tokconv.encoding.pipeline": ["encode"],
    "tokconv.exports.artefact": ["export", "load_decoder"],
    "tokconv.hf": ["TokconvModel"],
    "tokconv.integrations.llava": ["attach"],
    "tokconv.config.overrides": ["compose"],
    "tokconv.store.reader": ["TokenStore.open"],
    "tokconv.sweep": ["load"],
    "tokconv.training.loop": ["run_trial"],
}
SHAPELESS = ("compose", "encode", "export", "load", "run_trial")
"""They take and give no tensors."""


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_public_names_say_shapes_errors_and_an_example(module: str, name: str) -> None:
    text = inspect.getdoc(attrgetter(name)(importlib.import_module(module))) or ""
    assert "Raises:" in text
    assert "Example:" in text
    assert "[B, " in text or "Size([" in text or name in SHAPELESS


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (tokconv.__version__, "MIT")
