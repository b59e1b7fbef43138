"""Learning curves: who learns from whom, what stays the same at every size, the sentence from the intervals."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from builders import LIKE, NEXT, recipe
from fakes import planted_log
from genre.cli import main
from genre.data.splits import SplitConfig, split
from genre.errors import InputError
from genre.evaluation.baselines import ranking_baselines
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import targets
from genre.jobs.predictions import baselines_of_run, from_run
from genre.jobs.report.curves import METHODS, differences, plot, table
from genre.jobs.tuning import bench as bench_job
from genre.jobs.tuning import curves
from genre.recipe import Recipe


@pytest.fixture
def in_process(monkeypatch):
    """Runs of this process instead of one each: what they train is the same."""
    done = []

    def run(wanted, folder, registry, baselines="all"):
        if (folder / "metrics.json").exists():
            return None
        folder.mkdir(parents=True)
        (folder / "wanted.yaml").write_text(wanted.dump(), encoding="utf-8")
        done.append(f"{folder.parent.name}/{folder.name}")
        bench_job.work(folder / "wanted.yaml", folder, registry, baselines)
        return None

    monkeypatch.setattr(curves, "run", run)
    return done


@pytest.fixture
def file(tiny, tmp_path):
    """A next-item recipe about a small planted log in a folder."""
    planted_log(users=30, items=20, events=8).write(tmp_path / "data")
    data = {"path": str(tmp_path / "data"), "split": {"kind": "last_n", "n": 1}}
    place = tmp_path / "next_item.yaml"
    wanted = recipe(tiny, NEXT, data=data, train={"epochs": 1, "batch_tokens": 1024}, encoder={"learned": 8, "collaborative": 0})
    place.write_text(wanted.dump(), encoding="utf-8")
    return place


def test_the_command_draws_a_curve_of_sizes_and_of_items_held_out(file, tmp_path, in_process, capsys, monkeypatch):
    out, told = tmp_path / "curve", tmp_path / "told.json"
    command = ["bench", str(file), "--sizes", "12, all,9999", "--cold", "0.2", "--out", str(out)]
    monkeypatch.setenv("COLUMNS", "250")
    assert main([*command, "--json", str(told)]) == 0
    shown, found = capsys.readouterr(), json.loads(told.read_text())
    assert found == json.loads((out / "curve.json").read_text())
    assert in_process == [f"{size}/{way}" for size in ("12", "all") for way in ("adapter", "head_only", "no_base")]
    assert "9,999 users are more than the 30 with training events: all of them train" in shown.err
    points = found["scopes"]["all"]["points"]
    assert [point["users"] for point in points] == [12, 30] and points[0]["events"] < points[1]["events"]
    for name, scope in found["scopes"].items():
        assert scope["conclusion"] in shown.out and len(scope["points"]) == 2
        for point in scope["points"]:
            assert set(point["figures"]) == set(METHODS) and point["best_baseline"] in point["figures"]
            assert all(each["interval"][0] <= each["value"] <= each["interval"][1] for each in point["figures"].values()), name
    assert {point["n"] for point in points} == {30} and found["scopes"]["held_out"]["points"][0]["n"] < 30
    page = (out / "curve.html").read_text()
    assert all(each["conclusion"][1:] in page for each in found["scopes"].values()) and "--cold 0.2</code>" in page
    assert "prefers-color-scheme:dark" in (out / "curve.svg").read_text()
    ElementTree.fromstring((out / "curve.svg").read_text())
    assert main(command) == 0 and len(in_process) == 6  # finished runs are kept
    assert main([*command[:4], "--cold", "0.3", "--out", str(out)]) == 2
    assert "the folder holds runs of another recipe" in capsys.readouterr().err
    check_what_was_learnt_from(out, points)
    (out / "all" / "adapter" / "baselines.npz").unlink()  # as if it was interrupted among the baselines
    monkeypatch.setattr(curves, "run", lambda *given: None if given[1].parent.name == "12" else "no memory")
    assert main(command) == 1
    assert "adapter on all users could not be trained: got no memory; the same command goes on" in capsys.readouterr().err
    assert not (out / "all" / "adapter" / "metrics.json").exists()


def check_what_was_learnt_from(out, points):
    """Baselines in a run are those of the drawn users, and the adapter's split says so too."""
    log = planted_log(users=30, items=20, events=8)
    run = out / "12" / "adapter"
    config = Recipe.read(run / "recipe.yaml").data.split
    assert config == SplitConfig(kind="last_n", n=1, users=12, cold_items=0.2)
    parts = split(log, config)
    wanted = targets(log, parts, 2)
    blocks = ranking_baselines(log, parts, wanted)["popularity"]()
    ranks = rank_in_blocks(log, parts, wanted, blocks).ranks
    assert np.array_equal(baselines_of_run(run)["next_item"]["popularity"].scores, ranks)
    assert (parts.part == 0).sum() == points[0]["events"]
    mine, all_users = (from_run(out / size / "adapter")["next_item"].targets.event for size in ("12", "all"))
    assert np.array_equal(mine, all_users)
    held = curves.held_out_items(log, config)
    whole = split(log, SplitConfig(kind="last_n", n=1)).part == 0
    assert held.sum() == round(0.2 * len(np.unique(log.item_codes[whole])))
    assert not held[log.item_codes[parts.part == 0]].any()


