"""Mistakes in a spec are refused in one sentence that says what is allowed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from support.specs import FULL, MINIMAL

from tokconv.errors import SpecError
from tokconv.sweep.search.space import check_space
from tokconv.sweep.spec.file import load_spec, parse_spec


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a spec with one section of the full one, in which the entry at `a/b/c` is replaced."""
    *parents, leaf = path.split("/")
    tree = {**MINIMAL, **{name: copy.deepcopy(FULL[name]) for name in parents[:1]}}
    branch = tree
    for name in parents:
        branch = branch[name]
    branch[leaf] = value
    return tree


def _group(gpus_per_worker: float = 0.0, search: Any = None) -> dict[str, Any]:
    """Return a spec with three workers per trial."""
    resources = {"runner": "torch_trainer", "workers": 3, "gpus_per_worker": gpus_per_worker}
    return {**MINIMAL, "resources": resources, "search": {} if search is None else {"training.batch_size": search}}


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
