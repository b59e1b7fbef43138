"""Imported adapters in the engine, jobs and the service: without tasks they are left out; our own exports come back whole."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from builders import LIKE, publish_stirred, recipe
from genre.cli import main
from genre.engine import Engine, Request
from genre.engine.versions import read_adapter
from genre.errors import IntegrityError, ManifestError
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.modules.base.base import Base
from genre.recipe import Recipe
from genre.registry import BaseInfo, Cost, Registry

TEXT = {"sequence": {"item": "text"}, "encoder": {"use": "none"}}


@pytest.fixture(scope="module")
def shop(trained, tmp_path_factory):
    """The trained adapters, a data set, and an adapter from elsewhere that comes before them in the alphabet."""
    place = tmp_path_factory.mktemp("imported")
    trained.log.write(place / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.float32)
        tuned = get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj", "up_proj"], use_rslora=True))
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        tuned.save_pretrained(place / "theirs")
    shutil.copytree(trained.registry.url, place / "registry")
    code = main(["registry", "import", str(place / "theirs"), "--as", "a-guest", *_here(place, trained)])
    assert code == 0
    return place


def _here(place, trained):
    return ["--base", str(trained.base), "--registry", str(place / "registry")]


def test_an_imported_adapter_says_what_it_is_and_has_the_bases_depth(shop, trained, capsys):
    assert main(["registry", "import", str(shop / "theirs"), "--as", "a-guest", *_here(shop, trained)]) == 0
    out = capsys.readouterr().out
    assert "it has no tasks, so nothing scores with it" in out and "published a-guest:" in out
    manifest = Registry(shop / "registry").resolve("a-guest").manifest
    assert (manifest.base.name, manifest.base.depth) == ("tiny", 2) and not manifest.answers


def test_of_all_layers_it_is_exported_without_its_base(shop, tmp_path, capsys):
    store = ["--registry", str(shop / "registry")]
    assert main(["registry", "export", "a-guest", "--out", str(tmp_path / "out"), *store]) == 0
    assert not (tmp_path / "out/base").exists() and "soft tokens" not in (tmp_path / "out/README.md").read_text()


def test_a_row_that_names_it_fails_alone(shop, trained, base):
    good = {"adapter": "like@production", "user_id": "u1", "candidates": ["i1", "i2"]}
    with Engine(base, Registry(shop / "registry"), data=trained.log) as engine:
        bad, fine = engine.score([{**good, "adapter": "a-guest"}, good])
    assert fine.error is None and len(fine.results) == 2
    assert "has no tasks to score: got an imported adapter, a low-rank update alone" in bad.error


def test_a_file_of_requests_is_scored_though_its_first_row_names_it(shop, trained, tmp_path, capsys):
    rows = [{"adapter": name, "user_id": "u1", "candidates": ["i1"]} for name in ("a-guest", "like@production", "a-guest")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--data", str(shop / "data")]
    assert main(["score", *files, *_here(shop, trained)]) == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["error" in row for row in answers] == [True, False, True]
    (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]) + "\n")
    capsys.readouterr()
    assert main(["score", *files[:3], str(tmp_path / "other.jsonl"), *files[4:], *_here(shop, trained)]) == 2
    err = capsys.readouterr().err
    assert "no tasks to score: got a-guest" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "a-guest"],
        ["recommend", "a-guest", "--user", "u1"],
        ["explain", "a-guest", "--user", "u1", "--item", "i1"],
        ["refresh", "a-guest"],
        ["merge", "a-guest", "like@production", "--as", "both"],
        ["serve", "--adapters", "a-guest", "--port", "0"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_on_it_ends_in_one_line(shop, trained, capsys, command):
    assert main([*command, "--data", str(shop / "data"), *_here(shop, trained)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "a-guest" in err and ("no tasks" in err or "no recipe" in err), err


def test_the_service_leaves_it_out_with_a_line(shop, trained, capsys):
    from genre.cli.serve import _open
    from genre.serving.settings import Settings

    arguments = (str(shop / "registry"), [], str(shop / "data"), str(trained.base), {}, 8, Settings.make(port=0), None)
    service = _open(*arguments)
    try:
        served = {deployment.name for deployment in service.deployments.public()}
        assert {"like", "rating", "next_item"} <= served and "a-guest" not in served
    finally:
        service.stop()
        service.engine.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "not served" in line]
    (why,) = [line["why"] for line in lines if line["ref"] == "a-guest@latest"]
    assert "it has no tasks" in why


def test_a_registry_of_imported_adapters_alone_serves_nothing(shop, trained, tmp_path, capsys):
    here = ["--base", str(trained.base), "--registry", str(tmp_path / "registry")]
    assert main(["registry", "import", str(shop / "theirs"), "--as", "guest", *here]) == 0
    capsys.readouterr()
    assert main(["serve", "--port", "0", *here]) == 2
    assert "there is no adapter to serve: got guest@latest: it has no tasks" in capsys.readouterr().err


def test_a_depth_that_is_not_said_means_all_layers(shop, trained, base):
    """As imports have published it before: the manifest's depth is null."""
    registry = Registry(shop / "registry")
    like = registry.resolve("like@production").manifest
    info = BaseInfo(name="tiny", fingerprint=base.fingerprint)
    fields = {name: getattr(like, name) for name in ("sequence", "tokenizer", "encoder")}
    verbal = LIKE | {"head": "verbalizer", "words": ["N", "Y"]}
    taken = registry.import_peft(shop / "theirs", "deep", base=info, base_folder=trained.base, tasks=[verbal], **fields)
    assert taken.manifest.base.depth is None
    assert set(read_adapter(registry, "deep", base).low) == {
        f"model.layers.{n}.{name}" for n in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    with pytest.raises(ManifestError, match=r"base.depth differs: got 1; expected null"):
        read_adapter(registry, "deep", Base.load(str(trained.base), depth=1))
    registry.import_peft(shop / "theirs", "odd", base=info, base_folder=trained.base, tasks=["like"], **fields)
    with pytest.raises(ManifestError, match="odd: task 'like' cannot be read: got kind"):
        read_adapter(registry, "odd", base)


def test_an_engine_refuses_lora_of_the_head_with_what_helps(shop, trained, base, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.float32)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
        tuned.save_pretrained(tmp_path / "theirs")
    registry = Registry(shop / "registry")
    like = registry.resolve("like@production").manifest
    fields = {name: getattr(like, name) for name in ("sequence", "tokenizer", "encoder")}
    verbal = LIKE | {"head": "verbalizer", "words": ["N", "Y"]}
    info = BaseInfo(name="tiny", fingerprint=base.fingerprint, depth=2)
    registry.import_peft(tmp_path / "theirs", "head", base=info, base_folder=trained.base, tasks=[verbal], **fields)
    with Engine(base, registry, data=trained.log) as engine:
        (answer,) = engine.score([Request("head", user_id="u1", candidates=["i1"])])
    assert "adapts what an engine cannot: got lm_head" in answer.error and "--to merged" in answer.error


def test_the_config_names_a_base_from_the_hub_as_the_manifest_does(build, base, tmp_path):
    base.name = "owner/model"
    assembly = build(LIKE, **TEXT)
    write_adapter(tmp_path / "files", assembly)
    config = json.loads((tmp_path / "files/adapter_config.json").read_text())
    manifest = adapter_manifest(assembly, encoder=None, cost=Cost(), metrics={})
    assert config["base_model_name_or_path"] == manifest.base.name == "owner/model"


# --- our own exports ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(shop, trained):
    """A folder and a tar of an adapter with a head, a recipe and an encoder."""
    Registry(shop / "registry").export("like@production", shop / "like", base=trained.base, tar=True)
    return shop


@pytest.mark.parametrize("form", ["like", "like.tar"])
def test_an_export_comes_back_as_the_version_it_was(exported, trained, base, form, capsys):
    registry = Registry(exported / "registry")
    before = registry.resolve("like@production")
    assert main(["registry", "import", str(exported / form), "--as", "like", *_here(exported, trained)]) == 0
    assert f"published {before.ref}" in capsys.readouterr().out
    assert main(["registry", "import", str(exported / form), "--as", "copy", *_here(exported, trained)]) == 0
    copy = registry.resolve("copy")
    same = ("heads.safetensors", "heads.json", "recipe.yaml", "adapter_model.safetensors", "adapter_config.json")
    assert [copy.manifest.files[name] for name in same] == [before.manifest.files[name] for name in same]
    assert copy.manifest.tasks == before.manifest.tasks and copy.manifest.metrics == before.manifest.metrics
    assert "# copy" in (registry.fetch(copy) / "README.md").read_text()
    row = {"user_id": "u1", "candidates": ["i1", "i2", "i3"]}
    with Engine(base, registry, data=trained.log) as engine:
        first, second = engine.score([{**row, "adapter": "like@production"}, {**row, "adapter": "copy"}])
    assert first.results == second.results and first.error is None


def test_a_text_adapter_of_a_cut_base_comes_back_into_another_registry(trained, tmp_path, log):
    base = Base.load(str(trained.base), depth=1)
    home, away = Registry(tmp_path / "home"), Registry(tmp_path / "away")
    wanted = Recipe.parse(recipe(trained.base, LIKE, **TEXT).model_dump() | {"base": {"name": str(trained.base), "depth": 1}})
    version = publish_stirred(home, wanted, log, base, tmp_path / "files")
    out = home.export(version, tmp_path / "out", base=trained.base)
    check_stock_peft_loads_it_in_its_folder(out)
    here = ["--as", "like", "--base", str(trained.base), "--registry", away.url]
    assert main(["registry", "import", str(out), *here, "--depth", "2"]) == 2, "it is for one layer"
    assert main(["registry", "import", str(out), *here]) == 0
    assert away.resolve("like").digest == version.digest
    request = Request("like", history=log.history("u1")[:5], user={"age": 30}, candidates=["i1", "i2"])
    answers = []
    for registry in (home, away):
        with Engine(base, registry) as engine:
            answers += engine.score([request])
    assert answers[0].results == answers[1].results and answers[0].error is None


def check_stock_peft_loads_it_in_its_folder(folder):
    """`AutoPeftModel…(".")` and the card's own snippet, in a process that has no network."""
    card = (folder / "README.md").read_text()
    snippet = card.partition("```python\n")[2].partition("```")[0].replace("<this folder>", str(folder))
    code = f"""
import socket, torch, warnings
warnings.simplefilter("ignore")
def refuse(*_, **__): raise SystemExit("it asks the network")
socket.getaddrinfo = refuse
from peft import AutoPeftModelForCausalLM
auto = AutoPeftModelForCausalLM.from_pretrained(".")
{snippet}
tokens = torch.tensor([[1, 5, 9]])
assert model.config.num_hidden_layers == 1 and torch.equal(auto(tokens).logits, model(tokens).logits)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'AutoPeftModelForCausalLM.from_pretrained(".")' in card


def test_an_export_takes_its_encoder_along_into_another_registry(exported, trained, base, tmp_path):
    home = Registry(exported / "registry")
    card = (exported / "like/README.md").read_text()
    assert "behaviour encoder in `encoder/`" in card and "--as like --base <the folder of tiny>" in card
    for form in ("like", "like.tar"):
        away = Registry(tmp_path / f"away-{form}")
        here = ["--as", "like", "--base", str(trained.base), "--registry", away.url]
        assert main(["registry", "import", str(exported / form), *here]) == 0
        assert away.resolve("like").digest == home.resolve("like@production").digest
        assert away.resolve("encoder-planted").digest == home.resolve("like@production").manifest.encoder
        assert not away.verify()
    row = {"adapter": "like", "user_id": "u1", "candidates": ["i1", "i2", "i3"]}
    answers = []
    for registry in (home, away):
        with Engine(base, registry, data=trained.log) as engine:
            answers += engine.score([row])
    assert answers[0].results == answers[1].results and answers[0].error is None
    shutil.copytree(exported / "like", tmp_path / "other")
    (tmp_path / "other/encoder/encoder.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"encoder/ is not the encoder of like: got encoder.json has changed"):
        Registry(tmp_path / "third").import_peft(tmp_path / "other", "like", base=info_of(trained), base_folder=trained.base)


def info_of(trained):
    return BaseInfo(name="tiny", fingerprint=Base.load(str(trained.base)).fingerprint)


def test_an_export_that_has_changed_or_lacks_its_encoder_is_refused(exported, trained, tmp_path):
    options = {"base": info_of(trained), "base_folder": trained.base}
    shutil.copytree(exported / "like", tmp_path / "changed")
    shutil.rmtree(tmp_path / "changed/encoder")
    with pytest.raises(ManifestError, match="like needs an encoder that this registry does not have"):
        Registry(tmp_path / "away").import_peft(tmp_path / "changed", "like", **options)
    (tmp_path / "changed/recipe.yaml").write_text("name: other\n")
    with pytest.raises(IntegrityError, match=r"but recipe.yaml has changed.*remove manifest.json to import the low-rank"):
        Registry(exported / "registry").import_peft(tmp_path / "changed", "like", **options)
    (tmp_path / "changed/manifest.json").write_text('{"some": "other tool"}')
    version = Registry(exported / "registry").import_peft(tmp_path / "changed", "update", **options)
    assert version.manifest.notes["imported"] is True and not version.manifest.answers
