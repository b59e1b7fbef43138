"""The launch configurations are what this accelerate reads, and what they ask for is checked before anything is loaded."""

import pytest
import yaml

import genre
from builders import LIKE, recipe
from genre.errors import InputError, RecipeError
from standins import ROOT

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
COMMAND = "accelerate launch --config_file recipes/accelerate/{} -m genre train recipes/"


def read(file):
    from accelerate.commands.config.config_args import load_config_from_file

    return load_config_from_file(str(file))


def test_each_way_has_one():
    assert [file.stem for file in CONFIGS] == ["cpu", "ddp_gpu", "fsdp2"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_reads_it_and_its_launcher_knows_every_key(file):
    from accelerate.commands.launch import launch_command_parser

    found = read(file)
    assert found.num_processes >= 2 and found.mixed_precision == "no"
    known = {action.dest for action in launch_command_parser()._actions}
    assert not set(found.fsdp_config or {}) - known  # accelerate itself takes any key there
    assert COMMAND.format(file.name) in (ROOT / "docs" / "training-many.md").read_text(encoding="utf-8")


def test_an_unknown_key_is_refused(tmp_path):
    raw = yaml.safe_load(CONFIGS[0].read_text(encoding="utf-8"))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(raw | {"number_of_processes": 2}))
    with pytest.raises(ValueError, match=r"unknown keys \(\['number_of_processes'\]\)"):
        read(tmp_path / "bad.yaml")


LAUNCH = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}


REFUSED = {
    "deepspeed": (ZERO, {}, {}, InputError, "DeepSpeed is not supported: .* FSDP2 .*fsdp2.yaml"),
    "deepspeed alone": (ZERO | {"WORLD_SIZE": "1"}, {}, {}, InputError, "DeepSpeed is not supported"),
    "fsdp1": (FSDP | {"FSDP_VERSION": "1"}, {}, {}, InputError, "only FSDP2 shards a base: got fsdp_version 1"),
    "full": (FSDP, {"kind": "full"}, {}, RecipeError, "a full fine-tune does not train under FSDP2"),
    "int8": (FSDP, {}, {"quantization": "int8"}, RecipeError, "FSDP2 does not shard a quantized base: got base.quantiz"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_launch_that_cannot_train_is_refused_before_anything_is_read(case, tiny, tmp_path, monkeypatch):
    environment, adapter, base, kind, message = REFUSED[case]
    for name, value in (LAUNCH | environment).items():
        monkeypatch.setenv(name, value)
    wanted = recipe(tiny, LIKE, adapter=adapter)
    wanted = wanted.model_copy(update={"base": wanted.base.model_copy(update=base)})
    with pytest.raises(kind, match=message):
        genre.train(wanted, folder=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
