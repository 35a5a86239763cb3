"""Completion in a real bash: commands, options, config keys."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tokconv.cli.completion import completion

ASK = """
source /dev/stdin <<'SCRIPT'
{script}
SCRIPT
compopt() {{ :; }}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMP_TYPE=9; COMP_POINT=0; COMP_LINE="{words}"
{function} tokconv "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def asked(words: str) -> list[str]:
    script = completion("bash")
    function = script.rsplit("complete ", 1)[1].split("-F ", 1)[1].split()[0]
    text = ASK.format(script=script, words=words, function=function)
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_keys() -> None:
    assert asked("tokconv st") == ["stores", "status", "stop"]
    assert "--resume" in asked("tokconv sweep --re")
    assert asked("tokconv train training.n_c") == ["training.n_critic="]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script(shell: str) -> None:
    assert "tokconv" in completion(shell)
