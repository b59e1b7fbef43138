"""Several independent runs on one frozen base in one process: the rows of one pass train their own lane.

Owns: the passes that runs share, a lane's place in them, runs that end, fail or are interrupted. Ignores: the registry,
command lines. Each run keeps its own `Loop`: plan, schedule, optimizer, clipping, validation, early stop, checkpoints;
and its own random numbers, so that it ends as it would alone.

    round 1    like: 16 rows of 90 tokens   rating: 20 rows of 70     one pass of 2,840 tokens, two losses, one backward
    round 2    like: 30 rows of 44 tokens   rating: 12 rows of 104    …
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch

from genre.data.sequences.batches import Batch, collate
from genre.data.sequences.layout import Sequence as Row
from genre.errors import GenreError, InputError, InterruptedJobError, RecipeError
from genre.modules.base.base import Base
from genre.modules.embedding import embed
from genre.modules.lora.layer import LaneSpans, LoraLanes, attach, detach, find_linears
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.training.assembly import Assembly
from genre.training.interrupts import Interrupts
from genre.training.loop import Loop
from genre.training.packing import Segments
from genre.training.state import Fitted, Stream, peak_memory_bytes

TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens, padding included, that the base sees in one pass unless said otherwise: what makes full use of it, and no more,
since what is kept for the backward pass grows with them. A batch that is larger goes alone."""


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
    stream: Stream
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
            own, wanted = getattr(recipe.base, field), getattr(first.base, field)
            if own != wanted:
                raise RecipeError(
                    f"recipes that train at once share one base: {recipe.name!r} differs from {first.name!r} in base.{field}",
                    got="all layers" if own is None else own, expected="all layers" if wanted is None else wanted,
                    todo="train it by itself",
                )  # fmt: skip
        if recipe.reads == "texts":
            raise RecipeError(f"recipe {recipe.name!r} reads labelled texts", todo="train it by itself")
        for field, got, expected in (
            ("adapter.kind", recipe.adapter.kind, ("lora", "rslora", "head_only")),
            ("train.accumulate", recipe.train.accumulate, (1,)),
            ("train.checkpoint_activations", recipe.train.checkpoint_activations, (False,)),
        ):
            if got not in expected:
                raise RecipeError(
                    f"recipe {recipe.name!r} cannot train beside others: {field}", got=got,
                    expected=" or ".join(map(str, expected)), todo="train it by itself",
                )  # fmt: skip


def fit_together(
    members: Sequence[Member], *, reporter: Reporter | None = None, tokens: int | None = None, stop_at: int | None = None
) -> list[Fitted | GenreError]:
    """Train several assembled runs and leave the best validated weights in their models; the base is bare again after.

    Args:
        members: The runs, on one bare base; their models are mutated.
        reporter: Where progress goes; silent if None.
        tokens: Most tokens of one pass (see `TOKENS`).
        stop_at: Stop as if interrupted after so many rounds (for tests of resuming).

    Returns:
        For each run what it is when it has ended, or why it failed: one that diverges leaves the others alone.

    Raises:
        InterruptedJobError: Interrupted; the message says how to go on.
        InputError: There is nothing to resume, or the runs do not share a base.
    """
    group = Group(members, reporter or Reporter.silent(), tokens, stop_at)
    try:
        with group.interrupts:
            group.run()
    except KeyboardInterrupt:
        steps = ", ".join(f"{lane.name} after step {lane.loop.saved or 0}" for lane in group.lanes)
        todo = "the same command with --resume goes on from their run folders"
        raise InterruptedJobError(f"interrupted: {steps}", got="Ctrl-C", todo=todo) from None
    finally:
        group.close()
    memory = peak_memory_bytes(group.base.device)
    return [lane.error or Fitted(lane.loop.assembly, lane.loop.state, memory) for lane in group.lanes]


