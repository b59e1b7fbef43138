"""The loop: accelerate, schedule, validation, early stop, checkpoints, resume.

Owns: one run from its first step to its best weights. Ignores: the registry, command lines.

    run folder:  recipe.yaml  environment.json  log.jsonl  metrics.json  curve.svg  checkpoints/last.pt  tracker files
"""

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genre.data.sequences.batches import collate
from genre.data.sequences.layout import Sequence
from genre.distributed import Processes
from genre.errors import DivergedError, InputError, InterruptedJobError
from genre.evaluation.metrics import metric
from genre.progress import Bar, Reporter
from genre.training.assembly import Assembly
from genre.training.averaging import Average
from genre.training.checkpoints import read_checkpoint, trim_log, write_checkpoint
from genre.training.checks import check_finite, check_trainable, check_trained, gradient_norms, name_rows
from genre.training.cooccurrence import add_tastes
from genre.training.epochs import Labels, plan_epoch
from genre.training.fsdp import spread
from genre.training.interrupts import Interrupts
from genre.training.micro_batches import count_targets, cut, most_pieces, seed_apart, shares, start_alike
from genre.training.state import Fitted, State, peak_memory_bytes
from genre.training.trackers import need_tracker, start_tracker
from genre.training.updates import Updates
from genre.training.validation import measure


def fit(
    assembly: Assembly,
    folder: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    stop_at: int | None = None,
    on_validation: Callable[[State], None] | None = None,
) -> Fitted:
    """Train an assembled run and leave the best validated weights in its model.

    Args:
        assembly: From `genre.training.assembly.assemble`; its model is mutated.
        folder: The run folder; checkpoints, log and tracker files go there.
        resume: Go on from `checkpoints/last.pt`.
        reporter: Where progress goes; silent if None.
        stop_at: Stop as if interrupted after so many steps (for tests of resuming).
        on_validation: Told of the state after every epoch, once its checkpoint is written; what it raises ends the run.

    Raises:
        DivergedError: A loss, a gradient or a weight is not finite; the last good checkpoint stays.
        InterruptedJobError: Interrupted; the message says how to go on.
        InputError: There is nothing to resume.
    """
    loop = Loop(assembly, folder, reporter or Reporter.silent(), stop_at)
    loop.on_validation = on_validation
    try:
        if resume:
            loop.restore()
        with loop.interrupts:
            loop.run()
    except KeyboardInterrupt:
        raise InterruptedJobError(
            f"interrupted after step {loop.saved or 0}",
            got="Ctrl-C",
            todo=f"the same command with --resume goes on from {folder}",
        ) from None
    finally:
        loop.close()
    return Fitted(assembly, loop.state, peak_memory_bytes(assembly.base.device))


SURGE = 100.0
"""A gradient so many times larger than the median of the steps before is told, with the sequence that has the largest."""


