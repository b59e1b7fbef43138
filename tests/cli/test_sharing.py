"""Recipes of one log share an encoder: those of `recipe new` do; `recipe check`, `--dry-run` and a refused merge say how."""

import re
import shlex
from pathlib import Path

import polars as pl
import pytest
import yaml

from fakes import planted_log
from genre import cli
from genre.data.interactions import Interactions
from genre.registry import Registry

QUICK = ["--set", "train.epochs=1", "--set", "train.tracker=none", "--baselines", "none"]


@pytest.fixture
def place(tmp_path, monkeypatch, log, tiny):
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    for task in ("next_item", "like", "rating"):
        assert cli.main(["recipe", "new", task, "--data", "shop", "--base", str(tiny)]) == 0
        assert "depth: 2 " in (tmp_path / f"{task}.yaml").read_text()  # as many layers as the base has
    return tmp_path


def train(*arguments, code=0):
    assert cli.main(["train", *arguments, *QUICK]) == code


def alone(task):
    """Take the other kind's split out of a recipe, as recipes were written before."""
    file = Path(f"{task}.yaml")
    raw = yaml.safe_load(file.read_text())
    del raw["data"]["hold_out"]
    file.write_text(yaml.safe_dump(raw))


def encoders():
    registry = Registry("registry")
    return {name: registry.resolve(name).manifest.encoder for name in registry.names() if not name.startswith("encoder")}


@pytest.mark.parametrize("order", [("next_item", "like"), ("like", "next_item")])
def test_new_recipes_share_an_encoder_in_either_order(order, place, capsys):
    first, second = (f"{task}.yaml" for task in order)
    assert cli.main(["recipe", "check", first, second]) == 0
    assert f"encoder: {second} shares the one that {first} fits: genre train {first} {second}" in capsys.readouterr().out
    train(first)
    assert cli.main(["recipe", "check", second]) == 0
    assert "encoder: shares encoder-planted:" in capsys.readouterr().out
    train(second)
    assert len(set(encoders().values())) == 1 and len(Registry("registry").versions("encoder-planted")) == 1


def test_recipes_that_cannot_share_name_the_command_that_lets_them(place, tiny, capsys):
    for task in ("next_item", "like"):
        alone(task)
    assert cli.main(["recipe", "check", "next_item.yaml", "like.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "fitting an encoder, which later recipes of this data set share: the registry has no encoder-planted yet" in shown
    line = next(line for line in shown.splitlines() if "cannot share" in line)
    assert re.search(r"[\d,]+ events train that one which this recipe is evaluated on", line)
    command = shlex.split(re.search(r"genre (train .*\]') leaves", line).group(1))
    assert cli.main(["train", "next_item.yaml", "like.yaml", "--dry-run", *QUICK]) == 0
    assert "like cannot share the encoder of next_item: the encoder was fitted on events" in capsys.readouterr().err
    train("next_item.yaml")
    train("like.yaml")
    shown = capsys.readouterr().err
    assert "train the encoder's recipe with --set encoder.use=fit --set 'data.hold_out=[" in shown
    merge = ["merge", "next_item", "like", "--as", "both", "--data", "shop", "--base", str(tiny), "--floor", "0"]
    assert cli.main(merge) == 2
    refused = capsys.readouterr().err.splitlines()[-1]
    assert "encoder differs" in refused and "encoder.use=" in refused
    train(*command[1:], "--set", "encoder.use=fit")  # as the line says
    train("like.yaml")
    assert len(set(encoders().values())) == 1
    assert cli.main(merge) == 0


def test_a_refused_merge_names_the_other_ones_encoder_where_that_fits(place, tiny, capsys):
    train("next_item.yaml")
    train("like.yaml", "--set", "encoder.use=fit")
    assert cli.main(["merge", "next_item", "like", "--as", "both", "--data", "shop", "--base", str(tiny), "--floor", "0"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    wanted = re.search(r"train like again with (--set encoder.use=encoder-planted:[0-9a-f]{12}), and merge that", line)
    train("like.yaml", *wanted.group(1).split())
    assert cli.main(["merge", "next_item", "like", "--as", "both", "--data", "shop", "--base", str(tiny), "--floor", "0"]) == 0


def test_other_reasons_against_sharing(place, capsys):
    raw = yaml.safe_load((place / "like.yaml").read_text())
    raw["base"]["depth"] = 1
    (place / "shallow.yaml").write_text(yaml.safe_dump(raw))
    raw["base"]["depth"] = 2
    raw["encoder"] = {"use": "none"}
    raw["sequence"]["item"] = "text"
    (place / "text.yaml").write_text(yaml.safe_dump(raw))
    assert cli.main(["recipe", "check", "next_item.yaml", "text.yaml"]) == 0
    assert "encoder: the recipe needs none" in capsys.readouterr().out
    assert cli.main(["recipe", "check", "shallow.yaml", "--set", "encoder.use=fit"]) == 0
    assert "a new one is fitted, since encoder.use is fit" in capsys.readouterr().out
    train("next_item.yaml")
    capsys.readouterr()
    assert cli.main(["recipe", "check", "shallow.yaml", "--set", "encoder.use=encoder-nope"]) == 2
    assert "no adapter 'encoder-nope'" in capsys.readouterr().err


def test_a_log_too_small_to_hold_out_both_splits_keeps_its_own(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    planted_log(users=40, events=4).write("small")
    assert cli.main(["recipe", "new", "next_item", "--data", "small", "--base", str(tiny)]) == 0
    data = yaml.safe_load((tmp_path / "next_item.yaml").read_text())["data"]
    assert data["split"] == {"kind": "last_n", "n": 1}


@pytest.mark.parametrize("feedback", [True, False])
def test_a_log_without_feedback_holds_nothing_out_for_others(tmp_path, monkeypatch, tiny, feedback):
    """No task on its feedback can follow, with which the encoder would be shared."""
    monkeypatch.chdir(tmp_path)
    log = planted_log()
    if not feedback:
        log = Interactions.from_frame(log.frame.drop("rating"))
    log.write("log")
    assert cli.main(["recipe", "new", "next_item", "--data", "log", "--base", str(tiny)]) == 0
    data = yaml.safe_load((tmp_path / "next_item.yaml").read_text())["data"]
    assert data["split"] == {"kind": "last_n", "n": 1} and ("hold_out" in data) == feedback


@pytest.mark.parametrize("task", ["like", "rating"])
def test_the_place_in_the_order_is_no_feedback(tmp_path, monkeypatch, tiny, task, capsys):
    monkeypatch.chdir(tmp_path)
    frame = planted_log().frame.drop("rating", "timestamp")
    frame = frame.with_columns(position=pl.int_range(pl.len()).over("user_id"))
    Interactions.from_frame(frame, order="position").write("log")
    new = ["recipe", "new", task, "--data", "log", "--base", str(tiny)]
    assert cli.main(new) == 2 and not Path(f"{task}.yaml").exists()
    assert "the log has no feedback column" in capsys.readouterr().err
    assert cli.main([*new, "--feedback", "position"]) == 0
