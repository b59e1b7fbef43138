"""The device of a base: what names it, one line where it is not there or a launcher gave another one."""

import os

import pytest
import torch

from builders import LIKE, write_recipe
from genre.cli import main
from genre.cli.root import app
from genre.cli.shell.device import RUNNING
from genre.errors import InputError
from genre.modules.base.base import Base
from genre.modules.base.devices import VARIABLE, choose_device, default_device

CUDA = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)


def test_the_argument_the_variable_and_what_there_is(monkeypatch):
    assert choose_device(None) == ("cuda" if CUDA else "cpu")
    assert choose_device("cpu:0") == choose_device(torch.device("cpu")) == "cpu"
    monkeypatch.setenv(VARIABLE, "auto")
    assert choose_device(None) == "auto" and choose_device("cpu") == "cpu"
    with default_device("cpu"):
        assert choose_device(None) == os.environ[VARIABLE] == "cpu"
    assert os.environ[VARIABLE] == "auto"


@pytest.mark.parametrize("named", ["cuda:7", "gpu", "meta", "cuda:x", "cpu cuda"])
def test_a_device_that_is_not_there_is_refused(tiny, named):
    with pytest.raises(InputError, match="no such device: got .*; expected cpu"):
        Base.load(str(tiny), device=named)


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_devices_that_a_variable_hides_are_named(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(InputError, match=r"got cuda:3 \(CUDA_VISIBLE_DEVICES=3 leaves 0, numbered from 0\); expected cpu$"):
        choose_device("cuda:3")


def test_a_launcher_that_was_told_to_take_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_device(None) == choose_device("cpu") == "cpu"
    with pytest.raises(InputError, match="another one than accelerate gave this process: got auto; expected cpu"):
        choose_device("auto")


def test_the_option_of_every_command_that_runs_a_base(tiny, tmp_path, monkeypatch, capsys):
    def names(program, path="genre"):
        for command in program.registered_commands:
            yield f"{path} {command.name or command.callback.__name__}"
        for group in program.registered_groups:
            yield from names(group.typer_instance, f"{path} {group.name}")

    assert set(names(app)) > RUNNING
    monkeypatch.chdir(tmp_path)
    assert main(["train", write_recipe(tiny, LIKE), "--device", "cuda:9"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("genre: no such device: got cuda:9")
    assert VARIABLE not in os.environ and not (tmp_path / "runs").exists()
