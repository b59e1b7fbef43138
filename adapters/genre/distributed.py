"""Which of several processes this one is, and what they tell each other.

Owns: the process group (accelerate starts it), who speaks and writes, exchanging values. Ignores: models and what is exchanged.

    accelerate launch --config_file recipes/accelerate/cpu.yaml -m genre train recipes/like.yaml

    ranks = Ranks.here()
    mine = ranks.mine(rows)              # every other row in each of two processes
    values = ranks.same(values)          # what the first process has
    if ranks.main: ...                   # one process writes, prints and publishes
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from genre.errors import InputError, JobError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
HOURS = 24
"""How long a process waits for another: for as long as one of them may evaluate or write alone."""


def launched() -> int:
    """How many processes a launcher has started; asks the environment only, so it costs nothing.

    Raises:
        InputError: accelerate was asked for several processes and started one.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    alone = "RANK" not in os.environ and "MASTER_ADDR" in os.environ
    if alone and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        raise InputError(
            "accelerate started one process only", got="accelerate launch --cpu, which needs MPI for more",
            expected="as many as --num_processes says",
            todo="accelerate launch --config_file recipes/accelerate/cpu.yaml -m genre train …",
        )  # fmt: skip
    return count


def own_rank() -> int:
    """This process's number, 0 where there is one only; asks the environment only."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Ranks:
    """This process among all of them.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """This process as the launcher started it; joins the process group, the first time waiting for all others.

        Raises:
            InputError: See `launched`.
        """
        if launched() < 2:
            return cls()
        from datetime import timedelta

        import torch
        from accelerate import PartialState

        cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        state = PartialState(cpu=cpu, timeout=timedelta(hours=HOURS))
        return cls(state.process_index, state.num_processes)

    @staticmethod
    def part() -> None:
        """Leave the process group, if there is one: when all is done, so that nobody takes the end for a failure."""
        if launched() > 1:
            from accelerate import PartialState

            with _together():  # one that tears down while another is still in an exchange may be killed by its own threads
                PartialState().wait_for_everyone()
            PartialState().destroy_process_group()

    @property
    def main(self) -> bool:
        """Whether this process writes, prints and publishes."""
        return self.rank == 0

    @property
    def device(self) -> "torch.device | None":
        """The device of this process; None where there is one process only, which may choose."""
        if self.count == 1:
            return None
        import torch
        from accelerate import PartialState

        device = PartialState().device
        return torch.device("cpu") if device.type == "cpu" else device  # accelerate numbers it, and a base looks for plain `cpu`

    def mine(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's part of some rows: together the processes have each exactly once."""
        return rows if self.count == 1 else rows[self.rank :: self.count]

    def same(self, value: T) -> T:
        """The first process's value, in all of them. It travels pickled, between processes of one run only."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        held = [value]
        with _together():
            broadcast_object_list(held, 0)
        return held[0]

    def every(self, value: T) -> list[T]:
        """All processes' values by rank, in all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(found, value)
        return found

    def sum_(self, tensor: "torch.Tensor") -> None:
        """Add up a tensor over the processes, in place."""
        if self.count > 1:
            import torch.distributed as dist

            with _together():
                dist.all_reduce(tensor)

    def copy_(self, tensor: "torch.Tensor") -> None:
        """Take over the first process's tensor, in place."""
        if self.count > 1:
            import torch.distributed as dist

            with _together():
                dist.broadcast(tensor, 0)

    @contextmanager
    def first(self) -> Iterator[None]:
        """A block that the first process runs before the others, such as a download that the others then find."""
        if not self.main:
            self._wait()
        yield
        if self.main:
            self._wait()

    def _wait(self) -> None:
        if self.count > 1:
            from accelerate import PartialState

            with _together():
                PartialState().wait_for_everyone()


@contextmanager
def _together() -> Iterator[None]:
    """An exchange; when it breaks off another process has failed, and has said why."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            "another process of this run has ended", got=str(error).splitlines()[0][:120], todo="its own message says why"
        ) from None
