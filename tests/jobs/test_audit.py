"""Audits on small worlds: pushed items rise, titles count where they are read, warnings name fakes, the report has its schema."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import LIKE, NEXT, publish_stirred, recipe
from fakes import planted_log
from genre.cli import main
from genre.data.suspects import named_users
from genre.engine import Engine, Request
from genre.engine.versions import read_adapter
from genre.errors import DataError, GenreError, InputError, ManifestError, RecipeError
from genre.jobs.audit.fakes import PREFIX, Injection, best_events, injected
from genre.jobs.audit.job import CHECKS, PAGE, REPORT, audit
from genre.jobs.audit.lineup import lineup_of, read_column
from genre.jobs.audit.options import ATTACKS, AuditOptions
from genre.jobs.audit.report import AuditReport, Checks
from genre.jobs.loading import build_model
from genre.modules.base.base import Base
from genre.tasks import Task

TIMED = {"kind": "temporal", "valid": 0.1, "test": 0.1}
SMALL = {"users": 40, "targets": 2, "words": 4, "suffixes": ("(war)",)}


@pytest.fixture(scope="module")
def shop():
    """80 users of ten events, 120 items: few have any one item."""
    return planted_log(users=80, items=120, events=10)


@pytest.fixture(scope="module")
def trained_next(tiny, shop, tmp_path_factory):
    """A registry with `next_item`, trained for two epochs on `shop`."""
    folder = tmp_path_factory.mktemp("audit")
    registry, base = genre.Registry(folder / "registry"), Base.load(str(tiny))
    wanted = recipe(tiny, NEXT, sequence={"item": "both"}, data={"split": TIMED})
    registry.publish(genre.train(wanted, log=shop, base=base, registry=registry, folder=folder / "run", baselines="none"))
    return registry


@pytest.fixture(scope="module")
def stirred(tiny, shop, tmp_path_factory):
    """A registry with an untrained adapter of each head and kind of item slot."""
    folder = tmp_path_factory.mktemp("stirred")
    registry, base = genre.Registry(folder / "registry"), Base.load(str(tiny))
    encoder = None
    for task in (NEXT, LIKE):
        for item in ("token", "both", "text"):
            wanted = recipe(tiny, task, name=f"{task['name']}-{item}", sequence={"item": item}, data={"split": TIMED})
            if encoder is None:
                run = genre.train(
                    wanted.model_copy(update={"train": wanted.train.model_copy(update={"epochs": 1})}),
                    log=shop,
                    base=base,
                    registry=registry,
                    folder=folder / "run",
                    baselines="none",
                )
                encoder = run.encoder
            publish_stirred(registry, wanted, shop, base, folder / wanted.name, encoder=encoder)
    return registry


# --- fake profiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("arrival", ["burst", "spread"])
def test_every_profile_has_the_targets_and_its_fillers_within_the_span(shop, attack, arrival):
    span = (int(shop.timestamps.min()), int(shop.timestamps.min()) + 20_000)
    made = Injection(attack, 7, 8, (3, 4), span, seed=1)
    log = made.into(shop, Task(**LIKE), arrival)
    fakes = log.frame.filter(pl.col("user_id").str.starts_with(PREFIX))
    assert log.catalogue.item_ids == shop.catalogue.item_ids and injected(log).sum() == 7
    assert fakes.height == 7 * 10 and len(log) == len(shop) + 70
    per_user = fakes.group_by("user_id").agg(pl.col("item_id").n_unique(), own=pl.col("item_id").is_in(["i3", "i4"]).sum())
    assert (per_user["item_id"] == 10).all() and (per_user["own"] == 2).all()
    assert fakes["timestamp"].is_between(*span).all() and log.users.height == len(log.user_ids)
    assert (fakes.filter(pl.col("item_id").is_in(["i3", "i4"]))["rating"] > 3).all()
    again = made.into(shop, Task(**LIKE), arrival)
    assert again.digest == log.digest, "the seed decides everything"
    real = log.frame.filter(~pl.col("user_id").str.starts_with(PREFIX))
    assert real.drop("row").equals(shop.frame.drop("row"))


def test_kinds_of_profiles_differ_as_they_should(shop):
    rating = 1.0 + pl.col("item_id").str.strip_prefix("i").cast(pl.Int64) % 5  # everybody says the same of an item
    log = genre.Interactions.from_frame(shop.frame.drop("row").with_columns(rating=rating), items=shop.catalogue.frame)
    counts = np.bincount(log.item_codes, minlength=log.catalogue.size)
    popular = {log.catalogue.item_ids[code] for code in np.argsort(-counts, kind="stable")[:4]}
    mine = {}
    for attack in ATTACKS:
        found = Injection(attack, 30, 8, (0,), (0, 100_000), seed=2).into(log, Task(**LIKE), "spread")
        mine[attack] = found.frame.filter(pl.col("user_id").str.starts_with(PREFIX), pl.col("item_id") != "i0")
    assert popular <= set.intersection(*(set(own["item_id"]) for _, own in mine["bandwagon"].group_by("user_id")))
    own = {name: frame.select((pl.col("rating") == rating).mean()).item() for name, frame in mine.items()}
    assert own["average"] == 1 and own["random"] < 0.4 and own["bandwagon"] < 0.6
    assert set(log.column("rating")[best_events(log, Task(**NEXT))]) == {5.0}


def test_logs_with_impressions_without_feedback_and_without_times_take_profiles(shop):
    frame = shop.frame.drop("row")
    shown = frame.with_columns(impression_id=pl.arange(frame.height) // 2)
    for given, order in ((shown, None), (frame.drop("rating"), None), (frame.drop("timestamp"), "file")):
        log = genre.Interactions.from_frame(given, items=shop.catalogue.frame, order=order)
        for attack in ATTACKS:
            span = log.time_span(np.ones(len(log), dtype=bool))
            assert injected(Injection(attack, 5, 4, (1,), span, seed=0).into(log, Task(**NEXT), "burst")).sum() == 5


def test_profiles_that_come_within_a_day_are_named_and_slow_ones_are_not(shop):
    frame = shop.frame.with_columns(timestamp=pl.col("timestamp") * 200)  # users begin over half a year
    log = genre.Interactions.from_frame(frame.drop("row"), items=shop.catalogue.frame)
    span = log.time_span(np.ones(len(log), dtype=bool))
    made = Injection("random", 8, 8, (3,), span, seed=0)
    counts = {
        way: (injected(found) & named_users(found)).sum()
        for way in ("burst", "spread")
        if (found := made.into(log, Task(**NEXT), way))
    }
    assert counts == {"burst": 8, "spread": 0} and not named_users(log).any()


# --- titles ---------------------------------------------------------------------------------------------------------


SLOW = {("next_item", "text"), ("like", "token"), ("like", "both")}
"""Two engines and models for each: the other three pass through every line."""


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        pytest.param(kind, item, marks=[pytest.mark.slow] if (kind, item) in SLOW else [])
        for kind in ("next_item", "like")
        for item in ("token", "both", "text")
    ],
)
def test_an_item_under_its_own_title_has_the_score_that_the_engine_gives(stirred, tiny, shop, kind, item):
    base = Base.load(str(tiny))
    ref, target = f"{kind}-{item}", 7
    users = [user for user in shop.user_ids if "i7" not in {event["item_id"] for event in shop.history(user)}][:6]
    loaded = read_adapter(stirred, ref, base)
    model, builder = build_model(loaded, shop, base)
    try:
        lineup = lineup_of(model, builder, loaded.tasks[kind], users, [target], seed=0)
        with torch.no_grad():
            own, other = lineup._scores(target, lineup._variants(target, "title", [shop.catalogue.titles()[7], "love and war"])).T
            unchanged = lineup._scores(target, lineup._variants(target, None, [None]))[:, 0]
    finally:
        model.release()
    people = {row["user_id"]: {"age": row["age"]} for row in shop.users.to_dicts()}
    asked = [Request(ref, history=shop.history(user), candidates=["i7"], user=people[user]) for user in users]
    with Engine(base, stirred, lanes=2) as engine:
        theirs = [response.results[0].score for response in engine.score(asked)]
    assert np.allclose(own, theirs, atol=1e-4) and np.allclose(unchanged, theirs, atol=1e-4)
    assert not np.allclose(own, other, atol=1e-3), "another title has other scores"


def test_exposure_is_the_share_of_lists_of_ten_that_hold_the_item(stirred, tiny, shop):
    base = Base.load(str(tiny))
    loaded = read_adapter(stirred, "next_item-both", base)
    users = shop.user_ids[:30]
    model, builder = build_model(loaded, shop, base)
    try:
        lineup = lineup_of(model, builder, loaded.tasks["next_item"], users, [], seed=0)
        places = {code: lineup.place(code, None, [None])[0] for code in range(0, 120, 7)}
    finally:
        model.release()
    people = {row["user_id"]: {"age": row["age"]} for row in shop.users.to_dicts()}
    asked = [Request("next_item-both", history=shop.history(user), k=10, user=people[user]) for user in users]
    with Engine(base, stirred, lanes=2) as engine:
        lists = [{scored.item_id for scored in response.results} for response in engine.score(asked)]
    for code, standing in places.items():
        free = [
            own for own, user in zip(lists, users, strict=True) if f"i{code}" not in {e["item_id"] for e in shop.history(user)}
        ]
        assert standing.users == len(free) and standing.exposure == pytest.approx(np.mean([f"i{code}" in own for own in free]))


# --- the job --------------------------------------------------------------------------------------------------------


def test_a_pushed_item_rises_and_the_report_says_how_far(trained_next, tiny, shop, tmp_path):
    options = AuditOptions(**SMALL, shares=(0.1,), attacks=("bandwagon",))
    report = audit(trained_next, "next_item", shop, options, base=Base.load(str(tiny)), folder=tmp_path)
    text, profiles = report.checks.text, report.checks.profiles
    (attack,) = profiles.attacks
    assert attack.users == 8 and attack.standing.exposure > profiles.clean.exposure + 0.1
    assert attack.standing.score > profiles.clean.score
    assert (text.item, text.column, len(text.targets)) == ("both", "title", 2)
    assert [each.added for each in text.targets[0].suffixes] == ["(war)", "</s>"]
    assert all(len(each.greedy.added.split()) <= 5 for each in text.targets)
    assert text.greedy.score > text.before.score, "words that help some users' lists help others'"
    assert AuditReport.model_validate_json((tmp_path / REPORT).read_text()) == report
    page = (tmp_path / PAGE).read_text()
    assert "Fake profiles" in page and "Text attack" in page and "light-dark(" in page
    assert "<script" not in page and 'src="http' not in page and "<svg" in page
    assert trained_next.verify() == [] and not list(tmp_path.glob(".retraining*"))


def test_the_same_seed_gives_the_same_report(stirred, tiny, shop, tmp_path):
    first, second = (
        audit(
            stirred,
            "next_item-both",
            shop,
            AuditOptions(**SMALL, checks=("text",)),
            base=Base.load(str(tiny)),
            folder=tmp_path / name,
        )
        for name in ("a", "b")
    )
    assert first.model_copy(update={"seconds": 0}) == second.model_copy(update={"seconds": 0})
    assert (
        first.checks.profiles is None
        and first.targets
        != audit(
            stirred,
            "next_item-both",
            shop,
            AuditOptions(**SMALL, checks=("text",), seed=1),
            base=Base.load(str(tiny)),
            folder=tmp_path / "a",
        ).targets
    )


def test_the_schema_names_every_check():
    schema = AuditReport.model_json_schema(by_alias=True)
    assert set(CHECKS) == set(Checks.model_fields) == set(schema["$defs"]["Checks"]["properties"])
    assert schema["additionalProperties"] is False and "schema" in schema["properties"]


def test_the_command_writes_json_and_page(stirred, tiny, shop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shop.write("shop")
    shutil.copytree(stirred.url, "registry")
    (tmp_path / "words.txt").write_text("best of all\n\n")
    asked = ["audit", "next_item-token", "--data", "shop", "--base", str(tiny), "--text-only", "--users", "20", "--words", "3"]
    assert main([*asked, "--target", "i5", "--suffixes", "words.txt"]) == 0
    told = capsys.readouterr()
    assert "titles rewritten (token items)" in told.out and "wrote runs/next_item-token/audit/audit.html" in told.out
    report = json.loads((tmp_path / "runs/next_item-token/audit/audit.json").read_text())
    assert [target["item_id"] for target in report["targets"]] == ["i5"] and report["checks"]["profiles"] is None
    assert [each["added"] for each in report["checks"]["text"]["targets"][0]["suffixes"]] == ["best of all", "</s>"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--text-only", "--share", "0.1"],
            "--share has no effect here: got --text-only; expected an option of the attack that",
        ),
        (["--text-only", "--set", "train.epochs=1"], "--set has no effect here: got --text-only"),
        (["--profiles-only", "--suffixes", "words.txt"], "--suffixes has no effect here: got --profiles-only"),
    ],
)
def test_an_option_of_the_attack_that_is_left_out_is_refused(options, message, capsys):
    assert main(["audit", "next_item", "--data", "shop", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genre: {message}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"users": 1}, InputError, "--users is out of range: got 1; expected 2 to 2,000"),
        ({"seed": -1}, InputError, "--seed is out of range: got -1; expected 0 to"),
        ({"shares": (0.5,)}, InputError, "a share of injected users is out of range: got 0.5"),
        ({"attacks": ("nuke",)}, InputError, "no such attack: got nuke; expected random, average, bandwagon"),
        ({"shares": tuple(0.01 * n for n in range(1, 9))}, InputError, "too few or too many retrainings"),
        ({"overrides": ("tasks.0.head=scalar",)}, RecipeError, "can only change how much a retraining costs"),
        ({"items": ("nothing",)}, InputError, "no such item to push: got nothing"),
        ({"task": "like"}, InputError, "next_item has no such task: got like; expected next_item"),
    ],
)
def test_what_cannot_be_audited_is_refused(trained_next, tiny, shop, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        audit(trained_next, "next_item", shop, AuditOptions(**options), base=Base.load(str(tiny)), folder=tmp_path)


def test_an_encoder_and_a_log_where_everybody_has_everything_are_refused(trained_next, tiny, tmp_path):
    base = Base.load(str(tiny))
    with pytest.raises(ManifestError):
        audit(trained_next, "encoder-planted", planted_log(), base=base, folder=tmp_path)
    with pytest.raises(DataError, match="no item can be drawn as a target"):
        audit(trained_next, "next_item", planted_log(), base=base, folder=tmp_path)
    with pytest.raises(GenreError, match="holds other files"):
        (tmp_path / "notes.txt").write_text("mine")
        audit(trained_next, "next_item", planted_log(users=80, items=120, events=10), base=base, folder=tmp_path)


def test_read_column_is_the_title_where_it_is_read(stirred, tiny, shop):
    base = Base.load(str(tiny))
    model, builder = build_model(read_adapter(stirred, "next_item-token", base), shop, base)
    model.release()
    assert read_column(model, builder) == "title"
