"""A run from its first step to its best weights.

Owns: resuming, and what an interruption says. Ignores: how steps go (`genre.training.loop`), the registry.

    fitted = fit(assemble(recipe, log, base), Path("runs/like/1"))     # fitted.assembly.model holds the best weights
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genre.errors import InterruptedJobError
from genre.progress import Reporter
from genre.training.assembly import Assembly
from genre.training.checkpoints import TrainingState
from genre.training.loop import Loop
from genre.training.private.steps import PrivateSteps
from genre.training.runtime import peak_memory_bytes
from genre.training.time_left import TimeLeft


@dataclass
class Fitted:
    """A finished run: the model holds its best weights.

    Attributes:
        state: Counters and the validation history.
        peak_memory_bytes: Of the process on the CPU, of the device on CUDA.
        private: What a private run spent.
    """

    assembly: Assembly
    state: TrainingState
    peak_memory_bytes: int
    private: PrivateSteps | None = None


def fit(
    assembly: Assembly,
    folder: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    stop_at: int | None = None,
    on_validation: Callable[[TrainingState], None] | None = None,
    time_left: TimeLeft | None = None,
) -> Fitted:
    """Train an assembled run and leave the best validated weights in its model.

    Args:
        assembly: From `genre.training.assembly.assemble`; its model is mutated.
        folder: The run folder; checkpoints, log and tracker files go there.
        resume: Go on from `checkpoints/last.pt`.
        reporter: Where progress goes; silent if None.
        stop_at: Stop as if interrupted after so many steps (for tests of resuming).
        on_validation: Called with the state after every epoch, once its checkpoint is written; what it raises ends the run.
        time_left: Estimates of what follows the training, so that the time left is that of the whole job.

    Raises:
        DivergedError: A loss, a gradient or a weight is not finite; the last good checkpoint stays.
        InterruptedJobError: Interrupted; the message names the command that resumes.
        InputError: There is nothing to resume.
    """
    loop = Loop(
        assembly, folder, reporter or Reporter.silent(), stop_at=stop_at, on_validation=on_validation, time_left=time_left
    )
    try:
        if resume:
            loop.restore()
        with loop.interrupts.noted():
            loop.run()
    except KeyboardInterrupt:
        todo = f"the same command with --resume goes on from {folder}"
        raise InterruptedJobError(f"interrupted after step {loop.saved or 0}", got="Ctrl-C", todo=todo) from None
    finally:
        loop.close()
    return Fitted(assembly, loop.state, peak_memory_bytes(assembly.base.device), loop.private)
