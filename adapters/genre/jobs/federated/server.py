"""The server: which clients take part, the rounds, the best of them, the version that comes out.

Owns: the order of a federated run. Ignores: how packets travel, what a client does with one.

    run = federate(LocalTransport(clients), recipe, FederatedOptions(rounds=10, clients=8), registry, Path("runs/like/1"))
    registry.publish(run, alias="candidate")

It needs no base and no data: it sees what clients tell about themselves, their tensors (or sums of these) and metrics.
"""

import json
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from genre.engine.versions import read_catalogue
from genre.errors import InputError, JobError, ManifestError, visible
from genre.evaluation.metrics import Metric
from genre.files import write_json
from genre.jobs.federated.averaging import A, average, completed, difference, flat, moved, plus, unflat
from genre.jobs.federated.members import Member, check_names, check_same, common_classes, common_feedback
from genre.jobs.federated.noise import clipped, epsilon, noisy
from genre.jobs.federated.options import FederatedOptions, check_federated
from genre.jobs.federated.packets import Failure, Packet, State, Transport, tensors
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.training.assembly import needs_encoder
from genre.training.validation import deciding_metric


@dataclass
class Trained:
    """What a federated run leaves.

    Attributes:
        state: The tensors of the best round.
        members: Who took part.
        history: A row per round: its number, who answered, validation metrics.
        best: The round of the state.
        texts: The text files of the version, and the draft of its manifest.
        privacy: What the noise is worth; None without noise.
        seconds: From the first question to the last answer.
    """

    state: State
    members: list[Member]
    history: list[dict[str, Any]]
    best: int
    texts: dict[str, str]
    privacy: dict[str, float] | None
    seconds: float


def federate(
    transport: Transport,
    recipe: Recipe,
    options: FederatedOptions,
    *,
    registry: Registry | None = None,
    folder: Path,
    reporter: Reporter | None = None,
) -> Trained:
    """Train a recipe where the data is.

    Args:
        transport: The way to the clients.
        recipe: The recipe; its data path is not read.
        options: See `FederatedOptions`.
        registry: Has the frozen encoder that `encoder.use` names.
        folder: Gets the tensors and the history after every round, so that nothing is lost if a later one fails.
        reporter: Receives a line per round and per client that fails.

    Raises:
        RecipeError: The recipe cannot be trained in this way.
        DataError: The clients do not go together: another catalogue, base or release, or a name twice.
        JobError: Fewer clients than `min_clients` answer.
    """
    check_federated(recipe)
    server = _Server(transport, recipe, options, registry, folder, reporter or Reporter.silent())
    return server.run()


@dataclass
class _Best:
    """The best state so far, its round, and the value of the metric that decides."""

    state: State
    round: int = 0
    value: float | None = None

    def offer(self, number: int, state: State, deciding: tuple[str, Metric] | None, measured: Mapping[str, float]) -> bool:
        """Keep a round's state if it is better, or if there is nothing to decide by; return whether it was kept."""
        if deciding is not None:
            name, metric = deciding
            if self.value is not None and not metric.better(measured[name], self.value):
                return False
            self.value = measured[name]
        self.state = state
        self.round = number
        return True


