"""Sweep specs: a written spec is read back unchanged, and anything else is refused in one sentence."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tokconv.config.keys import KEYS, get
from tokconv.config.overrides import with_values
from tokconv.errors import ConfigError, SpecError
from tokconv.evaluation.figures import OBJECTIVES
from tokconv.evaluation.purposes import PURPOSES
from tokconv.sweep.search.space import check_space, first_points, grid_points
from tokconv.sweep.spec.file import load_spec, parse_spec, spec_to_dict, to_yaml
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import KINDS, Range, parse_range
from tokconv.sweep.spec.schema import Spec

SWEEPS = Path(__file__).parents[2] / "sweeps"
MINIMAL: dict[str, Any] = {"name": "tiny", "trials": 3}
FULL: dict[str, Any] = {
    "name": "full",
    "base": ["training.epochs=5", "data.root='/photos (old)'", "data=folder", "model.compressor.kind=residual"],
    "search": {
        GRID_KEY: {"choice": [4, 8]},
        "training.n_critic": {"int": [1, 3]},
        "training.grad_clip": {"float": [0.5, 2]},
        "loss.wgan.lambda_gp": {"log": [0.1, 100]},
        "training.critic_learning_rate": {"choice": [None, 1e-3]},
        "model.compressor.use_residual": {"choice": [True, False]},
        "model.compressor.init": {"choice": ["pca", "pooling"]},
    },
    "objectives": [{"metric": "val/gain", "mode": "max"}, {"metric": "val/swd", "mode": "min"}],
    "champions": {"fidelity": {}, "plug-in": {"figure": "val/auc_token", "subject_to": ["val/gain >= 0.123456789"]}},
    "constraints": ["val/fvu <= 1e-07"],
    "baselines": "competing",
    "sampler": {"kind": "random", "seed": 7},
    "early_stopping": {"min_epochs": 3, "reduction": 4},
    "confirm": {"seeds": 4},
    "concurrency": 2,
    "resources": {
        "runner": "inline",
        "workers": 1,
        "gpus_per_worker": 0.25,
        "cpus_per_worker": 3,
        "trial_timeout": 60.0,
    },
    "vlm": {"model": "runs/vlm/model", "prompts": ["What is this?", "1e3"], "images": 16, "tokens": 4},
    "tracking": {"uri": "http://localhost:5000", "experiment": "1e3", "wandb": True},
    "storage": "/mnt/runs",
    "trials": 12,
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a spec with one section of the full one, in which the entry at `a/b/c` is replaced."""
    *parents, leaf = path.split("/")
    tree = {**MINIMAL, **{name: copy.deepcopy(FULL[name]) for name in parents[:1]}}
    branch = tree
    for name in parents:
        branch = branch[name]
    branch[leaf] = value
    return tree


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


def _group(gpus_per_worker: float = 0.0, search: Any = None) -> dict[str, Any]:
    """Return a spec with three workers per trial."""
    resources = {"runner": "torch_trainer", "workers": 3, "gpus_per_worker": gpus_per_worker}
    return {**MINIMAL, "resources": resources, "search": {} if search is None else {"training.batch_size": search}}


WHOLE = st.integers(1, 10**6)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="$\\"), max_size=20)
NUMBER = st.floats(-1e9, 1e9)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted(draw(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=2, unique=True)))
    first, last = sorted(draw(st.lists(WHOLE, min_size=2, max_size=2, unique=True)))
    number: list[dict[str, Any]] = [{"float": [low, high]}, {"log": [low, high]}, {"int": [first, last]}]
    number += [{"choice": [low, high]}]
    search = {
        "loss.weights.ae": draw(st.sampled_from(number)),
        "training.critic_learning_rate": draw(st.sampled_from([*number, {"choice": [None, low]}])),
        "training.n_critic": draw(st.sampled_from([{"int": [first, last]}, {"choice": [last, first]}])),
        GRID_KEY: {"choice": draw(st.lists(st.integers(1, 24), min_size=1, unique=True))},
    }
    return {key: search[key] for key in draw(st.lists(st.sampled_from(sorted(search)), unique=True))}


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


