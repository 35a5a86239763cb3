"""The registries of figures and baselines: complete, consistent, and light enough for what only names things."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokconv.errors import ConfigError
from tokconv.evaluation.baselines.registry import BASELINES, PLOTS, of_kind, shown_in
from tokconv.evaluation.figures import FIGURES, JUDGED_ON, OBJECTIVES


def test_importing_the_registries_does_not_import_torch() -> None:
    code = (
        "import sys, tokconv.evaluation.figures, tokconv.evaluation.baselines.registry; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_names_the_function_that_computes_it(name: str) -> None:
    baseline = BASELINES[name]
    assert baseline.name == name
    assert baseline.function.__module__ == baseline.source.split(":")[0]


def test_baselines_look_different_from_each_other() -> None:
    for field in ("title", "color", "marker"):
        assert len({getattr(baseline, field) for baseline in BASELINES.values()}) == len(BASELINES)


def test_only_baselines_with_side_information_carry_an_asterisk() -> None:
    assert {entry.label for entry in BASELINES.values() if entry.label.endswith("*")} == {"ToMe*", "PruMerge*"}
    assert of_kind("merging") == (BASELINES["tome"], BASELINES["prumerge"])
    assert [entry.name for entry in shown_in(PLOTS)] == ["pooling", "matched_window_pca"]


def test_an_unknown_baseline_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"baseline: got 'poling'; did you mean pooling\?"):
        BASELINES["poling"]


def test_figures_point_to_figures_of_the_registry() -> None:
    assert all(figure.floor in {"", *FIGURES} for figure in FIGURES.values())
    assert all(name in OBJECTIVES and FIGURES[name].lower_is_better for name in JUDGED_ON)
