"""What Python and notebooks show: public names, short forms, tables as HTML, frames in and out, progress in a kernel."""

import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import polars as pl
import pytest

import genre
from genre.errors import DataError, InputError, RequestError
from genre.jobs.figures import Evaluation
from genre.progress import Reporter

CELLS = re.compile(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>")


@pytest.fixture(scope="module")
def engine(trained):
    with genre.Engine(genre.Base.load(str(trained.base)), trained.registry, data=trained.log) as engine:
        yield engine


@pytest.fixture(scope="module")
def figures(trained):
    return genre.evaluate(trained.registry, "like@production", trained.log, genre.Base.load(str(trained.base)))


def test_dir_lists_the_public_names():
    assert dir(genre) == sorted(genre.__all__) and {"Engine", "train", "__version__"} <= set(dir(genre))


# --- short forms and HTML ---
def test_short_forms_fit_a_line_and_name_what_matters(trained, engine, figures, texts):
    version = trained.registry.resolve("like@production")
    answer = engine.score([genre.Request("like@production", user_id="u5", candidates=["i1", "i2", "i3", "i4"])])[0]
    recipe = genre.Recipe.read(trained.runs["like"].root / "recipe.yaml")
    forms = [
        (trained.log, "Interactions(planted: 1,440 events, 60 users, 30 items)"),
        (texts, "Texts("),
        (recipe, "Recipe(like: like (feedback) on planted; lora on "),
        (trained.registry, f"Registry({trained.registry.url})"),
        (version, f"Version(like:{version.version}, adapter, like.auc 0."),
        (answer, f"Response(like@production: i1 {answer.results[0].score:.4g}, i2 "),
        (trained.runs["like"], f"Run({trained.runs['like'].root}: like.auc 0."),
        (figures, "Evaluation(like@production on the test part: like.auc"),
    ]
    for value, wanted in forms:
        assert repr(value).startswith(wanted), repr(value)
        assert "\n" not in repr(value) and len(repr(value)) < 400
    assert repr(answer).endswith(" and 1 more)")


def test_html_holds_the_values_that_the_objects_have(trained, engine, figures):
    (answer,) = engine.score([genre.Request("next_item@production", user_id="u5", k=3)])
    cells = CELLS.findall(answer._repr_html_())
    assert cells[:4] == ["rank", "item_id", "score", "probability"]
    assert cells[4:8] == [
        "1",
        answer.results[0].item_id,
        f"{answer.results[0].score:.4f}",
        f"{answer.results[0].probability:.4f}",
    ]
    value = figures["tasks"]["like"]["adapter"]["auc"]["value"]
    assert f"{value:.4f}" in CELLS.findall(figures._repr_html_()) and "additive" in figures._repr_html_()
    shown = CELLS.findall(trained.registry._repr_html_())
    assert all(version in shown for name in trained.registry.names() for version in trained.registry.versions(name))
    version = trained.registry.resolve("like@production")
    assert f"{version.manifest.metrics['like']['auc'].value:.4f}" in CELLS.findall(version._repr_html_())
    assert trained.log.frame["user_id"][0] in CELLS.findall(trained.log._repr_html_())
    assert "like.auc" not in trained.runs["like"]._repr_html_() and "auc" in CELLS.findall(trained.runs["like"]._repr_html_())


def test_html_is_escaped_everywhere(trained, engine, tmp_path):
    hostile = "<script>alert(1)</script>"
    frame = pl.DataFrame({"user_id": [hostile] * 2, "item_id": ["a", hostile], "timestamp": [1, 2]})
    log = genre.Interactions.from_frame(
        frame, items=pl.DataFrame({"item_id": ["a", hostile], "title": [hostile, "b"]}), name=hostile
    )
    labelled = genre.Texts.from_frame(pl.DataFrame({"text": [hostile, "fine"], "good": [1, 0]}), name=hostile)
    (failed,) = engine.score([genre.Request("like", user_id=hostile, candidates=["i1"])])
    recipe = genre.Recipe.read(trained.runs["like"].root / "recipe.yaml").with_values({"sequence.instruction": hostile})
    for value in (log, labelled, failed, recipe, genre.Registry(tmp_path / hostile)):
        assert "&lt;script&gt;" in value._repr_html_() and "<script" not in value._repr_html_(), type(value)


def test_a_damaged_registry_is_shown_with_its_damage(trained, tmp_path):
    registry = genre.Registry(shutil.copytree(trained.registry.url, tmp_path / "copy"))
    for file in (tmp_path / "copy" / "like" / "aliases").glob("*.json"):
        file.write_text("{")
    assert "like" in registry._repr_html_() and "error" in CELLS.findall(registry._repr_html_())


def test_an_empty_registry_says_how_it_is_filled(tmp_path):
    assert "genre.train publishes into it" in genre.Registry(tmp_path / "none")._repr_html_()


# --- frames ---
def test_an_evaluation_is_json_and_a_frame(figures):
    assert isinstance(figures, Evaluation) and json.loads(json.dumps(figures)) == figures
    frame = figures.frame
    assert frame.columns == ["task", "targets", "scorer", "metric", "value", "low", "high", "n"]
    entry = figures["tasks"]["like"]
    own = frame.filter(pl.col("targets") == "all", pl.col("scorer") == "adapter", pl.col("metric") == "auc").row(0, named=True)
    assert (own["value"], [own["low"], own["high"]]) == (entry["adapter"]["auc"]["value"], entry["adapter"]["auc"]["interval"])
    assert set(frame["scorer"]) == {"adapter", *entry["baselines"]}


def test_recommendations_are_a_frame_of_the_kind_that_asked(engine):
    users = ["u5", "u7", "u9"]
    found = engine.recommend_frame("next_item@production", users, k=4)
    assert found.columns == ["user_id", "rank", "item_id", "title", "score", "probability"] and found.height == 12
    for user, own in found.group_by("user_id", maintain_order=True):
        (answer,) = engine.score([genre.Request("next_item@production", user_id=user[0], k=4)])
        assert own["item_id"].to_list() == [item.item_id for item in answer.results]
        assert own["score"].to_list() == pytest.approx([item.score for item in answer.results], abs=1e-5)
        assert own["rank"].to_list() == [1, 2, 3, 4]
    named = dict(zip(engine.data.catalogue.item_ids, engine.data.catalogue.titles(), strict=True))
    assert found["title"].to_list() == [named[item] for item in found["item_id"]]
    for table in (pd.DataFrame({"user_id": [*users, "u5"]}), pd.Series(users)):
        same = engine.recommend_frame("next_item@production", table, k=4)
        assert isinstance(same, pd.DataFrame) and same["item_id"].tolist() == found["item_id"].to_list()
    assert engine.recommend_frame("next_item@production", pl.DataFrame({"user_id": users}), k=4)["item_id"].equals(
        found["item_id"]
    )
    everyone = engine.recommend_frame("like@production", k=1)
    assert everyone["user_id"].to_list() == engine.data.user_ids and "probability" not in everyone.columns
    assert engine.recommend_frame("like", [], k=1).height == 0
    without = engine.recommend_frame("like", users, k=30, deny=["i3"])
    assert "i3" not in without["item_id"].to_list()


def test_what_a_frame_cannot_be_made_of_is_said(engine, trained):
    for users, error, said in (
        ("u5", InputError, r"users is not a list: got 'u5'"),
        (["u5", "ghost"], RequestError, "user ghost cannot be answered"),
        (pd.DataFrame({"user": ["u5"]}), DataError, "the table of users has no user_id: got user"),
        (pl.DataFrame({"user_id": ["u5", None]}), DataError, "1 of 2"),
    ):
        with pytest.raises(error, match=said):
            engine.recommend_frame("like@production", users)
    with pytest.raises(InputError, match="no such option: got history; expected task, candidates"):
        engine.recommend_frame("like@production", ["u5"], history=[])
    with pytest.raises(RequestError, match="k"):
        engine.recommend_frame("like@production", ["u5"], k=0)
    (failed,) = engine.score([genre.Request("like", user_id="ghost", candidates=["i1"])])
    with pytest.raises(RequestError, match="like did not answer: got unknown user"):
        _ = failed.frame


def test_a_log_comes_from_pandas_as_from_polars_and_goes_out_again(trained):
    log = trained.log
    events = log.frame.drop("row")
    same = genre.Interactions.from_frame(events.to_pandas(), items=log.catalogue.frame.to_pandas(), users=log.users.to_pandas())
    assert same.digest == genre.Interactions.from_frame(events, items=log.catalogue.frame, users=log.users).digest
    assert np.array_equal(same.frame.to_pandas()["rating"].to_numpy(), log.frame["rating"].to_numpy())


# --- progress in a kernel ---
def test_in_a_script_calls_are_silent(capsys):
    with Reporter.here().bar("epoch 1/1", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr() == ("", "")


NOTEBOOK = """
import time
import polars as pl
import genre
from genre.progress import Reporter
reporter = Reporter.here()
with reporter.bar("epoch 1/1", 4) as bar:
    bar.advance(2, loss=0.5, tokens=10)
    time.sleep(1.2)
with reporter.phase("fitting <the> encoder"):
    time.sleep(0.1)
reporter.line("published like:1")
genre.Interactions.from_frame(pl.DataFrame({"user_id": ["a"], "item_id": ["b"], "timestamp": [1]}), name="mine")
"""


def test_a_notebook_shows_bars_that_go_away_and_tables(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    cell = nbformat.v4.new_code_cell(NOTEBOOK)
    drawn = []

    class Watching(NotebookClient):
        def process_message(self, message, cell, index):
            if message["msg_type"] in ("display_data", "update_display_data"):
                drawn.append(message["content"]["data"].get("text/html", ""))
            return super().process_message(message, cell, index)

    notebook = nbformat.v4.new_notebook(cells=[cell])
    Watching(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    bars = [html for html in drawn if 'value="0.5000"' in html]
    assert len(bars) >= 2 and "epoch 1/1  2/4  loss 0.5000" in bars[-1]
    assert any("fitting &lt;the&gt; encoder" in html for html in drawn)
    kept = [output.data.get("text/html", "") for output in cell.outputs if output.output_type == "display_data"]
    assert not any(kept), kept
    assert any(output.get("text") == "published like:1\n" for output in cell.outputs)
    (result,) = [output for output in cell.outputs if output.output_type == "execute_result"]
    assert "mine: 1 events, 1 users, 1 items" in result.data["text/html"] and "<table>" in result.data["text/html"]