class _Server:
    def __init__(
        self,
        transport: Transport,
        recipe: Recipe,
        options: FederatedOptions,
        registry: Registry | None,
        folder: Path,
        reporter: Reporter,
    ) -> None:
        self.transport = transport
        self.recipe = recipe
        self.options = options
        self.registry = registry
        self.folder = folder
        self.reporter = reporter
        self.facts: dict[str, Any] = {
            "run": uuid.uuid4().hex,
            "recipe": recipe.dump(),
            "freeze_a": options.freeze_a,
            "blank": options.blank,
        }
        self.members: list[Member] = []
        self.history: list[dict[str, Any]] = []

    def run(self) -> Trained:
        begun = time.perf_counter()
        self._gather()
        state = self._start()
        best = _Best(state)
        with self.reporter.bar("rounds", self.options.rounds) as bar:
            for number in range(1, self.options.rounds + 1):
                state = self._round(number, state)
                measured = {} if self.options.blank else self._validate(state)
                self.history[-1] |= measured
                self._keep(state)
                better = best.offer(number, state, deciding_metric(self.recipe.tasks, measured), measured)
                shown = "  ".join(f"{key} {value:.4f}" for key, value in list(measured.items())[:4])
                self.reporter.line(f"round {number}: {shown or 'averaged'}{'  (best)' if measured and better else ''}")
                bar.advance(1)
                if self.recipe.train.early_stop is not None and number - best.round >= self.recipe.train.early_stop:
                    self.reporter.line(f"early stop: no better for {number - best.round} rounds")
                    break
        if not self.options.blank:
            self._test(best.state)
        texts = self._texts()
        seconds = time.perf_counter() - begun
        return Trained(best.state, self.members, self.history, best.round, texts, self._privacy(), seconds)

    def _gather(self) -> None:
        """Wait for the clients, and let them tell who they are."""
        ends = time.monotonic() + self.options.wait_s
        while len(nodes := self.transport.nodes()) < self.options.clients and time.monotonic() < ends:
            time.sleep(1.0)
        if len(nodes) < self.options.min_clients:
            raise JobError(
                "too few clients", got=f"{len(nodes)} after {self.options.wait_s:g} s", expected=self.options.min_clients
            )
        answers = self._ask("describe", {node: Packet(self.facts) for node in nodes})
        self.members = [Member(node, answer.facts) for node, answer in answers.items()]
        check_names(self.members)
        for key, what in (("catalogue", "the catalogue"), ("release", "the release of genre")):
            check_same({member.name: member.facts[key] for member in self.members}, what)
        self.members.sort(key=lambda member: member.name)
        self.facts["agreed"] = {"feedback": common_feedback(self.members), "classes": common_classes(self.members)}
        for member in self.members:
            self.reporter.line(f"client {member.name}: {member.facts['examples']:,} examples, rank {member.facts['rank']}")

    def _start(self) -> State:
        """The tensors of the first round: the clients' own heads averaged, and the low-rank layers of the first client."""
        question = Packet(self.facts)
        if (sent := self._frozen_encoder()) is not None:
            question = Packet(self.facts | {"encoder": sent.facts}, sent.arrays)
        answers = self._ask("start", {member.node: question for member in self.members})
        self.members = [member for member in self.members if member.node in answers]
        same = {member.name: answers[member.node].facts["same"] for member in self.members}
        for key in sorted({key for one in same.values() for key in one}):
            check_same({name: one.get(key) for name, one in same.items()}, key)
        states = [answers[member.node].arrays for member in self.members]
        first = states[0]
        common = [{name: value if not _low_rank(name) else first[name] for name, value in each.items()} for each in states]
        return average(first, common, self._weights(self.members), seed=self.recipe.train.seed)

    def _frozen_encoder(self) -> Packet | None:
        """The encoder that the recipe names, as it goes to the clients; None if it is fitted or not needed."""
        ref = self.recipe.encoder.use
        if not needs_encoder(self.recipe) or ref in ("auto", "fit"):
            return None
        if self.registry is None:
            raise InputError("encoder.use names a version, which needs a registry", got=ref, todo="give --registry DIR")
        version = self.registry.resolve(ref)
        if version.manifest.kind != "encoder":
            raise ManifestError(f"{version.ref} is no behaviour encoder", got=version.manifest.kind, expected="an encoder")
        files = self.registry.fetch(version)
        described = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
        carried = read_catalogue(files).item_ids
        described = {"items": carried, "carried": carried} | described
        arrays = {name: value.numpy() for name, value in load_file(files / "encoder.safetensors").items()}
        return Packet(described | {"digest": version.digest}, arrays)

    def _round(self, number: int, state: State) -> State:
        given, members = self.options, self.members
        facts = self.facts | {
            "round": number,
            "first_epoch": (number - 1) * given.epochs,
            "epochs": given.epochs,
            "of_epochs": given.rounds * given.epochs,
        }
        question = Packet(facts, state)
        if given.secure:
            after, answered = self._add_up(question, state)
        else:
            asked = self.transport.ask("train", {member.node: question for member in members})
            answers = self._told({node: _checked(answer, state) for node, answer in asked.items()})
            answered = [member for member in members if member.node in answers]
            replies = [answers[member.node].arrays for member in answered]
            if given.noise:
                updates = [clipped(flat(difference(state, reply)), given.clip) for reply in replies]
                mean = noisy(np.mean(updates, axis=0), len(updates), clip=given.clip, multiplier=given.noise)
                after = plus(state, unflat(mean, moved(state)))
            else:
                after = average(state, replies, self._weights(answered), seed=self.recipe.train.seed + number)
        for member in answered:
            member.rounds.append(number)
        self.history.append({"round": number, "clients": [member.name for member in answered]})
        return after

    def _add_up(self, question: Packet, state: State) -> tuple[State, list[Member]]:
        """A round whose updates only their sum is known of."""
        given = self.options
        weights = dict(zip((member.node for member in self.members), self._weights(self.members), strict=True))
        facts = question.facts | {"bound": given.bound, "clip": given.clip if given.noise else None}
        sent = {member.node: Packet(facts, state) for member in self.members}
        mean, answers = self.transport.add_up(sent, weights)
        kept = self._told(answers)
        if given.noise:
            mean = noisy(mean, len(kept), clip=given.clip, multiplier=given.noise)
        return plus(state, unflat(mean, moved(state))), [member for member in self.members if member.node in kept]

    def _validate(self, state: State) -> dict[str, float]:
        """Validation metrics of a state: the mean of the clients' own, weighted by their validation events."""
        answers = self._evaluate(state, "valid")
        sums: dict[str, list[float]] = {}
        for member in self.members:
            if member.node not in answers:
                continue
            weight = float(member.facts["validating"])
            for name, value in answers[member.node].facts["metrics"].items():
                if math.isfinite(value) and weight:
                    total = sums.setdefault(name, [0.0, 0.0])
                    total[0] += weight * value
                    total[1] += weight
        return {name: total / weight for name, (total, weight) in sums.items()}

    def _test(self, state: State) -> None:
        answers = self._evaluate(state, "test")
        for member in self.members:
            if member.node in answers:
                member.metrics = answers[member.node].facts["metrics"]

    def _evaluate(self, state: State, part: str) -> dict[int, Packet]:
        """The metrics of those clients that answer, which may be none: what was trained is worth keeping without."""
        question = Packet(self.facts | {"part": part}, state)
        return self._answers(self.transport.ask("evaluate", {member.node: question for member in self.members}))

    def _texts(self) -> dict[str, str]:
        """The version's text files, from the first client that still answers."""
        for member in self.members:
            answer = self.transport.ask("files", {member.node: Packet(self.facts)})[member.node]
            if isinstance(answer, Packet):
                return {str(name): str(text) for name, text in answer.facts.items()}
            self._failed(member.node, answer)
        raise JobError("no client gives the files of the version", got="no answer", expected="one answer", todo=self._kept())

    def _ask(self, kind: str, questions: Mapping[int, Packet]) -> dict[int, Packet]:
        return self._told(self.transport.ask(kind, questions))

    def _told(self, answers: Mapping[int, Packet | Failure]) -> dict[int, Packet]:
        """The answers that there are; clients without one are reported.

        Raises:
            JobError: There are too few.
        """
        found = self._answers(answers)
        if len(found) < self.options.min_clients:
            reason = next((f": {each.reason}" for each in answers.values() if isinstance(each, Failure)), "")
            got, expected = f"{len(found)} of {len(answers)}{visible(reason)}", f"at least {self.options.min_clients}"
            raise JobError("too few clients answered", got=got, expected=expected, todo=self._kept())
        return found

    def _answers(self, answers: Mapping[int, Packet | Failure]) -> dict[int, Packet]:
        """The answers that there are; clients without one are reported."""
        for node, answer in answers.items():
            if isinstance(answer, Failure):
                self._failed(node, answer)
        return {node: answer for node, answer in answers.items() if isinstance(answer, Packet)}

    def _failed(self, node: int, failure: Failure) -> None:
        name = next((member.name for member in self.members if member.node == node), f"number {node}")
        self.reporter.line(f"client {visible(name)} failed: {visible(failure.reason)}")

    def _kept(self) -> str | None:
        return f"the tensors of round {len(self.history)} are in {self.folder}" if self.history else None

    def _weights(self, members: list[Member]) -> list[float]:
        """What each client counts: its examples; all alike with noise, whose promise is per client."""
        return [1.0 if self.options.noise else float(member.facts["examples"]) for member in members]

    def _keep(self, state: State) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors(state), self.folder / "state.safetensors")
        write_json(self.folder / "rounds.json", self.history)

    def _privacy(self) -> dict[str, float] | None:
        given, rounds = self.options, len(self.history)
        if not given.noise:
            return None
        delta = given.delta or 1 / (10 * len(self.members))
        value = epsilon(given.noise, rounds=rounds, delta=delta)
        return {"noise": given.noise, "clip": given.clip, "rounds": rounds, "epsilon": value, "delta": delta}


def _checked(answer: Packet | Failure, state: State) -> Packet | Failure:
    """An answer with the tensors of a state; a failure if it has others, or some that are no numbers."""
    if isinstance(answer, Failure):
        return answer
    try:
        completed(state, answer.arrays)
    except InputError as error:
        return Failure(str(error))
    return answer


def _low_rank(name: str) -> bool:
    return name.endswith((A, ".lora_B"))
