"""Export to vLLM: what the folder holds, the client against our engine, and what is refused. PEFT answers in vLLM's place."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_server import Served, lora_server
from registry_fakes import draft
from registry_fakes import write_adapter as write_fake
from served_fakes import TEXT, WORDS, World, first_layer

import genre
from builders import LIKE, RATING, Trained, publish_stirred, recipe
from genre.errors import ManifestError, RegistryError
from genre.registry.export.client import Client, ClientError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[tuple[str, Served]]:
    with lora_server(world.out) as opened:
        yield opened


def test_the_folder_holds_base_adapter_line_and_client(world: World) -> None:
    files = {str(path.relative_to(world.out)) for path in world.out.rglob("*") if path.is_file()}
    wanted = {"README.md", "client.py", "prompt.json", "items.jsonl", "canaries.json", "manifest.json", "base/model.safetensors"}
    assert wanted <= files
    assert {name for name in files if name.startswith("adapter/")} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert json.loads((world.out / "base/config.json").read_text())["num_hidden_layers"] == 1
    card = (world.out / "README.md").read_text()
    for part in (
        "$ vllm serve ./base ",
        "--lora-modules texts=./adapter",
        "--max-lora-rank 8",
        "--enable-prefix-caching",
        "--logprobs-mode processed_logprobs",
    ):
        assert part in card
    assert str(world.tiny) not in card and (world.folder / "out.tar").exists()


@pytest.mark.parametrize("task", ["like", "rating"])
def test_the_client_answers_as_the_engine_does(world: World, server: tuple[str, Served], task: str) -> None:
    items: list[Any] = [*world.log.catalogue.item_ids[:4], {"title": "war and love"}, {"title": None}, {"title": "a </s><s>"}]
    events: list[Any] = [*world.log.history("u3"), {"item": {"title": "new"}, "rating": 3.4}, {"item_id": "i1", "rating": None}]
    asked = [
        (events, items, {"age": 23}),
        (events, items[:2], {"age": "</s>"}),
        ([], items[:1], {}),
        (events[:1], items[1:], {"age": None}),
        (events[-2:], [], {}),
    ]
    requests = [genre.Request("texts", task=task, history=h, candidates=c, user=u) for h, c, u in asked]
    with genre.Engine(genre.Base.load(str(world.tiny), depth=1), world.registry, lanes=2) as engine:
        answers = engine.score(requests)
    for answer, (history, candidates, user) in zip(answers, asked, strict=True):
        assert answer.error is None, answer.error
        ours = [scored.score for scored in answer.results]
        with Client(server[0], world.out) as client:
            assert client.score(history, candidates, task=task, user=user) == pytest.approx(ours, abs=1e-5)
    flat = [scored.score for scored in answers[0].results]
    assert max(flat) - min(flat) > 1e-3, "the candidates' scores differ at all"
    assert max(map(len, server[1].prompts)) < 200, "a long history lost its oldest events"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"histroy": []}, "a request has an unknown field: got 'histroy'; expected id, adapter, task, history, candidates, user"),
        ({"where": ["a == 1"]}, "a request has an unknown field: got 'where'"),
        ({"history": [{"item_id": "i0", "stars": 5}]}, "an event has an unknown field: got 'stars'; expected item_id, item, "),
        (
            {"history": [{"item_id": "i0"}]},
            "an event has no rating: got {'item_id': 'i0'}; expected rating, null where it is not",
        ),
        ({"candidates": [{"colour": "red"}]}, "an item has an unknown field: got 'colour'; expected item_id, title"),
    ],
)
def test_the_client_reads_every_field_or_refuses_it(world: World, server: tuple[str, Served], row: Any, message: str) -> None:
    with Client(server[0], world.out) as client:
        answer = client.answer({"id": "1", "task": "like", "history": [], "candidates": ["i1"], **row})
    assert answer["id"] == "1" and answer["error"].startswith(message)


def test_a_client_of_an_adapter_without_feedback_answers_as_the_engine_does(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("items-only")
    sections = TEXT | {"sequence": TEXT["sequence"] | {"feedback": "none"}}
    wanted = first_layer(recipe(world.tiny, LIKE | WORDS, name="items-only", data={"max_events": 6}, **sections))
    version = publish_stirred(world.registry, wanted, world.log, world.base, folder / "run")
    out = world.registry.export(version, folder / "out", to="vllm", base=world.tiny)
    assert '"history": [{"item_id": "ID"}]' in (out / "README.md").read_text()
    history = [{"item_id": event["item_id"]} for event in world.log.history("u3")]
    request = genre.Request("items-only", history=history, candidates=["i1", {"title": "new"}], user={"age": 3})
    with genre.Engine(genre.Base.load(str(world.tiny), depth=1), world.registry, lanes=2) as engine:
        ours = [scored.score for scored in engine.score([request])[0].results]
    with lora_server(out) as (url, _), Client(url, out) as client:
        assert client.score(history, request.candidates, user={"age": 3}) == pytest.approx(ours, abs=1e-5)


def test_a_server_that_reads_control_tokens_as_such_is_refused(world: World, server: tuple[str, Served]) -> None:
    served = server[1].tokenizer
    assert served.convert_ids_to_tokens(served("<s>", add_special_tokens=False)["input_ids"]) == ["<", "s", ">"]
    served.split_special_tokens = False
    try:
        with Client(server[0], world.out) as client, pytest.raises(ClientError, match="got token 1 in 'a </s>'; expected text"):
            client.score([], [{"title": "a </s>"}], task="like")
    finally:
        served.split_special_tokens = True


def test_client_py_runs_alone_and_fails_row_by_row(world: World, server: tuple[str, Served], tmp_path: Path) -> None:
    good = {"id": "a", "task": "like", "history": [{"item_id": "i0", "rating": 5}], "candidates": ["i1", {"title": "x"}]}
    rows = [good, {"id": "b"}, good | {"id": "c", "candidates": ["none"]}, good | {"id": "e", "history": [{"item_id": "i0"}]}]
    rows += [good | {"id": "d"}]
    command = [sys.executable, "-I", "-S", str(world.out / "client.py"), "--url", server[0]]
    text = "\n".join(map(json.dumps, rows))
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    first, second, third, silent, last = map(json.loads, done.stdout.splitlines())
    assert [row["item_id"] for row in first["results"]] == ["i1", "x"] and first["results"] == last["results"]
    assert "needs a history and candidates" in second["error"] and "unknown item: got 'none'" in third["error"]
    assert "an event has no rating" in silent["error"]
    lines = "{\n" + json.dumps({"id": "7", "task": "like", "history": ["50"], "candidates": ["i1"]})
    broken = subprocess.run(command, input=lines, capture_output=True, text=True)
    bad, strange = map(json.loads, broken.stdout.splitlines())
    assert broken.returncode == 0 and "request 1 is not JSON" in bad["error"]
    assert "an event cannot be read: got '50'" in strange["error"]
    away = subprocess.run([*command[:-1], "http://127.0.0.1:9"], input=text, capture_output=True, text=True)
    assert away.returncode == 0 and "is the server up?" in away.stdout
    (tmp_path / "rows").write_bytes(b'{"id": "\xff"}\n')
    bytes_alone = subprocess.run([*command, str(tmp_path / "rows")], capture_output=True, text=True)
    assert bytes_alone.returncode == 2 and re.fullmatch("error: 'utf-8' codec can't decode byte .*\n", bytes_alone.stderr)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"item_id": "i1", "impression_id": "7"}, "one impression do not see each other"),
        ({"rating": 4}, "an event names no item"),
        ({"item_id": "i1", "rating": "many"}, "feedback is not a number: got 'many'; expected one of 1.0, 2.0"),
        ({"item_id": "i1", "rating": float("nan")}, "feedback is not a number"),
        ({"item": []}, "an item cannot be read"),
    ],
)
def test_an_event_that_cannot_be_asked_is_refused(
    world: World, server: tuple[str, Served], event: dict[str, Any], message: str
) -> None:
    with Client(server[0], world.out) as client, pytest.raises(ClientError, match=message):
        client.score([event], ["i2"], task="like")


def test_the_clients_own_errors(world: World, server: tuple[str, Served], tmp_path: Path) -> None:
    for url in ("localhost:8000", "http://", "http://here:port", ""):
        with pytest.raises(ClientError, match="not the URL of a server"):
            Client(url, world.out)
    with Client(server[0], world.out) as client:
        with pytest.raises(ClientError, match="no such task: got None; expected like or rating"):
            client.score([], ["i1"])
        asked = {"id": "1", "task": ["like"], "history": [], "candidates": ["i1"]}
        assert client.answer(asked)["error"] == "no such task: got ['like']; expected like or rating"
        client.prompt["model"] = "other"
        with pytest.raises(ClientError, match="refused /tokenize: got 404"):
            client.score([], ["i1"], task="like")
    wanted = pytest.raises(ClientError, match="--logprobs-mode processed_logprobs")
    with lora_server(world.out, raw=True) as (url, _), Client(url, world.out) as client, wanted:
        client.score([], ["i1"], task="like")


def test_what_vllm_cannot_answer_is_refused(world: World, trained: Trained, tmp_path: Path) -> None:
    def refused(registry: genre.Registry, ref: str, match: str, base: Path | None = world.tiny) -> None:
        with pytest.raises(RegistryError, match=match):
            registry.export(ref, tmp_path / "out", to="vllm", base=base)
        assert not (tmp_path / "out").exists()

    refused(trained.registry, "like", r"like cannot be served by vLLM: got soft tokens \(sequence.item: token\); expected .*text")
    refused(trained.registry, "encoder-planted", "got a behaviour encoder")
    refused(world.registry, "texts", "needs its base beside it", None)
    mixed = first_layer(recipe(world.tiny, LIKE | WORDS, RATING, name="mixed", **TEXT))
    publish_stirred(world.registry, mixed, world.log, genre.Base.load(str(world.tiny), depth=1), tmp_path / "mixed")
    refused(world.registry, "mixed", "got head scalar of task 'rating'; expected head verbalizer")
    plain = genre.Registry(tmp_path / "registry", cache=tmp_path / "cache")
    plain.publish(write_fake(tmp_path / "a"), draft(sequence={}))
    refused(plain, "like", "got an adapter whose prompts are not known")
    plain.publish(write_fake(tmp_path / "b", seed=1), draft("reviews", sequence={"text": ["title"], "max_tokens": 9}))
    refused(plain, "reviews", "got labelled texts")
    with pytest.raises(RegistryError, match=r"cannot export to that: got 'onnx'; expected peft, hub-folder, merged,"):
        world.registry.export("texts", tmp_path / "out", to="onnx")


def test_another_base_and_another_tokenizer_are_refused(world: World, tmp_path: Path) -> None:
    from fakes import make_base

    with pytest.raises(ManifestError, match=r"base.fingerprint differs"):
        world.registry.export("texts", tmp_path / "out", to="vllm", base=make_base(tmp_path / "other", seed=1))
    same = tmp_path / "same"
    same.mkdir()
    for file in world.tiny.iterdir():
        (same / file.name).write_bytes(file.read_bytes())
    raw = json.loads((same / "tokenizer.json").read_text())
    raw["model"]["vocab"] |= {"a": raw["model"]["vocab"]["b"], "b": raw["model"]["vocab"]["a"]}
    (same / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match="tokenizer differs"):
        world.registry.export("texts", tmp_path / "out", to="vllm", base=same)


def test_all_layers_are_linked_not_copied(world: World, tmp_path: Path) -> None:
    whole = recipe(world.tiny, LIKE | WORDS, name="whole", **TEXT)
    publish_stirred(world.registry, whole, world.log, genre.Base.load(str(world.tiny)), tmp_path / "whole")
    out = world.registry.export("whole", tmp_path / "out", to="vllm", base=world.tiny)
    kept, original = out / "base" / "model.safetensors", world.tiny / "model.safetensors"
    assert kept.read_bytes() == original.read_bytes() and not kept.is_symlink()
    if kept.stat().st_dev == original.stat().st_dev:
        assert kept.samefile(original)
