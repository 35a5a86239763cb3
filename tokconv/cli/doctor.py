"""`tokconv doctor`: is everything installed, and does every part work here? Each check runs the real thing, small."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tokconv import __version__
from tokconv.errors import MissingExtraError, TokconvError, first_line

Check = Callable[[], str]
MODULES = {"hydra-core": "hydra", "scikit-learn": "sklearn", "scikit-image": "skimage", "PyYAML": "yaml"}
"""Packages whose module has another name."""
RAY_TMPDIR = 36
"""Characters: Ray appends up to 70 to TMPDIR for a socket, and Linux allows 107."""


class BrokenError(TokconvError):
    """A check found something that is installed but does not work."""


@dataclass(frozen=True)
class Part:
    """A check and what to do when it fails."""

    name: str
    check: Check
    cure: str


def examine() -> int:
    """Run every check and print a line each; 0 when all are well, else 1."""
    tick, cross = _marks()
    print(f"tokconv {__version__}\n")
    width = max(len(part.name) for part in PARTS)
    failed = 0
    with _scratch():
        for part in PARTS:
            try:
                mark, found, cure = tick, part.check(), ""
            except Exception as error:  # a doctor reports every kind of failure instead of dying of one
                failed += 1
                mark, found, cure = cross, _reason(error), f"to do: {part.cure}"
            _print_part(f"{mark} {part.name:<{width}}  ", found, cure)
    print(f"\n{failed} of {len(PARTS)} checks failed" if failed else "\neverything works")
    return 1 if failed else 0


@contextlib.contextmanager
def _scratch() -> Iterator[None]:
    """Whatever the checks and the libraries below them write to a temporary place is gone afterwards.

    Where that would make the paths of Ray's sockets too long, they go where they always go.
    """
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="tc", ignore_cleanup_errors=True) as scratch:
        if len(scratch) > RAY_TMPDIR:
            yield
            return
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        try:
            yield
        finally:
            os.environ.pop("TMPDIR")
            if before[0] is not None:
                os.environ["TMPDIR"] = before[0]
            tempfile.tempdir = before[1]


def _print_part(head: str, *paragraphs: str) -> None:
    columns = max(60, min(shutil.get_terminal_size().columns, 120))
    indent = " " * len(head)
    lines = [line for text in paragraphs for line in textwrap.wrap(text, columns - len(head), break_long_words=False)]
    print(head + f"\n{indent}".join(lines), flush=True)


def _marks() -> tuple[str, str]:
    """A tick and a cross, where the terminal or the log can show them."""
    try:
        "\u2713\u2717".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "[ok]", "[!!]"
    return "\u2713", "\u2717"


def _reason(error: Exception) -> str:
    if isinstance(error, MissingExtraError):
        return str(error).split(";")[0]  # the cure says the rest
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    return first_line(error)


def _python() -> str:
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages(*names: str) -> Check:
    def check() -> str:
        missing = [name for name in names if find_spec(MODULES.get(name, name)) is None]
        if missing:
            raise BrokenError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed")
        return ", ".join(f"{name} {_version(name)}" for name in names)

    return check


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"


def _torch_pair() -> str:
    import torch
    import torchvision

    # An operator of torchvision that is compiled against torch: a pair that does not fit fails here.
    torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    return f"torch {torch.__version__} and torchvision {torchvision.__version__} fit together"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU; the CPU with {torch.get_num_threads()} threads"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    total = float(torch.ones(8, device="cuda").sum())
    if total != 8:
        raise BrokenError(f"the sum of eight ones on {names[0]} is {total}")
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
    from tokconv.config.overrides import compose
    from tokconv.encoding.pipeline import encode
    from tokconv.training.loop import run_trial
    from tokconv.training.runtime import LocalRuntime

    with tempfile.TemporaryDirectory() as scratch:
        overrides = ["data.subset=16", "data.num_workers=0", "training.epochs=1", "training.n_critic=1"]
        config = compose([*overrides, f"data.store='{scratch}/store'"])
        result = run_trial(config, encode(config), LocalRuntime(Path(scratch) / "run"))
    return f"16 digits encoded, one epoch trained and judged (fvu {result.figures['val/fvu']:.3f})"


def _ray() -> str:
    from tokconv.system.ray_cluster import check_ray

    return check_ray()


def _mlflow() -> str:
    from tokconv.sweep.tracking.mlflow_place import check_tracking

    with tempfile.TemporaryDirectory() as scratch:
        return check_tracking(Path(scratch))


DEMO, SWEEP = "pip install 'tokconv[demo]'", "pip install 'tokconv[sweep]'"
PARTS = (
    Part("python", _python, "install Python 3.11 or newer"),
    Part(
        "packages",
        _packages("numpy", "transformers", "huggingface_hub", "safetensors", "hydra-core", "omegaconf", "filelock"),
        "pip install tokconv",
    ),
    Part("torch", _torch_pair, "install a matching pair: pip install -c constraints.txt torch torchvision"),
    Part("devices", _devices, "check the driver: nvidia-smi must list the GPU that torch was built for"),
    Part("encoder", _encoder, "reinstall tokconv: its bundled tower is missing or damaged"),
    Part("demo extra", _packages("scikit-learn", "scikit-image"), DEMO),
    Part("datasets extra", _packages("datasets"), "pip install 'tokconv[datasets]'"),
    Part("training", _training, f"repair what fails above ({DEMO} brings the digits), else report this"),
    Part("sweep extra", _packages("ray", "optuna", "mlflow", "pandas", "rich", "matplotlib", "PyYAML"), SWEEP),
    Part(
        "ray",
        _ray,
        f"{SWEEP}; when RAY_ADDRESS is set, a cluster must answer there; when a path is too long, set TMPDIR=/tmp",
    ),
    Part("mlflow", _mlflow, SWEEP),
)
