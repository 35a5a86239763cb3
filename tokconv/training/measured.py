"""What some work costs, measured by doing it: its FLOPs and its seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Measured:
    """The cost of some work."""

    flops: float = 0.0
    seconds: float | None = 0.0
    """None if it was not timed."""

    def __add__(self, other: Measured) -> Measured:
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Measured(self.flops + other.flops, seconds)

    def times(self, count: float) -> Measured:
        """Return the cost of doing it so often."""
        return Measured(self.flops * count, None if self.seconds is None else self.seconds * count)


def counted_flops(work: Callable[[], object]) -> int:
    """Return the FLOPs of matrix products and convolutions, backward passes included."""
    # The formulas know matrix products and convolutions, but not every fused attention.
    with sdpa_kernel(SDPBackend.MATH), _FlopCounter() as counter:
        work()
    return counter.flops


def median_seconds(work: Callable[[int], object], times: int, device: torch.device) -> float:
    """Return the median of the seconds that some work takes, done `times` times after a first one that does not count.

    Args:
        work: called with how often it was done before.
        device: where it runs; its end is waited for.
    """
    seconds = []
    for number in range(1 + times):
        start = time.perf_counter()
        work(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    # The first time also allocates memory and chooses kernels.
    return median(seconds[1:])


class _FlopCounter(TorchDispatchMode):
    """torch's own formulas without its `FlopCounterMode`, whose module hooks do not support double backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            # Without autograd, as in inference mode, operators such as `linear` arrive whole.
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        out = func(*args, **kwargs)
        if packet is torch.ops.aten.convolution_backward:
            self.flops += _convolution_backward_flops(*args)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def _convolution_backward_flops(grad: Tensor, inputs: Tensor, weight: Tensor, *rest: Any) -> int:
    """Return the FLOPs of the forward pass for each wanted gradient; torch's formula counts depthwise as dense."""
    transposed, wanted = rest[4], rest[7]
    places = inputs if transposed else grad
    return 2 * sum(wanted[:2]) * places.shape[0] * math.prod(places.shape[2:]) * weight.numel()
