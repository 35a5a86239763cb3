"""The doctor: what it reports on a healthy installation, and on one where something is missing or broken."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tokconv.cli import doctor, doctor_apart
from tokconv.cli.doctor import PARTS, Part
from tokconv.cli.doctor_apart import started
from tokconv.cli.main import main

ROOT = Path(__file__).parents[2]
FAST = tuple(part for part in PARTS if part.name not in ("ray", "mlflow", "training"))


FAILING = """
import sys
from tokconv.cli import doctor, doctor_apart

def check():
    raise OSError("no socket\\nfor it")

if sys.argv[1] == "ends":
    sys.exit(7)
doctor.PARTS = (doctor.Part("ray", check, "mend it"),)
doctor_apart.answer("ray")
"""


def _hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make these modules look as if they were not installed."""
    for name in list(sys.modules):
        if name.split(".")[0] in modules:
            monkeypatch.delitem(sys.modules, name)
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


def _only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(doctor, "PARTS", tuple(part for part in PARTS if part.name in names))


def test_every_part_names_a_cure() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert all(part.cure for part in PARTS)


def test_a_healthy_installation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(doctor, "PARTS", FAST)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("\u2713") for line in lines) == len(FAST)
    assert lines[-1] == "everything works"


def test_the_training_check_trains_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _only(monkeypatch, "training")
    assert main(["doctor"]) == 0
    assert "one epoch trained and evaluated (fvu 0." in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_optional_and_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _hide(monkeypatch, "ray", "mlflow", "sklearn")
    _only(monkeypatch, "python", "packages", "demo extra", "training", "sweep extra", "ray", "mlflow")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "\u2713 packages",
        "\u2713 training     16 images encoded",
        "- demo extra   optional, scikit-learn is not installed",
        "- sweep extra  optional, ray, mlflow are not installed",
        "- ray          optional, ray is not installed",
        "to install: pip install 'tokconv[demo]'",
        "to install: pip install 'tokconv[sweep]'",
        "everything works; not installed: demo extra, sweep extra, ray, mlflow",
    ):
        assert expected in text


def test_a_missing_required_package_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _hide(monkeypatch, "filelock", "sklearn")
    _only(monkeypatch, "python", "packages", "demo extra")
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "\u2717 packages    filelock is not installed" in text
    assert "to do: pip install tokconv" in text
    assert "1 of 3 checks failed; not installed: demo extra" in text


def test_an_optional_part_that_is_installed_but_broken_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> str:
        raise RuntimeError("no socket")

    monkeypatch.setattr(doctor, "PARTS", (Part("ray", check, "mend it", extra="ray", packages=("pytest",)),))
    assert main(["doctor"]) == 1
    assert "\u2717 ray  no socket" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError("first line\nsecond line"), ValueError(""), OSError(5, "gone", "x")])
def test_a_broken_part_takes_one_line_and_its_cure(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> str:
        raise error

    monkeypatch.setattr(doctor, "PARTS", (Part("broken", check, "mend it"), Part("well", lambda: "fine", "nothing")))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()[2:]
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    assert lines == [
        f"\u2717 broken  {reason}",
        "          to do: mend it",
        "\u2713 well    fine",
        "",
        "1 of 2 checks failed",
    ]


def test_a_check_apart_answers_like_one_in_this_process() -> None:
    with started(["python", "packages"]) as running:
        for part in PARTS[:2]:
            assert running[part.name]() == part.check()


def test_a_check_apart_fails_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_apart, "CODE", FAILING)
    with started(["ray", "ends"]) as running:
        with pytest.raises(RuntimeError, match=r"^no socket$"):
            running["ray"]()
        with pytest.raises(RuntimeError, match="its process ended with 7"):
            running["ends"]()


def test_no_check_apart_outlives_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_apart, "CODE", "import time; time.sleep(600)")
    with started(["ray"]) as running:
        (process,) = (waiting.args[0] for waiting in running.values())  # type: ignore[attr-defined]
    assert process.poll() is not None


def test_long_findings_are_wrapped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(doctor, "PARTS", (Part("long", lambda: "word " * 30, "nothing"),))
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[3].startswith("        word")


@pytest.mark.slow
def test_all_of_it_in_a_plain_terminal(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # A short name: sockets go there.
    temporary = tempfile.mkdtemp(prefix="t", dir="/tmp")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "TMPDIR": temporary}
    found = subprocess.run(
        [sys.executable, "-m", "tokconv.cli.main", "doctor"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=240,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("[ok] ") == len(PARTS)
    assert not list(tmp_path.iterdir())
    Path(temporary).rmdir()  # fails if anything was left
