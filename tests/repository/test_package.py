"""The public API: what it costs to import, what it holds, and what its names document."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

import tokconv

HEAVY = {"ray", "mlflow", "optuna", "transformers", "torch", "pandas", "matplotlib", "sklearn", "skimage"}


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


LIGHT = ["tokconv", "tokconv.errors", "tokconv.config.tree", "tokconv.config.overrides", "tokconv.training.runtime"]


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert "tokconv" in loaded
    assert not loaded & HEAVY


NAMES = {"compose", "encode", "evaluate", "export", "load_compressor", "load_decoder", "load_dynamic", "load_ragged"}
NAMES |= {"TokenStore", "sweep", "train"}


def test_the_public_names_are_listed_and_lazy() -> None:
    assert set(tokconv.__all__) == NAMES | {"__version__"}
    assert not modules_after("import tokconv; assert 'train' in dir(tokconv), dir(tokconv)") & HEAVY
    assert set(dir(tokconv)) >= NAMES
    for name in NAMES - {"sweep"}:
        assert getattr(tokconv, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tokconv.trian  # noqa: B018


def test_each_public_name_costs_only_what_it_needs() -> None:
    assert not modules_after("import tokconv; tokconv.compose") & HEAVY
    assert not modules_after("import tokconv; tokconv.load_compressor") & {"ray", "mlflow", "optuna", "transformers"}


def test_the_subpackages_and_the_registered_classes_keep_their_names() -> None:
    pytest.importorskip("ray")
    sweep, hf, llava = (importlib.import_module(f"tokconv.{name}") for name in ("sweep", "hf", "integrations.llava"))
    assert tokconv.sweep is sweep
    assert (llava.attach.__name__, llava.Attachment.__name__) == ("attach", "Attachment")
    config = transformers.AutoConfig.for_model("tokconv")
    assert isinstance(config, hf.TokconvConfig)
    assert transformers.MODEL_MAPPING[hf.TokconvConfig] is hf.TokconvModel
    assert (hf.TokconvConfig.__name__, hf.TokconvModel.__name__) == ("TokconvConfig", "TokconvModel")


def test_the_example_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"\n\n((?:    .*\n|\n)+)", (tokconv.__doc__ or "").split("The public names:")[0])
    lines = [line for line in textwrap.dedent(block).splitlines() if line]
    assert len(lines) <= 10
    assert set(re.findall(r"tokconv\.(\w+)", block)) <= NAMES
    code, found = re.subn(r'"data=folder", "data.root=photos"', f"*{DIGITS}", "\n".join(lines))
    assert found == 1
    names: dict[str, Any] = {}
    exec(code, names)  # the example is the subject of this test
    assert names["tokens"].shape == (8, 576, 64)
    assert names["compressed"].shape == (8, 36, 64)


DIGITS = ["data.subset=64", "data.num_workers=0", "training.epochs=1", "training.n_critic=1"]

PUBLIC = {
    "tokconv": sorted(NAMES - {"sweep", "TokenStore"}),
    "tokconv.hf": ["TokconvModel"],
    "tokconv.integrations": ["attach", "merge"],
    "tokconv.integrations.vllm": ["embed", "load"],
    "tokconv.store.reader": ["TokenStore.open"],
    "tokconv.sweep": ["load"],
    "tokconv.training.loop": ["run_trial"],
}
SHAPELESS = ("compose", "encode", "export", "load", "run_trial", "train")
"""They neither take nor return tensors."""


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_public_names_document_shapes_errors_and_an_example(module: str, name: str) -> None:
    text = inspect.getdoc(attrgetter(name)(importlib.import_module(module))) or ""
    assert "Raises:" in text
    assert "Example:" in text
    assert "[B, " in text or "Size([" in text or name in SHAPELESS


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (tokconv.__version__, "MIT")


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_in_this_process_and_in_its_children(given: str | None, expected: str) -> None:
    """As a trial's process does, the child imports torch and not tokconv; what its user has set stays."""
    child = "import os, torch; print(os.environ.get('OMP_WAIT_POLICY'))"
    script = (
        "import os, subprocess, sys, tokconv; assert 'torch' not in sys.modules; "
        "print(os.environ['OMP_WAIT_POLICY'], flush=True); "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, expected]
