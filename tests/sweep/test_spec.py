"""Sweep specs: a written spec is read back unchanged, and every key reaches it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.specs import FULL, MINIMAL

from tokconv.config.keys import get
from tokconv.config.overrides import with_values
from tokconv.errors import SpecError
from tokconv.sweep.search.space import first_points
from tokconv.sweep.spec.file import load_spec, parse_spec, spec_to_dict, to_yaml
from tokconv.sweep.spec.outline import GRID_KEY

SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_spec_loads_and_its_first_trials_are_possible(path: Path) -> None:
    spec = load_spec(path)
    for point in first_points(spec):
        assert get(with_values(spec.base_config(), point), GRID_KEY) in spec.grids()


def test_there_are_shipped_specs() -> None:
    assert (SWEEPS / "demo.yaml").is_file()


@pytest.mark.parametrize("tree", [MINIMAL, FULL, {**FULL, "early_stopping": "none"}, {**MINIMAL, "name": "1e3"}])
def test_a_written_spec_is_read_back_as_itself(tree: dict[str, Any], tmp_path: Path) -> None:
    spec = parse_spec(tree)
    assert parse_spec(spec_to_dict(spec)) == spec
    (tmp_path / "spec.yaml").write_text(to_yaml(spec), encoding="utf-8")
    assert load_spec(tmp_path / "spec.yaml") == spec


def test_every_key_of_a_spec_reaches_it() -> None:
    plain = spec_to_dict(parse_spec(FULL))
    assert plain.keys() == FULL.keys()
    for key in FULL:
        assert plain[key] == FULL[key]
    assert parse_spec(FULL).rules.named == ("val/auc_token", "val/fvu", "val/gain")


def test_an_older_spec_has_one_purpose_without_the_published_targets() -> None:
    older = {"minimise": "val/fvu", "subject_to": ["val/swd <= 0.1", "val/cosine >= 0.85", "val/fvu<=0.05"]}
    spec = parse_spec({**MINIMAL, "champion": older})
    assert spec_to_dict(spec)["champions"] == {"fidelity": {"subject_to": ["val/fvu <= 0.05"]}}
    assert parse_spec(spec_to_dict(spec)) == spec
    by_likeness = parse_spec({**MINIMAL, "champion": {"minimise": "val/swd"}})
    assert by_likeness.rules.rule("fidelity").figure == "val/swd"
    assert parse_spec({**MINIMAL, "champion": None}).rules.purposes == ("fidelity",)
    with pytest.raises(SpecError, match="champion: is the older form of champions"):
        parse_spec({**MINIMAL, "champion": older, "champions": {"fidelity": {}}})


@pytest.mark.parametrize(
    ("known", "third"),
    [
        ({"val/reader_kept", "val/auc_token"}, ("val/reader_kept", "max")),
        ({"val/auc_token"}, ("val/auc_token", "min")),
        (set(), ("val/swd", "min")),
    ],
)
def test_the_default_objectives_follow_the_store(known: set[str], third: tuple[str, str]) -> None:
    found = parse_spec(MINIMAL).with_objectives(known)
    pairs = [(objective.metric, objective.mode) for objective in found.objectives]
    assert pairs == [("compression_ratio", "max"), ("val/fvu", "min"), third]
    assert parse_spec(spec_to_dict(found)) == found
    assert parse_spec(FULL).with_objectives(known) == parse_spec(FULL)


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(to_yaml(parse_spec(FULL)), encoding="utf-8")
    assert load_spec(path, ["trials=4", "resources.cpus_per_worker=2"]).trials == 4
    assert load_spec(path, ["early_stopping=none"]).early_stopping is None
    assert load_spec(path, []) == parse_spec(FULL)
    for override, message in (("trials", "write key=value"), ("trails=4", "did you mean trials"), ("[=1", "'[=1'"),
                              ("trials={", "'trials={'"), ("trials=!!int x", "not an override")):  # fmt: skip
        with pytest.raises(SpecError) as error:
            load_spec(path, ["trials=5", override])
        assert message in str(error.value)
