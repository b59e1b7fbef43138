"""Lists out: the engine's best items with soft labels, histories that end before a part."""

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import genre
from genre.cli.registry.commands import app
from genre.data.splits import TEST, SplitConfig
from genre.engine import Engine, Request
from genre.errors import InputError, RegistryError


@pytest.fixture
def lists(trained, base, tmp_path):
    def export(ref="next_item", name="lists.parquet", **options):
        return genre.export.lists(trained.registry, ref, tmp_path / name, trained.log, base=base, **options)

    return export


def test_lists_are_the_engines_best_items_with_labels_that_sum_to_one(trained, base, lists, tmp_path):
    found = lists(top=5, temperature=2.0)
    assert found.columns == ["user_id", "rank", "item_id", "title", "score", "label"]
    with Engine(base, trained.registry, data=trained.log) as engine:
        wanted = engine.recommend_frame("next_item", k=5)
    assert found.drop("label").equals(wanted.select("user_id", "rank", "item_id", "title", "score"))
    for own in found.partition_by("user_id"):
        powers = np.exp(own["score"].to_numpy() / 2)
        assert own["label"].to_numpy() == pytest.approx(powers / powers.sum())
    assert pl.read_parquet(tmp_path / "lists.parquet").equals(found)
    about = json.loads(pl.read_parquet_metadata(tmp_path / "lists.parquet")["genre"])
    assert about["digest"] == trained.registry.resolve("next_item").digest and about["temperature"] == 2.0


def test_lines_hold_the_same_and_labels_of_other_tasks_are_scores(trained, lists, tmp_path):
    found = lists("like", "lists.jsonl", top=3)
    assert found["label"].equals(found["score"].alias("label")) and found["score"].is_between(0, 1).all()
    rows = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in rows] == trained.log.user_ids
    assert rows[0].keys() == {"user_id", "digest", "items", "scores", "labels"}
    assert rows[0]["items"] == found["item_id"][:3].to_list() and rows[0]["digest"] == trained.registry.resolve("like").digest


def test_histories_end_before_the_part(trained, base, lists):
    log = trained.log
    version = trained.registry.resolve("next_item")
    split = log.split(SplitConfig.model_validate(version.manifest.data.split["split"]))
    found = lists(top=4, before="test")
    for user in log.user_ids[:20]:
        own = np.flatnonzero(log.user_codes == log.user_code(user))
        tests = np.flatnonzero(split.part[own] >= TEST)
        events = log.history(user)[: tests[0] if len(tests) else len(own)]
        history = [{"item_id": event["item_id"], "rating": event["rating"]} for event in events]
        with Engine(base, trained.registry, data=log) as engine:
            (response,) = engine.score([Request("next_item", history=history, user={"age": 20 + int(user[1:])}, k=4)])
        assert [item.item_id for item in response.results] == found.filter(pl.col("user_id") == user)["item_id"].to_list()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lists.csv"}, "lists are a file: got .*lists.csv; expected a name that ends in .parquet or .jsonl"),
        ({"top": 0}, "too few items of a list: got 0"),
        ({"temperature": 0.0}, "the temperature does not fit: got 0.0"),
        ({"temperature": float("nan")}, "the temperature does not fit: got nan"),
        ({"ref": "like", "temperature": 2.0}, "a temperature is for next-item tasks: got task 'like'"),
        ({"before": "train"}, "histories cannot end before that: got 'train'; expected valid or test"),
        ({"task": "other"}, "has no such task: got other; expected next_item"),
    ],
)
def test_wrong_settings_are_refused(lists, options, message):
    with pytest.raises((InputError, RegistryError), match=message):
        lists(**options)


def test_an_encoder_has_no_lists_and_files_stay(trained, lists, tmp_path):
    encoder = trained.registry.find(trained.registry.resolve("next_item").manifest.encoder)
    with pytest.raises(RegistryError, match="recommends no items: got kind encoder"):
        lists(encoder.ref)
    (tmp_path / "lists.parquet").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        lists()


def test_the_command(trained, tiny, tmp_path):
    trained.log.write(tmp_path / "log")
    command = ["export", "next_item", "--to", "lists", "--registry", trained.registry.url, "--base", str(tiny)]
    out = tmp_path / "new" / "lists.parquet"
    done = CliRunner().invoke(app, [*command, "--data", str(tmp_path / "log"), "--top", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "60 users, 120 items in their lists" in done.output.replace("\n", " ") and len(pl.read_parquet(out)) == 120
    for more, message in (
        (["--out", str(out / "no.parquet"), "--data", str(tmp_path / "log")], "no.parquet lies in a file: got "),
        (["--users"], "--users does not go with --to lists: got --users; expected --to vectors"),
        (["--before", "train"], "no such before: got --before train; expected valid or test"),
        ([], "lists are of the users of a log: got no --data"),
    ):
        done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "no.parquet"), *more])
        assert message in str(done.exception)
