"""`tokconv doctor`: is everything installed, and does every part work here? Each check runs the real thing, small."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

from tokconv.errors import TokconvError

Check = Callable[[], str]


@dataclass(frozen=True)
class Part:
    """A check, what it needs, and what to do when it fails."""

    name: str
    check: Check
    cure: str


class Broken(TokconvError):
    """A check found something that is installed but does not work."""


def examine() -> int:
    """Run every check and print a line each; 0 when all are well, else 1."""
    broken = 0
    for part in PARTS:
        try:
            found = part.check()
        except Exception as error:  # a doctor reports every kind of failure instead of dying of one
            broken += 1
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"  [!!] {part.name}: {reason}\n       {part.cure}", flush=True)
        else:
            print(f"  [ok] {part.name}: {found}", flush=True)
    print("everything works" if not broken else f"{broken} of {len(PARTS)} checks failed")
    return 1 if broken else 0


def _python() -> str:
    if sys.version_info < (3, 11):
        raise Broken(f"Python {platform.python_version()}; 3.11 or newer is needed")
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def _versions(*names: str) -> Check:
    def check() -> str:
        try:
            return ", ".join(f"{name} {version(name)}" for name in names)
        except PackageNotFoundError as error:
            raise Broken(f"{error.name} is not installed") from error

    return check


def _torch_pair() -> str:
    import torch
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
    return f"torch {Version(torch.__version__)} and torchvision {Version(torchvision.__version__)} fit together"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU; the CPU with {torch.get_num_threads()} threads"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: set training.precision=float32"
    return f"{len(names)} GPU ({', '.join(names)}), {half}"


def _encoder() -> str:
    from PIL import Image

    from tokconv.config import ClipConfig
    from tokconv.encoder import BUNDLED, VisionTower

    tower = VisionTower(ClipConfig(model_name=BUNDLED), "cpu")
    tokens = tower.encode(tower.preprocess([Image.new("RGB", (32, 32), "white")]))
    return f"the bundled tower turns an image into {tokens.shape[1]} tokens of {tokens.shape[2]} channels"


def _training_step() -> str:
    from tokconv.encode import encode
    from tokconv.overrides import compose
    from tokconv.runtime import LocalRuntime
    from tokconv.train import run_trial

    with tempfile.TemporaryDirectory() as scratch:
        overrides = ["data.subset=16", "data.num_workers=0", "training.epochs=1", "training.n_critic=1"]
        config = compose([*overrides, f"data.store={scratch}/store"])
        result = run_trial(config, encode(config), LocalRuntime(Path(scratch) / "run"))
    return f"16 digits encoded, one epoch trained and judged (fvu {result.figures['val/fvu']:.3f})"


def _ray() -> str:
    from tokconv.sweep.cluster import ray_cluster

    with ray_cluster(dashboard=True):
        import ray

        resources = ray.cluster_resources()
        assert ray.get(ray.remote(num_cpus=0.1)(lambda: 42).remote(), timeout=120) == 42
    return f"a task ran on a cluster with {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _mlflow() -> str:
    from tokconv.sweep.tracking import check_tracking

    with tempfile.TemporaryDirectory() as scratch:
        return check_tracking(Path(scratch))


SWEEP = "pip install 'tokconv[sweep]'"
PARTS = (
    Part("python", _python, "install Python 3.11 or newer"),
    Part(
        "packages",
        _versions("tokconv", "transformers", "safetensors", "hydra-core"),
        "pip install tokconv",
    ),
    Part("torch", _torch_pair, "install a matching pair: pip install -c constraints.txt torch torchvision"),
    Part("devices", _devices, "check the driver: nvidia-smi must list the GPU that torch was built for"),
    Part("encoder", _encoder, "reinstall tokconv: its bundled tower is missing or damaged"),
    Part("training", _training_step, "pip install 'tokconv[demo]' brings the digits; else report the message above"),
    Part("sweep extra", _versions("ray", "optuna", "mlflow", "pandas", "rich", "matplotlib"), SWEEP),
    Part("ray", _ray, f"{SWEEP}; when RAY_ADDRESS is set, check that the cluster answers there"),
    Part("mlflow", _mlflow, SWEEP),
)
