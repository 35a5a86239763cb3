"""The communication between the workers of one trial, beyond averaged gradients.

A group of W workers trains on one global batch: worker r holds its r-th part, b of W * b images. Everything here is
exact: a group gets what one process with the whole batch would get, up to the order of floating-point sums. A group of
one sends nothing. The process group is torch's default one, which the runtime has set up (gloo or NCCL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Workers:
    """A group of workers, and this one's place in it.

    Args:
        rank: from 0 to count - 1.
        count: W.
    """

    rank: int = 0
    count: int = 1

    def gather(self, part: Tensor) -> Tensor:
        """Return [W * b, ...] of the whole batch, in the order of the images, from [b, ...] of each worker.

        Gradients flow back to the worker that a row came from, summed over the losses of all workers. If every
        worker computes the same loss of the gathered rows, that sum is W times its gradient, and averaging over the
        workers (as `DistributedDataParallel` does) gives the gradient that one process would have.
        """
        if self.count == 1:
            return part
        # torch.distributed.nn's all_gather is deprecated in favour of this one.
        from torch.distributed._functional_collectives import all_gather_single

        group = dist.distributed_c10d._get_default_group()
        return all_gather_single(part.contiguous(), 0, group)

    def rows(self, part: Tensor, rows: Tensor) -> Tensor:
        """Return some rows of the whole batch, [len(rows), C], without a gradient.

        Args:
            part: [m, C], this worker's part of the W * m rows.
            rows: int64 on the CPU, the same on every worker.
        """
        if self.count == 1:
            return part[rows.to(part.device)]
        mine = rows - self.rank * len(part)
        held = (mine >= 0) & (mine < len(part))
        found = part.new_zeros(len(rows), *part.shape[1:])
        found[held.to(part.device)] = part.detach()[mine[held].to(part.device)]
        # Each row is held by one worker, and adding zeros is exact.
        dist.all_reduce(found)
        return found

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the workers, the same bits on each; a group of several returns it without a gradient."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def broadcast(self, value: Value | None) -> Value:
        """Return rank 0's value on every worker; the values of the others are ignored."""
        sent = [value]
        if self.count > 1:
            dist.broadcast_object_list(sent, src=0)
        assert sent[0] is not None
        return sent[0]

    def first_then_others(self, work: Callable[[], Value]) -> Value:
        """Run `work` on rank 0, then on the others, which find on disk what rank 0 wrote."""
        if self.rank > 0:
            dist.barrier()
        result = work()
        if self.rank == 0 and self.count > 1:
            dist.barrier()
        return result


SINGLE_PROCESS = Workers()
