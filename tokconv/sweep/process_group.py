"""Ray's process group for torch, without torch in the processes that only wait.

A trial's Tune function and its Train controller wait for the workers, and both hold what they import: with
`ray.train.torch` that is torch, 0.3 GB each, all on the head node. So `TorchTrainer`'s set-up is sent to the workers by
name, and imported there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

LEAVE_SECONDS = 5.0
"""Ray's own patience with workers that do not leave their group."""


@dataclass
class ProcessGroup(BackendConfig):
    """What `ray.train.torch.TorchConfig` is to `TorchTrainer`.

    Args:
        backend: gloo or nccl.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return _Torch

    @property
    def train_func_context(self) -> Any:
        return _torch_context

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend}


class TorchTrainer(DataParallelTrainer):
    """`ray.train.torch.TorchTrainer` in all that its workers see; takes `backend_config=ProcessGroup(...)`."""


class _Torch(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, _address)
        backend, size = backend_config.to_dict()["backend"], len(worker_group)
        joined = [
            worker_group.execute_single_async(rank, _join, backend, rank, size, address, port) for rank in range(size)
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        ray.wait(left, num_returns=len(left), timeout=LEAVE_SECONDS)


def _address() -> tuple[str, int]:
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return str(address), int(port)


def _join(backend: str, rank: int, size: int, address: str, port: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, size, "env://")


def _leave(was_a_group: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(was_a_group)


def _torch_context() -> Any:
    from ray.train.torch.config import TorchConfigContextManager

    return TorchConfigContextManager()
