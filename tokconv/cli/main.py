"""The command line. A command exits with 0, with 2 and one sentence if the user can fix what is wrong, or with 130 if
interrupted."""

from __future__ import annotations

import errno
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tokconv.cli.arguments import TOUR, parse
from tokconv.errors import TokconvError, printable
from tokconv.system.memory import keep_freed_memory
from tokconv.system.terminal import escape_unencodable

COMMANDS = {
    **{name: f"tokconv.cli.{name}:run" for name in ("doctor", "encode", "train", "models", "evaluate", "export")},
    **{name: f"tokconv.cli.{name}:run" for name in ("dynamic", "compress", "completion", "answers", "stores", "ui")},
    **{name: f"tokconv.cli.vlm:{name}" for name in ("fit", "merge")},
    **{name: f"tokconv.cli.sweep:{name}" for name in ("sweep", "status", "stop", "report", "replay")},
}
"""The function of each command; its module is imported only when the command runs."""
UNUSABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
"""Errors of a path or its disk, not of tokconv."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # The shell has closed it (>&-).
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    escape_unencodable(sys.stdout, sys.stderr)
    try:
        args = parse(argv)
        if args.command is None:
            print(TOUR, end="")
            return 0
        keep_freed_memory()
        return int(pkgutil.resolve_name(COMMANDS[args.command])(args) or 0)
    except TokconvError as error:
        print(f"tokconv: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output, such as head, has closed it. What Python still has to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        name = printable(error.filename or "a file")
        print(f"tokconv: {name}: cannot be written or read ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tokconv: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
