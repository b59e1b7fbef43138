"""Federated training in this process: rounds, averages of products, one client, ranks, failures, noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from builders import LIKE, NEXT, RATING, give_key, recipe
from fakes import planted_log
from genre.cli import main
from genre.data.interactions import Interactions
from genre.errors import DataError, DivergedError, InputError, JobError, RecipeError
from genre.jobs.federated.averaging import average, completed, difference, flat, moved, plus, unflat
from genre.jobs.federated.client import Client
from genre.jobs.federated.noise import clipped, epsilon, noisy
from genre.jobs.federated.options import FederatedOptions, check_federated
from genre.jobs.federated.packets import Failure, LocalTransport, Packet
from genre.jobs.federated.publish import NOTE, write_run
from genre.jobs.federated.server import federate
from genre.jobs.federated.simulation import simulate
from genre.jobs.train import train
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.training.private.noise import Noise

HERE = {"encoder": {"collaborative": 0, "taste": 0}, "data": {"split": {"kind": "user_ratio", "valid": 0.2, "test": 0.2}}}


def wanted(base: Path, *tasks: dict[str, Any], **sections: Any) -> Recipe:
    """A recipe that needs no statistics of one log."""
    merged = {name: {**HERE.get(name, {}), **sections.get(name, {})} for name in HERE.keys() | sections.keys()}
    return recipe(base, *(tasks or (LIKE,)), **merged)


def part_of(log: Interactions, chosen: slice) -> Interactions:
    """The users of a slice, with the catalogue of all."""
    users = log.user_ids[chosen]
    frame = log.frame.filter(pl.col("user_id").is_in(users))
    assert log.users is not None
    people = log.users.filter(pl.col("user_id").is_in(users))
    return Interactions.from_frame(frame, log.catalogue.frame, people, info=log.info)


@pytest.fixture(scope="module")
def parts() -> dict[str, Interactions]:
    log = planted_log(users=24, items=12, events=10)
    return {"north": part_of(log, slice(0, 8)), "south": part_of(log, slice(8, 24))}


def state_of(rank: int, *, out: int = 6, into: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "q.lora_A": draw.normal(size=(rank, into)).astype("f"),
        "q.lora_B": draw.normal(size=(out, rank)).astype("f"),
        "heads.like.bias": draw.normal(size=3).astype("f"),
    }


def product(state: dict[str, np.ndarray]) -> np.ndarray:
    return state["q.lora_B"].astype("d") @ state["q.lora_A"].astype("d")


def test_products_are_averaged_exactly_where_their_sum_has_the_rank() -> None:
    sent = state_of(4)
    one, two = state_of(2, seed=1), state_of(2, seed=2)
    for each in (one, two):  # of rank 2 within 4 components
        each["q.lora_A"] = np.concatenate([each["q.lora_A"], np.zeros((2, 5), "f")])
        each["q.lora_B"] = np.concatenate([each["q.lora_B"], np.zeros((6, 2), "f")], axis=1)
    found = average(sent, [one, two], [1, 3], seed=0)
    exact = 0.25 * product(one) + 0.75 * product(two)
    assert np.allclose(product(found), exact, atol=1e-6)
    factors = (0.25 * one["q.lora_B"] + 0.75 * two["q.lora_B"]) @ (0.25 * one["q.lora_A"] + 0.75 * two["q.lora_A"])
    assert np.linalg.norm(factors - exact) > 0.2 * np.linalg.norm(exact)  # the mean of factors is another update
    assert np.allclose(found["heads.like.bias"], 0.25 * one["heads.like.bias"] + 0.75 * two["heads.like.bias"])
    turned = {name: -value if name.startswith("q.") else value for name, value in one.items()}  # the same update, whose mean
    assert np.allclose(product(average(sent, [one, turned], [1, 1], seed=0)), product(one), atol=1e-5)  # of factors is none


def test_the_best_of_the_rank_is_kept_largest_first_and_empty_components_can_learn() -> None:
    one, two = state_of(3, seed=1), state_of(3, seed=2)
    found = average(state_of(3), [one, two], [1, 1], seed=0)
    u, values, v = np.linalg.svd(0.5 * product(one) + 0.5 * product(two))
    assert np.allclose(product(found), (u[:, :3] * values[:3]) @ v[:3], atol=1e-5)
    strength = np.linalg.norm(found["q.lora_A"], axis=1) * np.linalg.norm(found["q.lora_B"], axis=0)
    assert np.allclose(strength, values[:3], rtol=1e-4)
    empty = {**one, "q.lora_B": np.zeros_like(one["q.lora_B"])}
    again = average(one, [empty, {**empty, "q.lora_A": two["q.lora_A"]}], [1, 1], seed=0)
    assert not again["q.lora_B"].any() and (np.linalg.norm(again["q.lora_A"], axis=1) > 0.1).all()


def test_a_lower_rank_leaves_the_other_components_as_they_were() -> None:
    sent = state_of(3)
    small = {
        "q.lora_A": 2 * sent["q.lora_A"][:1],
        "q.lora_B": sent["q.lora_B"][:, :1],
        "heads.like.bias": sent["heads.like.bias"],
    }
    whole = completed(sent, small)
    assert np.allclose(product(whole) - product(sent), np.outer(sent["q.lora_B"][:, 0], sent["q.lora_A"][0]), atol=1e-5)
    found = average(sent, [small, sent], [1, 1], seed=0)
    assert np.allclose(product(found), 0.5 * product(whole) + 0.5 * product(sent), atol=1e-5)
    for wrong in ({**small, "q.lora_A": np.full((1, 5), np.nan, "f")}, {**sent, "q.lora_A": sent["q.lora_A"][:, :4]}):
        with pytest.raises(InputError, match="q.lora_A"):
            average(sent, [wrong, sent], [1, 1], seed=0)
    with pytest.raises(InputError, match="heads.like.bias"):
        average(sent, [{name: sent[name] for name in ("q.lora_A", "q.lora_B")}], [1], seed=0)


def test_of_one_a_the_mean_of_b_is_exact_and_one_reply_comes_back_bit_for_bit() -> None:
    sent, one, two = state_of(3), state_of(3, seed=1), state_of(3, seed=2)
    one["q.lora_A"] = two["q.lora_A"] = sent["q.lora_A"]
    found = average(sent, [one, two], [1, 3], seed=0)
    assert np.array_equal(found["q.lora_A"], sent["q.lora_A"])
    assert np.allclose(found["q.lora_B"], 0.25 * one["q.lora_B"] + 0.75 * two["q.lora_B"])
    alone = average(sent, [state_of(3, seed=1)], [7], seed=0)
    assert all(np.array_equal(alone[name], value) for name, value in state_of(3, seed=1).items())
    vector = flat(difference(sent, one))
    again = plus(sent, unflat(vector, moved(sent)))
    assert all(np.allclose(again[name], one[name], atol=1e-6) for name in one)


def test_one_client_is_local_training(parts: dict[str, Interactions], tiny: Path, tmp_path: Path) -> None:
    recipe = wanted(tiny, LIKE, train={"epochs": 3, "dropout": 0.2})
    local = train(recipe, log=parts["south"], folder=tmp_path / "local", baselines="none")
    registry = Registry(tmp_path / "registry")
    options = FederatedOptions(rounds=3)
    run = simulate(recipe, {"south": parts["south"]}, options, registry=registry, folder=tmp_path / "federated")
    from safetensors.torch import load_file

    for file in ("adapter_model.safetensors", "heads.safetensors"):
        ours, theirs = load_file(run.folder / file), load_file(local.folder / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), file
    assert run.metrics["like"]["auc"]["value"] == local.metrics["like"]["auc"]["value"]
    encoders = [load_file(root / "encoder" / "encoder.safetensors") for root in (run.root, local.root)]
    assert all(torch.equal(value, encoders[1][name]) for name, value in encoders[0].items())


def told(lines: list[str]) -> Reporter:
    return Reporter(lines.append)


def options_of(parts: dict[str, Interactions], **changes: Any) -> FederatedOptions:
    return FederatedOptions(**{"rounds": 2, "clients": len(parts), "min_clients": len(parts), **changes})


def test_two_clients_of_different_ranks_make_a_version_that_says_who_took_part(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    from genre.jobs.evaluate import evaluate

    recipe = wanted(tiny, LIKE, RATING, NEXT, adapter={"rank": 4})
    registry, lines = Registry(tmp_path / "registry"), []
    made = simulate(
        recipe,
        parts,
        options_of(parts),
        registry=registry,
        base=base,
        ranks={"north": 2},
        folder=tmp_path / "run",
        reporter=told(lines),
    )
    version = registry.publish(made, alias="candidate")
    note = version.manifest.notes[NOTE]
    assert note["clients"] == [
        {"name": "north", "examples": 48, "rank": 2, "rounds": 2},
        {"name": "south", "examples": 96, "rank": 4, "rounds": 2},
    ]
    assert note["factors"] == "products, by SVD" and note["rounds"] == 2
    assert version.manifest.data is not None and version.manifest.data.rows == 144
    assert registry.resolve("encoder-like").digest == version.manifest.encoder
    assert {"north", "south"} == {line.split(":")[0].removeprefix("client ") for line in lines if line.startswith("client ")}
    whole = planted_log(users=24, items=12, events=10)
    found = evaluate(registry, "like@candidate", whole, base, baselines="none")
    own = made.metrics["like"]["log_loss"]  # a mean over targets, so the mean of the clients' is that of all
    assert found["tasks"]["like"]["adapter"]["log_loss"]["value"] == pytest.approx(own["value"], abs=1e-5)
    assert found["tasks"]["like"]["adapter"]["log_loss"]["n"] == own["n"] == 48
    history = json.loads((tmp_path / "run" / "rounds.json").read_text())
    assert [row["clients"] for row in history] == [["north", "south"]] * 2


class Flaky(LocalTransport):
    """Clients of which some do not answer in some rounds: {(name of the question, round): node}."""

    def __init__(self, clients: list[Client], lost: set[tuple[int, int]]) -> None:
        super().__init__(clients)
        self.lost = lost

    def ask(self, kind: str, questions: Any) -> Any:
        there = {node: each for node, each in questions.items() if (node, each.facts.get("round")) not in self.lost}
        return {node: Failure("its line is cut") for node in questions} | super().ask(kind, there)


def clients_of(parts: dict[str, Interactions], folder: Path, base: Any) -> list[Client]:
    return [Client(log, name, folder / name, load=lambda _: base) for name, log in parts.items()]


def test_a_round_goes_on_without_a_client_that_fails_and_ends_below_the_minimum(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    recipe, lines = wanted(tiny, LIKE), []
    transport = Flaky(clients_of(parts, tmp_path, base), {(1, 1)})
    found = federate(transport, recipe, options_of(parts, min_clients=1), folder=tmp_path / "run", reporter=told(lines))
    assert [row["clients"] for row in found.history] == [["north"], ["north", "south"]]
    assert {member.name: member.rounds for member in found.members} == {"north": [1, 2], "south": [2]}
    assert "client south failed: its line is cut" in lines
    transport = Flaky(clients_of(parts, tmp_path, base), {(1, 2)})
    with pytest.raises(JobError, match=r"got 1 of 2: its line is cut; expected at least 2; the tensors of round 1 are in"):
        federate(transport, recipe, options_of(parts), folder=tmp_path / "again")
    assert (tmp_path / "again" / "state.safetensors").is_file()


def test_a_client_needs_no_memory_between_questions(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    recipe = wanted(tiny, LIKE, train={"dropout": 0.2})
    one = {"south": parts["south"]}
    kept = federate(LocalTransport(clients_of(one, tmp_path / "a", base)), recipe, options_of(one), folder=tmp_path / "1")

    def fresh(kind: str, question: Packet) -> Packet:
        return clients_of(one, tmp_path / "b", base)[0](kind, question)

    again = federate(LocalTransport([fresh]), recipe, options_of(one), folder=tmp_path / "2")
    assert all(np.array_equal(value, again.state[name]) for name, value in kept.state.items())


def test_a_frozen_encoder_of_the_registry_is_used_by_all_and_stays_as_it_is(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    registry = Registry(tmp_path / "registry")
    first = train(wanted(tiny, LIKE), log=parts["south"], registry=registry, folder=tmp_path / "local", baselines="none")
    assert first.encoder is not None
    recipe = wanted(tiny, LIKE, encoder={"use": first.encoder})
    transport = LocalTransport(clients_of(parts, tmp_path, base))
    found = federate(transport, recipe, options_of(parts, rounds=1), registry=registry, folder=tmp_path / "run")
    assert not any(name.startswith("encoder.") for name in found.state)
    run = write_run(found, recipe, options_of(parts, rounds=1), tmp_path / "run", registry)
    assert run.manifest.encoder == registry.resolve(first.encoder).digest and run.encoder is None
    assert not (run.folder / "catalogue.jsonl").exists()  # the encoder carries all of its items
    with pytest.raises(InputError, match="needs a registry"):
        federate(LocalTransport(clients_of(parts, tmp_path / "c", base)), recipe, options_of(parts), folder=tmp_path / "none")


def test_who_trained_stays_with_the_clients(tiny: Path, tmp_path: Path, base: Any) -> None:
    planted_log(users=12, items=12, events=10).write(tmp_path / "shop")
    give_key(tmp_path / "shop")
    log = Interactions.read(tmp_path / "shop")
    assert log.info.users_key is not None
    simulate(
        wanted(tiny, LIKE),
        {"shop": log},
        FederatedOptions(1),
        registry=Registry(tmp_path / "r"),
        base=base,
        folder=tmp_path / "run",
    )
    names = {path.name for path in (tmp_path / "run").rglob("*") if "clients" not in path.parts}
    assert "heads.json" in names and "users.json" not in names


def test_with_noise_nothing_that_was_counted_leaves_a_client(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    recipe, registry = wanted(tiny, LIKE, NEXT), Registry(tmp_path / "registry")
    options = options_of(parts, freeze_a=True, noise=1.0, clip=0.5)
    asked: list[str] = []

    class Noted(LocalTransport):
        def ask(self, kind: str, questions: Any) -> Any:
            asked.append(kind)
            return super().ask(kind, questions)

    found = federate(Noted(clients_of(parts, tmp_path, base)), recipe, options, folder=tmp_path / "run")
    assert "evaluate" not in asked
    run = write_run(found, recipe, options, tmp_path / "run", registry)
    assert run.manifest.metrics == {} and run.manifest.data is not None and run.manifest.data.time_span is None
    privacy = run.manifest.notes[NOTE]["privacy"]
    assert privacy["delta"] == 1 / 20 and privacy["epsilon"] == pytest.approx(epsilon(1.0, rounds=2, delta=1 / 20))
    starts = [Client(log, name, tmp_path / f"start-{name}", load=lambda _: base) for name, log in parts.items()]
    facts = {"run": "a1", "recipe": recipe.dump(), "freeze_a": True, "blank": True}
    told_facts = starts[0]("describe", Packet(facts)).facts
    assert "data" not in told_facts and "time_span" not in told_facts
    facts |= {"agreed": {"feedback": told_facts["feedback"], "classes": {}}}
    one, two = (each("start", Packet(facts)).arrays for each in starts)  # of different logs, and yet the same
    assert all(np.array_equal(value, two[name]) for name, value in one.items())


def test_epsilon_of_noise_is_that_of_one_gaussian_and_noise_has_its_variance() -> None:
    from scipy.stats import norm

    value = epsilon(2.0, rounds=9, delta=1e-3)
    mu = 1.5
    assert norm.cdf(-value / mu + mu / 2) - np.exp(value) * norm.cdf(-value / mu - mu / 2) == pytest.approx(1e-3)
    assert epsilon(4.0, rounds=36, delta=1e-3) == pytest.approx(value)  # twice the noise, four times the rounds
    assert epsilon(100.0, rounds=1, delta=0.5) == 0.0
    update = np.ones(100_000)
    assert np.linalg.norm(clipped(update, 3.0)) == pytest.approx(3.0) and clipped(update, 1e9) is update
    left = noisy(clipped(update, 3.0), 2, clip=3.0, multiplier=2.0, source=Noise(0)) - clipped(update, 3.0)
    assert left.std() == pytest.approx(2.0 * 3.0 / 2, rel=0.01) and abs(left.mean()) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: got 0; expected 1 or more"),
        ({"noise": -1.0, "freeze_a": True}, "noise: got -1.0; expected a number from 0"),
        ({"clip": 0.0}, "clip: got 0.0; expected a number above 0"),
        ({"min_clients": 3, "clients": 2}, "min_clients: got 3; expected at most 2"),
        ({"noise": 1.0}, "add --freeze-a"),
        ({"delta": 1e-3}, "delta has no effect without noise: got noise 0"),
        ({"secure": True, "freeze_a": True, "clients": 2}, "got 2 clients; expected 3 or more"),
        ({"secure": True, "freeze_a": True, "clients": 2000}, "at most 1024"),
    ],
)
def test_options_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FederatedOptions(**changes)


def test_recipes_that_read_all_events_at_once_are_refused_with_the_settings_that_help(tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"--set encoder.collaborative=0 --set encoder.taste=0"):
        check_federated(recipe(tiny, NEXT))
    check_federated(recipe(tiny, NEXT, encoder={"collaborative": 0, "taste": 0}))
    with pytest.raises(RecipeError, match="kind full"):
        check_federated(wanted(tiny, adapter={"kind": "full"}))
    with pytest.raises(RecipeError, match="not accounted for over rounds"):
        check_federated(wanted(tiny, train={"privacy": {"epsilon": 8, "feedback_values": [1, 5]}}))


def test_clients_that_do_not_go_together_are_refused(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    recipe = wanted(tiny, LIKE)
    other = {"north": parts["north"], "west": planted_log(users=8, items=11, events=10)}
    with pytest.raises(DataError, match="the clients differ in the catalogue"):
        federate(LocalTransport(clients_of(other, tmp_path, base)), recipe, options_of(other), folder=tmp_path / "run")
    same = [*clients_of(parts, tmp_path, base), *clients_of({"north": parts["north"]}, tmp_path, base)]
    with pytest.raises(DataError, match="two clients have the same name: got north"):
        federate(LocalTransport(same), recipe, options_of(parts), folder=tmp_path / "run")
    with pytest.raises(InputError, match="a rank is given for no client: got east"):
        simulate(recipe, parts, options_of(parts), registry=Registry(tmp_path / "r"), base=base, ranks={"east": 1})
    with pytest.raises(JobError, match="the rank of client north: got 99"):
        simulate(
            recipe,
            parts,
            options_of(parts),
            registry=Registry(tmp_path / "r"),
            base=base,
            ranks={"north": 99},
            folder=tmp_path / "x",
        )


def test_a_client_whose_training_diverges_is_left_out_of_the_round(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, base: Any
) -> None:
    lines: list[str] = []
    clients: list[Any] = clients_of(parts, tmp_path, base)
    whole = clients[1]

    def broken(kind: str, question: Packet) -> Packet:
        if kind == "train":
            raise DivergedError("a loss is not finite", got="nan")
        return whole(kind, question)

    def odd(kind: str, question: Packet) -> Packet:
        answer = whole(kind, question)
        if kind == "train":
            answer.arrays["heads.like.linear.bias"] = np.full_like(answer.arrays["heads.like.linear.bias"], np.nan)
        return answer

    found = federate(
        LocalTransport([clients[0], odd]), wanted(tiny, LIKE), options_of(parts, min_clients=1), folder=tmp_path / "odd"
    )
    assert [row["clients"] for row in found.history] == [["north"], ["north"]]
    transport = LocalTransport([clients[0], broken])
    found = federate(
        transport, wanted(tiny, LIKE), options_of(parts, min_clients=1, rounds=1), folder=tmp_path / "run", reporter=told(lines)
    )
    assert found.history[0]["clients"] == ["north"] and any("south failed: a loss is not finite" in line for line in lines)


def test_the_command_publishes_and_refuses_in_one_line(
    parts: dict[str, Interactions], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, log in parts.items():
        log.write(tmp_path / name)
    Path("like.yaml").write_text(wanted(tiny, LIKE).dump(), encoding="utf-8")
    both = ["federated", "like.yaml", "--client", "north", "--client", "south"]
    assert main([*both, "--rounds", "1", "--rank", "north=2", "--json", "out.json"]) == 0
    told = json.loads(Path("out.json").read_text())
    assert Registry("registry").resolve("like@candidate").ref == told["ref"]
    assert [each["rank"] for each in told["federated"]["clients"]] == [2, 8]
    capsys.readouterr()
    for wrong, message in (
        (["--client", "south/"], "two --client folders have the same name"),
        (["--rank", "north=two"], "--rank cannot be read"),
        (["--rank", "north=1.5"], "--rank: got"),
        (["--out", "registry"], "--out holds other files"),
        (["--noise", "1"], "add --freeze-a"),
        (["--set", "encoder.collaborative=8"], "--set encoder.collaborative=0"),
    ):
        assert main([*both, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in Path("runs/like").iterdir()] == ["1"]
