"""Any spec, text or override: what is good survives its own file, and the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.specs import MINIMAL, WHOLE, ranges

from tokconv.config.keys import KEYS
from tokconv.errors import ConfigError
from tokconv.evaluation.figures import OBJECTIVES
from tokconv.evaluation.purposes import PURPOSES
from tokconv.sweep.spec.file import load_spec, parse_spec, spec_to_dict, to_yaml
from tokconv.sweep.spec.ranges import KINDS
from tokconv.sweep.spec.schema import Spec

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="$\\"), max_size=20)
NUMBER = st.floats(-1e9, 1e9)


@st.composite
def good_specs(draw: st.DrawFn) -> dict[str, Any]:
    metric = st.sampled_from(OBJECTIVES)
    target = st.builds("{} {} {!r}".format, metric, st.sampled_from(["<=", ">="]), NUMBER)
    objective = st.fixed_dictionaries({"metric": metric, "mode": st.sampled_from(["min", "max"])})
    halving = st.fixed_dictionaries({}, optional={"min_epochs": WHOLE, "reduction": st.integers(2, 9)})
    sampler = {"kind": st.sampled_from(["tpe", "nsga2", "gp", "random"]), "seed": st.integers(0, 99)}
    shares = {"gpus_per_worker": st.floats(0, 1) | st.integers(2, 8).map(float), "cpus_per_worker": WHOLE}
    place = st.none() | TEXT
    optional = {
        "search": ranges(),
        "objectives": st.lists(objective, min_size=1, max_size=3),
        "champions": st.dictionaries(
            st.sampled_from(sorted(PURPOSES)),
            st.none() | st.fixed_dictionaries({}, optional={"figure": metric, "subject_to": st.lists(target)}),
            min_size=1,
        ),
        "constraints": st.lists(target),
        "sampler": st.fixed_dictionaries({}, optional=sampler),
        "early_stopping": st.just("none") | halving,
        "confirm": st.just("none") | st.fixed_dictionaries({"seeds": st.integers(2, 9)}),
        "concurrency": WHOLE,
        "resources": st.fixed_dictionaries({"runner": st.sampled_from(["torch_trainer", "inline"])}, optional=shares),
        "tracking": st.fixed_dictionaries({}, optional={"uri": place, "experiment": place}),
    }
    name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
    return draw(st.fixed_dictionaries({"name": name, "trials": WHOLE}, optional=optional))


@given(good_specs())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_good_spec_survives_its_own_file(tmp_path: Path, tree: dict[str, Any]) -> None:
    spec = parse_spec(tree)
    assert parse_spec(spec_to_dict(spec)) == spec
    (tmp_path / "spec.yaml").write_text(to_yaml(spec), encoding="utf-8")
    assert load_spec(tmp_path / "spec.yaml") == spec


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KNOWN = st.sampled_from([*sorted(KEYS), *OBJECTIVES, "val/fvu <= 1", "min", "tpe", "inline", "none"])
SECTION_KEY = st.sampled_from([*sorted(KEYS), *KINDS, "kind", "metric", "mode", "plug-in", "figure", "workers"])
PLAIN = st.recursive(
    SCALAR | KNOWN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(SECTION_KEY, inner, max_size=3)
        | st.dictionaries(SCALAR, inner, max_size=2)
    ),
    max_leaves=8,
)
ENTRY = st.sampled_from([field for field in Spec.model_fields if field not in MINIMAL])


@given(PLAIN | st.dictionaries(ENTRY, PLAIN, max_size=3).map(lambda tree: {**MINIMAL, **tree}))
@settings(max_examples=80)
@example({**MINIMAL, "search": {"loss.weights.ae": {"float": [1, 10**400]}}})
@example({**MINIMAL, "search": {"loss.weights.ae": {"choice": [10**400]}}})
@example({**MINIMAL, "resources": {"gpus_per_worker": 10**400}})
@example({**MINIMAL, "constraints": ["val/fvu <= 1e999"]})
@example({**MINIMAL, "base": ["${"]})
def test_any_plain_data_is_a_spec_or_refused(tree: Any) -> None:
    try:
        spec = parse_spec(tree)
    except ConfigError:
        return
    assert parse_spec(spec_to_dict(spec)) == spec


@pytest.fixture(scope="module")
def spec_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs") / "spec.yaml"


PIECES = [
    *("name", "trials", "search", "tiny", "3", "1e3", "1:2", "2020-13-45", ".inf", "???", "~", "<<", "---"),
    *("!!int", "!!float", "!!binary", "!!set", "!!python/name:", "&a", "*a", "${", *":-[]{}?%'\"|>=#"),
]
YAMLISH = st.lists(st.sampled_from([*PIECES, ": ", "- ", "\n", " "]) | st.text(max_size=2), max_size=14).map("".join)


@given(YAMLISH | st.text().map(lambda text: text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore")))
@settings(max_examples=200)
def test_any_text_is_a_spec_or_refused(spec_path: Path, text: str) -> None:
    spec_path.write_text(text, encoding="utf-8")
    try:
        load_spec(spec_path)
    except ConfigError:
        return
    assert "trials" in text


@given(YAMLISH)
@settings(max_examples=100)
def test_any_override_is_applied_or_refused(spec_path: Path, text: str) -> None:
    spec_path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    try:
        spec = load_spec(spec_path, [text])
    except ConfigError:
        return
    assert "=" in text
    assert isinstance(spec, Spec)
