"""The error tree: errors travel between processes, and messages name the fix."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from tokconv import errors
from tokconv.errors import DivergedError, MissingExtraError, TokconvError, import_extra, suggest

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TokconvError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_of_the_docstring(kind: type) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not DivergedError], ids=lambda kind: kind.__name__)
def test_errors_survive_pickle(kind: type[TokconvError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what, rule, fix")))
    assert type(copy) is kind
    assert str(copy) == "what, rule, fix"


def test_diverged_error_survives_pickle_with_its_fields() -> None:
    error = DivergedError("loss.weights.ae", 17)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is DivergedError
    assert (copy.term, copy.step) == ("loss.weights.ae", 17)
    assert str(copy) == str(error)
    assert "loss.weights.ae is not finite at step 17" in str(copy)


def test_suggest_names_the_closest_name_or_all() -> None:
    assert suggest("epoch", ["epochs", "seed"]) == "did you mean epochs?"
    assert suggest("zzz", ["seed", "epochs"]) == "allowed: epochs, seed"


def test_import_extra_returns_the_module() -> None:
    assert import_extra("json.decoder", "sweep").__name__ == "json.decoder"


def test_import_extra_names_the_command_that_installs_it() -> None:
    with pytest.raises(MissingExtraError) as raised:
        import_extra("tokconv_no_such_module.inner", "sweep")
    assert str(raised.value) == "tokconv_no_such_module.inner is not installed; run: pip install 'tokconv[sweep]'"
    assert isinstance(raised.value, ImportError)


def test_import_extra_does_not_hide_a_broken_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import its_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_missing_dependency") as raised:
        import_extra("half_installed", "sweep")
    assert not isinstance(raised.value, MissingExtraError)
    assert "half_installed" not in sys.modules
