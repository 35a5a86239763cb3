"""What the workers of one trial have to tell each other beyond averaged gradients.

A group of W workers trains on one global batch: worker r holds its r-th part, b of W * b images. Everything here is
exact: a group gets what one process with the whole batch would get, up to the order of floating-point sums. In a group
of one nothing is sent. The process group is torch's default one, which the runtime has set up (gloo or NCCL).
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
    """One worker's place in its group.

    Args:
        rank: from 0 to count - 1.
        count: W.
    """

    rank: int = 0
    count: int = 1

    def gather(self, part: Tensor) -> Tensor:
        """[b, ...] of this worker -> [W * b, ...] of the whole batch, in the order of the images.

        Gradients flow back to the worker that a row came from, summed over the losses of all workers. When every
        worker computes the same loss of the gathered rows, that is W times its gradient, and averaging over the workers
        (as `DistributedDataParallel` does) gives the gradient that one process would have.
        """
        if self.count == 1:
            return part
        # torch.distributed.nn's all_gather is deprecated in favour of this one.
        from torch.distributed._functional_collectives import all_gather_single

        group = dist.distributed_c10d._get_default_group()
        gathered: Tensor = all_gather_single(part.contiguous(), 0, group)
        return gathered

    def rows(self, part: Tensor, rows: Tensor) -> Tensor:
        """Some rows of the whole batch: `part` [m, C] is this worker's of the W * m rows; [len(rows), C], no gradient.

        Args:
            rows: int64 on the CPU, the same on every worker.
        """
        if self.count == 1:
            return part[rows.to(part.device)]
        mine = rows - self.rank * len(part)
        held = (mine >= 0) & (mine < len(part))
        found = part.new_zeros(len(rows), *part.shape[1:])
        found[held.to(part.device)] = part.detach()[mine[held].to(part.device)]
        # Every row is held by one worker, and a sum with zeros is exact.
        dist.all_reduce(found)
        return found

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the workers, the same bits on each; without a gradient in a group of several."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def broadcast(self, value: Value | None) -> Value:
        """Rank 0's value, on every worker; the others' is not looked at."""
        sent = [value]
        if self.count > 1:
            dist.broadcast_object_list(sent, src=0)
        assert sent[0] is not None
        return sent[0]

    def first_then_others(self, work: Callable[[], Value]) -> Value:
        """Do something on rank 0, then on the others, who find what rank 0 left on disk."""
        if self.rank > 0:
            dist.barrier()
        result = work()
        if self.rank == 0 and self.count > 1:
            dist.barrier()
        return result


SINGLE_PROCESS = Workers()