class Loop:
    """One run, a step at a time or the whole; `fit` is the way in, and `genre.training.simultaneous` steps several.

    Attributes:
        state: Where the run stands.
        saved: The step of the last checkpoint; None before the first.
        on_validation: Told of the state after every epoch.
        alone: What holds while this run's model is used by itself, for validation.
    """

    def __init__(self, assembly: Assembly, folder: Path, reporter: Reporter, stop_at: int | None) -> None:
        from accelerate import Accelerator

        self.assembly, self.folder, self.stop_at = assembly, folder, stop_at
        self.recipe, self.train = assembly.recipe, assembly.recipe.train
        self.state, self.processes = State(), Processes.current()
        self.reporter = reporter if self.processes.is_main else Reporter.silent()
        if self.processes.is_main:
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.model = assembly.model
        self.parameters = self.model.trainable()
        check_trainable(assembly, self.parameters)
        self.start = {name: float(value.detach().float().sum()) for name, value in self.parameters.items()}
        tracker, cpu = need_tracker(self.train.tracker), assembly.base.device.type == "cpu"
        self.accelerator = Accelerator(cpu=cpu, log_with=tracker, project_dir=str(folder))
        start_tracker(self.accelerator, self.recipe, folder)
        # Not wrapped for data parallel: gradients are added up here, weighted by targets, whatever module they are of.
        self.wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=self.processes.count > 1)
        start_alike(self.processes, self.model, self.train.seed)
        if spoken := spread(self.model, self.parameters.values(), self.processes):
            self.reporter.line(spoken)
        self.updates = Updates(self.accelerator, self.processes, list(self.parameters.values()), self.train)
        self.labels: Labels = assembly.builder.data.supervise(list(self.recipe.tasks))
        self.supervise: Labels = self.labels
        self.average = Average(self.parameters, self.train.average)
        self.best: dict[str, Tensor] = {}
        self.parts: dict[str, tuple[float, int]] = {}
        self.saved: int | None = None
        self.norms: deque[float] = deque(maxlen=50)
        self.bar: Bar | None = None
        self.interrupts, self.agreed = Interrupts(), False
        self.on_validation: Callable[[State], None] | None = None
        self.alone: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self) -> None:
        """Train to the last epoch or the early stop, then put the best weights back."""
        for rows, share in self.steps():
            begun = time.perf_counter()
            found = self.step(rows, share)
            self.account(share, *found, seconds=time.perf_counter() - begun)
        self.finish()

    @property
    def over(self) -> bool:
        """Whether the last epoch is done, or validation has been no better for `train.early_stop` epochs."""
        return self.state.epoch >= self.train.epochs or self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the early stop has come."""
        return self.train.early_stop is not None and self.state.stale >= self.train.early_stop

    def steps(self) -> Iterator[tuple[list[Sequence], float]]:
        """What is left of the run: the rows of each step and the share of the run that is done.

        Who takes a step does it and accounts for it before the next one is asked for. In between, epochs are validated
        and checkpoints written.

        Raises:
            KeyboardInterrupt: The user has asked to stop; a checkpoint of the last step was written.
        """
        if self.saved is None:
            self.save("last")  # so that a run that is killed before its first checkpoint can be resumed too
        while not self.over:
            yield from self.epoch()
            self.validate()
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0
            self.save("last")
            if self.on_validation is not None:
                self.on_validation(self.state)
            self.pause()
        if self.stopped:
            self.reporter.line(f"early stop: no better for {self.state.stale} epochs")

    def epoch(self) -> Iterator[tuple[list[Sequence], float]]:
        """The batches of one epoch, from where the state stands."""
        rows, batches = self.plan(self.state.epoch)
        self.model.train()
        if self.assembly.shared is not None:
            self.assembly.shared.encoder.train(self.assembly.fits_encoder)
        with self.reporter.bar(f"epoch {self.state.epoch + 1}/{self.train.epochs}", len(batches)) as self.bar:
            self.bar.advance(self.state.batch)
            for index in range(self.state.batch, len(batches)):
                yield [rows[i] for i in batches[index]], (self.state.epoch + index / len(batches)) / self.train.epochs
                if self.state.step % self.train.checkpoint_every == 0:
                    self.save("last")
                self.pause()

    def account(self, share: float, loss: float, tokens: int, targets: int, *, seconds: float) -> None:
        """Count a step that was done, and write it down."""
        state = self.state
        state.batch, state.step = state.batch + 1, state.step + 1
        state.tokens, state.targets, state.seconds = state.tokens + tokens, state.targets + targets, state.seconds + seconds
        if self.bar is not None:
            self.bar.advance(1, loss=loss, tokens=tokens)
        parts = {f"loss.{name}": value for name, (value, _) in self.parts.items()} if len(self.parts) > 1 else {}
        norm = {"gradient_norm": self.norms[-1]} if self.norms else {}
        self.record({"loss": loss, **parts, **norm, "learning_rate": self.rate(share)})

    def pause(self) -> None:
        """Stop between two steps if the user has asked to; with a checkpoint, so that nothing is lost."""
        asked = self.interrupts.asked if self.processes.count == 1 else self.agreed
        if asked or (self.stop_at is not None and self.state.step >= self.stop_at):
            self.save("last")
            raise KeyboardInterrupt

    def plan(self, epoch: int) -> tuple[list[Sequence], list[np.ndarray]]:
        """The rows of an epoch and its batches; steps learn from its labels from now on."""
        found = plan_epoch(self.assembly, self.labels, epoch)
        self.supervise = found.supervise
        return found.rows, found.batches

    def rate(self, share: float) -> float:
        """Linear warm-up, then linear decay to a tenth; `share` of the run is in [0, 1)."""
        if share < self.train.warmup:
            return self.train.learning_rate * max(share / self.train.warmup, 0.05)
        return self.train.learning_rate * (1 - 0.9 * (share - self.train.warmup) / (1 - self.train.warmup))

    def step(self, rows: list[Sequence], share: float) -> tuple[float, int, int]:
        """One optimizer step on some rows; the loss, the tokens and the targets of it."""
        whole = count_targets(rows, self.supervise)
        told = torch.zeros(len(whole) + 1)
        pieces = cut(rows, self.processes, self.train.accumulate)
        more = most_pieces(rows, self.processes, self.train.accumulate) - len(pieces) if self.model.in_step else 0
        for piece in pieces:
            batch = collate(piece, self.supervise).to(self.assembly.base.device)
            part = shares({name: len(reads.labels) for name, reads in batch.reads.items()}, whole)
            loss, parts = self.wrapped(batch, part)
            self.updates.backward(loss)
            told += torch.tensor([*(part[name] * parts[name][0] for name in whole), 0.0])
        for _ in range(more):  # to run the base as often as the other processes; it counts for nothing
            batch = collate(rows[:1], self.supervise).to(self.assembly.base.device)
            self.updates.backward(self.wrapped(batch, dict.fromkeys(whole, 0.0))[0])
        told[-1] = float(self.interrupts.asked)
        *means, asked = self.updates.add_up(told).tolist()
        self.agreed = asked > 0
        self.parts = {name: (mean, whole[name]) for name, mean in zip(whole, means, strict=True)}
        self.update(rows, share)
        total = sum(self.model.tasks[name].weight * mean for name, (mean, _) in self.parts.items())
        return total, sum(len(row) for row in rows), sum(whole.values())

    def update(self, rows: list[Sequence], share: float) -> None:
        """Clip the gradients that some rows gave, step the optimizer, and forget them.

        Raises:
            DivergedError: A gradient is not finite; nothing was changed, and the message names the sequences.
        """
        norm = self.updates.clip()
        if not math.isfinite(norm):
            self.updates.forget()
            own = self.own_norms(rows)
            bad = [row for row, value in zip(rows, own, strict=True) if not math.isfinite(value)]
            named = name_rows(self.assembly, bad) if bad else "alone, each sequence has a finite one"
            raise DivergedError(
                f"a gradient is not finite at step {self.state.step}",
                got=norm,
                todo=f"{len(bad)} of {len(rows)} sequences: {named}; look at them, or lower train.learning_rate; "
                "the last checkpoint is intact",
            )
        if len(self.norms) >= 20 and norm > self.train.clip and norm > SURGE * statistics.median(self.norms):
            self.tell_surge(norm, rows)
        self.norms.append(norm)
        self.updates.step(self.rate(share))
        self.average.take(self.state.step + 1)

    def own_norms(self, rows: list[Sequence]) -> list[float]:
        """The norm of the gradient that each row gives by itself."""
        device = self.assembly.base.device
        with self.alone():
            return gradient_norms(lambda some: self.model(collate(some, self.supervise).to(device))[0], rows, self.parameters)

    def tell_surge(self, norm: float, rows: list[Sequence]) -> None:
        """Say that a gradient exploded, and which sequence has the largest; clipping bounds what it does."""
        own = self.own_norms(rows)
        worst = rows[int(np.nanargmax(own))]
        self.reporter.line(
            f"step {self.state.step}: the gradient's norm is {norm:.3g}, {norm / statistics.median(self.norms):,.0f} times the "
            f"usual, and is cut to {self.train.clip:g}; the largest comes from {name_rows(self.assembly, [worst])}"
        )

    def validate(self) -> None:
        """Evaluate the validation part; keep the weights, or their average, if they are the best so far."""
        check_finite(self.parameters, self.state.step)
        with self.average.in_place():
            self.judge()

    def judge(self) -> None:
        """Evaluate the present weights, and keep them if they are the best so far."""
        with self.alone():
            measured = measure(self.assembly, self.processes)
        values = {name: value for name, value in measured.items() if not math.isnan(value)}
        tasks = self.recipe.tasks
        ordered = [(task, task.metrics[0]) for task in tasks] + [(task, each) for task in tasks for each in task.metrics[1:]]
        name, own = next(((f"{task.name}.{each}", each) for task, each in ordered if f"{task.name}.{each}" in values), ("", ""))
        if not name:  # nothing to validate on: the last weights are the ones to keep
            self.keep()
            return
        if not self.state.history and (missing := [each for each in measured if each not in values]):
            said = f"validation: {', '.join(missing)} cannot be computed from the labels there"
            self.reporter.line(f"{said}; {name} decides")
        value, chosen = values[name], metric(own)
        better = self.state.best_value is None or chosen.better(value, self.state.best_value)
        if better:
            self.state.best_value, self.state.best_epoch = value, self.state.epoch
            self.keep()
        self.state.history.append({"epoch": self.state.epoch + 1, "step": self.state.step, **values})
        self.record({f"valid.{key}": number for key, number in values.items()})
        shown = "  ".join(f"{key} {number:.4f}" for key, number in list(values.items())[:4])
        self.reporter.line(f"epoch {self.state.epoch + 1}: validation {shown}{'  (best)' if better else ''}")

    def keep(self) -> None:
        """Remember the present weights as the best."""
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}

    def finish(self) -> None:
        """Put the best weights back, check that training did something, and add what is fitted after it."""
        if self.best:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.copy_(self.best[name])
        check_finite(self.parameters, self.state.step)
        check_trained(self.parameters, self.start)
        with self.alone():
            for said in add_tastes(self.assembly, self.processes):
                self.reporter.line(said)

    def record(self, values: dict[str, float]) -> None:
        """One line for the log file and the tracker."""
        if not self.processes.is_main:
            return
        self.accelerator.log(values, step=self.state.step)
        line = {"step": self.state.step, "epoch": self.state.epoch, "seconds": round(self.state.seconds, 3), **values}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, name: str) -> None:
        """Write a checkpoint of everything that the next step depends on.

        Raises:
            DivergedError: A weight is not finite; the last checkpoint stays.
        """
        check_finite(self.parameters, self.state.step)
        optimizer = self.updates.state()
        if self.processes.is_main:
            write_checkpoint(self.folder, name, {
                "state": vars(self.state).copy(), "optimizer": optimizer,
                "weights": {key: value.detach().cpu() for key, value in self.parameters.items()},
                "best": {key: value.cpu() for key, value in self.best.items()},
                "average": {key: value.cpu() for key, value in self.average.values.items()}, "random": torch.get_rng_state(),
                "random_device": torch.cuda.get_rng_state() if self.assembly.base.device.type == "cuda" else None,
            })  # fmt: skip
        self.saved = self.state.step

    def restore(self) -> None:
        """Go on from `checkpoints/last.pt`, and take out of the log what came after it.

        Raises:
            InputError: There is no checkpoint, it is damaged, or it is of another recipe.
        """
        payload = read_checkpoint(self.folder, self.assembly.base.device)
        theirs = {name: tuple(value.shape) for name, value in payload["weights"].items()}
        own = {name: tuple(value.shape) for name, value in self.parameters.items()}
        if theirs != own:
            raise InputError(
                "the checkpoint is of another recipe",
                got=sorted({name for name, _ in theirs.items() ^ own.items()})[:3],
                expected="the same trained parameters",
            )
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(payload["weights"][name])
        self.state = State(**payload["state"])
        self.best = payload["best"]
        self.average.load(payload.get("average", {}))
        self.updates.load(payload["optimizer"])
        self.saved = self.state.step
        if not self.processes.is_main:  # the checkpoint has the first process's random numbers
            seed_apart(self.processes, self.train.seed, self.state.step)
            return
        torch.set_rng_state(payload["random"].cpu())
        if payload["random_device"] is not None:
            torch.cuda.set_rng_state(payload["random_device"].cpu())
        trim_log(self.folder / "log.jsonl", self.state.step, self.state.epoch)

    def close(self) -> None:
        """End the trackers and let go of accelerate's references; the processes stay together for the evaluation."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.free_memory()