class Lane:
    """One run's place in a group.

    Attributes:
        number: Its lane.
        loop: The run.
        stream: Its random numbers.
        steps: What is left of it; None when it has ended or failed.
        error: Why it failed.
    """

    def __init__(self, number: int, member: Member, reporter: Reporter) -> None:
        self.number, self.name, self.stream = number, member.assembly.recipe.name, member.stream
        said = Reporter(lambda text: reporter.write(f"{self.name}: {text}"))
        self.loop = Loop(member.assembly, member.folder, said, None)
        self.resume = member.resume
        self.error: GenreError | None = None
        self.steps: Iterator[tuple[list[Row], float]] | None = self.loop.steps()

    def start(self) -> None:
        """Go on from the run folder's last checkpoint, if that was asked for."""
        if self.resume:
            with self.stream.drawing():
                self.loop.restore()

    def fail(self, error: GenreError) -> None:
        """Leave the group; the last checkpoint stays."""
        self.error, self.steps = error, None
        self.loop.updates.forget()
        self.loop.reporter.line(f"failed: {error}")


@dataclass
class Due:
    """A lane's next step."""

    lane: Lane
    rows: list[Row]
    share: float

    @property
    def size(self) -> int:
        """Tokens of its padded batch."""
        return len(self.rows) * max(map(len, self.rows))


