"""Checks of the doctor in processes of their own, beside the others: what they import and wait for fits in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

CODE = "import sys; from tokconv.cli.doctor_apart import answer; answer(sys.argv[1])"
END_SECONDS = 20.0
"""How long an interrupted check may take to end what it started."""


@contextlib.contextmanager
def started(names: Sequence[str]) -> Iterator[Mapping[str, Callable[[], str]]]:
    """Start the checks of these parts; yield for each a function that waits for what the check finds, and returns it.

    The function raises RuntimeError with the reason if the check fails. None of the processes outlives the block.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = {
        name: subprocess.Popen([sys.executable, "-c", CODE, name], env=environment, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    try:
        yield {name: partial(_result, process) for name, process in processes.items()}
    finally:
        for process in processes.values():
            _end(process)


def answer(name: str) -> None:
    """Run the check of a part in this process, and print what it finds or why it fails as JSON on a line."""
    from tokconv.cli.doctor import PARTS, reason

    (part,) = (part for part in PARTS if part.name == name)
    answered = {}
    try:
        # What libraries print is no answer.
        with contextlib.redirect_stdout(sys.stderr):
            answered["found"] = part.check()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # Reported by the process that asks, like every other failure.
        answered["reason"] = reason(error)
    print(json.dumps(answered), flush=True)


def _result(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    try:
        answered = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"its process ended with {process.returncode}") from None
    if "reason" in answered:
        raise RuntimeError(answered["reason"])
    return str(answered["found"])


def _end(process: subprocess.Popen[str]) -> None:
    # SIGINT, after which Ray ends its own processes.
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            break
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    if process.stdout is not None:
        process.stdout.close()