@given(ranges())
@settings(max_examples=15)
def test_the_nearest_value_lies_in_the_range_and_equals_a_value_that_does(search: dict[str, Any]) -> None:
    for key, raw in search.items():
        found = parse_range(key, raw)
        for value in (*found.values, None, 0, 1.5, -7, 10**9):
            nearest = found.nearest(value)
            assert _holds(found, nearest)
            if value is not None and _holds(found, value):
                assert nearest == value


def _holds(found: Range, value: Any) -> bool:
    if found.kind == "choice":
        return value in found.values
    low, high = found.values
    return value is not None and low <= value <= high and (found.kind != "int" or value == int(value))


def test_members_of_an_int_range_are_all_its_numbers() -> None:
    assert parse_range("training.n_critic", {"int": [2, 5]}).members() == range(2, 6)
    tree = {**MINIMAL, "search": {GRID_KEY: {"int": [3, 5]}}}
    assert parse_spec(tree).grids() == (3, 4, 5)
    assert parse_spec({**MINIMAL, "search": {GRID_KEY: {"choice": [8, 4]}}}).grids() == (4, 8)
    assert parse_spec({**MINIMAL, "base": [f"{GRID_KEY}=7"]}).grids() == (7,)


def test_choices_are_of_the_type_that_their_key_has() -> None:
    weights = parse_range("loss.weights.wgan", {"choice": [0, "1e-3", 0.5]}).values
    assert weights == (0.0, 0.001, 0.5)
    assert all(isinstance(value, float) for value in weights)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trials": 3}, "name: missing"),
        ({"name": "x"}, "trials: missing"),
        ([], "a spec is a mapping"),
        (None, "a spec is a mapping"),
        ("demo", "a spec is a mapping"),
        ({**FULL, "trails": 3}, "trails: unknown; did you mean trials?"),
        ({**FULL, 5: 3}, "5: unknown"),
        ({**MINIMAL, "data": {"store": "x"}}, "data: unknown in a spec; keys of the config belong in base, as in"),
        ({**MINIMAL, "recipe": "published"}, "recipe: unknown in a spec; keys of the config belong in base"),
        ({**MINIMAL, "training.epochs": 5}, "training.epochs: unknown in a spec; keys of the config belong in base"),
        (changed("resources/worker", 1), "resources.worker: unknown; did you mean workers?"),
        ({**MINIMAL, "champion": {"minimize": "val/fvu"}}, "champion.minimize: unknown; did you mean minimise?"),
        (changed("champions/plugin", {}), "champions: got 'plugin'; did you mean plug-in?"),
        (changed("champions/plug-in/figur", "val/fvu"), "champions.plug-in.figur: unknown; did you mean figure?"),
        (changed("champions/plug-in", 3), "champions.plug-in: got 3; must be a mapping with figure, subject_to"),
        ({**MINIMAL, "champions": {}}, "champions: got {}; must be a mapping from purposes (fidelity, plug-in"),
        ({**MINIMAL, "constraints": "val/fvu <= 1"}, "constraints: got 'val/fvu <= 1'; must be a list"),
        (changed("sampler/kind", "tpr"), "sampler.kind: got 'tpr'; did you mean tpe?"),
        (changed("sampler/seed", 2**31), "sampler.seed: got 2147483648; must be from 0 to 2147483647"),
        (changed("resources/runner", "in_line"), "resources.runner: got 'in_line'; did you mean inline?"),
        (changed("search/training.n_critics", {"int": [1, 3]}), "unknown; did you mean training.n_critic?"),
        (changed("search/training.n_critic", {"integer": [1, 3]}), "is not a kind of range; did you mean int?"),
        (changed("base", ["training.epoch=5"]), "base: training.epoch: unknown; did you mean training.epochs?"),
        (changed("search/training.n_critic", {"int": [3, 1]}), "the lower end must come first, as in [1, 3]"),
        (changed("search/training.n_critic", {"int": [3, 3]}), "the lower end must come first"),
        (changed("search/loss.weights.ae", {"log": [0, 1]}), "both ends of a log range must be greater than 0"),
        (changed("search/loss.weights.ae", {"float": [math.nan, 1.0]}), "must be a finite number"),
        (changed("search/loss.weights.ae", {"float": [0.5, math.inf]}), "must be a finite number"),
        (changed("search/loss.weights.ae", {"float": [-1, 1]}), "search.loss.weights.ae: got -1"),
        (changed("search/loss.weights.ae", {"float": [1]}), "write two numbers"),
        (changed("search/loss.weights.ae", {"choice": []}), "write a list"),
        (changed("search/loss.weights.ae", {"choice": [1, 1.0]}), "a value is listed twice"),
        (changed("search/loss.weights.ae", {"choice": ["much"]}), "got 'much'; must be a number"),
        (changed("search/loss.weights.ae", {"choice": [1], "int": [1, 2]}), "write one of"),
        (changed("search/loss.weights.ae", [1, 2]), "write one of"),
        (changed("search/training.n_critic", {"float": [1, 3]}), "this key holds whole numbers; write {int: [1, 3]}"),
        (changed("search/training.n_critic", {"choice": [1.5]}), "must be a whole number"),
        (changed("search/model.compressor.use_residual", {"int": [0, 1]}), "this key holds no numbers"),
        (changed("search/model.compressor.init", {"choice": ["pac"]}), "search.model.compressor.init: got 'pac'"),
        (changed("search/training.epochs", {"int": [1, 3]}), "search.training.epochs: cannot be searched"),
        ({**FULL, "sampler": {"kind": "grid"}}, "grid needs choice or int ranges only"),
        (changed("base", ["recipe=published", "loss.weights.wgan=0", "loss.weights.ae=0"]), "nothing would be trained"),
        ({**MINIMAL, "constraints": ["val/fvu < 1"]}, "write 'METRIC <= NUMBER'"),
        ({**MINIMAL, "constraints": ["val/fvu <= low"]}, "'low' is not a number"),
        ({**MINIMAL, "constraints": ["val/fvu <= nan"]}, "'nan' is not a number"),
        ({**MINIMAL, "constraints": ["val/fuv <= 1"]}, "constraints: got 'val/fuv'; did you mean val/fvu?"),
        ({**MINIMAL, "champion": {"minimise": "val/fid"}}, "champion.minimise: got 'val/fid'"),
        (changed("objectives", [{"metric": "val/fuv", "mode": "min"}]), "got 'val/fuv'; did you mean val/fvu?"),
        (changed("objectives", [{"metric": "val/fvu", "mode": "minimise"}]), "objectives.mode: got 'minimise'"),
        (changed("objectives", [{"metric": "val/fvu"}]), "objectives.mode: missing; objectives must be a list"),
        (changed("objectives", []), "objectives: got []"),
        (changed("resources/workers", 2), "runner inline runs trials of one worker only"),
        (_group(gpus_per_worker=0.5), "resources.gpus_per_worker: got 0.5 with 3 workers; NCCL refuses two workers"),
        (changed("resources/gpus_per_worker", 1.5), "resources.gpus_per_worker: got 1.5; Ray gives a share of one GPU"),
        (_group(), "training.batch_size: 16 is not a multiple of resources.workers, 3"),
        (_group(search={"int": [30, 33]}), "training.batch_size: 31 is not a multiple of resources.workers, 3"),
        (changed("storage", "s3://key:secret@bucket/runs"), "storage: the s3 URL contains credentials"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_what_is_allowed(tree: Any, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_spec(tree)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["data.subset", "data.val_fraction", "model.clip.layer", "model.clip.precision"])
def test_what_all_trials_share_is_not_searched(key: str) -> None:
    value = {"data.val_fraction": 0.2, "model.clip.precision": "float32"}.get(key, 2)
    with pytest.raises(SpecError, match=f"search.{key}: cannot be searched"):
        parse_spec({**MINIMAL, "search": {key: {"choice": [value]}}})


@pytest.mark.parametrize("metric", ["critic/wasserstein", "critic/gradient_penalty", "train/adversarial"])
def test_a_critics_own_estimate_cannot_be_an_objective(metric: str) -> None:
    for tree in (
        {"objectives": [{"metric": metric, "mode": "min"}]},
        {"champions": {"fidelity": {"figure": metric}}},
        {"champion": {"minimise": metric}},
        {"constraints": [f"{metric} <= 1"]},
    ):
        with pytest.raises(SpecError, match=metric):
            parse_spec({**MINIMAL, **tree})


@pytest.mark.parametrize("name", ["a/b", "../up", ".hidden", "", "-x", "a b", "a\n", "x" * 65, 5, None, ["a"]])
def test_a_name_that_cannot_name_a_directory_is_refused(name: Any) -> None:
    with pytest.raises(SpecError, match="name: got"):
        parse_spec({**MINIMAL, "name": name})


def _leaves(tree: Any, path: str = "") -> list[str]:
    """Return the paths of all entries, sections included."""
    found = []
    for key, value in tree.items():
        found.append(f"{path}{key}")
        if isinstance(value, dict):
            found += _leaves(value, f"{path}{key}/")
    return found


@pytest.mark.parametrize("path", _leaves(FULL))
def test_wrong_types_are_refused_everywhere(path: str) -> None:
    wrong: list[Any] = [{"a": 1}, [[]], math.nan]
    for value in wrong:
        with pytest.raises(SpecError) as error:
            parse_spec(changed(path, value))
        assert path.split("/")[0] in str(error.value)


@pytest.mark.parametrize("key", ["search", "champion", "sampler", "resources", "tracking", "base", "objectives"])
@pytest.mark.parametrize("value", [0, False, "", "none"])
def test_an_empty_value_that_is_not_a_section_is_refused(key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"{key}: got"):
        parse_spec({**MINIMAL, key: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name: missing"),
        ("# nothing\n", "name: missing"),
        ("- name: x\n", "a spec is a mapping"),
        ("5", "not a valid YAML file"),
        ("name: a\nname: b\ntrials: 1\n", "duplicate key name"),
        ("name: !!python/object/apply:os.system ['true']\n", "not plain YAML data"),
        ("name: !!python/object:os.system {}\n", "not plain YAML data"),
        ("name: [", "not a valid YAML file"),
        ("name: !!int abc\n", "not a valid YAML file"),
        ("name: !!bool maybe\n", "not a valid YAML file"),
        ("name: !!timestamp abc\n", "not a valid YAML file"),
        ("!!str 5\n", "not a valid YAML file"),
        ("name: &x [*x]\n", "nested too deeply"),
        ("name: " + "[" * 3000, "nested too deeply"),
        ("trials: " + "1" * 5000, "not a valid YAML file"),
        ("name: ${nowhere}\ntrials: 1\n", "not a valid YAML file"),
        ("a: 1\n--- \nb: 2\n", "not a valid YAML file"),
        ("name: x\ntrials: ???\n", "trials: got '???'"),
    ],
)
def test_files_that_hold_no_spec_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as error:
        load_spec(path)
    assert message in str(error.value)


def test_missing_files_directories_and_binary_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SpecError, match="no such spec file"):
            load_spec(path)
    (tmp_path / "spec.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SpecError, match="not a valid YAML file"):
        load_spec(tmp_path / "spec.yaml")


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": [{"metric": "val/fvu", "mode": "max"}]}, "val/fvu is better if minimal, and its mode is max"),
        ({"objectives": [{"metric": "val/cosine", "mode": "min"}]}, "val/cosine is better if maximal, and its mode is"),
        ({"objectives": [{"metric": "val/fvu", "mode": "min"}] * 2}, "val/fvu is listed twice"),
        (
            {"sampler": {"kind": "grid"}, "search": {"training.seed": {"int": [1, 2**31]}}},
            "this grid has 2,147,483,648 points, and at most 100,000",
        ),
    ],
)
def test_a_search_that_no_sweep_can_make_sense_of_is_refused_before_it_runs(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check_space(parse_spec({**MINIMAL, **changes}))


def test_a_grid_holds_every_combination_once() -> None:
    search = {GRID_KEY: {"choice": [4, 8]}, "training.n_critic": {"int": [1, 3]}}
    points = grid_points(parse_spec({**MINIMAL, "search": search, "sampler": {"kind": "grid"}}))
    assert len(points) == 6
    assert {tuple(point.values()) for point in points} == {(k, n) for k in (4, 8) for n in (1, 2, 3)}
