"""The processes that train one student together, each on a part of every step's batches; or one alone.

Gradients and losses are added up over all of them, so every process takes the same step: weights never leave step with each
other. The group is `accelerate`'s: gloo on CPUs, NCCL on GPUs, one each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Group:
    """This process's place among all."""

    rank: int = 0
    count: int = 1
    state: Any = None
    """accelerate's PartialState; None for one alone."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: int) -> range:
        """Which of `items` this process takes."""
        return range(self.rank, items, self.count)

    def add_up(self, value: Tensor) -> None:
        """Put the sum over all processes into `value`, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(value)

    def total(self, value: float) -> float:
        """The sum over all processes of one number."""
        if self.count == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64, device=self.state.device)
        self.add_up(held)
        return float(held)

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """The group is over."""
        if self.count > 1:
            self.state.destroy_process_group()


ALONE = Group()


def joined(rank: int, count: int, store: Path, device: str) -> Group:
    """Join the group of `count` processes that meet at the file `store`; on GPUs each takes the one of its own rank."""
    import os

    from accelerate import PartialState

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    on_cpu = device == "cpu"
    if on_cpu:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    where = {"init_method": f"file://{store}", "rank": rank, "world_size": count}
    state = PartialState(cpu=on_cpu, backend="gloo" if on_cpu else "nccl", **where)
    return Group(rank, count, state)
