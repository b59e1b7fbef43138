"""Export to SGLang: its routes as the source of 0.5.23 has them, answered by stock PEFT in a server's place.

No SGLang runs here: 0.5.23 needs CUDA 13 (cuda-python, flashinfer, sglang-kernel), and has no build for CPUs on the index.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_server import Served, lora_server
from served_fakes import World

import genre
from genre.registry.export.client import Client, ClientError, WrongServer
from genre.registry.manifest import Manifest

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def out(world: World) -> Path:
    return world.registry.export("texts", world.folder / "sglang", to="sglang", base=world.tiny)


@pytest.fixture(scope="module")
def server(out: Path) -> Iterator[tuple[str, Served]]:
    with lora_server(out) as opened:
        yield opened


def ours(world: World, name: str, history: Any, items: Any, **more: Any) -> list[float]:
    with genre.Engine(world.base, world.registry, lanes=2) as engine:
        (answer,) = engine.score([genre.Request(name, history=history, candidates=items, **more)])
    return [scored.score for scored in answer.results]


def test_the_folder_holds_the_line(out: Path) -> None:
    line = "$ python -m sglang.launch_server --model-path ./base --served-model-name base --port 8000 --enable-lora"
    assert f"{line} --max-lora-rank 8 --lora-paths texts=./adapter\n" in (out / "README.md").read_text()
    assert json.loads((out / "prompt.json").read_text())["server"] == "sglang"
    assert json.loads((out / "canaries.json").read_text())["tolerance"] == 0.03  # SGLang's default precision is the base's own


@pytest.mark.parametrize("task", ["like", "rating"])
def test_the_client_answers_as_the_engine_does(world: World, out: Path, server: tuple[str, Served], task: str) -> None:
    items: list[Any] = [*world.log.catalogue.item_ids[:4], {"title": "war and love"}]
    history: Any = world.log.history("u3")
    with Client(server[0], out) as client:
        found = client.score(history, items, task=task, user={"age": 23})
    assert found == pytest.approx(ours(world, "texts", history, items, task=task, user={"age": 23}), abs=1e-5)


def test_a_name_that_is_not_loaded_and_a_base_are_refused(out: Path, server: tuple[str, Served]) -> None:
    with Client(server[0], out, check=False) as client:
        client.score([], ["i1"], task="like")
        client.prompt["model"] = "other"
        client.prompts._ids.clear()
        with pytest.raises(ClientError, match="refused /tokenize: got 404"):
            client.score([], ["i1"], task="like")
        with pytest.raises(ClientError, match="refused /generate: got 400 .*never been loaded: other"):
            client.server.probabilities([[1, 2]], [3, 4])
    server[1].base_only = True
    try:
        with Client(server[0], out) as client, pytest.raises(WrongServer, match="answers texts with its base"):
            client.score([], ["i1"], task="like")
    finally:
        server[1].base_only = False


def test_v1_score_answers_with_the_base(out: Path, server: tuple[str, Served]) -> None:
    """Why the client does not ask it: `score_request` of 0.5.23 makes a GenerateReqInput without `lora_path`."""
    canary = json.loads((out / "canaries.json").read_text())["canaries"][0]
    body = {"model": "base:texts", "query": [], "items": [canary["token_ids"]]}
    body |= {"label_token_ids": canary["word_ids"], "apply_softmax": True}
    with Client(server[0], out, check=False) as client:
        (answer,) = client.server.post("/v1/score", body)["scores"]
    assert answer == pytest.approx(canary["base"], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(answer, canary["adapter"], strict=True)) > 0.05


def test_scales_that_sglang_does_not_read_are_in_the_weights(world: World, tmp_path: Path) -> None:
    """SGLang 0.5.23: `self.scaling = lora_alpha / r`, for all linears."""
    source = shutil.copytree(world.registry.fetch(world.registry.resolve("texts")), tmp_path / "uneven")
    config = json.loads((source / "adapter_config.json").read_text())
    uneven = {"use_rslora": True, "alpha_pattern": {"q_proj": 3, "down_proj": 11}}
    (source / "adapter_config.json").write_text(json.dumps(config | uneven))
    empty = {"version": "", "digest": "", "created": "", "checksum": "", "files": {}}
    manifest = world.registry.resolve("texts").manifest
    (source / "README.md").unlink()
    world.registry.publish(source, Manifest.parse(manifest.raw() | empty | {"name": "uneven"}))
    out = world.registry.export("uneven", tmp_path / "out", to="sglang", base=world.tiny)
    written = json.loads((out / "adapter/adapter_config.json").read_text())
    assert written["r"] == written["lora_alpha"] == config["r"] and not written["use_rslora"] and not written["alpha_pattern"]
    with lora_server(out) as (url, _), Client(url, out) as client:
        history: Any = world.log.history("u3")
        asked = {"task": "like", "user": {"age": 4}}
        found = client.score(history, ["i1", "i2"], **asked)
        assert found == pytest.approx(ours(world, "uneven", history, ["i1", "i2"], **asked), abs=1e-5)
        assert found != pytest.approx(ours(world, "texts", history, ["i1", "i2"], **asked), abs=1e-3)


def test_uniform_updates_are_what_the_files_mean(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from genre.registry.weights.lora import read_adapter
    from genre.registry.weights.scaled import is_uniform, uniform_updates

    draw = np.random.default_rng(0)
    prefix = "base_model.model.model.layers.0.self_attn"
    tensors = {}
    for name, rank in (("q_proj", 2), ("v_proj", 4)):
        tensors[f"{prefix}.{name}.lora_A.weight"] = draw.normal(size=(rank, 6)).astype(np.float32)
        tensors[f"{prefix}.{name}.lora_B.weight"] = draw.normal(size=(5, rank)).astype(np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}
    config |= {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 10}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter(tmp_path)
    assert not is_uniform(adapter)
    scales = {"q_proj": 3 / math.sqrt(2), "v_proj": 10 / math.sqrt(4)}
    for update in uniform_updates(adapter, tmp_path / "adapter_model.safetensors"):
        name = update.path.split(".")[-1]
        a, b = (tensors[f"{prefix}.{name}.lora_{side}.weight"] for side in "AB")
        assert update.a.shape == (4, 6) and update.b.shape == (5, 4)
        np.testing.assert_allclose(update.b @ update.a, scales[name] * (b @ a), rtol=1e-5)
