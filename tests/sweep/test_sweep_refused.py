"""Why a sweep refuses to start or to resume: its spec, its store and its record are checked before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.stores import write_store
from support.sweeping import spec

from tokconv.errors import ConfigError, SpecError, SweepError
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.sweep.record import checks
from tokconv.sweep.record.checks import check_figures, check_same_experiment, check_same_store, figures_of
from tokconv.sweep.record.log import Record
from tokconv.sweep.record.remote import Root
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import parse_spec, to_yaml
from tokconv.system.files import write_text

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of Ray, MLflow and SQLAlchemy, in their own threads
    pytest.mark.timeout(600),
]


def test_impossible_sweeps_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="between 1 and the token grid, 12"):
        run_sweep(parse_spec(spec(tmp_path, search={"model.compressor.output_grid_size": {"choice": [4, 13]}})))
    with pytest.raises(SweepError, match="no run of 'tiny' to resume"):
        run_sweep(parse_spec(spec(tmp_path)), resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", [None, PROTOCOL + 1])
def test_a_sweep_judged_by_another_protocol_is_not_resumed(tmp_path: Path, protocol: int | None) -> None:
    """The first version of the record did not name its protocol."""
    tiny = parse_spec(spec(tmp_path))
    directory = Root(tmp_path / "runs").new("tiny")
    write_text(directory.spec, to_yaml(tiny))
    record = Record(directory.events)
    record.append("sweep_started", sweep=directory.name, **({} if protocol is None else {"protocol": protocol}))
    record.close()
    with pytest.raises(SweepError, match=rf"evaluation protocol {protocol or 1}, this .* without --resume"):
        run_sweep(tiny, resume=True)


def test_a_resumed_sweep_may_have_its_data_elsewhere_if_they_are_the_same(tmp_path: Path) -> None:
    before = spec(tmp_path, base=["data=folder", "data.root=/old/photos", f"data.store={tmp_path}/store"])
    now = {**before, "base": [*before["base"], "data.root=/new/photos", "data.store=/new/store"]}
    check_same_experiment(parse_spec(now), parse_spec(before))
    with pytest.raises(SweepError, match="base: differs"):
        check_same_experiment(parse_spec({**now, "base": [*now["base"], "data.subset=9"]}), parse_spec(before))
    store, directory = write_store(tmp_path / "store"), Root(tmp_path / "runs").new("tiny")
    record = Record(directory.events)
    record.append("sweep_started", sweep=directory.name, store_fingerprint=store.fingerprint)
    check_same_store(directory, store)
    record.close()
    with pytest.raises(SweepError, match=r"trained on other tokens than .*other holds; restore its images"):
        check_same_store(directory, write_store(tmp_path / "other", num_images=30))


@pytest.mark.parametrize(
    ("metric", "num_classes", "message"),
    [
        ("val/reader_kept", 0, "needs labels"),
        ("val/cka", 2, "needs 12 held-out images; .* 10 held-out"),
        ("val/auc_grid", 2, "needs 20 training and 20 held-out images; .* 30 training and 10 held-out"),
    ],
)
def test_objectives_that_the_store_cannot_measure_are_refused(
    tmp_path: Path, metric: str, num_classes: int, message: str
) -> None:
    store = write_store(tmp_path / "store", num_classes=num_classes)
    plain = spec(tmp_path, objectives=[{"metric": metric, "mode": "max"}])
    with pytest.raises(SpecError, match=message):
        check_figures(parse_spec(plain), store)


def test_a_probe_needs_a_label_among_the_held_out_images(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", num_images=64)
    judged = parse_spec(spec(tmp_path, objectives=[{"metric": "val/probe_accuracy", "mode": "max"}]))
    check_figures(judged, store)
    assert store.labels is not None
    store.labels[store.val_indices] = -1
    with pytest.raises(SpecError, match=r"needs labels.* 0 of these with labels"):
        check_figures(judged, store)


def test_what_no_reader_recognises_is_no_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of nothing does not exist; by default such a sweep is guided by likeness."""
    store = write_store(tmp_path / "store", num_images=160)
    kept = parse_spec(spec(tmp_path, objectives=[{"metric": "val/reader_kept", "mode": "max"}]))
    check_figures(kept, store)
    monkeypatch.setattr(checks, "can_be_read", lambda store, images: False)
    with pytest.raises(SpecError, match=r"40 of these with labels, none of which a reader recognises"):
        check_figures(kept, store)
    plain = parse_spec({"name": "tiny", "trials": 1})
    assert "val/auc_token" in plain.with_objectives(figures_of(plain, store)).judged_by


def test_a_purpose_that_the_store_cannot_have_is_refused_if_it_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", num_classes=0, num_images=160)
    check_figures(parse_spec(spec(tmp_path, champions={"fidelity": None, "plug-in": {}})), store)
    with pytest.raises(SpecError, match=r"champions.adapted: left out, there is no val/adapted_kept"):
        check_figures(parse_spec(spec(tmp_path, champions={"adapted": None})), store)
