"""Faults that come through data or through real parts: caught, named, and the last good checkpoint goes on to the same end."""

import json
import re

import polars as pl
import pytest
import torch

import genre
from builders import LIKE, RATING, recipe, weights
from fakes import planted_log
from genre import cli
from genre.errors import DataError, DivergedError
from genre.progress import Reporter
from genre.training import Loop, fit

EXACT = {"epochs": 2, "batch_tokens": 512, "dropout": 0.2, "checkpoint_every": 2}


def scored(log, cells):
    """The log with a column `score`: the rating, but for some events."""
    values = log.column("rating").astype(float)
    for place, value in cells.items():
        values[place] = value
    frame = log.frame.drop("row").with_columns(pl.Series("score", values))
    return genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="scored")


# --- one fault in a run, then the same run without it ------------------------------------------------------------------


def nan_hidden(loop):
    """The base's last norm gives a row that is not a number, in the forward pass."""

    def spoil(module, given, output):
        output = output.clone()
        output[0] = float("nan")
        return output

    return loop.assembly.base.body.norm.register_forward_hook(spoil)


def infinite_gradient(loop):
    """One low-rank layer's gradient overflows, in the backward pass."""
    layer = next(iter(loop.model.layers.values()))
    return layer.lora_B.register_hook(lambda gradient: gradient * torch.finfo(torch.float32).max * 1e3)


def nan_weight(loop):
    """The optimizer writes a weight that is not a number."""

    def spoil(optimizer, args, kwargs):
        with torch.no_grad():
            next(iter(loop.model.layers.values())).lora_A[0, 0] = float("nan")

    return loop.optimization.optimizer.optimizer.register_step_post_hook(spoil)


