"""Names in a registry that are damaged, or hold what nobody can compute with: the service serves the rest."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from serving_fakes import ADMIN, TOKEN, Process, copy_of, open_engine, serving

from genre.engine import Request
from genre.engine.explain import explain
from genre.errors import ManifestError, RequestError
from genre.jobs.score.local import Scorer
from genre.serving import Service, Settings
from genre.serving.deployments import served_by_default

GOOD = {"like", "next_item", "rating", "encoder-planted"}


@pytest.fixture
def registry(trained, tmp_path):
    """The trained adapters, without what other tests have published into the session's registry."""
    copied = copy_of(trained.registry, tmp_path / "registry")
    for name in set(copied.names()) - GOOD:
        shutil.rmtree(Path(copied.url) / name)
    return copied


def publish(registry, folder, name, change=None, *, ref="like@production", edit=None):
    """Publish a copy of a version under another name, with another manifest or other files."""
    version = registry.resolve(ref)
    shutil.copytree(registry.fetch(version), folder)
    if edit is not None:
        edit(folder)
    raw = version.manifest.model_copy(update={"name": name})
    manifest = raw if change is None else raw.model_copy(update=change(raw))
    return registry.publish(folder, manifest, alias="production")


def without(field):
    return lambda manifest: {"sequence": {key: value for key, value in manifest.sequence.items() if key != field}}


def with_value(field, value):
    return lambda manifest: {"sequence": {**manifest.sequence, field: value}}


def rewrite_heads(change):
    def edit(folder):
        described = json.loads((folder / "heads.json").read_text())
        (folder / "heads.json").write_text(json.dumps(change(described)))

    return edit


def overflowing(folder):
    """Make the low-rank update finite, and so large that its products are not."""
    tensors = load_file(folder / "adapter_model.safetensors")
    huge = {name: np.where(value < 0, -1e38, 1e38).astype(np.float32) for name, value in tensors.items()}
    (folder / "adapter_model.safetensors").unlink()
    save_file(huge, folder / "adapter_model.safetensors")


WRONG = {
    "a-no-events": (without("max_events"), None),
    "a-no-feedback": (without("feedback"), None),
    "a-no-instruction": (without("instruction"), None),
    "a-no-values": (without("values"), None),
    "a-no-number": (with_value("max_events", "many"), None),
    "a-list": (with_value("text", 5), None),
    "a-no-kind": (lambda manifest: {"tasks": ({"name": "like"},)}, None),
    "a-heads-list": (None, rewrite_heads(lambda described: [described])),
    "a-heads-empty": (None, rewrite_heads(lambda described: {"like": {}})),
    "a-heads-odd": (None, rewrite_heads(lambda described: {"like": 5})),
}


def damage(registry, tmp_path):
    """One name for each way to be damaged; returns them."""
    for name, (change, edit) in WRONG.items():
        publish(registry, tmp_path / name, name, change, edit=edit)
    stored = {
        name: publish(registry, tmp_path / name, name) for name in ("b-manifest", "b-pipe", "b-folder", "b-cut", "b-weights")
    }
    paths = {name: Path(registry.url) / name / version.version for name, version in stored.items()}
    (paths["b-manifest"] / "manifest.json").write_text('{"name": "b-manifest"}')
    (paths["b-cut"] / "manifest.json").write_bytes((paths["b-cut"] / "manifest.json").read_bytes()[:-40])
    for name in ("b-pipe", "b-folder"):
        (paths[name] / "manifest.json").unlink()
    os.mkfifo(paths["b-pipe"] / "manifest.json")
    (paths["b-folder"] / "manifest.json").mkdir()
    with (paths["b-weights"] / "heads.safetensors").open("ab") as file:
        file.write(b"more")
    journal = publish(registry, tmp_path / "b-journal", "b-journal")
    for entry in (Path(registry.url) / journal.name / "aliases").iterdir():
        entry.write_text("{}")
    return sorted([*WRONG, *stored, "b-journal"])


def test_damaged_names_are_left_out_with_a_line_each_and_the_rest_is_served(trained, registry, tmp_path):
    names = damage(registry, tmp_path)
    refs, others = served_by_default(registry)
    assert {"like@production", "next_item@production", "rating@production"} <= set(refs)
    log = io.StringIO()
    with open_engine(trained, registry, lanes=24) as engine:
        service = Service(engine, Settings.make(port=0), stream=log)
        try:
            service.start(refs, found=True)
            lines = [json.loads(line) for line in log.getvalue().splitlines()]
        finally:
            service.stop()
    left_out = others | {line["ref"]: line["why"] for line in lines if line["event"] == "not served"}
    assert sorted({ref.partition("@")[0] for ref in left_out}) == names
    assert all(why and "\n" not in why for why in left_out.values())
    served = {line["ref"] for line in lines if line["event"] == "serving"}
    assert served == {"like@production", "next_item@production", "rating@production"}


