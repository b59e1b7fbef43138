"""Forgetting end to end: versions are named, trained again without somebody, and nothing of them is left."""

import json
import shutil

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import genre
from builders import LIKE, NEXT, give_key, recipe
from fakes import planted_log
from genre.cli import main
from genre.data.forgetting import forget_users, without_users
from genre.data.interactions import Interactions
from genre.data.user_key import FILE, UserKey, read_key
from genre.errors import DataError, ManifestError
from genre.jobs.forget.versions import refuse_forgotten, versions_of
from genre.jobs.loading import open_log
from genre.jobs.refresh.job import refresh
from genre.jobs.refresh.without import refresh_without
from genre.modules.base.base import Base
from genre.registry.users import FILE as USERS
from genre.registry.users import UserSet

GONE = "user-7f3a-to-forget"
TRAIN = {"epochs": 1, "batch_tokens": 2048}


def guests(rating: float, items: list[str]) -> Interactions:
    """A log of 30 users and one more, whose events stand first in the file."""
    log = planted_log(users=30, items=16, events=8)
    guest = pl.DataFrame(
        {"user_id": GONE, "item_id": items, "rating": rating, "timestamp": list(range(500, 500 + len(items)))},
        schema_overrides={"rating": pl.Float64},
    )
    frame = pl.concat([guest, log.frame.drop("row").select(guest.columns)])
    people = pl.concat([log.users, pl.DataFrame({"user_id": [GONE], "age": [99]})])
    return Interactions.from_frame(frame, items=log.catalogue.frame, users=people, name="guests")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A folder with a data set, `shop`, and a registry with `like`, its encoder, and `next_item` on that encoder."""
    root = tmp_path_factory.mktemp("forget")
    guests(5.0, ["i1", "i2", "i3", "i4"]).write(root / "shop")
    base, registry = Base.load(str(tiny)), genre.Registry(root / "registry")
    for task in (LIKE, NEXT):
        wanted = recipe(tiny, task, data={"path": str(root / "shop")}, train=TRAIN)
        registry.publish(genre.train(wanted, base=base, registry=registry, folder=root / task["name"], baselines="none"))
    return root, base


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """The same, to change; the current folder."""
    root, base = trained
    for name in ("shop", "registry"):
        shutil.copytree(root / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path, base


def tensors(registry, ref):
    folder = registry.fetch(ref)
    return {f"{path.name}/{name}": value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def test_versions_hold_who_trained_them_and_say_so(place):
    root, _ = place
    registry, log = genre.Registry(root / "registry"), open_log("shop")
    key = log.info.users_key
    for name in ("like", "next_item", "encoder-guests"):
        held = UserSet.parse((registry.fetch(name) / USERS).read_bytes())
        assert held.key == key.name and all(held.find(key.digest(user) for user in log.user_ids))
        assert not any(held.find([key.digest("somebody else")]))
        assert log.user_ids[0] not in (registry.fetch(name) / USERS).read_text()
    found = versions_of(registry, log, [GONE])
    assert [each.ref.partition(":")[0] for each in found] == ["encoder-guests", "like", "next_item"]
    assert {each.known for each in found} == {"trained"} and found[1].aliases == ("latest",)
    assert all(each.false_positives < 1e-3 for each in found)
    assert versions_of(registry, log, ["nobody at all"]) == []
    (root / "shop" / FILE).unlink()
    again = versions_of(registry, open_log("shop"), [GONE])
    assert {each.known for each in again} == {"unknown"} and "key of another data set folder" in again[0].why


def test_versions_without_a_set_are_known_by_digest_and_times(place, tiny):
    root, base = place
    log, registry = guests(5.0, ["i1", "i2"]), genre.Registry(root / "old")
    wanted = recipe(tiny, LIKE, sequence={"item": "text"}, encoder={"use": "none"}, train=TRAIN)
    registry.publish(genre.train(wanted, log=log, base=base, folder=root / "old-run", baselines="none"))
    (found,) = versions_of(registry, log, [GONE])
    assert (found.known, found.false_positives) == ("trained", None) and "as it is now" in found.why
    (found,) = versions_of(registry, guests(1.0, ["i1", "i2"]), [GONE])
    assert found.known == "unknown" and "an earlier or later form of this data set" in found.why
    late = guests(1.0, ["i1"]).frame.with_columns(
        timestamp=pl.when(pl.col("user_id") == GONE).then(10**6).otherwise(pl.col("timestamp"))
    )
    assert versions_of(registry, Interactions.from_frame(late.drop("row"), name="guests"), [GONE]) == []
    refuse_forgotten(registry, registry.resolve("like"), log)
    key = UserKey.new().with_forgotten([GONE])
    since = Interactions.from_frame(
        log.frame, log.catalogue.frame, info=log.info.model_copy(update={"users_key": key}), stored=True
    )
    with pytest.raises(ManifestError, match="may have been trained on users who were forgotten since, .* it has no set of users"):
        refuse_forgotten(registry, registry.resolve("like"), since)


def test_nothing_of_a_user_is_left_and_nothing_depends_on_what_they_did(place, tiny):
    root, base = place
    registry, twins = genre.Registry(root / "registry"), genre.Registry(shutil.copytree(root / "registry", root / "twins"))
    forget_users(root / "shop", [GONE])
    done = refresh_without(registry, "like", open_log("shop"), [GONE], base=base, path="shop", folder=root / "run")
    assert done.report["known"] == "trained" and done.report["decision"] in ("promoted", "kept")
    new = done.version
    assert new.manifest.parents == () and "from_start" in new.manifest.notes
    encoder = registry.find(new.manifest.encoder)
    key = read_key(root / "shop")
    for version in (new, encoder):
        files = [path for path in registry.fetch(version).iterdir()]
        assert not [path.name for path in files if GONE.encode() in path.read_bytes()]
        assert UserSet.parse((registry.fetch(version) / USERS).read_bytes()).find([key.digest(GONE)]) == [False]
    assert {each.ref for each in versions_of(registry, open_log("shop"), [GONE])}.isdisjoint({new.ref, encoder.ref})

    other = root / "elsewhere" / "shop"
    guests(1.0, ["i9", "i8", "i7", "i6", "i5", "nobody-else-has-it"]).write(other)
    shutil.copy(root / "shop" / FILE, other / FILE)
    forget_users(other, [GONE])
    assert open_log(str(other)).digest == open_log("shop").digest
    twin = refresh_without(twins, "like", open_log(str(other)), [GONE], base=base, path="shop", folder=root / "twin")
    assert twin.version.digest == new.digest, "other events of theirs give the same version"
    assert not [path.name for path in (root / "run").rglob("*") if path.is_file() and GONE.encode() in path.read_bytes()]


def test_leaving_somebody_out_gives_what_forgetting_them_gives(place):
    root, base = place
    registry, twins = genre.Registry(root / "registry"), genre.Registry(shutil.copytree(root / "registry", root / "twins"))
    one = refresh_without(registry, "next_item", open_log("shop"), [GONE], base=base, path="shop", folder=root / "run")
    forget_users(root / "shop", [GONE])
    other = refresh_without(twins, "next_item", open_log("shop"), [], base=base, path="shop", folder=root / "twin")
    first, second = tensors(registry, one.version), tensors(twins, other.version)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert one.version.digest == other.version.digest


def test_old_weights_are_not_gone_on_from_once_somebody_is_forgotten(place):
    root, base = place
    registry = genre.Registry(root / "registry")
    before = without_users(open_log("shop"), ["u3"])
    forget_users(root / "shop", [GONE])
    with pytest.raises(ManifestError, match=r"was trained on users who were forgotten since, .* genre refresh like --from-start"):
        refresh(registry, "like", open_log("shop"), base=base, folder=root / "run")
    assert before.info.users_key.forgotten == frozenset()
    with pytest.raises(DataError, match="unknown user: got 'nobody'"):
        refresh_without(registry, "like", open_log("shop"), ["nobody"], base=base)


def test_the_commands_forget_and_train_again(place, tiny, capsys):
    root, _ = place
    forgetting = ["data", "forget", GONE, "--data", "shop", "--registry", "registry"]
    before = {path.name: path.read_bytes() for path in (root / "shop").iterdir()}
    assert main([*forgetting, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "shop: 4 events of 1 user would go" in told and "encoder-guests:" in told and "its set of users has them" in told
    assert {path.name: path.read_bytes() for path in (root / "shop").iterdir()} == before
    assert main([*forgetting, "--json", "forgotten.json"]) == 0
    told = capsys.readouterr().out
    assert "shop: 4 events of 1 user removed" in told and f"--without {GONE} --data shop" in told
    report = json.loads((root / "forgotten.json").read_text())
    assert report["data"]["events"] == 4 and len(report["versions"]) == 3 and report["served_lists"] is None
    again = ["refresh", "like", "--without", GONE, "--data", "shop", "--base", str(tiny), "--json", "again.json"]
    assert main(again) == 0
    report = json.loads((root / "again.json").read_text())
    assert report["without"] == 1 and report["new"]["ref"].startswith("like:") and report["known"] == "trained"
    assert main([*again, "--replay", "0.4"]) == 2
    assert (
        "--replay has no effect here: got --without; expected a refresh that goes on from the old weights"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7"], "nothing is named that could forget: got no --data"),
        (["7", "--data", "ml-100k"], "--data is no folder: got ml-100k"),
        (["7", "--data", "nowhere"], "--data is no folder: got nowhere"),
        (["7", "--served-log", "nowhere"], "--served-log cannot be used: got nowhere"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "forget", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"genre: {message}")


def test_a_folder_that_cannot_be_written_trains_without_a_key(tmp_path):
    folder = guests(5.0, ["i1"]).write(tmp_path / "shop")
    folder.chmod(0o500)
    try:
        give_key(folder)
    finally:
        folder.chmod(0o700)


def test_an_import_that_brings_somebody_back_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    guests(5.0, ["i1"]).frame.drop("row").write_csv("events.csv")
    bringing = ["data", "import", "events.csv", "--out", "shop"]
    assert main(bringing) == 0 and main(["data", "forget", GONE, "--data", "shop"]) == 0
    assert "no version of the registry was trained on them" in capsys.readouterr().out
    assert main(bringing) == 0
    warning = f"warning: the import brought back 1 user who had been forgotten here: genre data forget {GONE} --data shop"
    assert warning in capsys.readouterr().out
