"""Canaries: what an export holds of them, and servers that take an adapter's name and answer with something else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lora_server import lora_server
from served_fakes import TEXT, WORDS, World, first_layer

import genre
from builders import LIKE, recipe
from genre.cli import main
from genre.errors import JobError
from genre.registry.export.check import ask_canaries
from genre.registry.export.client import Client, ClientError, WrongServer, distance, telling

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "canaries.json").read_text())
    return found


def apart(canary: dict[str, Any]) -> float:
    return max(abs(a - b) for a, b in zip(canary["base"], canary["adapter"], strict=True))


def test_an_export_holds_two_prompts_with_both_answers(world: World) -> None:
    found = read(world.out)
    manifest = world.registry.resolve("texts").manifest
    assert (found["model"], found["version"], found["digest"]) == ("texts", manifest.version, manifest.digest)
    assert len(found["canaries"]) == 2 and min(map(apart, found["canaries"])) > 2 * found["tolerance"]
    tasks = {"like": ["No", "Yes"], "rating": ["1", "2", "3", "4", "5"]}
    with genre.Engine(world.base, world.registry, lanes=2) as engine:
        for each in found["canaries"]:
            assert tasks[each["task"]] == [word.strip() for word in each["words"]]
            assert sum(each["base"]) == pytest.approx(1) and sum(each["adapter"]) == pytest.approx(1)
            history: Any = each["history"]
            (answer,) = engine.score([genre.Request("texts", task=each["task"], history=history, candidates=[each["candidate"]])])
            share, words = each["adapter"], each["words"]
            score = share[-1] if each["task"] == "like" else sum(s * float(w) for s, w in zip(share, words, strict=True))
            assert answer.results[0].score == pytest.approx(score, abs=1e-5), "the adapter's answer is the engine's"


def test_every_form_of_a_text_adapter_holds_the_same_canaries(world: World, tmp_path: Path) -> None:
    for form in ("peft", "merged"):
        out = world.registry.export("texts", tmp_path / form, to=form, base=world.tiny)
        assert read(out) == read(world.out)
    assert read(world.registry.export("texts", tmp_path / "none", base=world.tiny, canaries=False)) | {"reason": ""} == read(
        world.out
    ) | {"canaries": [], "reason": ""}


def test_the_client_refuses_a_server_that_answers_with_the_base(world: World) -> None:
    row = {"id": "1", "task": "like", "history": [], "candidates": ["i1"]}
    with lora_server(world.out, base_only=True) as (url, served):
        with Client(url, world.out) as client:
            for ask in (lambda: client.score([], ["i1"], task="like"), lambda: client.answer(row), client.check):
                with pytest.raises(WrongServer, match=rf"^{url} answers texts with its base: got .*; expected .*; load the adap"):
                    ask()
        assert not any(len(ids) < 5 for ids in served.prompts), "no prompt but canaries was sent"
        command = [sys.executable, "-I", "-S", str(world.out / "client.py"), "--url", url]
        done = subprocess.run(command, input=json.dumps(row), capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"error: {url} answers texts with its base")
        unchecked = subprocess.run([*command, "--no-check"], input=json.dumps(row), capture_output=True, text=True)
        assert unchecked.returncode == 0 and 0 < json.loads(unchecked.stdout)["results"][0]["score"] < 1


def test_a_server_without_numbers_and_a_tolerance_that_tells_nothing_are_refused(world: World) -> None:
    with lora_server(world.out) as (url, served):
        for tolerance in (0.9, float("nan")):
            refused = pytest.raises(ClientError, match="cannot be told from its base")
            with Client(url, world.out, tolerance=tolerance) as client, refused:
                client.score([], ["i1"], task="like")
        for name, weight in served.model.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(float("nan"))
        with pytest.raises(JobError, match="the server's answer has another form: got ValueError: log-probabilities nan, nan"):
            ask_canaries(url, world.out, server="sglang")


def test_the_command_tells_adapter_base_and_neither(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def checked(url: str, *words: str, folder: Path = world.out) -> tuple[int, str, str]:
        code = main(["registry", "check-server", url, "--folder", str(folder), *words])
        return code, *capsys.readouterr()

    with lora_server(world.out) as (url, served):
        assert main(["registry", "check-server", url, "--folder", str(world.out), "--json", str(tmp_path / "c.json")]) == 0
        assert f"{url} answers with the adapter: 2 of 2 canaries" in capsys.readouterr().out
        written = json.loads((tmp_path / "c.json").read_text())
        assert [row["answer"] for row in written] == [pytest.approx(row["adapter"], abs=1e-5) for row in written]
        assert "refused /tokenize: got 404" in checked(url, "--model", "other")[2]
        code, _, error = checked(url, "--tolerance", "0.9")
        assert code == 1 and error.startswith("genre: texts cannot be told from its base: got answers ")
        served.base_only = True
        code, _, error = checked(url)
        assert code == 1 and error.startswith(f"genre: {url} answers texts with its base: got ") and error.count("\n") == 1
        merged = world.registry.export("texts", tmp_path / "merged", to="merged", base=world.tiny)  # no prompts beside it
        assert f"{url} answers texts with its base" in checked(url, folder=merged)[2]
        other = tmp_path / "other"  # another adapter's answers under this name
        shutil.copytree(world.out, other)
        found = read(other)
        for each in found["canaries"]:
            each["base"] = each["adapter"] = each["base"][::-1]
            each["base"] = [1.0, *[0.0] * (len(each["base"]) - 1)]
            each["adapter"] = [*[0.0] * (len(each["base"]) - 1), 1.0]
        (other / "canaries.json").write_text(json.dumps(found))
        code, _, error = checked(url, folder=other)
        assert code == 1 and "answers texts with neither the adapter nor the base" in error
        for each in found["canaries"]:
            each["token_ids"] = each["token_ids"][1:]
        (other / "canaries.json").write_text(json.dumps(found))
        assert "the server has another tokenizer: got [" in checked(url, folder=other)[2]
    assert checked("http://127.0.0.1:9")[0] == 1
    code, _, error = checked("127.0.0.1:8000")
    assert code == 2 and "not the URL of a server" in error
    code, _, error = checked(url, folder=tmp_path)
    assert code == 2 and "no canaries to ask with" in error
    assert checked(url, "--server", "tgi")[2].startswith("genre: there is no such kind of server: got tgi; expected vllm or sgl")
    (other / "canaries.json").write_text("{")
    code, _, error = checked(url, folder=other)
    assert code == 2 and "are damaged" in error


@pytest.mark.parametrize(
    ("base", "adapter", "apart"),
    [
        ([0.61, 0.39], [0.08, 0.92], 0.53),
        ([0.99, 0.01], [0.98, 0.02], 0.02 * 0.6931),  # twice as likely
        ([0.9996022582, 0.0003977645], [0.9998874664, 0.0001124690], 0.02 * 1.2632),  # SmolLM2 cut to four layers
        ([1.0, 1e-30], [1.0, 0.0], 0.0),
        ([1.0, 1e-7, 1e-3], [1.0, 1e-7, 1e-3], 0.0),
    ],
)
def test_answers_of_a_rare_word_are_apart_by_their_ratio(base: list[float], adapter: list[float], apart: float) -> None:
    assert distance(base, adapter) == distance(adapter, base) == pytest.approx(apart, rel=1e-3)
    assert bool(telling({"canaries": [{"base": base, "adapter": adapter}]}, 0.01)) is (apart > 0.02)


def test_an_adapter_like_its_base_is_not_told_from_it(world: World, tmp_path: Path) -> None:
    from genre.jobs.publish import adapter_manifest, write_adapter
    from genre.registry.manifest import Cost
    from genre.training.assembly import assemble

    wanted = first_layer(recipe(world.tiny, LIKE | WORDS, name="faint", **TEXT))
    assembly = assemble(wanted, world.log, world.base, None)
    with torch.no_grad():
        for layer in assembly.model.layers.values():
            layer.lora_B.fill_(1e-6)
    write_adapter(tmp_path / "faint", assembly)
    world.registry.publish(tmp_path / "faint", adapter_manifest(assembly, encoder=None, cost=Cost(), metrics={}))
    assembly.model.release()
    out = world.registry.export("faint", tmp_path / "out", to="vllm", base=world.tiny)
    assert "No canary tells the adapter from its base" in (out / "README.md").read_text()
    with lora_server(out) as (url, _), Client(url, out) as client:
        assert 0 < client.score([], ["i1"])[0] < 1  # nothing to refuse it by
        with pytest.raises(ClientError, match=r"^faint cannot be told from its base: got answers .*; expected more than twice"):
            client.check()


def test_the_export_says_why_there_are_no_canaries(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genre.registry.export import canaries

    monkeypatch.setattr(canaries, "_free_bytes", lambda: 1000)
    words = ["registry", "export", "texts", "--to", "vllm", "--base", str(world.tiny)]
    words += ["--registry", str(world.folder / "registry")]
    assert main([*words, "--out", str(tmp_path / "small")]) == 0
    assert "no canaries: the canaries need 0.0 GiB of memory; 0.0 GiB were free" in capsys.readouterr().out
    assert main(["registry", "check-server", "http://127.0.0.1:9", "--folder", str(tmp_path / "small")]) == 1
    assert "cannot be told from its base: the canaries need" in capsys.readouterr().err
    assert main([*words, "--no-canaries", "--out", str(tmp_path / "none")]) == 0
    assert "no canaries" not in capsys.readouterr().out