def test_loading_and_promoting_a_damaged_name_is_a_4xx_and_changes_nothing(trained, registry, tmp_path):
    names = damage(registry, tmp_path)
    with (
        open_engine(trained, registry, lanes=24) as engine,
        serving(engine, ["like@production"], token=TOKEN, follow_s=0) as (service, client),
    ):
        before = engine.resident()
        for name in names:
            bodies = [("load", {"ref": f"{name}@production"}), ("promote", {"ref": f"{name}@production", "alias": "other"})]
            for path, body in bodies[: 1 if name.startswith("a-") else 2]:  # whether it loads is asked where it is served
                answer = client.post(f"/v1/admin/{path}", json=body, headers=ADMIN)
                assert 400 <= answer.status_code < 500 and "\n" not in answer.json()["error"], (name, answer.text)
                assert registry.url not in answer.text
        assert engine.resident() == before and [one.ref for one in service.deployments.all()] == ["like@production"]
        good = {"adapter": "like", "user_id": "u3", "candidates": ["i0"]}
        assert "results" in client.post("/v1/score", json={"requests": [good]}).json()["responses"][0]


@pytest.mark.slow  # a process that imports torch
def test_the_command_starts_beside_damaged_names(trained, registry, tmp_path):
    damage(registry, tmp_path)
    arguments = ("--registry", registry.url, "--base", str(trained.base), "--lanes", "24")
    with Process(tmp_path / "log", *arguments).ready() as process:
        assert process.end() == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sum(line["event"] == "not served" for line in lines) >= len(WRONG)


def test_weights_that_the_base_cannot_hold_are_not_loaded(trained, registry, tmp_path):
    def edit(folder):
        overflowing(folder)
        described = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**described, "lora_alpha": 1000.0 * described["r"]}))

    publish(registry, tmp_path / "over", "over", edit=edit)
    with open_engine(trained, registry) as engine:
        with pytest.raises(ManifestError, match="a weight that is not finite in float32: got more than .* at scale 1000"):
            engine.load("over@production")
        assert engine.score([{"adapter": "over@production", "user_id": "u3", "k": 1}])[0].error is not None


def test_an_instruction_is_no_format_string(trained, registry, tmp_path):
    publish(registry, tmp_path / "wide", "wide", with_value("instruction", "Age {age:>100000000}:"))
    with open_engine(trained, registry) as engine:
        (answer,) = engine.score([{"adapter": "wide@production", "history": [], "candidates": ["i0"], "user": {"age": 1}}])
    assert "the instruction cannot be read: got the field {age:>100000000}" in answer.error


@pytest.mark.parametrize("task", ["like", "rating", "next_item"])
def test_scores_that_are_not_finite_are_an_error_of_their_row(trained, registry, tmp_path, task):
    publish(registry, tmp_path / "huge", "huge", ref=f"{task}@production", edit=overflowing)
    refs = ["huge@production", f"{task}@production"]
    rows = [{"adapter": ref, "user_id": "u3", "k": 3, "task": task} for ref in refs]
    with open_engine(trained, registry) as engine:
        bad, good = engine.score(rows)
        assert good.error is None and bad.error == "the version gave a score that is not a number" and not bad.results
        lines = Scorer(engine).answer([Request.from_json(row) for row in rows])
        written = [json.loads(line, parse_constant=pytest.fail) for line in lines.text.splitlines()]
        assert lines.errors == 1 and written[0]["error"] == bad.error and "results" in written[1]
        for method in ("leave_one_out", "gradient"):
            with pytest.raises(RequestError, match="not a number"):
                explain(engine, Request("huge@production", user_id="u3", task=task, k=1), "i0", method=method)
        with serving(engine, refs) as (_, client):
            for path in ("/v1/score", "/v1/recommend"):
                answers = json.loads(client.post(path, json={"requests": rows}).text, parse_constant=pytest.fail)["responses"]
                assert answers[0]["error"] == bad.error and "results" in answers[1]
            for method in ("leave_one_out", "gradient"):
                why = {"adapter": "huge@production", "user_id": "u3", "item": "i0", "method": method}
                (told,) = json.loads(client.post("/v1/explain", json={"requests": [why]}).text, parse_constant=pytest.fail)[
                    "responses"
                ]
                assert "not a number" in told["error"]
