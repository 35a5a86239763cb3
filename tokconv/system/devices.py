"""Devices: which one a name means, and sending tensors there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokconv.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor from the CPU to a device without waiting for it: a training step sends several small ones.

    One that is there already (DDP moves what a module is given) is returned as it is.
    """
    wanted = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory().to(device, non_blocking=True) if wanted else tensor.to(device)


def resolve_device(name: str | None) -> torch.device:
    """Return the named device, or CUDA if it is available for None. Raises ConfigError if the device is missing."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available; use cpu, or cuda on a machine with a GPU") from error