FAULTS = {
    nan_hidden: r"the loss of task '(like|rating)' is not finite: got nan; .* targets: row \d+ \(user u\d+, item i\d+\)",
    infinite_gradient: r"a gradient is not finite at step 5: got (inf|nan); .* look at them, or lower",
    nan_weight: r"(weight .*lora_A is not finite after step 6|the loss of task 'like' is not finite)",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_checkpoint_before_a_fault_goes_on_to_the_uninterrupted_end(build, log, tmp_path, monkeypatch, fault):
    through = fit(build(LIKE, RATING, train=EXACT), tmp_path / "through")
    wanted, steps = weights(through.assembly), through.state.step
    taken, step = [], Loop.step

    def once(self, rows, share):
        if self.state.step == 5 and not taken:
            taken.append("spoiled")
            hook = fault(self)
            try:
                return step(self, rows, share)
            finally:
                hook.remove()
        return step(self, rows, share)

    monkeypatch.setattr(Loop, "step", once)
    with pytest.raises(DivergedError, match=FAULTS[fault]):
        fit(build(LIKE, RATING, train=EXACT), tmp_path / "cut")
    payload = torch.load(tmp_path / "cut/checkpoints/last.pt", weights_only=True)
    assert payload["state"]["step"] == 4 and all(torch.isfinite(value).all() for value in payload["weights"].values())
    assert [file.name for file in (tmp_path / "cut/checkpoints").iterdir()] == ["last.pt"]
    again = fit(build(LIKE, RATING, train=EXACT), tmp_path / "cut", resume=True)
    now = weights(again.assembly)
    assert again.state.step == steps and all(torch.equal(now[name], wanted[name]) for name in wanted)


# --- through data ------------------------------------------------------------------------------------------------------


def test_an_exploding_gradient_is_cut_and_its_sequence_named(build, log, tmp_path):
    """One label 500 times further out than the others, which passes as a heavy tail."""
    place, lines = 7, []  # an early event of its user: in training
    wanted = [RATING | {"label": "score"}]
    sections = {"sequence": {"feedback": "rating"}, "train": EXACT | {"batch_tokens": 64, "dropout": 0.0}}
    reporter = Reporter(lines.append)
    fitted = fit(build(*wanted, data=scored(log, {place: 1000.0}), **sections), tmp_path, reporter=reporter)
    told = [line for line in lines if "is cut to 1" in line]
    user = log.user_ids[log.user_codes[place]]
    assert told and all(f"(user {user}, " in line for line in told)
    assert re.search(r"step \d+: the gradient's norm is .*, [\d,]+ times the usual", told[0])
    assert all(torch.isfinite(value).all() for value in weights(fitted.assembly).values())


def test_a_rating_of_a_milliard_in_a_strangers_file(tmp_path, monkeypatch, tiny, capsys):
    """As a rating it is skipped, counted and named by its line; as any other column it is refused and named by its user."""
    monkeypatch.chdir(tmp_path)
    log = planted_log(users=30)
    frame = log.frame.drop("row").with_columns(score=pl.col("rating"))
    cells = {"rating": frame["rating"].to_list(), "score": frame["score"].to_list()}
    cells["rating"][9] = cells["score"][40] = 1e9
    frame.with_columns(**{name: pl.Series(values) for name, values in cells.items()}).write_csv("log.csv")
    log.catalogue.frame.write_csv("items.csv")
    log.users.write_csv("users.csv")
    told = ["data", "import", "log.csv", "--items", "items.csv", "--users", "users.csv", "--out", "shop"]
    assert cli.main(told) == 0
    assert "skipped: bad rating: 1" in (shown := capsys.readouterr().out) and "row 9" in shown and "1000000000" in shown
    wanted = recipe(tiny, RATING | {"label": "score"}, data={"path": "shop"}, sequence={"feedback": "rating"})
    (tmp_path / "rating.yaml").write_text(wanted.dump())
    assert cli.main(["train", "rating.yaml"]) == 2
    error = capsys.readouterr().err
    user = log.user_ids[log.user_codes[40]]
    assert "label far from all others: got 1e+09 at row 40 " in error and f"(user {user}, " in error
    assert not (tmp_path / "runs").exists()


def test_a_title_of_a_hundred_thousand_characters_is_cut_and_counted(tmp_path, build, log):
    items = log.catalogue.frame.with_columns(
        title=pl.when(pl.col("item_id") == "i3").then(pl.lit("long " * 20_000)).otherwise(pl.col("title"))
    )
    long = genre.Interactions.from_frame(log.frame.drop("row"), items=items, users=log.users, name="long")
    text = {"sequence": {"item": "text", "max_item_tokens": 12}, "encoder": {"use": "none"}, "train": EXACT | {"epochs": 1}}
    run = genre.train(recipe(build(LIKE, data=long, **text).recipe.base.name, LIKE, **text), log=long, folder=tmp_path / "run")
    report = json.loads((tmp_path / "run/metrics.json").read_text())
    assert report["cut_texts"] > 0 and run.metrics["like"]["auc"]["n"] == 144


@pytest.mark.parametrize("item", ["token", "text"])
def test_a_user_column_of_a_hundred_thousand_characters_is_named_by_its_user(build, log, tmp_path, item):
    users = log.users.with_columns(
        about=pl.when(pl.col("user_id") == "u5").then(pl.lit("talks " * 20_000)).otherwise(pl.lit("short"))
    )
    long = genre.Interactions.from_frame(log.frame.drop("row"), items=log.catalogue.frame, users=users, name="long")
    sections = {"sequence": {"item": item, "instruction": "{about}:"}, "encoder": {"use": "fit" if item == "token" else "none"}}
    with pytest.raises(DataError) as error:
        fit(build(LIKE, data=long, train=EXACT, **sections), tmp_path)
    text = str(error.value)
    assert re.match(
        r"a sequence is longer than the base can read: got 120,\d{3} tokens: the sequence of row \d+ \(user u5, ", text
    )
    assert "expected at most 4,096; lower data.max_events" in text
    assert list(torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["state"].values())[:3] == [0, 0, 0]


def test_a_picture_of_enormous_numbers_does_no_harm(build, log, tmp_path):
    """Dense columns are standardized; one item's value, whose square single precision cannot hold, leaves all weights finite."""
    vectors = [[3e38 if item == "i4" else 0.1, 0.2] for item in log.catalogue.frame["item_id"]]
    items = log.catalogue.frame.with_columns(pl.Series("picture", vectors, dtype=pl.List(pl.Float32)))
    dense = genre.Interactions.from_frame(log.frame.drop("row"), items=items, users=log.users, name="dense")
    fitted = fit(build(LIKE, data=dense, train=EXACT, encoder={"dense": ["picture"], "learned": 8, "collaborative": 0}), tmp_path)
    assert fitted.state.best_value > 0.75 and all(torch.isfinite(value).all() for value in weights(fitted.assembly).values())
