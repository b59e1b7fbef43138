"""The Flower app: packets as messages, secure aggregation, a simulation with ray, SuperLink and SuperNodes over loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the extra federated")

from test_federated_rounds import clients_of, part_of, planted_log, told, wanted

from builders import LIKE, NEXT
from genre.data.interactions import Interactions
from genre.errors import InputError, JobError
from genre.jobs.federated.client import Client
from genre.jobs.federated.flower import folder_of, from_records, local_transport, run_config, to_records
from genre.jobs.federated.options import FederatedOptions
from genre.jobs.federated.packets import LocalTransport, Packet
from genre.jobs.federated.server import federate
from genre.jobs.federated.simulation import simulate
from genre.registry import Registry

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "federated"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def four() -> dict[str, Interactions]:
    """Clients of different sizes, so that a weight that is lost shows."""
    log = planted_log(users=24, items=12, events=10)
    ends = {"east": (0, 3), "north": (3, 8), "south": (8, 15), "west": (15, 24)}
    return {name: part_of(log, slice(*users)) for name, users in ends.items()}


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "a.yaml", "round": 3}, "no such key in the run's configuration: got round"),
        ({"recipe": "a.yaml", "rounds": "ten"}, "rounds in the run's configuration: got 'ten'; expected int, such as 10"),
        ({"recipe": "a.yaml", "clients": True}, "clients in the run's configuration: got True"),
        ({"rounds": 3}, "the run names no recipe"),
    ],
)
def test_a_wrong_run_configuration_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_config(given)
    assert run_config({"recipe": "a.yaml", "noise": 1})["rounds"] == 10


def test_a_node_without_data_says_what_it_needs() -> None:
    node = {"partition-id": 2}
    with pytest.raises(InputError, match="this node has no data"):
        folder_of("", node)
    with pytest.raises(InputError, match="data names fewer folders than there are nodes: got 2"):
        folder_of("a,b", node)
    assert folder_of("a,b,c", node) == "c"


def test_secure_aggregation_gives_what_plain_rounds_give(
    four: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    """One round: AdamW makes a step of a gradient near zero too, so later rounds carry the rounding on."""
    recipe = wanted(tiny, LIKE, NEXT, train={"warmup": 0.0})
    given = {"rounds": 1, "epochs": 2}
    local = LocalTransport(clients_of(four, tmp_path / "a", base))
    plain = federate(local, recipe, options_of(four, **given), folder=tmp_path / "1")
    with local_transport(clients_of(four, tmp_path / "b", base)) as transport:
        secure = federate(transport, recipe, options_of(four, secure=True, **given), folder=tmp_path / "2")
    assert plain.state.keys() == secure.state.keys()
    assert max(float(np.abs(value - secure.state[name]).max(initial=0.0)) for name, value in plain.state.items()) < 1e-5
    assert any(np.abs(value).max(initial=0.0) > 1e-3 for name, value in secure.state.items() if name.endswith("lora_B"))
    assert all(np.array_equal(value, secure.state[name]) for name, value in plain.state.items() if name.endswith("lora_A"))
    for name, value in plain.history[0].items():
        assert name in ("round", "clients") or secure.history[0][name] == pytest.approx(value, abs=1e-4)


class FullDisk(Client):
    """A client that fails in the second round."""

    def train(self, question: Packet) -> Packet:
        if question.facts["round"] == 2:
            raise InputError("the disk is full")
        return super().train(question)


def test_a_secure_round_goes_on_without_a_client_and_tells_an_update_that_does_not_fit(
    four: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    recipe, lines = wanted(tiny, LIKE), []
    *others, _ = clients_of(four, tmp_path / "a", base)
    failing = FullDisk(four["west"], "west", tmp_path / "a" / "west", load=lambda _: base)
    with local_transport([*others, failing]) as transport:
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


@pytest.fixture
def world(four: dict[str, Interactions], tiny: Path, tmp_path: Path) -> Path:
    """Data set folders and the Flower app of the examples, with a recipe of one round."""
    for name, log in four.items():
        log.write(tmp_path / name)
    shutil.copytree(EXAMPLE, tmp_path / "app")
    recipe = wanted(tiny, LIKE, train={"early_stop": None})
    (tmp_path / "app" / "like.yaml").write_text(recipe.dump(), encoding="utf-8")
    return tmp_path


def check_version(folder: Path, names: list[str]) -> Any:
    """The version that a run published, once it is known who took part."""
    version = Registry(folder / "registry").resolve("like@candidate")
    note: Any = version.manifest.notes["federated"]
    assert [(each["name"], each["rounds"]) for each in note["clients"]] == [(name, note["rounds"]) for name in names]
    assert version.manifest.metrics["like"]["auc"].value > 0
    return note


@pytest.mark.slow  # ray starts a process that loads torch
def test_flowers_simulation_runs_the_app(world: Path, four: dict[str, Interactions]) -> None:
    script = """
        from flwr.simulation import run_simulation
        from genre.jobs.federated.flower import make_client_app, make_server_app
        settings = {"recipe": "like.yaml", "registry": "registry", "folder": "run", "rounds": 1, "clients": 4, "freeze-a": True}
        client = make_client_app({"data": "east,north,south,west"})
        backend = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1, "include_dashboard": False}}
        server = make_server_app("app/app.py", settings | {"secure": True})
        run_simulation(server, client, num_supernodes=4, backend_config=backend)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=world, env=own_env(world), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert check_version(world, sorted(four))["secure_aggregation"] is True


@pytest.mark.slow  # six questions to two nodes, each a process of its own that loads torch
@pytest.mark.timeout(900)
def test_a_superlink_and_two_supernodes_over_loopback(world: Path) -> None:
    env = own_env(world)
    (world / "flwr").mkdir()
    link, first, second = (free_port() for _ in range(3))
    config = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    (world / "flwr" / "config.toml").write_text(config)
    node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port"]
    commands = [
        ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(link)],
        [*node, str(first), "--node-config", f'data="{world}/north" folder="{world}/kept-north"'],
        [*node, str(second), "--node-config", f'data="{world}/south" name="the south" rank=4 folder="{world}/kept-south"'],
    ]
    where = f'rounds=1 wait-s=60.0 registry="{world}/registry" folder="{world}/run"'
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((world / f"{number}.log").open("w"))
            running = subprocess.Popen([BIN / command[0], *command[1:]], env=env, stdout=log, stderr=log, start_new_session=True)
            stack.callback(stop, running)
            time.sleep(5 if number == 0 else 0)
        done = subprocess.run(
            [BIN / "flwr", "run", "app", "here", "--stream", "--run-config", where],
            cwd=world,
            env=env,
            capture_output=True,
            text=True,
            timeout=800,
        )
    assert (world / "registry").is_dir(), done.stdout[-2000:] + done.stderr[-2000:]
    note = check_version(world, ["north", "the south"])
    assert [each["rank"] for each in note["clients"]] == [8, 4]
    kept = [path.name for path in (world / "kept-south").rglob("*") if path.is_file()]
    assert "last.pt" in kept and not any(name.endswith(".parquet") for name in kept)


def own_env(world: Path) -> dict[str, str]:
    """An environment in which Flower writes under the test's folder and tells nobody."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, "PATH": path, "FLWR_HOME": str(world / "flwr"), **quiet}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process with those that it started."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
