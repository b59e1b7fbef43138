"""The processes of a distributed run, and the collectives between them.

Owns: the process group (accelerate starts it), which process writes and reports, exchanging values. Ignores: models.

    accelerate launch --config_file recipes/accelerate/cpu.yaml -m genre train recipes/like.yaml

    processes = Processes.current()
    rows = processes.shard(rows)               # every other row in each of two processes
    values = processes.broadcast(values)       # those of the first process
    if processes.is_main: ...                  # one process writes, prints and publishes
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from genre.errors import InputError, JobError, first_line

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
TIMEOUT_HOURS = 24
"""Processes wait this long for each other, since one of them may evaluate or write alone."""


def process_count() -> int:
    """The number of processes that a launcher has started, from the environment only: cheap, and torch is not imported.

    Raises:
        InputError: accelerate was asked for several processes and started one.
    """
    single = "RANK" not in os.environ and "MASTER_ADDR" in os.environ
    if single and cpu_requested():
        raise InputError(
            "accelerate started one process only",
            got="accelerate launch --cpu, which needs MPI for more",
            expected="as many as --num_processes says",
            todo="accelerate launch --config_file recipes/accelerate/cpu.yaml -m genre train …",
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The rank of this process, 0 for a single one; from the environment only."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them.

    Attributes:
        rank: The number of this process, from 0.
        count: The number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """The processes that the launcher started; joins the process group, the first time waiting for all others.

        Raises:
            InputError: See `process_count`.
        """
        if process_count() < 2:
            return cls()
        from datetime import timedelta

        import torch
        from accelerate import PartialState

        cpu = not torch.cuda.is_available() or cpu_requested()
        state = PartialState(cpu=cpu, timeout=timedelta(hours=TIMEOUT_HOURS))
        return cls(state.process_index, state.num_processes)

    def leave(self) -> None:
        """Leave the process group once all are done, so that no process takes the end of another for a failure."""
        if self.count > 1:
            from accelerate import PartialState

            self._wait()  # one that tears down while another is still in an exchange may be killed by its own threads
            PartialState().destroy_process_group()

    @property
    def is_main(self) -> bool:
        """True for the one process that writes, prints and publishes."""
        return self.rank == 0

    @property
    def device(self) -> "torch.device | None":
        """The device of this process; None for a single process, which may choose."""
        if self.count == 1:
            return None
        import torch
        from accelerate import PartialState

        device = PartialState().device
        return torch.device("cpu") if device.type == "cpu" else device  # accelerate numbers it, and a base looks for plain `cpu`

    def shard(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's rows; together the processes have each row exactly once."""
        return rows if self.count == 1 else rows[self.rank :: self.count]

    def broadcast(self, value: T) -> T:
        """Return the first process's value in all of them. It travels pickled, between processes of one run only."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _exchange():
            return cast(T, broadcast_object_list([value])[0])

    def all_gather(self, value: T) -> list[T]:
        """Return all processes' values by rank, in all of them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        with _exchange():
            return cast(list[T], gather_object([value]))

    def all_reduce(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Return the sum of a tensor over the processes."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        with _exchange():
            return cast("torch.Tensor", reduce(tensor, "sum"))

    def broadcast_(self, tensor: "torch.Tensor") -> None:
        """Overwrite a tensor with the first process's."""
        if self.count > 1:
            import torch.distributed as dist

            with _exchange():
                dist.broadcast(tensor, 0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run a block in the first process before the others, such as a download that the others then find."""
        if not self.is_main:
            self._wait()
        yield
        if self.is_main:
            self._wait()

    def _wait(self) -> None:
        if self.count > 1:
            from accelerate import PartialState

            with _exchange():
                PartialState().wait_for_everyone()


def cpu_requested() -> bool:
    """True if accelerate was told to leave accelerators alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


@contextmanager
def _exchange() -> Iterator[None]:
    """A collective; when it breaks off, another process has failed and has reported why."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            "another process of this run has ended", got=first_line(error, 120), todo="its own message says why"
        ) from None
