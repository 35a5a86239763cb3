"""Devices: which one a name means, in which precision it computes, and sending tensors there."""

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


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision that a config names; auto is bfloat16 on CUDA, and float32 elsewhere."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


MULTIPLIES = {
    "torch.bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "torch.float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""The capabilities of processors (x86-64 and ARM64) that multiply a precision, of which one is enough."""


def fast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the precision to compute weights of this one in: float32 on a processor that only imitates half precision.

    An EPYC without AVX512-BF16 read an image with SmolLM2-135M in 2.5 s in float32 and in 14 s in bfloat16.
    """
    import torch

    if device.type != "cpu" or str(dtype) not in MULTIPLIES:
        return dtype
    found = torch.cpu.get_capabilities()
    return dtype if any(found.get(name) for name in MULTIPLIES[str(dtype)]) else torch.float32


def resolve_device(name: str | None) -> torch.device:
    """Return the named device, or CUDA if it is available for None. Raises ConfigError if the device is missing."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available; use cpu, or cuda on a machine with a GPU") from error
