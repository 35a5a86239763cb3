"""`tokconv doctor`: is everything installed, and does every part work here? Each check runs the real thing, on a small
scale."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tokconv import __version__
from tokconv.cli.doctor_apart import started
from tokconv.errors import MissingExtraError, first_line, printable
from tokconv.system.ray_cluster import check_ray

Check = Callable[[], str]
MODULES = {"hydra-core": "hydra", "scikit-learn": "sklearn", "scikit-image": "skimage", "PyYAML": "yaml"}
MODULES |= {"Jinja2": "jinja2", "markdown-it-py": "markdown_it"}
"""The modules of packages whose module has another name."""
RAY_TMPDIR = 36
"""Characters: Ray appends up to 70 to TMPDIR for a socket, and Linux allows 107."""


@dataclass(frozen=True)
class Part:
    """A check, and what to do if it fails.

    extra, packages: for an optional part, the extra that brings it and the packages without which it is not installed.
    apart: its check runs in a process of its own, from the first moment on.
    """

    name: str
    check: Check
    cure: str
    extra: str = ""
    packages: tuple[str, ...] = ()
    apart: bool = False


def run(_: argparse.Namespace) -> int:
    """Run every check and print one line per part; return 1 if a part is broken or a required one missing, else 0."""
    tick, dash, cross = _marks()
    print(f"tokconv {__version__}\n")
    width = max(len(part.name) for part in PARTS)
    failed, absent = 0, []
    installed = [part.name for part in PARTS if part.apart and not _missing(part.packages)]
    with _scratch(), started(installed) as running:
        for part in PARTS:
            if missing := _missing(part.packages):
                absent.append(part.name)
                mark, found = dash, f"optional, {missing} not installed"
                advice = f"to install: {_install(part.extra)}"
            else:
                try:
                    mark, found, advice = tick, running.get(part.name, part.check)(), ""
                except Exception as error:  # a doctor reports every kind of failure instead of dying of one
                    failed += 1
                    mark, found, advice = cross, reason(error), f"to do: {part.cure}"
            _print_part(f"{mark} {part.name:<{width}}  ", found, advice)
    without = f"; not installed: {', '.join(absent)}" if absent else ""
    print(f"\n{failed} of {len(PARTS)} checks failed{without}" if failed else f"\neverything works{without}")
    return 1 if failed else 0


@contextlib.contextmanager
def _scratch() -> Iterator[None]:
    """Give the checks and the libraries below them a temporary directory that is removed afterwards.

    If its name would make the paths of Ray's sockets too long, the usual one is used.
    """
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="tc", ignore_cleanup_errors=True) as scratch:
        try:
            if len(scratch) <= RAY_TMPDIR:
                os.environ["TMPDIR"] = tempfile.tempdir = scratch
            yield
        finally:
            os.environ.pop("TMPDIR", None)
            if before[0] is not None:
                os.environ["TMPDIR"] = before[0]
            tempfile.tempdir = before[1]


def _print_part(head: str, *paragraphs: str) -> None:
    columns = max(60, min(shutil.get_terminal_size().columns, 120))
    indent = " " * len(head)
    lines = [
        line
        for text in paragraphs
        for line in textwrap.wrap(printable(text), columns - len(head), break_long_words=False)
    ]
    print(head + f"\n{indent}".join(lines), flush=True)


def _marks() -> tuple[str, str, str]:
    """Return a tick, a dash and a cross, if the terminal or the log can show them."""
    try:
        "\u2713\u2717".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "[ok]", "[--]", "[!!]"
    return "\u2713", "-", "\u2717"


def reason(error: Exception) -> str:
    """Return why a check failed, in one line."""
    if isinstance(error, MissingExtraError):
        return str(error).split(";")[0]  # the rest is the cure
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    return first_line(error)


def _python() -> str:
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def _versions(packages: Sequence[str]) -> str:
    if missing := _missing(packages):
        raise RuntimeError(f"{missing} not installed")
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def _missing(packages: Sequence[str]) -> str:
    """Return "A, B are" for the packages that are not installed; "" if all are."""
    names = [name for name in packages if find_spec(MODULES.get(name, name)) is None]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}" if names else ""


def _install(extra: str) -> str:
    return f"pip install 'tokconv[{extra}]'"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"


def _torch_pair() -> str:
    import torch
    import torchvision

    # This operator of torchvision is compiled against torch, so a pair that does not match fails here.
    torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    return f"torch {torch.__version__} and torchvision {torchvision.__version__} fit together"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU; the CPU with {torch.get_num_threads()} threads"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    total = float(torch.ones(8, device="cuda").sum())
    if total != 8:
        raise RuntimeError(f"the sum of eight ones on {names[0]} is {total}")
    half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: set training.precision=float32"
    return f"{len(names)} GPU ({', '.join(names)}), {half}"


def _encoder() -> str:
    from PIL import Image

    from tokconv.config.tree import ClipConfig
    from tokconv.encoding.towers.tower import BUNDLED, VisionTower

    tower = VisionTower(ClipConfig(model_name=BUNDLED), "cpu")
    tokens = tower.encode(tower.preprocess([Image.new("RGB", (32, 32), "white")]))
    return f"the bundled tower turns an image into {tokens.shape[1]} tokens of {tokens.shape[2]} channels"


def _training() -> str:
    from PIL import Image

    from tokconv.config.overrides import compose
    from tokconv.encoding.pipeline import encode
    from tokconv.encoding.towers.tower import BUNDLED
    from tokconv.training.api import train

    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        images.mkdir()
        for number in range(16):
            Image.linear_gradient("L").rotate(22 * number).resize((32, 32)).save(images / f"{number:02d}.png")
        data = ["data=folder", f"data.root={images}", f"data.store={scratch}/store", "data.num_workers=0"]
        # Half the tower's own size: a quarter of the tokens, in a third of the time.
        tower = [f"model.clip.model_name={BUNDLED}", "model.clip.image_size=48"]
        config = compose([*data, *tower, "training.epochs=1", "training.n_critic=1"])
        result = train(config, encode(config), Path(scratch) / "run")
    return f"16 images encoded, one epoch trained and evaluated (fvu {result.figures['val/fvu']:.3f})"


def _mlflow() -> str:
    from tokconv.sweep.tracking.mlflow_connection import check_tracking

    with tempfile.TemporaryDirectory() as scratch:
        return check_tracking(Path(scratch))


REQUIRED = ("numpy", "transformers", "huggingface_hub", "safetensors", "hydra-core", "omegaconf", "filelock")
SWEEP = (
    *("ray", "optuna", "mlflow", "pandas", "rich", "matplotlib", "scipy", "PyYAML", "psutil", "plotly", "Jinja2"),
    "markdown-it-py",
)


def _extra(name: str, *packages: str) -> Part:
    return Part(f"{name} extra", partial(_versions, packages), _install(name), extra=name, packages=packages)


PARTS = (
    Part("python", _python, "install Python 3.11 or newer"),
    Part("packages", partial(_versions, REQUIRED), "pip install tokconv"),
    Part("torch", _torch_pair, "install a matching pair: pip install -c constraints.txt torch torchvision"),
    Part("devices", _devices, "check the driver: nvidia-smi must list the GPU that torch was built for"),
    Part("encoder", _encoder, "reinstall tokconv: its bundled tower is missing or damaged"),
    Part("training", _training, "repair what fails above, else report this"),
    _extra("demo", "scikit-learn", "scikit-image"),
    _extra("datasets", "datasets"),
    _extra("sweep", *SWEEP),
    Part(
        "ray",
        check_ray,
        f"{_install('ray')}; if RAY_ADDRESS is set, a cluster must answer there; if a path is too long: TMPDIR=/tmp",
        extra="ray",
        packages=("ray",),
        apart=True,
    ),
    Part("mlflow", _mlflow, _install("sweep"), extra="sweep", packages=SWEEP, apart=True),
)
