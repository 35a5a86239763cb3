"""`tokconv completion`: commands, options and files by shtab, config keys by our own functions, which tcsh lacks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from tokconv.cli.arguments import make_parser
from tokconv.cli.options import place
from tokconv.config.keys import KEYS
from tokconv.system.files import local_path

KEYS_FUNCTION = "_tokconv_keys"
BASH_END = """
_tokconv() {
  _shtab_tokconv "$@"
  [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace
}
complete -o bashdefault -o default -F _tokconv tokconv"""
"""No blank after a key, whose value follows. shtab calls our function in a subshell, where compopt changes nothing.
A value such as that of data.root is completed as a file name."""


def run(args: argparse.Namespace) -> None:
    """Print the script of a shell."""
    print(completion(args.shell))


def completion(shell: str) -> str:
    """Return the script that a shell sources.

    Args:
        shell: bash, zsh or tcsh.
    """
    parser = make_parser()
    for action in _actions(parser):
        if action.metavar == "key=value":
            action.complete = {"bash": KEYS_FUNCTION, "zsh": KEYS_FUNCTION}  # type: ignore[attr-defined]
        elif action.type in (local_path, place):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    keys = " ".join(f"{key}=" for key in sorted(KEYS))
    preamble = {
        "bash": f'{KEYS_FUNCTION}() {{\n  compgen -W "{keys}" -- "$1"\n}}',
        "zsh": f"{KEYS_FUNCTION}() {{\n  compadd -S '' -- {keys}\n}}",
    }
    script = shtab.complete(parser, shell, preamble=preamble)  # type: ignore[arg-type]  # it takes one per shell
    return script + BASH_END if shell == "bash" else script


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _actions(sub)
