"""The help of every command, the tour, and what is said to words that no command knows."""

from __future__ import annotations

import argparse
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import refused

from tokconv import __version__
from tokconv.cli.arguments import make_parser
from tokconv.cli.main import COMMANDS as FUNCTIONS
from tokconv.cli.main import main

COMMANDS = ("doctor", "encode", "train", "sweep", "status", "stop", "report", "replay", "evaluate", "models", "export")
COMMANDS += ("dynamic", "compress", "stores", "answers", "fit", "merge", "ui")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("empty_directory")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_holds_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert re.search(rf"example:\n  tokconv {command}\b", capsys.readouterr().out)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +\w", text, re.MULTILINE)


def test_every_command_has_its_function() -> None:
    [commands] = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert set(commands.choices) == set(FUNCTIONS) == {*COMMANDS, "completion"}
    assert all(callable(pkgutil.resolve_name(name)) for name in FUNCTIONS.values())


def test_a_bare_command_is_the_tour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("a tour:")
    named = re.findall(r"^  tokconv (\w+)", shown, re.MULTILINE)
    assert {"doctor", "sweep", "train", "compress"} <= set(named) <= set(FUNCTIONS)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("trian", "did you mean train?"),
        ("evalute", "did you mean evaluate?"),
        ("frog", "allowed: "),
    ],
)
def test_a_command_that_is_none_is_answered_with_the_nearest_one(
    word: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, [word, "--help"], f"there is no command '{word}'; {answer}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--training.epochs=5"], "write overrides without dashes"),
        (["doctor", "now"], "unexpected 'now'"),
        (["compress", "a.png", "--out", "x"], "--compressor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"tokconv {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tokconv.cli.main import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'hydra', 'numpy', 'transformers', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.splitlines()[-1] == "[]"
