"""Several independent runs on one frozen base in one process: the rows of one pass train the adapters of their own runs.

Owns: the passes that runs share, a run's slot in them, runs that end, fail or are interrupted. Ignores: the registry,
command lines. Each run keeps its own `Loop`: plan, schedule, optimizer, clipping, validation, early stop, checkpoints;
and its own random numbers, so that it ends as it would alone.

    round 1    like: 16 rows of 90 tokens   rating: 20 rows of 70     one pass of 2,840 tokens, two losses, one backward
    round 2    like: 30 rows of 44 tokens   rating: 12 rows of 104    …
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from genre.data.sequences.batches import collate
from genre.data.sequences.layout import Sequence as Row
from genre.errors import GenreError, InputError, InterruptedJobError, RecipeError
from genre.modules.base.base import Base
from genre.modules.embedding import embed
from genre.modules.lora.layer import PackedLora, PackedSpans, attach, detach, find_linears
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.tasks import RELATIVE
from genre.training.assembly import Assembly
from genre.training.fitting import Fitted
from genre.training.loop import Loop
from genre.training.outcomes import mean_losses
from genre.training.packing import check_packing, packed_hidden, packing, read_count
from genre.training.runtime import Interrupts, RandomStream, peak_memory_bytes
from genre.training.time_left import TimeLeft

TOKENS = {"cpu": 2048, "cuda": 32768}
"""Default tokens of one pass of the base, padding included: enough to use it fully, and no more, since what is kept for the
backward pass grows with them. A batch that is larger goes alone."""


@dataclass
class Member:
    """One run of a group.

    Attributes:
        assembly: From `assemble(…, bare=True)`.
        folder: Its run folder.
        stream: Torch's random numbers as they were when the assembly was made.
        resume: Go on from the folder's last checkpoint.
    """

    assembly: Assembly
    folder: Path
    stream: RandomStream
    resume: bool = False


def check_together(recipes: Sequence[Recipe]) -> None:
    """Check that recipes can train at once.

    Raises:
        RecipeError: They differ in their base, have a name in common, or one trains the base itself.
    """
    first = recipes[0]
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError("two recipes have the same name", got=", ".join(names), todo="rename one with --set or in its file")
    for recipe in recipes:
        for field in ("name", "depth", "quantization", "precision"):
            own, wanted = (getattr(each.base, field) or "all layers" for each in (recipe, first))
            if own != wanted:
                what = f"recipes that train at once share one base: {recipe.name!r} differs from {first.name!r} in base.{field}"
                raise RecipeError(what, got=own, expected=wanted, todo="train it by itself")
        if recipe.reads == "texts":
            raise RecipeError(f"recipe {recipe.name!r} reads labelled texts", todo="train it by itself")
        relative = [task.loss for task in recipe.tasks if task.loss in RELATIVE]
        for field, got, expected in (
            ("tasks.loss", relative[0] if relative else "cross_entropy", ("cross_entropy",)),
            ("adapter.kind", recipe.adapter.kind, ("lora", "rslora", "head_only")),
            ("train.accumulate", recipe.train.accumulate, (1,)),
            ("train.checkpoint_activations", recipe.train.checkpoint_activations, (False,)),
            ("train.start", recipe.train.start or "none", ("none",)),
            ("train.privacy", "set" if recipe.train.privacy is not None else "none", ("none",)),
        ):
            if got not in expected:
                what = f"recipe {recipe.name!r} cannot train beside others: {field}"
                raise RecipeError(what, got=got, expected=" or ".join(map(str, expected)), todo="train it by itself")


def fit_together(
    members: Sequence[Member], *, reporter: Reporter | None = None, tokens: int | None = None, stop_at: int | None = None
) -> list[Fitted | GenreError]:
    """Train several assembled runs and leave the best validated weights in their models; arguments as of `Group`.

    Returns:
        For each run its result, or the error that ended it: one that diverges leaves the others alone.

    Raises:
        InterruptedJobError: Interrupted; the message names the command that resumes.
        InputError: There is nothing to resume, or the runs do not share a base.
    """
    group = Group(members, reporter or Reporter.silent(), tokens=tokens, stop_at=stop_at)
    try:
        with group.interrupts.noted():
            group.train()
    except KeyboardInterrupt:
        steps = ", ".join(f"{run.name} after step {run.loop.saved or 0}" for run in group.runs)
        todo = "the same command with --resume goes on from their run folders"
        raise InterruptedJobError(f"interrupted: {steps}", got="Ctrl-C", todo=todo) from None
    finally:
        group.close()
    memory = peak_memory_bytes(group.base.device)
    return [run.error or Fitted(run.loop.assembly, run.loop.state, memory) for run in group.runs]


class GroupRun:
    """One run of a group while it trains.

    Attributes:
        slot: Its adapter's slot in the shared layers.
        loop: The run itself.
        stream: Its random numbers.
        steps: The rest of it; None once it has ended or failed.
        error: The failure that ended it.
    """

    def __init__(self, slot: int, member: Member, group: "Group") -> None:
        self.slot = slot
        self.name = member.assembly.recipe.name
        self.stream = member.stream
        reporter = Reporter(lambda text: group.reporter.write(f"{self.name}: {text}"))
        left = TimeLeft(member.assembly, test=True)
        self.loop = Loop(member.assembly, member.folder, reporter, exclusive=lambda: group.exclusive(self), time_left=left)
        self.resume = member.resume
        self.error: GenreError | None = None
        self.steps: Iterator[tuple[list[Row], float]] | None = self.loop.steps()

    def next_step(self) -> "PendingStep | None":
        """The next step; None once the run has ended or failed. Between steps it validates and writes checkpoints."""
        if self.steps is None:
            return None
        try:
            with self.stream.drawing():
                step = next(self.steps, None)
            if step is not None:
                return PendingStep(self, *step)
            self.loop.finish()
            self.steps = None
        except GenreError as error:
            self.fail(error)
        return None

    def fail(self, error: GenreError) -> None:
        """Leave the group; the last checkpoint stays."""
        self.error = error
        self.steps = None
        self.loop.optimization.zero_grad()
        self.loop.reporter.line(f"failed: {error}")


@dataclass
class PendingStep:
    """A run's next step: its rows, and the share of the run that is done."""

    run: GroupRun
    rows: list[Row]
    progress: float

    @property
    def size(self) -> int:
        """Tokens of its padded batch."""
        return len(self.rows) * max(map(len, self.rows))