def test_wrong_input_is_one_line(file, tiny, tmp_path, capsys):
    like = tmp_path / "like.yaml"
    path = str(tmp_path / "data")
    like.write_text(recipe(tiny, LIKE, data={"path": path}).dump(), encoding="utf-8")
    for arguments, message in (
        ([str(file), "--sizes", "ten"], "genre: --sizes cannot be read: got ten; expected numbers of users and all, such as"),
        ([str(file), "--sizes", "10,"], "genre: --sizes cannot be read: got '10,'"),
        ([str(file), "--sizes", "0,all"], "genre: --sizes cannot be read: got 0"),
        ([str(file), "--cold", "1"], "genre: the share of items to hold out is out of range: got 1.0; expected above 0"),
        ([str(file), "--sizes", "5", "--way", "full"], "genre: --way and --sizes exclude each other: got --way full"),
        (
            [str(like), "--sizes", "5"],
            "genre: a learning curve is of a next-item task with a metric of ranks: got like",
        ),
        ([str(file), "--sizes", "all", "--set", "data.path=nowhere"], "genre: "),
    ):
        assert main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith(message), lines
    with pytest.raises(InputError, match="a learning curve needs users: got -1"):
        curves.learning_curve(Recipe.read(file), tmp_path / "out", sizes=[-1])
    assert not (tmp_path / "out").exists()


def rows(*outcomes):
    """Points with the outcomes of ids minus text, adapter minus best baseline, adapter minus no_base."""
    names = ("ids minus text", "adapter minus best baseline", "adapter minus no_base")
    made = []
    for place, each in enumerate(outcomes):
        found = {name: {"outcome": outcome} for name, outcome in zip(names, each, strict=True) if outcome}
        made.append({"words": f"{10**place} users", "differences": found})
    return made


YES, NO, OPEN = "better", "worse", "cannot be told"


@pytest.mark.parametrize(
    ("outcomes", "ids", "worth"),
    [
        ([(NO, YES, YES), (YES, NO, YES)], "ids beat text from 10 users on", "worth it at 1 users"),
        ([(YES, YES, YES), (YES, YES, YES)], "ids beat text at every size, from 1 users on", "worth it at every size"),
        ([(YES, YES, YES), (OPEN, YES, OPEN)], "ids and text are not told apart at 10 users", "worth it at 1 users"),
        ([(OPEN, OPEN, YES), (NO, OPEN, YES)], "text beats ids up to 10 users", "worth it at no size"),
        ([(NO, NO, NO), (NO, NO, NO)], "text beats ids at every size, up to 10 users", "worth it at no size"),
        ([(YES, YES, NO)], "ids beat text from 1 users on", "worth it at no size"),
        ([(None, YES, YES)], "no item text is read, so ids have no text to beat", "worth it at 1 users"),
    ],
)
def test_the_conclusion_follows_from_the_intervals(outcomes, ids, worth):
    said = curves.conclude(rows(*outcomes))
    assert said.startswith(f"{ids}; the adapter is ahead of the best baseline at ") and said.endswith(worth)


def test_a_figure_without_an_interval_is_shown_and_drawn():
    figure = {"value": 0.5, "interval": None}
    point = {"users": 3, "events": 9, "words": "3 users", "best_by_id": "ease", "differences": {}}
    point |= {"figures": {"adapter": figure, "best_by_id": {"value": 0.25, "interval": [0.2, 0.3]}}}
    scope = {"points": [point, point | {"events": 20}]}
    assert table(scope)[1:] == [["adapter", "0.5000", "0.5000"], ["best by id, tuned", *["0.2500 [0.2000, 0.3000] (ease)"] * 2]]
    assert differences(scope) == []
    assert "<svg" in plot(scope, "ndcg@10") and "var(--accent)" in plot({"points": [point]}, "ndcg@10")
