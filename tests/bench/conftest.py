"""What the benchmarks share: a table of rows, printed as Markdown and written as JSON when all of them are done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

OUT = Path("runs/bench")
ROWS = pytest.StashKey[list["Row"]]()


@dataclass(frozen=True)
class Times:
    """Seconds of repeats of one thing."""

    all: list[float]

    @property
    def middle(self) -> float:
        return median(self.all)

    def __str__(self) -> str:
        return f"{seconds(self.middle)} ({seconds(min(self.all))} to {seconds(max(self.all))})"


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, beside what it is compared with, and whether the goal was met."""

    what: str
    reference: str
    tokconv: str
    result: str
    goal: str = ""
    met: bool | None = None


def seconds(value: float) -> str:
    """With a unit that fits."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def measure(work: Callable[[], object], repeats: int = 5, warm_up: int = 1) -> Times:
    """Seconds of each repeat, after some that do not count."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return Times(times)


def measure_in_turn(works: Mapping[str, Callable[[], object]], repeats: int = 4) -> dict[str, Times]:
    """As `measure` of several things, one repeat of each after the other: a machine that slows down slows all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            taken = measure(work, 1, warm_up=0).middle
            if repeat:  # the first one warms up
                times[name].append(taken)
    return {name: Times(taken) for name, taken in times.items()}


@pytest.fixture(autouse=True)
def every_core() -> Iterator[None]:
    """Tests run on one thread each; what is measured here is a machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Adds a row, and prints it at once."""
    rows = request.config.stash.setdefault(ROWS, [])

    def add(row: Row) -> None:
        rows.append(row)
        print(f"\n{_line(row)}", flush=True)

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    head = ["| what | reference | tokconv | result | goal |", "| --- | --- | --- | --- | --- |"]
    lines = [f"On {_machine()}.", "", *head, *map(_line, rows), ""]
    terminalreporter.write_line("\n".join(["", *lines]))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "bench.md").write_text("\n".join(lines))
    (OUT / "bench.json").write_text(
        json.dumps({"machine": _machine(), "rows": [asdict(row) for row in rows]}, indent=1)
    )
    terminalreporter.write_line(f"written: {OUT / 'bench.md'}, {OUT / 'bench.json'}")


def _line(row: Row) -> str:
    met = {True: " (met)", False: " (**missed**)", None: ""}[row.met]
    return f"| {row.what} | {row.reference} | {row.tokconv} | {row.result} | {row.goal}{met} |"


def _machine() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":")[1].strip() if models else name
    cards = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {name}{cards}, torch {torch.__version__}"


def run(*command: str, cwd: Path) -> float:
    """Seconds of a command that has to succeed."""
    return run_and_read(*command, cwd=cwd)[0]


def run_and_read(*command: str, cwd: Path) -> tuple[float, str]:
    """The same, and what it printed, which is also shown when it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    took = time.perf_counter() - start
    assert done.returncode == 0, done.stdout + done.stderr
    return took, done.stdout