class Group:
    """Runs in lockstep: each round, every run that is not over does its next step.

    Args:
        members: The runs, on one bare base, which is bare again after; their models are mutated.
        reporter: Where progress goes.
        tokens: Most tokens of one pass (see `TOKENS`).
        stop_at: Stop as if interrupted after so many rounds (for tests of resuming).

    Attributes:
        used, padded: Tokens that were no padding, and all that the base read.
        passes: How often the base ran.
    """

    def __init__(
        self, members: Sequence[Member], reporter: Reporter, *, tokens: int | None = None, stop_at: int | None = None
    ) -> None:
        bases = {id(member.assembly.base): member.assembly.base for member in members}
        if len(bases) != 1:
            raise InputError("runs that train at once share one base", got=f"{len(bases)} bases", expected="one")
        self.base: Base = next(iter(bases.values()))
        self.base.need_bare()
        check_packing(self.base)
        self.reporter = reporter
        self.stop_at = stop_at
        self.tokens = tokens or TOKENS.get(self.base.device.type, TOKENS["cuda"])
        self.runs = [GroupRun(slot, member, self) for slot, member in enumerate(members)]
        self.routing = PackedSpans(drawing=lambda slot: self.runs[slot].stream.drawing())
        self.layers = self._shared_layers()
        self.interrupts = Interrupts(reporter.line)
        self._attachment = ExitStack()
        self.rounds = 0
        self.passes = 0
        self.used = 0
        self.padded = 0

    def train(self) -> None:
        """Train every run to its end."""
        for run in self.runs:
            if run.resume:
                with run.stream.drawing():
                    run.loop.restore()
        with self.attached():
            while steps := self.next_steps():
                self.take(steps)
                self.rounds += 1
                self.stop_if_requested()
        waste = f"{1 - self.used / max(self.padded, 1):.1%} of {self.padded:,} tokens were padding"
        self.reporter.line(f"{self.rounds:,} rounds in {self.passes:,} passes; {waste}")

    def next_steps(self) -> list[PendingStep]:
        """The next step of every run that is not over."""
        return [step for run in self.runs if (step := run.next_step()) is not None]

    def take(self, steps: list[PendingStep]) -> None:
        """Take a step of several runs, in as few passes as they fit into; within `attached`."""
        for some in plan_passes(steps, self.tokens):
            self._pass(some)

    def _pass(self, steps: list[PendingStep]) -> None:
        """One pass of the base, forward and backward, and an optimizer step for each of its runs."""
        begun = time.perf_counter()
        batches = [collate(step.rows, step.run.loop.labels).to(self.base.device) for step in steps]
        embeds = []
        for step, batch in zip(steps, batches, strict=True):
            model = step.run.loop.model
            with step.run.stream.drawing():
                embeds.append(embed(self.base, batch, model.soft, model.dropout))
        self.routing.spans = spans_of(steps, [step.size for step in steps])
        some = any(batch.read_tokens is not None for batch in batches)
        self.routing.read = spans_of(steps, [read_count(batch) for batch in batches]) if some else ()
        end = self.routing.spans[-1][-1]
        losses: dict[int, torch.Tensor] = {}
        parts: dict[int, dict[str, tuple[torch.Tensor, int]]] = {}
        for step, batch, states in zip(steps, batches, packed_hidden(self.base, embeds, batches), strict=True):
            run = step.run
            try:
                with run.stream.drawing():
                    losses[run.slot], parts[run.slot] = run.loop.model.losses(states, batch, check=run.loop.awaits)
            except GenreError as error:
                run.fail(error)
        if losses:
            torch.stack(list(losses.values())).sum().backward()
        seconds = time.perf_counter() - begun
        self.passes += 1
        self.padded += end
        self.used += sum(batch.used for batch in batches)
        for step in steps:
            if step.run.slot in parts:
                self._update(step, parts[step.run.slot], seconds * step.size / end)

    def _update(self, step: PendingStep, parts: Mapping[str, tuple[torch.Tensor, int]], seconds: float) -> None:
        """Step a run's optimizer and account for it; `seconds` is its share of the pass."""
        begun, loop = time.perf_counter(), step.run.loop
        counts = {name: count for name, (_, count) in parts.items()}
        losses = torch.nn.functional.pad(mean_losses(parts, dict.fromkeys(parts, 1.0)), (0, 1))
        try:
            result = loop.update(step.rows, step.progress, losses, counts)
        except GenreError as error:
            step.run.fail(error)
        else:
            loop.account(step.progress, result, seconds=seconds + time.perf_counter() - begun)

    def stop_if_requested(self) -> None:
        """Stop between two rounds if the user wants to; every run with a checkpoint of its own."""
        if self.interrupts.requested or (self.stop_at is not None and self.rounds >= self.stop_at):
            for run in self.runs:
                if run.steps is not None:
                    with run.stream.drawing():
                        run.loop.save()
            raise KeyboardInterrupt

    @contextmanager
    def attached(self) -> Iterator[None]:
        """A block in which the base carries the adapters of all runs, and reads packed batches (mutates it)."""
        self._attach()
        try:
            yield
        finally:
            self._attachment.close()

    @contextmanager
    def exclusive(self, run: GroupRun) -> Iterator[None]:
        """A block within `attached` in which the base carries one run's adapter only, as if it trained by itself."""
        model = run.loop.model
        self._attachment.close()
        try:
            model.put(model.layers)
            try:
                yield
            finally:
                model.release()
        finally:
            self._attach()

    def _attach(self) -> None:
        with ExitStack() as attachment:
            attachment.enter_context(self.base.attached("several adapters in training"))
            attachment.enter_context(packing(self.base))
            attach(self.base.model, self.layers)
            attachment.callback(detach, self.base.model, self.layers)
            self._attachment = attachment.pop_all()

    def close(self) -> None:
        """End the runs' trackers."""
        for run in self.runs:
            run.loop.close()

    def _shared_layers(self) -> dict[str, PackedLora]:
        """One layer for each linear that any run adapts; on an 8-bit base for every one (see `PackedLora`)."""
        names = dict.fromkeys(name for run in self.runs for name in run.loop.model.layers)
        if self.base.quantization == "int8":
            names |= dict.fromkeys(find_linears(self.base.model, "all-linear"))
        found = {}
        for name in names:
            own = {run.slot: run.loop.model.layers[name] for run in self.runs if name in run.loop.model.layers}
            found[name] = PackedLora(self.base.model.get_submodule(name), own, self.routing)
        return found


def spans_of(steps: Sequence[PendingStep], sizes: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """The slot, first token and end of each step in a packed batch, where each has so many tokens."""
    ends = np.cumsum(sizes).tolist()
    return tuple((step.run.slot, end - size, end) for step, size, end in zip(steps, sizes, ends, strict=True))


def plan_passes(steps: Sequence[PendingStep], tokens: int) -> Iterator[list[PendingStep]]:
    """Steps that go through the base together: as many as fit into so many tokens, at least one."""
    chosen: list[PendingStep] = []
    for step in steps:
        if chosen and sum(each.size for each in chosen) + step.size > tokens:
            yield chosen
            chosen = []
        chosen.append(step)
    if chosen:
        yield chosen
