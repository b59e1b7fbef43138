"""The packets between server and clients, and the ways on which they travel.

Owns: the form of a packet, the protocol of a transport, the transport inside one process. Ignores: what packets ask for.

    transport = LocalTransport([Client(...), Client(...)])
    transport.ask("describe", {0: Packet({"recipe": text})})       # {0: Packet({"name": "north", "examples": 812, ...})}

A packet is JSON values and arrays of floats: nothing in it can run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from genre.errors import GenreError, InputError

State = dict[str, np.ndarray]
"""Tensors of an adapter by name: `….lora_A`, `….lora_B`, `heads.…` and, where the encoder is fitted, `encoder.…`."""


def tensors(state: State) -> dict[str, torch.Tensor]:
    """Copies of some arrays as tensors."""
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}


@dataclass(frozen=True)
class Packet:
    """One question or one answer.

    Attributes:
        facts: JSON values.
        arrays: Arrays by name.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: State = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A client that did not answer, and why."""

    reason: str


Answers = dict[int, Packet | Failure]
"""For each client that was asked its answer."""


class Transport(Protocol):
    """The way from the server to its clients, each known by a number."""

    def nodes(self) -> list[int]:
        """The clients that can be reached now."""

    def ask(self, kind: str, questions: Mapping[int, Packet]) -> Answers:
        """Ask some clients at once; every one of them is in the result."""

    def add_up(self, questions: Mapping[int, Packet], weights: Mapping[int, float]) -> tuple[np.ndarray, Answers]:
        """Let clients train, and learn only the weighted mean of their updates.

        Args:
            questions: For each client its question to train.
            weights: For each client what its update counts, whole numbers from 1.

        Returns:
            (n,) float64 the mean, and the clients' answers, which hold no arrays.
        """


class LocalTransport:
    """Clients in this process, which answer one after another.

    Args:
        clients: For each a function that answers a question of some kind.
    """

    def __init__(self, clients: Sequence[Callable[[str, Packet], Packet]]) -> None:
        self.clients = clients

    def nodes(self) -> list[int]:
        """All clients."""
        return list(range(len(self.clients)))

    def ask(self, kind: str, questions: Mapping[int, Packet]) -> Answers:
        """Ask some clients in turn."""
        found: Answers = {}
        for node, question in questions.items():
            try:
                found[node] = self.clients[node](kind, question)
            except GenreError as error:
                found[node] = Failure(str(error))
        return found

    def add_up(self, questions: Mapping[int, Packet], weights: Mapping[int, float]) -> tuple[np.ndarray, Answers]:
        """Refuse: without Flower there is no secure aggregation."""
        raise InputError("secure aggregation is Flower's SecAgg+", todo="use genre.jobs.federated.flower, as --secure does")
