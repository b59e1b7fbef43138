"""The Flower app: packets as messages, secure aggregation, a simulation with ray, SuperLink and SuperNodes over loopback."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the extra federated")

from test_federated_rounds import clients_of, part_of, planted_log, told, wanted

from builders import LIKE, NEXT
from genre.data.interactions import Interactions
from genre.errors import InputError, JobError
from genre.jobs.federated.flower import from_records, local_transport, to_records
from genre.jobs.federated.options import FederatedOptions
from genre.jobs.federated.packets import LocalTransport, Packet
from genre.jobs.federated.server import federate
from genre.jobs.federated.simulation import simulate
from genre.registry import Registry

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"


@pytest.fixture(scope="module")
def four() -> dict[str, Interactions]:
    log = planted_log(users=24, items=12, events=10)
    return {name: part_of(log, slice(6 * i, 6 * i + 6)) for i, name in enumerate(("east", "north", "south", "west"))}


def options_of(parts: dict[str, Interactions], **changes: Any) -> FederatedOptions:
    return FederatedOptions(**{"rounds": 2, "clients": len(parts), "min_clients": 2, "freeze_a": True, **changes})


def test_a_packet_is_the_same_after_flowers_bytes() -> None:
    arrays = {"one": np.array(2.5, dtype="f"), "two": np.arange(6.0).reshape(2, 3)}
    packet = Packet({"a": [1, None, "ü"], "b": {"c": 0.1}}, arrays)
    found = from_records(to_records(packet))
    assert found.facts == packet.facts
    assert all(np.array_equal(value, found.arrays[name]) for name, value in packet.arrays.items())
    assert {name: (value.shape, value.dtype) for name, value in found.arrays.items()} == {
        "one": ((), np.dtype("f")),
        "two": ((2, 3), np.dtype("d")),
    }


def test_secure_aggregation_gives_what_plain_rounds_give(
    four: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    recipe = wanted(tiny, LIKE, NEXT, train={"early_stop": None, "warmup": 0.0})
    plain = federate(LocalTransport(clients_of(four, tmp_path / "a", base)), recipe, options_of(four), folder=tmp_path / "1")
    with local_transport(clients_of(four, tmp_path / "b", base)) as transport:
        secure = federate(transport, recipe, options_of(four, secure=True), folder=tmp_path / "2")
    assert plain.state.keys() == secure.state.keys()
    assert max(float(np.abs(value - secure.state[name]).max(initial=0.0)) for name, value in plain.state.items()) < 1e-4
    assert any(np.abs(value).max(initial=0.0) > 1e-3 for name, value in secure.state.items() if name.endswith("lora_B"))
    assert all(np.array_equal(value, secure.state[name]) for name, value in plain.state.items() if name.endswith("lora_A"))
    ours, theirs = (found.history[-1]["like.auc"] for found in (plain, secure))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_a_secure_round_goes_on_without_a_client_and_tells_an_update_that_does_not_fit(
    four: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    recipe, lines = wanted(tiny, LIKE), []
    clients = clients_of(four, tmp_path / "a", base)
    whole = clients[3].train

    def train(question: Packet) -> Packet:
        if question.facts["round"] == 2:
            raise InputError("the disk is full")
        return whole(question)

    clients[3].train = train  # type: ignore[method-assign]
    with local_transport(clients) as transport:
        found = federate(transport, recipe, options_of(four, secure=True), folder=tmp_path / "1", reporter=told(lines))
    assert [row["clients"] for row in found.history] == [["east", "north", "south", "west"], ["east", "north", "south"]]
    assert any(line.startswith("client west failed: no masked update") for line in lines)
    with (
        local_transport(clients_of(four, tmp_path / "b", base)) as transport,
        pytest.raises(JobError, match="secure aggregation ended early"),
    ):
        federate(transport, recipe, options_of(four, secure=True, bound=1e-3), folder=tmp_path / "2")


def test_noise_and_secure_aggregation_go_together(four: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any) -> None:
    registry = Registry(tmp_path / "registry")
    options = options_of(four, secure=True, noise=0.5, clip=0.1, rounds=1)
    run = simulate(wanted(tiny, LIKE), four, options, registry=registry, base=base, folder=tmp_path / "run")
    note: Any = run.manifest.notes["federated"]
    assert note["secure_aggregation"] is True and note["privacy"]["noise"] == 0.5 and run.manifest.metrics == {}
