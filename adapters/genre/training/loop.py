"""The loop: steps, validation, early stop, checkpoints, resume.

Owns: one run from its first step to its best weights. Ignores: the registry, command lines.

    run folder:  recipe.yaml  environment.json  log.jsonl  metrics.json  curve.svg  checkpoints/last.pt  tracker files
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Rows
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from genre.data.sequences.batches import Batch
from genre.data.sequences.layout import Sequence
from genre.data.sequences.transfer import DIRECT
from genre.distributed import Processes
from genre.errors import InputError
from genre.progress import Bar, Reporter
from genre.training.assembly import Assembly
from genre.training.averaging import Average, copy_into
from genre.training.checkpoints import (
    TrainingState,
    check_parameters,
    read_checkpoint,
    restore_random,
    snapshot,
    write_checkpoint,
)
from genre.training.checks import GradientMonitor, check_finite, check_trainable, check_trained, checksums, gradient_norms
from genre.training.cooccurrence import add_cooccurrence
from genre.training.drawing import Labels, step_batches
from genre.training.epochs import plan_epoch
from genre.training.fsdp import shard_base
from genre.training.logged import training_labels
from genre.training.micro_batches import broadcast_weights, count_targets, most_micro_batches, seed_process, shares, split_rows
from genre.training.neighbours import add_neighbours
from genre.training.optimization import Optimization, learning_rate
from genre.training.outcomes import StepChecks, StepResult, mean_losses
from genre.training.private.steps import PrivateSteps
from genre.training.reporting import append_log, check_tracker, for_tracker, start_tracker, trim_log
from genre.training.runtime import Interrupts
from genre.training.time_left import TimeLeft
from genre.training.validation import deciding_metric, validation_metrics


class Loop:
    """One run, a step at a time or the whole: `genre.training.fitting` is the way in; `genre.training.simultaneous` steps many.

    Args:
        assembly, folder, stop_at, on_validation: See `fit`.
        reporter: Where the first process's progress goes.
        exclusive: Opens a block in which this run's model is used by itself; for a base that several runs share.

    Attributes:
        state: The counters of the run.
        labels: For each task its slot and the labels of the present epoch.
        best: The best validated weights so far.
        saved: The step of the last checkpoint; None before the first.
        awaits: Every pass looks at its losses, as on the CPU, where that costs nothing.
        checks: Looks at the figures of every step; on an accelerator a step late, but for a full fine-tune, where that would
            take a second copy of the base.
    """

    def __init__(
        self,
        assembly: Assembly,
        folder: Path,
        reporter: Reporter,
        *,
        stop_at: int | None = None,
        on_validation: Callable[[TrainingState], None] | None = None,
        exclusive: Callable[[], AbstractContextManager[None]] = nullcontext,
        time_left: TimeLeft | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.assembly = assembly
        self.folder = folder
        self.stop_at = stop_at
        self.on_validation = on_validation
        self.exclusive = exclusive
        self.time_left = time_left or TimeLeft(assembly)
        self.recipe = assembly.recipe
        self.train = assembly.recipe.train
        self.model = assembly.model
        self.device = assembly.base.device
        self.state = TrainingState()
        self.processes = Processes.current()
        self.reporter = reporter if self.processes.is_main else Reporter.silent()
        if self.processes.device not in (None, self.device):
            got, expected = self.device, f"{self.processes.device}, which accelerate gave this process"
            raise InputError("the base is on another device than its process", got=got, expected=expected)
        if self.processes.is_main:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.parameters = self.model.trainable()
        check_trainable(assembly, self.parameters)
        self.start = checksums(self.parameters)
        tracker = check_tracker(self.train.tracker)
        # Everything is where the base is already: accelerate has one device per process, whatever the base was loaded on.
        on_cpu = self.processes.count > 1 and self.device.type == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu, device_placement=False, log_with=tracker, project_dir=str(folder))
        start_tracker(self.accelerator, self.recipe, folder)
        # Not wrapped for data parallel: gradients are summed here, weighted by targets, whatever module they are of.
        self.wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=self.processes.count > 1)
        broadcast_weights(self.processes, self.model, self.train.seed)
        if message := shard_base(self.model, self.parameters.values(), self.processes):
            self.reporter.line(message)
        self.optimization = Optimization(self.accelerator, self.processes, list(self.parameters.values()), self.train)
        self.average = Average(self.parameters, self.train.average)
        self.weights = {name: task.weight for name, task in self.model.tasks.items()}
        self.private = PrivateSteps(assembly, self.parameters) if self.train.privacy is not None else None
        self.all_labels: Labels = training_labels(assembly.builder.data, self.recipe.tasks)
        self.labels: Labels = self.all_labels
        self.best: dict[str, Tensor] = {}
        self.saved: int | None = None
        self.gradients = GradientMonitor(assembly, self.row_norms)
        self.awaits = self.device.type in DIRECT
        self.checks = StepChecks(
            self.gradients,
            list(self.parameters.values()),
            late=not self.awaits and self.recipe.adapter.kind != "full",
            run_again=None if self.awaits else self.run_again,
            warn=self.reporter.line,
        )
        self.bar: Bar | None = None
        self.interrupts = Interrupts(self.reporter.line)

    def run(self) -> None:
        """Train to the last epoch or the early stop, then restore the best weights."""
        for rows, progress in self.steps():
            begun = time.perf_counter()
            result = self.step(rows, progress)
            self.account(progress, result, seconds=time.perf_counter() - begun)
        self.finish()

    @property
    def stopped_early(self) -> bool:
        """True if validation has been no better for `train.early_stop` epochs."""
        return self.train.early_stop is not None and self.state.stale >= self.train.early_stop

    def steps(self) -> Iterator[tuple[list[Sequence], float]]:
        """The rest of the run: the rows of each step and the share of the run that is done.

        The caller takes a step and accounts for it before it asks for the next one. In between, epochs are validated and
        checkpoints written.

        Raises:
            KeyboardInterrupt: The user wants to stop; a checkpoint of the last step was written.
        """
        if self.private is not None:
            self.reporter.line(self.private.announce())
            if self.saved is None:
                self.private.begin()
        if self.saved is None:
            self.save()  # so that a run that is killed before its first checkpoint can be resumed too
        while self.state.epoch < self.train.epochs and not self.stopped_early:
            yield from self.epoch()
            self.validate()
            self.state.epoch += 1
            self.state.batch = 0
            self.save()
            if self.on_validation is not None:
                self.on_validation(self.state)
            self.stop_if_requested()
        if self.stopped_early:
            self.reporter.line(f"early stop: no better for {self.state.stale} epochs")

    def epoch(self) -> Iterator[tuple[list[Sequence], float]]:
        """The steps of one epoch, from the present one."""
        batches = self.plan(self.state.epoch)
        self.set_training()
        label, later = f"epoch {self.state.epoch + 1}/{self.train.epochs}", self.time_left.later(self.state.epoch, len(batches))
        with self.reporter.bar(label, len(batches), later=later) as self.bar:
            self.bar.advance(self.state.batch)
            for index in range(self.state.batch, len(batches)):
                yield batches[index], (self.state.epoch + index / len(batches)) / self.train.epochs
                if self.state.step % self.train.checkpoint_every == 0:
                    self.save()
                self.stop_if_requested()
            self.checks.settle()

    def plan(self, epoch: int) -> list[list[Sequence]]:
        """Lay out an epoch: the rows of its steps. Steps learn from its labels from now on."""
        self.checks.settle()
        private = self.private
        planned = plan_epoch(self.assembly, self.all_labels, epoch) if private is None else private.plan_epoch(self.all_labels)
        self.labels = planned.labels
        return planned.batches

    def set_training(self) -> None:
        """Put the model, and its encoder if that is being fitted, in training mode."""
        self.model.train()
        if self.assembly.shared is not None:
            self.assembly.shared.encoder.train(self.assembly.fits_encoder)

    def account(self, progress: float, result: StepResult, *, seconds: float) -> None:
        """Count a step that was done, and log it once its figures are found to be in order."""
        self.state.batch += 1
        self.state.step += 1
        self.state.tokens += result.tokens
        self.state.targets += result.targets
        self.state.seconds += seconds
        self.checks.report(partial(self.report, progress, result, self.counters()))

    def report(self, progress: float, result: StepResult, counters: dict[str, float]) -> None:
        """Show and log the figures of a step."""
        if self.bar is not None:
            self.bar.advance(1, loss=result.loss, tokens=result.tokens)
        parts = {f"loss.{name}": value for name, (value, _) in result.losses.items()} if len(result.losses) > 1 else {}
        norms = self.gradients.norms
        norm = {"gradient_norm": norms[-1]} if norms else {}
        self.log({"loss": result.loss, **parts, **norm, "learning_rate": learning_rate(self.train, progress)}, counters)

    def stop_if_requested(self) -> None:
        """Stop between two steps if the user wants to; with a checkpoint, so that nothing is lost."""
        requested = self.interrupts.requested if self.processes.count == 1 else self.checks.interrupted
        if requested or (self.stop_at is not None and self.state.step >= self.stop_at):
            self.save()
            if self.private is not None:
                self.reporter.line(self.private.report())
            raise KeyboardInterrupt

    def step(self, rows: list[Sequence], progress: float) -> StepResult:
        """Take one optimizer step on some rows."""
        if self.private is not None:
            return self.private_step(self.private, rows, progress)
        targets = count_targets(rows, self.labels)
        losses = torch.zeros(len(targets) + 1, device=self.device)  # and whether this process was interrupted
        micro_batches = split_rows(rows, self.processes, self.train.accumulate)
        for micro_batch in micro_batches:
            for batch in self.batches(micro_batch):
                share = shares({name: len(reads.labels) for name, reads in batch.reads.items()}, targets)
                loss, parts = self.wrapped(batch, share, check=self.awaits)
                self.optimization.backward(loss)
                losses[:-1] += mean_losses(parts, share)
        if self.processes.count > 1 and self.model.base.sharded:
            # run the base as often as the other processes, on a row that counts for nothing
            for _ in range(most_micro_batches(rows, self.processes, self.train.accumulate) - len(micro_batches)):
                for batch in self.batches(rows[:1]):
                    self.optimization.backward(self.wrapped(batch, dict.fromkeys(targets, 0.0))[0])
        losses[-1] = float(self.interrupts.requested)
        return self.update(rows, progress, self.optimization.all_reduce(losses), targets)

    def batches(self, rows: Rows[Sequence]) -> Iterator[Batch]:
        """Some rows with what this step's losses draw: one batch, or several where that is more than was planned for."""
        return step_batches(self.model, rows, self.labels, self.train.batch_tokens)

    def private_step(self, private: PrivateSteps, rows: list[Sequence], progress: float) -> StepResult:
        """Take one optimizer step on the noisy gradient of the users whose rows these are."""
        found = private.gradient(rows, self.labels, index=self.state.batch)
        self.optimization.step(learning_rate(self.train, progress))
        self.average.update(self.state.step + 1)
        private.stepped()
        counts = {name: count for name, (_, count) in found.losses.items()}
        means = torch.tensor([*(mean for mean, _ in found.losses.values()), 0.0, 0.0], dtype=torch.float64)
        return StepResult(found.tokens, counts, self.weights, means)

    def update(self, rows: list[Sequence], progress: float, losses: Tensor, targets: Mapping[str, int]) -> StepResult:
        """Clip the gradients that some rows gave, step the optimizer, and drop them.

        Args:
            rows: The rows.
            progress: The share of the run that is done.
            losses: (tasks + 1,) float32 each task's mean loss, and the number of interrupted processes.
            targets: The number of targets of each task.

        Raises:
            DivergedError: See `StepChecks.add`.
        """
        norm = self.optimization.clip().to(losses)
        result = StepResult(sum(map(len, rows)), targets, self.weights, torch.cat([losses, norm.reshape(1)]))
        self.checks.add(rows, self.state.step, result)
        self.optimization.step(learning_rate(self.train, progress))
        self.average.update(self.state.step + 1)
        return result

    @torch.no_grad()
    def run_again(self, rows: list[Sequence]) -> None:
        """Run a step's rows forward and look at every loss; raises what names those that are not finite."""
        parts = self.train.accumulate * self.processes.count
        with self.exclusive():
            for some in split_rows(rows, Processes(), parts):
                for batch in self.batches(some):
                    self.model(batch)

    def row_norms(self, rows: list[Sequence]) -> list[float]:
        """The norm of the gradient that each row gives by itself."""

        def loss(some: list[Sequence]) -> Tensor:
            return torch.stack([self.model(batch)[0] for batch in self.batches(some)]).sum()

        with self.exclusive():
            return gradient_norms(loss, rows, self.parameters)

    def validate(self) -> None:
        """Evaluate the validation part; keep the weights, or their average, if they are the best so far."""
        self.checks.settle()
        check_finite(self.parameters, self.state.step)
        begun = time.perf_counter()
        if self.private is not None:  # validation events are their users' too: none of them decides anything
            with self.average.applied():
                self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
            self.reporter.line(self.private.report())
            return
        with self.average.applied():
            with self.exclusive(), self.reporter.phase(f"epoch {self.state.epoch + 1}: validating", at_once=False):
                measured = validation_metrics(self.assembly, self.processes)
            self.time_left.validation_s = time.perf_counter() - begun
            if self.is_best(measured):
                self.best = {name: value.detach().clone() for name, value in self.parameters.items()}

    def is_best(self, measured: dict[str, float]) -> bool:
        """Log validation metrics; True if the deciding one is the best so far, or if there is nothing to decide by."""
        deciding = deciding_metric(self.recipe.tasks, measured)
        if deciding is None:
            return True
        name, metric = deciding
        values = {key: value for key, value in measured.items() if not math.isnan(value)}
        if not self.state.history and (missing := [key for key in measured if key not in values]):
            self.reporter.line(f"validation: {', '.join(missing)} cannot be computed from the labels there; {name} decides")
        better = self.state.best_value is None or metric.better(values[name], self.state.best_value)
        if better:
            self.state.best_value = values[name]
            self.state.best_epoch = self.state.epoch
        self.state.history.append({"epoch": self.state.epoch + 1, "step": self.state.step, **values})
        self.log({f"valid.{key}": value for key, value in values.items()})
        shown = "  ".join(f"{key} {value:.4f}" for key, value in list(values.items())[:4])
        self.reporter.line(f"epoch {self.state.epoch + 1}: validation {shown}{'  (best)' if better else ''}")
        return better

    def finish(self) -> None:
        """Restore the best weights, check that training did something, and fit the co-occurrence terms."""
        copy_into(self.parameters, self.best)
        check_finite(self.parameters, self.state.step)
        check_trained(self.parameters, self.start)
        with self.exclusive(), self.reporter.phase("fitting the co-occurrence terms", at_once=False):
            for message in (*add_cooccurrence(self.assembly, self.processes), *add_neighbours(self.assembly, self.processes)):
                self.reporter.line(message)

    def counters(self) -> dict[str, float]:
        """Where the run is."""
        return {"step": self.state.step, "epoch": self.state.epoch, "seconds": round(self.state.seconds, 3)}

    def log(self, values: dict[str, float], counters: dict[str, float] | None = None) -> None:
        """Write a line to the log file and the tracker, of where the run is or was."""
        counters = counters or self.counters()
        if self.processes.is_main:
            self.accelerator.log(for_tracker(self.train.tracker, values), step=int(counters["step"]))
            append_log(self.folder, counters | values)

    def save(self) -> None:
        """Write a checkpoint of everything that the next step depends on.

        Raises:
            DivergedError: A figure or a weight is not finite; the last checkpoint stays.
        """
        self.checks.settle()
        check_finite(self.parameters, self.state.step)
        if self.processes.is_main:
            held: dict[str, Mapping[str, Tensor]] = {
                "weights": self.parameters,
                "best": self.best,
                "average": self.average.values,
            }
            payload = snapshot(self.state, self.optimization.optimizer, held, self.assembly.base.devices)
            if self.private is not None:
                payload["privacy"] = self.private.state()
            write_checkpoint(self.folder, payload)
        self.saved = self.state.step

    def restore(self) -> None:
        """Go on from `checkpoints/last.pt`, and remove what came after it from the log.

        Raises:
            InputError: There is no checkpoint, it is damaged, or it is of another recipe.
        """
        payload = read_checkpoint(self.folder, torch.device("cpu"))
        check_parameters(payload, self.parameters)
        if self.private is not None:
            self.private.restore(payload.get("privacy"), payload["state"]["step"])
        copy_into(self.parameters, payload["weights"])
        self.state = TrainingState(**payload["state"])
        self.best = payload["best"]
        self.average.load(payload["average"])
        self.optimization.optimizer.load_state_dict(payload["optimizer"])
        self.saved = self.state.step
        if not self.processes.is_main:  # the checkpoint has the first process's random numbers
            seed_process(self.processes, self.train.seed, self.state.step)
            return
        restore_random(payload, self.device)
        trim_log(self.folder, self.state.step, self.state.epoch)

    def close(self) -> None:
        """End the trackers and drop accelerate's references; the processes stay together for the evaluation."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()
