"""Refresh: what is new, what is replayed, the rule, drift learnt, poison kept out, two at once, catalogues that grow."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import genre
from builders import LIKE, NEXT, RATING, recipe
from fakes import planted_log
from genre import cli
from genre.data.sequences.windows import chosen_windows
from genre.data.splits import TEST, TRAIN, VALID, SplitConfig, split
from genre.engine.versions import read_adapter
from genre.errors import DataError, InputError, JobError, ManifestError, RecipeError
from genre.evaluation.targets import Targets
from genre.jobs.evaluate import evaluate
from genre.jobs.refresh.gate import compare, overall
from genre.jobs.refresh.job import refresh
from genre.jobs.refresh.plan import RefreshOptions, plan
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.tasks import Task

OLD_STEPS, STEPS, USERS = 10, 22, 60


def part_of(frame, log):
    return genre.Interactions.from_frame(frame.drop("row"), items=log.catalogue.frame, users=log.users, name="planted")


def drifting(turn=OLD_STEPS, seed=0):
    """The planted log, but from step `turn` on everybody likes the same half of the items, whatever their own kind."""
    log = planted_log(users=USERS, items=30, events=STEPS, seed=seed)
    fashion = pl.Series([float(5 if int(item[1:]) * 7 % 30 < 15 else 1) for item in log.frame["item_id"]])
    turned = pl.when(pl.col("timestamp") >= 1000 * turn).then(fashion).otherwise(pl.col("rating"))
    return part_of(log.frame.with_columns(turned.alias("rating")), log)


def old_part(log, steps=OLD_STEPS):
    return part_of(log.frame.filter(pl.col("timestamp") < 1000 * steps), log)


def poisoned(log, since=OLD_STEPS):
    """Ratings drawn at random from step `since` on."""
    draw = np.random.default_rng(5).integers(1, 6, len(log)).astype(float)
    random = pl.when(pl.col("timestamp") >= 1000 * since).then(pl.Series(draw)).otherwise(pl.col("rating"))
    return part_of(log.frame.with_columns(random.alias("rating")), log)


@pytest.fixture(scope="module")
def drift():
    return drifting()


@pytest.fixture(scope="module")
def shop(tiny, drift, tmp_path_factory):
    """A registry whose `like` was trained before the drift; it is copied for each test."""
    folder = tmp_path_factory.mktemp("shop")
    registry = genre.Registry(folder / "registry")
    base = Base.load(str(tiny))
    wanted = recipe(tiny, LIKE, train={"epochs": 3})
    run = genre.train(wanted, log=old_part(drift), base=base, registry=registry, folder=folder / "run")
    registry.publish(run, alias="production")
    return folder / "registry"


@pytest.fixture
def registry(shop, tmp_path, monkeypatch):
    import shutil

    monkeypatch.chdir(tmp_path)
    return genre.Registry(shutil.copytree(shop, tmp_path / "registry"))


def aliases(registry, name="like"):
    return registry.aliases(name)


def journal(registry):
    return [(move.alias, move.version, move.action) for move in registry.history("like")]


# --- which events ----------------------------------------------------------------------------------------------------


def made(log, **changes):
    settings = {"replay": 0.2, "valid": 0.1, "test": 0.3, "block": 4, "seed": 0} | changes
    return plan(log, 9_999, **settings)


def test_parts_are_by_time_and_disjoint(drift):
    found = made(drift)
    new = drift.timestamps > 9_999
    count = int(new.sum())
    assert found.counts["new"] == count == USERS * (STEPS - OLD_STEPS)
    assert (found.counts["test"], found.counts["valid"]) == (round(0.3 * count), round(0.1 * count))
    times, part = drift.timestamps, found.split.part
    assert times[part == TEST].min() >= times[part == VALID].max() and times[part == VALID].min() >= times[part == TRAIN].max()
    assert not (found.supervised & (part != TRAIN)).any() and (part[~new] == TRAIN).all()
    again = split(drift, SplitConfig.model_validate(found.split.config.model_dump()))
    assert np.array_equal(again.part, part)  # the shares in the manifest give the same parts


@pytest.mark.parametrize("replay", [0.0, 0.2, 0.5])
def test_the_replayed_share_is_the_stated_one_in_whole_blocks(drift, replay):
    found = made(drift, replay=replay)
    old = found.supervised & (drift.timestamps <= 9_999)
    total = int(found.supervised.sum())
    assert found.counts["replayed"] == old.sum() == round(replay / (1 - replay) * (total - old.sum()))
    assert old.sum() / total == pytest.approx(replay, abs=0.002)
    blocks = {}
    for place in np.flatnonzero(old):
        user = drift.user_codes[place]
        blocks.setdefault((user, (place - drift.user_offsets[user]) // 4), []).append(place)
    sizes = sorted(len(block) for block in blocks.values())
    assert sum(size == 4 for size in sizes) >= len([s for s in sizes if s]) - 1 - sum(1 for b in blocks if b[1] == 2)


def test_the_sample_is_drawn_by_the_seed_and_never_more_than_there_is(drift):
    one, same, other = (made(drift, seed=seed).supervised for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    everything = made(drift, replay=0.9)
    assert everything.counts["replayed"] == USERS * OLD_STEPS


def test_an_impression_that_reaches_from_old_to_held_out_events_is_refused(drift):
    shown = pl.when(pl.col("user_id") == "u1").then(pl.lit("all")).otherwise(pl.col("row").cast(pl.String))
    log = part_of(drift.frame.with_columns(shown.alias("impression_id")), drift)
    with pytest.raises(DataError, match="an impression reaches from what the version was trained on into the held-out events"):
        made(log)


def test_chosen_windows_supervise_each_chosen_event_once_with_history(drift):
    found = made(drift)
    usable = found.split.part == TRAIN
    windows, skipped = chosen_windows(drift, usable, found.supervised, max_events=6, min_events=2)
    seen = np.concatenate([window.events[window.targets] for window in windows])
    assert skipped == 0 and sorted(seen) == list(np.flatnonzero(found.supervised))
    for window in windows:
        assert len(window.events) <= 6 and usable[window.events].all() and (np.diff(window.events) > 0).all()
        first = int(np.flatnonzero(window.targets)[0])
        before = window.events[0] - drift.user_offsets[window.user]
        assert first >= min(3, before + first)  # half a window, or all there is
    _, skipped = chosen_windows(drift, usable, found.supervised, max_events=6, min_events=10_000)
    assert skipped == found.supervised.sum()


# --- the rule --------------------------------------------------------------------------------------------------------


def predicted(scores, labels, users):
    places = np.arange(len(labels))
    return {"like": (Targets(places, users, users, labels.astype(float)), scores, None)}


def test_the_rule():
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(100, dtype=np.int32), 20)
    labels = draw.integers(0, 2, 2000)
    good, bad = labels + draw.normal(size=2000), labels * 0.2 + draw.normal(size=2000)
    task = {"like": Task(name="like", kind="feedback", label="rating > 3", metrics=("auc",))}

    def outcome(old, new, tolerance=0.01, some=slice(None), tasks=task):
        old, new = predicted(old[some], labels[some], users[some]), predicted(new[some], labels[some], users[some])
        return compare(tasks, old, new, tolerance)

    assert overall(outcome(bad, good)) == "not worse" and overall(outcome(good, bad)) == "worse"
    same = outcome(good, good)["like"]
    assert same.outcome == "not worse" and same.difference == 0 and same.interval == (0, 0)
    slightly = good + 0.3 * draw.normal(size=2000)
    assert overall(outcome(good, slightly, tolerance=0.1)) == "not worse"
    few = slice(0, 100)
    assert outcome(good, slightly, tolerance=0.0, some=few)["like"].outcome != "not worse"
    wide = outcome(good + draw.normal(size=2000), good, tolerance=0.001, some=slice(0, 40))["like"]
    assert wide.interval is None or wide.outcome in ("cannot be told", "not worse")
    lower = {"like": Task(name="like", kind="feedback", label="rating", head="scalar", loss="mse", metrics=("rmse",))}
    assert outcome(bad, good, tasks=lower)["like"].difference < 0
    near, far = labels + 0.1 * draw.normal(size=2000), labels + 0.5 * draw.normal(size=2000)
    assert overall(outcome(far, near, tasks=lower)) == "not worse" and overall(outcome(near, far, tasks=lower)) == "worse"
    assert outcome(far, near, tasks=lower)["like"].margin == pytest.approx(0.005, rel=0.1)  # a share of the old value


def test_one_label_only_cannot_be_told():
    users = np.repeat(np.arange(30, dtype=np.int32), 5)
    task = {"like": Task(name="like", kind="feedback", label="rating > 3")}
    scores = np.random.default_rng(0).random(150)
    found = compare(task, predicted(scores, np.ones(150), users), predicted(scores, np.ones(150), users), 0.01)["like"]
    assert found.outcome == "cannot be told" and found.interval is None and "no value on 150 targets" in found.line("like")


# --- refreshing ------------------------------------------------------------------------------------------------------


def test_a_drift_is_learnt_and_the_alias_moves(registry, drift, base):
    old = registry.resolve("like@production")
    done = refresh(registry, "like@production", drift, base=base)
    report, found = done.report, done.report["tasks"]["like"]
    assert report["decision"] == "promoted" and found["outcome"] == "not worse"
    assert found["new"] > found["old"] + 0.1 and found["interval"][0] > 0 and found["n"] == report["data"]["test"]
    assert found["difference"] == pytest.approx(found["new"] - found["old"])
    new = registry.resolve("like@production")
    assert new.ref == done.version.ref == report["new"]["ref"] and new.manifest.parents == (old.digest,)
    assert aliases(registry) == dict.fromkeys(("candidate", "latest", "production"), new.version)
    assert new.manifest.encoder == old.manifest.encoder and new.manifest.data.digest == drift.digest
    assert new.manifest.notes["refresh"]["data"]["replayed"] > 0
    own = split(drift, SplitConfig.model_validate(new.manifest.data.split["split"]))
    assert old.manifest.data.time_span[1] < new.manifest.data.time_span[1] == drift.timestamps[own.part == TRAIN].max()
    assert drift.timestamps[own.part == TEST].min() >= new.manifest.data.time_span[1]
    move = registry.history("like", "production")[-1]
    assert move.action == "promote" and move.previous == old.version and "like.auc" in move.checks[0]
    assert base.occupied_by is None and registry.verify() == []
    assert {"refresh.json", "recipe.yaml", "metrics.json", "log.jsonl"} <= {path.name for path in done.run.root.iterdir()}
    assert json.loads((done.run.root / "refresh.json").read_text()) == json.loads(json.dumps(report))
    # the same targets, the same figure, by the usual command
    again = evaluate(registry, "like@production", drift, base)["tasks"]["like"]["adapter"]["auc"]
    assert again["value"] == pytest.approx(found["new"], abs=1e-6) and again["n"] == found["n"]
    # and nothing is new to the new version
    assert refresh(registry, "like@production", drift, base=base).report["decision"] == "nothing new"


def test_a_warm_start_is_the_old_version(registry, drift, base):
    """Before the first step the new model scores as the old one does."""
    from genre.jobs.loading import build_model, lora_layers
    from genre.recipe import Recipe
    from genre.training.assembly import Start, assemble_from
    from genre.training.prediction import predict

    loaded = read_adapter(registry, "like", base)
    found = made(drift)
    model, builder = build_model(loaded, drift, base)
    before = predict(model, builder, found.split, TEST, max_events=16, batch_tokens=2048)["like"]
    model.release()
    own = Recipe.read(registry.fetch("like") / "recipe.yaml")
    own = own.model_copy(update={"data": own.data.model_copy(update={"split": found.split.config})})
    start = Start(loaded.shared, loaded.layout, loaded.heads, lora_layers(base, loaded.low))
    assembly = assemble_from(start, own, drift, base, found.supervised)
    after = predict(assembly.model, assembly.builder, found.split, TEST, max_events=16, batch_tokens=2048)["like"]
    names = set(assembly.model.trainable())
    assembly.model.release()
    assert np.array_equal(before[1], after[1]) and np.array_equal(before[0].event, after[0].event)
    assert any(name.endswith("lora_A") for name in names) and any(name.startswith("heads.") for name in names)
    assert not any(name.startswith(("encoder.", "base.")) for name in names)


def test_poison_is_not_promoted(registry, base):
    log = poisoned(planted_log(users=USERS, items=30, events=STEPS))
    before = aliases(registry)
    done = refresh(registry, "like@production", log, base=base)
    assert done.report["decision"] == "kept" and done.report["tasks"]["like"]["outcome"] != "not worse"
    assert aliases(registry) == before | {"candidate": done.version.version}
    assert f"like@production stays {done.report['old']['ref']}: the new version is" in done.report["why"]


def test_poison_in_the_training_part_only_is_worse(registry, base):
    """Everybody alike where it learns, as ever where it is tested."""
    log, fashion = planted_log(users=USERS, items=30, events=STEPS, noise=0.0), drifting(turn=0)
    found = plan(log, 8_000, replay=0.0, valid=0.0, test=0.3, block=16, seed=0)
    bad = (log.timestamps > 8_000) & (found.split.part != TEST)
    ratings = pl.Series(np.where(bad, fashion.column("rating"), log.column("rating")))
    mixed = part_of(log.frame.with_columns(ratings.alias("rating")), log)
    done = refresh(registry, "like@production", mixed, RefreshOptions(replay=0.0, valid=0.0), base=base)
    assert done.report["decision"] == "kept" and done.report["tasks"]["like"]["outcome"] == "worse"


def test_nothing_new_publishes_nothing(registry, drift, base):
    before = journal(registry)
    same = refresh(registry, "like", old_part(drift), base=base)
    assert same.version is None and same.report["decision"] == "nothing new"
    assert same.report["why"].endswith("the data set is the one that it was trained on; nothing was published")
    shorter = refresh(registry, "like", old_part(drift, 5), base=base)
    assert shorter.report["decision"] == "nothing new" and "no event is later" in shorter.report["why"]
    assert journal(registry) == before and not (registry.store.root.parent / "runs").exists()


def test_a_few_new_events_are_too_few_to_test_on(registry, drift, base):
    before = journal(registry)
    few = refresh(registry, "like", old_part(drift, OLD_STEPS + 1), base=base)
    assert few.version is None and few.report["decision"] == "too small"
    assert "the test is too small: " in few.report["why"] and "expected at least 100 of 20" in few.report["why"]
    last = registry.resolve("like").manifest.data.time_span[1]
    some = part_of(drift.frame.filter(pl.col("timestamp").rank("ordinal") <= (drift.timestamps <= last).sum() + 1), drift)
    found = refresh(registry, "like", some, base=base)
    assert found.report["decision"] == "too small" and "there are too few new events, 1: wait for more" in found.report["why"]
    assert journal(registry) == before


def test_a_version_by_number_has_no_alias_to_take_over(registry, drift, base):
    old = registry.resolve("like")
    done = refresh(registry, old.ref, drift, base=base)
    assert (
        done.report["decision"] == "candidate"
        and "is not an alias to take over; the new version is not worse" in done.report["why"]
    )
    assert aliases(registry) == {"candidate": done.version.version, "latest": old.version, "production": old.version}


def test_the_candidate_itself_has_to_be_earned(registry, base):
    registry.promote("like", "candidate")
    old = registry.resolve("like@candidate")
    done = refresh(registry, "like@candidate", poisoned(planted_log(users=USERS, items=30, events=STEPS)), base=base)
    assert done.report["decision"] == "kept" and aliases(registry)["candidate"] == old.version
    assert registry.resolve(done.version.ref).digest == done.version.digest


def test_of_two_at_once_one_wins(registry, drift, base, tiny):
    """The second refresh runs whole while the first one is about to test its new version."""
    inner = []

    def write(text):
        if text.startswith("testing the new version") and not inner:
            second = RefreshOptions(overrides=("train.seed=7",))
            inner.append(refresh(registry, "like@production", drift, second, base=Base.load(str(tiny))))

    outer = refresh(registry, "like@production", drift, base=base, reporter=Reporter(write))
    assert inner[0].report["decision"] == "promoted" and outer.report["decision"] == "overtaken"
    assert outer.version.version != inner[0].version.version and outer.run.root != inner[0].run.root
    assert aliases(registry)["production"] == inner[0].version.version == aliases(registry)["latest"]
    assert "like@production is unchanged: like@production was moved meanwhile: got" in outer.report["why"]


def test_an_interrupted_refresh_leaves_the_registry_as_it_was(registry, drift, base):
    before, files = journal(registry), sorted(str(path) for path in registry.store.root.rglob("*"))

    def write(text):
        if text.startswith("epoch 1: validation"):
            raise KeyboardInterrupt

    with pytest.raises(JobError, match="interrupted after step .*the registry is unchanged; start the refresh again"):
        refresh(registry, "like", drift, base=base, reporter=Reporter(write))
    assert journal(registry) == before and sorted(str(path) for path in registry.store.root.rglob("*")) == files
    assert base.occupied_by is None
    assert refresh(registry, "like", drift, base=base).report["decision"] == "promoted"


def test_next_item_and_rating_are_judged_by_their_own_metrics(tiny, drift, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = genre.Registry("registry")
    wanted = recipe(tiny, NEXT, RATING, name="joint", train={"epochs": 1}, data={"split": {"kind": "last_n", "n": 1}})
    registry.publish(genre.train(wanted, log=old_part(drift), base=base, registry=registry))
    done = refresh(registry, "joint", drift, RefreshOptions(overrides=("train.epochs=1",)), base=base)
    tasks = done.report["tasks"]
    assert tasks["next_item"]["metric"] == "ndcg@10" and tasks["rating"]["metric"] == "rmse"
    assert tasks["rating"]["margin"] == pytest.approx(0.01 * tasks["rating"]["old"])
    outcomes = {found["outcome"] for found in tasks.values()}
    assert (done.report["decision"] == "promoted") == (outcomes == {"not worse"})


# --- a catalogue that grows ------------------------------------------------------------------------------------------


def grown(log, items=6, since=14):
    """From step `since` on, half of the events are on new items; the catalogue knows them."""
    draw = np.random.default_rng(1)
    fresh = pl.Series([f"n{i}" for i in draw.integers(0, items, len(log))])
    late = pl.Series((log.timestamps >= 1000 * since) & (draw.random(len(log)) < 0.5))
    frame = log.frame.with_columns(pl.when(late).then(fresh).otherwise(pl.col("item_id")).alias("item_id"))
    more = pl.DataFrame(
        {"item_id": [f"n{i}" for i in range(items)], "title": [f"{'war' if i % 2 else 'love'}" for i in range(items)]}
    )
    catalogue = pl.concat([log.catalogue.frame, more])
    return genre.Interactions.from_frame(frame.drop("row"), items=catalogue, users=log.users, name="planted")


def test_new_items_need_no_new_encoder_until_they_are_many(registry, drift, base):
    log = grown(drift)
    old = registry.resolve("like")
    done = refresh(registry, "like", log, RefreshOptions(encoder_due=0.9), base=base)
    assert done.version.manifest.encoder == old.manifest.encoder
    found = done.report["encoder"]
    new = log.timestamps > old.manifest.data.time_span[1]
    strange = np.array([item.startswith("n") for item in log.catalogue.item_ids])
    assert found["events"] == pytest.approx(strange[log.item_codes[new]].mean()) and found["items"] == pytest.approx(6 / 36)
    assert found["due"] is False
    # the new version carries the grown catalogue: it answers for the new items without the data set
    with genre.Engine(base, registry, lanes=2) as engine:
        requests = [
            genre.Request(ref, history=[{"item_id": "i1", "rating": 5.0}], candidates=["n1", "i2"])
            for ref in (done.version.ref, old.ref)
        ]
        first, second = engine.score(requests)
        assert first.error is None and {item.item_id for item in first.results} == {"n1", "i2"}
        assert "unknown item" in second.error
    due = refresh(registry, done.version.ref, log, RefreshOptions(encoder_due=0.1), base=base)
    assert due.report["decision"] == "nothing new"


def test_a_version_of_the_same_catalogue_carries_none(registry, drift, base):
    done = refresh(registry, "like", drift, RefreshOptions(overrides=("train.epochs=1",)), base=base)
    assert not (registry.fetch(done.version) / "catalogue.jsonl").exists()


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_refreshed_is_refused(registry, drift, base, trained):
    from genre.jobs.merge.gate import MergeOptions
    from genre.jobs.merge.job import merge_versions

    with pytest.raises(ManifestError, match="cannot be refreshed: got kind encoder; expected adapter"):
        refresh(registry, "encoder-planted", drift, base=base)
    merged = merge_versions(trained.registry, ["like", "rating"], MergeOptions("both", floor=0.0), trained.log, base=base).version
    with pytest.raises(ManifestError, match="got kind merged; expected adapter; refresh its parents and merge again"):
        refresh(trained.registry, merged.ref, drift, base=base)
    for options, error, message in (
        (RefreshOptions(replay=1.0), InputError, "replay is out of range: got 1.0"),
        (RefreshOptions(test=0.0), InputError, "test is out of range: got 0.0"),
        (RefreshOptions(valid=0.5, test=0.5), InputError, "valid and test leave no training events"),
        (RefreshOptions(tolerance=float("nan")), InputError, "tolerance or encoder_due is out of range"),
        (RefreshOptions(overrides=("adapter.rank=4",)), RecipeError, "a refresh can only change how a version is trained"),
        (RefreshOptions(overrides=("train.epoch=4",)), RecipeError, "unknown key 'train.epoch'"),
    ):
        with pytest.raises(error, match=message):
            refresh(registry, "like", drift, options, base=base)
    assert base.occupied_by is None


def test_a_registry_that_takes_nothing_more_is_refused_before_training(registry, drift, base, monkeypatch, tmp_path):
    from genre.files import check_writable

    def shut(store, name):
        check_writable(Path("/proc", name), "the registry")

    monkeypatch.setattr(type(registry.store), "check_writable", shut)
    with pytest.raises(InputError, match="the registry cannot be written: got /proc: "):
        refresh(registry, "like", drift, base=base)
    assert not (tmp_path / "runs").exists()
    assert refresh(registry, "like", old_part(drift), base=base).report["decision"] == "nothing new"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(registry, drift, tiny, capsys, tmp_path):
    drift.write("data")
    old_part(drift).write("before")
    common = ["--data", "data", "--base", str(tiny), "--json", "out/refresh.json"]
    assert cli.main(["refresh", "like@production", *common, "--set", "train.epochs=2"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "refresh.json").read_text())
    assert (
        report["decision"] == "promoted"
        and f"published {report['new']['ref']} as candidate and promoted it to production" in shown
    )
    assert "like.auc" in shown and "difference +" in shown and report["run"] == "runs/like/1"
    assert cli.main(["refresh", "like@production", "--data", "before", "--base", str(tiny)]) == 0
    assert "there is nothing new for like:" in capsys.readouterr().out
    for wrong, message in (
        (["like@production", "--data", "nope"], "no data set folder: got nope"),
        (["like@nobody", "--data", "data"], "no alias like@nobody"),
        (["like", "--data", "data", "--replay", "2"], "replay is out of range: got 2.0"),
        (["like", "--data", "data", "--set", "base.depth=1"], "a refresh can only change how a version is trained"),
        (["like", "--data", "data", "--json", "data"], "--json is a folder"),
        (["like", "--data", "data", "--out", "runs"], "--out is taken: got runs"),
        (["like:0123", "--data", "data"], "not a version"),
    ):
        assert cli.main(["refresh", *wrong]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0], lines
