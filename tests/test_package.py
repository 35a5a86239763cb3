"""What the package costs to import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"ray", "mlflow", "optuna", "transformers", "torch", "pandas", "matplotlib", "sklearn", "skimage"}


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


LIGHT = ["tokconv", "tokconv.errors", "tokconv.config", "tokconv.overrides", "tokconv.runtime"]


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert "tokconv" in loaded
    assert not loaded & HEAVY
