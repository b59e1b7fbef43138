"""The loop: accelerate, schedule, validation, early stop, checkpoints, resume.

Owns: one run from its first step to its best weights. Ignores: the registry, command lines.

    run folder:  recipe.yaml  environment.json  log.jsonl  metrics.json  checkpoints/{last,best}.pt  tracker files
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genre.assembly import Assembly
from genre.errors import DivergedError, InputError, InterruptedJobError
from genre.evaluation import evaluate_feedback, evaluate_ranking
from genre.files import atomic
from genre.metrics import metric
from genre.prediction import predict
from genre.progress import Reporter
from genre.sequences import Sequence, collate, plan_batches
from genre.training.checks import check_trainable, check_trained
from genre.training.state import Fitted, State, peak_memory_bytes


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
        assembly: From `genre.assembly.assemble`; its model is mutated.
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
    if resume:
        loop.restore()
    try:
        loop.run()
    except KeyboardInterrupt:
        loop.save("last")
        raise InterruptedJobError(
            f"interrupted after step {loop.state.step}",
            got="Ctrl-C",
            todo=f"the same command with --resume goes on from {folder}",
        ) from None
    finally:
        loop.close()
    return Fitted(assembly, loop.state, peak_memory_bytes(assembly.base.device))


class Loop:
    """One run, a step, an epoch or the whole at a time; `fit` is the way in."""

    def __init__(self, assembly: Assembly, folder: Path, reporter: Reporter, stop_at: int | None) -> None:
        from accelerate import Accelerator

        self.assembly, self.folder, self.reporter, self.stop_at = assembly, folder, reporter, stop_at
        self.recipe, self.train = assembly.recipe, assembly.recipe.train
        self.state = State()
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.model = assembly.model
        self.parameters = self.model.trainable()
        check_trainable(assembly, self.parameters)
        self.start = {name: float(value.detach().float().sum()) for name, value in self.parameters.items()}
        tracked = self.train.tracker != "none"
        self.accelerator = Accelerator(
            cpu=assembly.base.device.type == "cpu",
            log_with=self.train.tracker if tracked else None,
            project_dir=str(folder),
        )
        if tracked:
            self.accelerator.init_trackers("tracker", config={"recipe": self.recipe.name, "seed": self.train.seed})
        optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=self.train.learning_rate, weight_decay=self.train.weight_decay
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.supervise = assembly.builder.supervise(list(self.recipe.tasks))
        self.best: dict[str, Tensor] = {}
        self.on_validation: Callable[[State], None] | None = None

    def run(self) -> None:
        """Train to the last epoch or the early stop, then put the best weights back."""
        stale = 0
        while self.state.epoch < self.train.epochs:
            self.epoch()
            improved = self.validate()
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0
            self.save("last")
            if self.on_validation is not None:
                self.on_validation(self.state)
            recent = self.state.epoch - 1 - self.state.best_epoch
            stale = 0 if improved else recent
            if self.train.early_stop is not None and stale >= self.train.early_stop:
                self.reporter.line(f"early stop: no better for {stale} epochs")
                break
        self.finish()

    def epoch(self) -> None:
        """The batches of one epoch, from where the state stands."""
        rows, batches = self.plan(self.state.epoch)
        self.model.train()
        if self.assembly.shared is not None:
            self.assembly.shared.encoder.train(self.assembly.fits_encoder)
        first, begun = self.state.batch, time.perf_counter()
        before = self.state.seconds
        with self.reporter.bar(f"epoch {self.state.epoch + 1}/{self.train.epochs}", len(batches)) as bar:
            bar.advance(first)
            for index in range(first, len(batches)):
                share = (self.state.epoch + index / len(batches)) / self.train.epochs
                loss, tokens, targets = self.step([rows[i] for i in batches[index]], share)
                self.state.batch, self.state.step = index + 1, self.state.step + 1
                self.state.tokens, self.state.targets = self.state.tokens + tokens, self.state.targets + targets
                self.state.seconds = before + time.perf_counter() - begun
                bar.advance(1, loss=loss, tokens=tokens)
                self.record({"loss": loss, "learning_rate": self.rate(share)})
                if self.state.step % self.train.checkpoint_every == 0:
                    self.save("last")
                if self.stop_at is not None and self.state.step >= self.stop_at:
                    raise KeyboardInterrupt

    def plan(self, epoch: int) -> tuple[list[Sequence], list[np.ndarray]]:
        """The rows of an epoch and its batches; a function of seed and epoch alone, so that a resumed run sees the same."""
        draw = np.random.default_rng([self.train.seed, epoch])
        data = self.recipe.data
        rows, skipped = self.assembly.builder.training_rows(
            self.assembly.usable, self.assembly.supervised, max_events=data.max_events, min_events=data.min_events,
            shift=draw.random(),
        )  # fmt: skip
        if skipped:
            self.assembly.skipped["events of users with fewer than min_events"] = skipped
        if not rows:
            raise InputError("no user has enough training events", expected=f"data.min_events {data.min_events} or more")
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        batches = list(plan_batches(lengths, self.train.batch_tokens, draw.permutation(len(rows))))
        order = draw.permutation(len(batches))
        return rows, [batches[i] for i in order]

    def rate(self, share: float) -> float:
        """Linear warm-up, then linear decay to a tenth; `share` of the run is in [0, 1)."""
        if share < self.train.warmup:
            return self.train.learning_rate * max(share / self.train.warmup, 0.05)
        return self.train.learning_rate * (1 - 0.9 * (share - self.train.warmup) / (1 - self.train.warmup))

    def step(self, rows: list[Sequence], share: float) -> tuple[float, int, int]:
        """One optimizer step on some rows; the loss, the tokens and the targets of it."""
        batch = collate(rows, self.supervise).to(self.assembly.base.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(share)
        loss, parts = self.wrapped(batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.train.clip)
        if not math.isfinite(float(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(
                f"a gradient is not finite at step {self.state.step}", got=float(norm),
                todo="lower train.learning_rate; the last checkpoint is intact",
            )  # fmt: skip
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), batch.used, sum(count for _, count in parts.values())

    def validate(self) -> bool:
        """Evaluate the validation part; keep the weights if they are the best so far."""
        values = self.measure()
        first = next((task for task in self.recipe.tasks if f"{task.name}.{task.metrics[0]}" in values), self.recipe.tasks[0])
        if not values:  # nothing to validate on: the last weights are the ones to keep
            self.keep()
            return True
        name = f"{first.name}.{first.metrics[0]}"
        value, chosen = values[name], metric(first.metrics[0])
        better = self.state.best_value is None or chosen.better(value, self.state.best_value)
        if better:
            self.state.best_value, self.state.best_epoch = value, self.state.epoch
            self.keep()
        self.state.history.append({"epoch": self.state.epoch + 1, "step": self.state.step, **values})
        self.record({f"valid.{key}": number for key, number in values.items()})
        shown = "  ".join(f"{key} {number:.4f}" for key, number in list(values.items())[:4])
        self.reporter.line(f"epoch {self.state.epoch + 1}: validation {shown}{'  (best)' if better else ''}")
        return better

    def measure(self) -> dict[str, float]:
        """Validation metrics by `task.metric`, without intervals."""
        found = predict(
            self.model, self.assembly.builder, self.assembly.split, 1,
            max_events=self.recipe.data.max_events, batch_tokens=4 * self.train.batch_tokens,
        )  # fmt: skip
        values: dict[str, float] = {}
        for task in self.recipe.tasks:
            targets, scores, top = found[task.name]
            if not len(targets.event):
                continue
            if task.kind == "next_item":
                figures = evaluate_ranking(task.metrics, targets, scores, top, self.assembly.builder.catalogue_size, resamples=0)
            else:
                figures = evaluate_feedback(task.metrics, targets, scores, resamples=0)
            values |= {f"{task.name}.{name}": figure.value for name, figure in figures.items()}
        return values

    def keep(self) -> None:
        """Remember the present weights as the best."""
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}

    def finish(self) -> None:
        """Put the best weights back and check that training did something."""
        if self.best:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.copy_(self.best[name])
        check_trained(self.parameters, self.start)

    def record(self, values: dict[str, float]) -> None:
        """One line for the log file and the tracker."""
        self.accelerator.log(values, step=self.state.step)
        line = {"step": self.state.step, "epoch": self.state.epoch, "seconds": round(self.state.seconds, 3), **values}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, name: str) -> None:
        """Write a checkpoint aside and rename it into place, so that a cut never leaves half of one."""
        payload = {
            "state": vars(self.state).copy(), "weights": {key: value.detach().cpu() for key, value in self.parameters.items()},
            "best": {key: value.cpu() for key, value in self.best.items()}, "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state() if self.assembly.base.device.type == "cuda" else None,
        }  # fmt: skip
        with atomic(self.folder / "checkpoints" / f"{name}.pt") as aside:
            torch.save(payload, aside)

    def restore(self) -> None:
        """Go on from `checkpoints/last.pt`."""
        file = self.folder / "checkpoints" / "last.pt"
        if not file.exists():
            raise InputError(
                "there is nothing to resume",
                got=str(self.folder),
                expected="checkpoints/last.pt",
                todo="train without --resume",
            )
        payload = torch.load(file, map_location=self.assembly.base.device, weights_only=True)
        theirs, own = set(payload["weights"]), set(self.parameters)
        if theirs != own:
            raise InputError(
                "the checkpoint is of another recipe",
                got=sorted(theirs ^ own)[:3],
                expected="the same trained parameters",
            )
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(payload["weights"][name])
        self.state = State(**payload["state"])
        self.best = payload["best"]
        self.optimizer.load_state_dict(payload["optimizer"])
        torch.set_rng_state(payload["random"].cpu())
        if payload["random_device"] is not None:
            torch.cuda.set_rng_state(payload["random_device"].cpu())

    def close(self) -> None:
        """End the trackers and let go of accelerate's references."""
        self.accelerator.end_training()
        self.accelerator.free_memory()
