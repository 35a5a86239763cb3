"""Completion in a real bash: commands, options, files, config keys."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tokconv.cli.completion import completion

ASK = """
source /dev/stdin <<'SCRIPT'
{script}
SCRIPT
compopt() {{ OPTIONS="$*"; }}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMP_TYPE=9; COMP_POINT=0; COMP_LINE="{words}"
{function} tokconv "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\\n' "${{OPTIONS-}}" "${{COMPREPLY[@]}}"
"""


def asked(words: str) -> tuple[list[str], str]:
    """Return the completions of a line's last word, and the options that the completing shell was given."""
    script = completion("bash")
    function = script.rsplit("complete ", 1)[1].split("-F ", 1)[1].split()[0]
    text = ASK.format(script=script, words=words, function=function)
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=True)
    assert not done.stderr
    options, _, found = done.stdout.partition("\n")
    return found.split(), options


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_keys() -> None:
    assert asked("tokconv st") == (["stores", "status", "stop"], "")
    assert "--resume" in asked("tokconv sweep --re")[0]
    # The value of a key follows it without a blank.
    assert asked("tokconv train training.n_c") == (["training.n_critic="], "-o nospace")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("words", ["compress", "sweep", "compress a.png --out", "answers m --store"])
def test_bash_completes_file_names(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos-of-cats").mkdir()
    (tmp_path / "photos.yaml").touch()
    found = {name.rstrip("/") for name in asked(f"tokconv {words} phot")[0]}
    assert found == {"photos-of-cats", "photos.yaml"}


@pytest.mark.parametrize(
    ("shell", "files"),
    [("zsh", "or folders of them, whose unreadable ones are skipped:_files"), ("tcsh", "n/compress/f/")],
)
def test_other_shells_complete_files_and_zsh_keys(shell: str, files: str) -> None:
    script = completion(shell)
    assert files in script
    assert ("training.n_critic=" in script) == (shell == "zsh")