class Group:
    """Runs in lockstep: each round, every run that is not over does its next step.

    Attributes:
        used, padded: Tokens that were no padding, and all that the base saw.
        passes: How often the base ran.
    """

    def __init__(self, members: Sequence[Member], reporter: Reporter, tokens: int | None, stop_at: int | None) -> None:
        bases = {id(member.assembly.base): member.assembly.base for member in members}
        if len(bases) != 1:
            raise InputError("runs that train at once share one base", got=f"{len(bases)} bases", expected="one")
        self.base: Base = next(iter(bases.values()))
        self.base.need_bare()
        self.reporter, self.stop_at = reporter, stop_at
        self.tokens = tokens or TOKENS.get(self.base.device.type, TOKENS["cuda"])
        self.segments = Segments(self.base)
        self.lanes = [Lane(number, member, reporter) for number, member in enumerate(members)]
        for lane in self.lanes:
            lane.loop.alone = partial(self.alone, lane)
        self.routing = LaneSpans(drawing=lambda number: self.lanes[number].stream.drawing())
        self.layers = self._shared_layers()
        self.interrupts = Interrupts()
        self.attached = False
        self.rounds = self.passes = self.used = self.padded = 0

    def run(self) -> None:
        """Train every run to its end."""
        self.segments.check()
        for lane in self.lanes:
            lane.start()
        self.attach()
        try:
            while due := [step for lane in self.lanes if (step := self.ask(lane)) is not None]:
                for wave in waves(due, self.tokens):
                    self.go(wave)
                self.rounds += 1
                self.pause()
        finally:
            self.detach()
        waste = f"{1 - self.used / max(self.padded, 1):.1%} of {self.padded:,} tokens were padding"
        self.reporter.line(f"{self.rounds:,} rounds in {self.passes:,} passes; {waste}")

    def ask(self, lane: Lane) -> Due | None:
        """A lane's next step; None when it has ended or failed. Between steps it validates and writes checkpoints."""
        if lane.steps is None:
            return None
        try:
            with lane.stream.drawing():
                wanted = next(lane.steps, None)
            if wanted is not None:
                return Due(lane, *wanted)
            lane.loop.finish()
            lane.steps = None
        except GenreError as error:
            lane.fail(error)
        return None

    def go(self, wave: list[Due]) -> None:
        """One pass of the base, forward and backward, and an optimizer step for each of its lanes."""
        begun = time.perf_counter()
        batches = [collate(due.rows, due.lane.loop.supervise).to(self.base.device) for due in wave]
        embeds = []
        for due, batch in zip(wave, batches, strict=True):
            model = due.lane.loop.model
            with due.lane.stream.drawing():
                embeds.append(embed(self.base, batch, model.soft, model.dropout))
        end = sum(due.size for due in wave)
        self.routing.spans = spans_of(wave, [due.size for due in wave])
        hidden = self.segments.hidden(embeds, batches)
        losses = {}
        for due, batch, states in zip(wave, batches, hidden, strict=True):
            try:
                with due.lane.stream.drawing():
                    losses[due.lane.number], due.lane.loop.parts = due.lane.loop.model.losses(states, batch)
            except GenreError as error:
                due.lane.fail(error)
        if losses:
            torch.stack(list(losses.values())).sum().backward()
        seconds = time.perf_counter() - begun
        self.passes, self.padded = self.passes + 1, self.padded + end
        for due, batch in zip(wave, batches, strict=True):
            self.used += batch.used
            if due.lane.number in losses:
                self.settle(due, batch, float(losses[due.lane.number].detach()), seconds * due.size / end)

    def settle(self, due: Due, batch: Batch, loss: float, seconds: float) -> None:
        """Step a lane's optimizer and account for it."""
        loop = due.lane.loop
        begun = time.perf_counter()
        try:
            loop.update(due.rows, due.share)
        except GenreError as error:
            due.lane.fail(error)
            return
        targets = sum(count for _, count in loop.parts.values())
        loop.account(due.share, loss, batch.used, targets, seconds=seconds + time.perf_counter() - begun)

    def pause(self) -> None:
        """Stop between two rounds if the user has asked to; every run with a checkpoint of its own."""
        if self.interrupts.asked or (self.stop_at is not None and self.rounds >= self.stop_at):
            for lane in self.lanes:
                if lane.steps is not None:
                    with lane.stream.drawing():
                        lane.loop.save("last")
            raise KeyboardInterrupt

    @contextmanager
    def alone(self, lane: Lane) -> Iterator[None]:
        """A block in which the base carries one lane only, as if it trained by itself."""
        model, shared = lane.loop.model, self.attached
        self.detach()
        model.put(model.layers)
        try:
            yield
        finally:
            model.release()
            if shared:
                self.attach()

    def attach(self) -> None:
        """Put all lanes on the base (mutates it)."""
        self.base.need_bare()
        self.segments.begin()
        attach(self.base.model, self.layers)
        self.base.occupied_by, self.attached = "several adapters in training", True

    def detach(self) -> None:
        """Leave the base bare."""
        if self.attached:
            detach(self.base.model, self.layers)
            self.segments.end()
            self.base.occupied_by, self.attached = None, False

    def close(self) -> None:
        """End the runs' trackers, and leave the base bare whatever happened."""
        self.detach()
        for lane in self.lanes:
            lane.loop.close()

    def _shared_layers(self) -> dict[str, LoraLanes]:
        """One layer for each linear that any lane adapts; on an 8-bit base for every one (see `LoraLanes`)."""
        names = dict.fromkeys(name for lane in self.lanes for name in lane.loop.model.layers)
        if self.base.quantization == "int8":
            names |= dict.fromkeys(find_linears(self.base.model, "all-linear"))
        found = {}
        for name in names:
            own = {lane.number: lane.loop.model.layers[name] for lane in self.lanes if name in lane.loop.model.layers}
            found[name] = LoraLanes(self.base.model.get_submodule(name), own, self.routing)
        return found


def spans_of(wave: Sequence[Due], sizes: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Each lane's part of a line in which they have so many tokens."""
    ends = list(accumulate(sizes))
    return tuple((due.lane.number, end - size, end) for due, size, end in zip(wave, sizes, ends, strict=True))


def waves(due: Sequence[Due], tokens: int) -> Iterator[list[Due]]:
    """Steps that go through the base together: as many as fit into so many tokens, at least one."""
    wave: list[Due] = []
    for step in due:
        if wave and sum(each.size for each in wave) + step.size > tokens:
            yield wave
            wave = []
        wave.append(step)
    if wave:
        yield wave
