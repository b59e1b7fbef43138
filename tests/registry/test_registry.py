"""Publish, resolve, fetch, aliases, roll back, verify, diff, lineage, gc on a local store."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_fakes import draft, write_adapter, write_encoder

from genre.errors import ConflictError, InputError, IntegrityError, ManifestError, NotFoundError, QualityError, RegistryError
from genre.registry import Manifest, MetricValue, Registry, check_fit
from genre.registry.journal import Journal
from genre.registry.manifest import digest_of

Adapter = Callable[..., Path]


def test_publish_then_fetch_gives_the_files(registry: Registry, adapter: Adapter) -> None:
    version = registry.publish(adapter(), draft())
    folder = registry.fetch("like")
    assert folder == registry.store.folder("like", version.version)
    assert (folder / "adapter_model.safetensors").read_bytes() == (adapter() / "adapter_model.safetensors").read_bytes()
    assert registry.names() == ["like"] and registry.versions("like") == [version.version]
    assert registry.aliases("like") == {"latest": version.version}
    assert version.manifest.cost.bytes == sum(f.stat().st_size for f in folder.iterdir() if f.name != "manifest.json")
    card = (folder / "README.md").read_text()
    assert "0.7500 [0.7400, 0.7600], n = 100" in card and "the first 2 only" in card
    assert registry.verify() == []


def test_the_same_content_is_the_same_version(registry: Registry, adapter: Adapter) -> None:
    first = registry.publish(adapter(), draft())
    cost = first.manifest.cost.model_copy(update={"seconds": 9.0})
    again = registry.publish(adapter(), draft().model_copy(update={"cost": cost}))
    assert again == first
    assert len(registry.history("like")) == 1
    other = registry.publish(adapter(1), draft())
    assert other.version != first.version and registry.resolve("like").version == other.version


def test_the_digest_follows_its_definition(registry: Registry, adapter: Adapter) -> None:
    version = registry.publish(adapter(), draft())
    raw = json.loads((registry.fetch(version) / "manifest.json").read_text())
    assert raw["schema"] == 1 and raw["version"] == raw["digest"][:12] == version.digest[:12]
    assert digest_of(raw) == version.digest
    assert digest_of(raw | {"created": "x", "cost": {}, "version": "", "digest": ""}) == version.digest
    assert digest_of(raw | {"tokenizer": "x"}) != version.digest


def test_a_draft_in_the_folder_is_enough(registry: Registry, adapter: Adapter) -> None:
    folder = adapter()
    (folder / "manifest.json").write_text(json.dumps(draft().raw()))
    assert registry.publish(folder, alias="candidate").ref == registry.resolve("like@candidate").ref


def test_a_folder_that_takes_no_version_is_refused_beforehand(registry: Registry, adapter: Adapter, tmp_path: Path) -> None:
    for url in (registry.url, tmp_path / "new" / "registry", "memory://anywhere"):
        Registry(url).check_writable("like")
    assert not (tmp_path / "new").exists()
    registry.publish(adapter(), draft())
    (Path(registry.url) / "rating").write_text("")
    registry.check_writable("like")
    with pytest.raises(InputError, match="the registry lies in a file: got .*/rating; expected a folder"):
        registry.check_writable("rating")
    with pytest.raises(InputError, match="the registry cannot be written: got /proc: .*; expected a folder that takes new files"):
        Registry("/proc/new").check_writable("like")
    with pytest.raises(RegistryError, match="not a usable name"):
        registry.check_writable("../like")


def test_references(registry: Registry, adapter: Adapter) -> None:
    version = registry.publish(adapter(), draft(), alias=("latest", "candidate"))
    for ref in ("like", "like@latest", "like@candidate", version.ref):
        assert registry.resolve(ref) == version
    with pytest.raises(NotFoundError, match=r"no alias like@production.*like@candidate, like@latest"):
        registry.resolve("like@production")
    with pytest.raises(NotFoundError, match=r"no adapter 'nope'.*expected like"):
        registry.resolve("nope")
    with pytest.raises(NotFoundError, match="no version like:000000000000"):
        registry.resolve("like:000000000000")


@pytest.mark.parametrize(
    "ref", ["", "../x", "/etc", "Like", ".x", "a/b", "aliases", "a@", "a@..", "a:b", "a\n", "x" * 65, "a@b@c"]
)
def test_wrong_references_are_refused(registry: Registry, ref: str) -> None:
    with pytest.raises(RegistryError, match="not a"):
        registry.resolve(ref)


def test_a_promotion_names_the_holder_that_it_was_compared_with(registry: Registry, adapter: Adapter) -> None:
    first, second, third = (registry.publish(adapter(seed), draft()) for seed in range(3))
    registry.promote(first, "production")
    move = registry.promote(second, "production", instead_of=first.version, checks=["like.auc 0.8, before 0.7"])
    assert move.previous == first.version and move.checks == ("like.auc 0.8, before 0.7",)
    with pytest.raises(
        ConflictError, match=f"like@production was moved meanwhile: got {second.version}; expected {first.version}"
    ):
        registry.promote(third, "production", instead_of=first.version)
    with pytest.raises(ConflictError, match="like@staging was moved meanwhile: got no holder"):
        registry.promote(third, "staging", instead_of=first.version)
    assert registry.aliases("like")["production"] == second.version


def test_a_publish_can_leave_latest_alone(registry: Registry, adapter: Adapter) -> None:
    first = registry.publish(adapter(), draft())
    second = registry.publish(adapter(1), draft(), alias="candidate", latest=False)
    assert registry.aliases("like") == {"latest": first.version, "candidate": second.version}


def test_promote_floor_and_not_worse(registry: Registry, adapter: Adapter) -> None:
    good = registry.publish(adapter(), draft(auc=0.75))
    worse = registry.publish(adapter(1), draft(auc=0.74))
    with pytest.raises(QualityError, match=r"misses the floor in like.auc: got 0.75; expected >= 0.8"):
        registry.promote(good, "production", floor={"auc": 0.8})
    with pytest.raises(QualityError, match="no metric 'ndcg@10'.*like.auc"):
        registry.promote(good, "production", floor={"ndcg@10": 0.8})
    move = registry.promote(good.ref, "production", floor={"like.auc": 0.7}, not_worse=True)
    assert move.checks == ("like.auc 0.75 >= 0.7",) and move.previous is None
    with pytest.raises(QualityError, match=r"worse in like.auc: got 0.74; expected >= 0.75"):
        registry.promote(worse.ref, "production", not_worse=True)
    registry.promote(worse.ref, "production")
    assert registry.resolve("like@production") == worse


def test_not_worse_needs_the_same_data_and_protocol(registry: Registry, adapter: Adapter) -> None:
    registry.promote(registry.publish(adapter(), draft()), "production")
    other = registry.publish(adapter(1), draft(protocol={"like": "full"}))
    with pytest.raises(QualityError, match=r"protocol.like differs: got full; expected prequential"):
        registry.promote(other, "production", not_worse=True)
    data = draft().data
    assert data is not None
    other = registry.publish(adapter(1), draft(data=data.model_copy(update={"digest": "e" * 64})))
    with pytest.raises(QualityError, match=r"data.digest differs"):
        registry.promote(other, "production", not_worse=True)


def test_a_better_ranking_may_be_less_novel(registry: Registry, adapter: Adapter) -> None:
    def ranked(ndcg: float, novelty: float) -> Manifest:
        values = {"ndcg@10": MetricValue(value=ndcg), "novelty@10": MetricValue(value=novelty)}
        return draft(metrics={"like": values})

    registry.promote(registry.publish(adapter(), ranked(0.1, 9.0)), "production")
    move = registry.promote(registry.publish(adapter(1), ranked(0.2, 8.0)), "production", not_worse=True)
    assert "like.novelty@10 not compared (often the price of better lists)" in move.checks
    with pytest.raises(QualityError, match="misses the floor in like.novelty@10"):
        registry.promote(registry.publish(adapter(2), ranked(0.3, 7.0)), "production", floor={"novelty@10": 7.5})


def test_lower_is_better_turns_the_checks_round(registry: Registry, adapter: Adapter) -> None:
    def loss(value: float) -> Manifest:
        return draft(metrics={"like": {"log_loss": MetricValue(value=value), "odd": MetricValue(value=1)}})

    registry.promote(registry.publish(adapter(), loss(0.5)), "production", floor={"log_loss": 0.6})
    move = registry.promote(registry.publish(adapter(1), loss(0.4)), "production", not_worse=True)
    assert any("odd not compared" in check for check in move.checks)
    with pytest.raises(QualityError, match="worse in like.log_loss"):
        registry.promote(registry.publish(adapter(2), loss(0.45)), "production", not_worse=True)
    with pytest.raises(QualityError, match="whether a higher 'odd' is better"):
        registry.promote("like", "production", floor={"odd": 0})


def test_history_and_roll_back(registry: Registry, adapter: Adapter) -> None:
    a, b, c = (registry.publish(adapter(seed), draft()) for seed in range(3))
    for version in (a, b, c):
        registry.promote(version, "production")
    assert registry.rollback("like").version == b.version
    assert registry.rollback("like").version == a.version
    with pytest.raises(NotFoundError, match="nothing to roll back to"):
        registry.rollback("like")
    registry.promote(c, "production")
    assert registry.rollback("like").version == a.version
    moves = registry.history("like", "production")
    assert [move.action for move in moves] == ["promote"] * 3 + ["rollback"] * 2 + ["promote", "rollback"]
    assert [move.n for move in registry.history("like")] == list(range(1, 11))


def test_roll_back_refuses_a_damaged_version(registry: Registry, adapter: Adapter) -> None:
    a, b = (registry.publish(adapter(seed), draft()) for seed in range(2))
    registry.promote(a, "production"), registry.promote(b, "production")
    (registry.fetch(a) / "heads.safetensors").unlink()
    with pytest.raises(IntegrityError, match="heads.safetensors is missing"):
        registry.rollback("like")
    assert registry.resolve("like@production") == b


def test_the_slower_of_two_promotions_gets_a_conflict(registry: Registry, adapter: Adapter) -> None:
    a, b = (registry.publish(adapter(seed), draft(), alias=()) for seed in range(2))
    journal = Journal(registry.store, "like")
    before = journal.aliases()
    journal.append("production", a.version, "promote", expected=before)
    with pytest.raises(ConflictError, match=f"got {a.version} by entry 1; expected no holder yet"):
        journal.append("production", b.version, "promote", expected=before)
    assert journal.append("candidate", b.version, "promote", expected=before).n == 2


def test_verify_names_what_is_wrong(registry: Registry, adapter: Adapter) -> None:
    versions = [registry.publish(adapter(seed), draft(f"n{seed}")) for seed in range(6)]
    folders = [registry.fetch(version) for version in versions]
    weights = folders[0] / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (folders[1] / "heads.safetensors").unlink()
    manifest = folders[2] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    changed = folders[3] / "manifest.json"
    changed.write_text(changed.read_text().replace('"seconds": 0.0', '"seconds": 1.0'))
    (folders[4] / "extra.py").write_text("")
    entry = folders[5].parent / "aliases" / "1.json"
    entry.write_text(entry.read_text().replace("publish", "promote"))
    (registry.store.root / "Stray").write_text("")  # type: ignore[attr-defined]
    found = {str(problem) for problem in registry.verify()}
    expected = [
        f"{versions[0].ref}/adapter_model.safetensors has changed",
        f"{versions[1].ref}/heads.safetensors is missing",
        f"{versions[2].ref} manifest.json of {versions[2].ref} is not JSON",
        f"{versions[3].ref} manifest.json of {versions[3].ref} is damaged",
        f"{versions[4].ref}/extra.py is not in the manifest",
        "n5/aliases/1.json aliases/1.json of n5 is damaged",
        "Stray does not belong here",
    ]
    assert len(found) == len(expected)
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)
    for version in versions[:5]:
        with pytest.raises(IntegrityError):
            registry.fetch(version.ref)
    assert len(registry.verify("n0")) == 1


def test_an_encoder_must_be_there_and_is_kept(registry: Registry, adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"needs an encoder.*got encoder eeee"):
        registry.publish(adapter(), draft(encoder="e" * 64))
    encoder = registry.publish(write_encoder(tmp_path / "e"), draft("enc", kind="encoder", tasks=[], metrics={}), alias=())
    orphan = registry.publish(write_encoder(tmp_path / "o", seed=1), draft("enc", kind="encoder"), alias=())
    user = registry.publish(adapter(), draft(encoder=encoder.digest))
    assert registry.find(encoder.digest) == encoder
    dry = registry.gc(dry_run=True)
    assert dry.versions == (orphan.ref,) and dry.freed_bytes > 0 and registry.resolve(orphan.ref) == orphan
    assert registry.gc().versions == (orphan.ref,)
    assert registry.versions("enc") == [encoder.version]
    assert [row[1] for row in registry.lineage(user)] == [user.ref, encoder.digest]


def test_delete_is_refused_while_anything_names_the_version(registry: Registry, adapter: Adapter, tmp_path: Path) -> None:
    encoder = registry.publish(write_encoder(tmp_path / "e"), draft("enc", kind="encoder", tasks=[], metrics={}), alias=())
    parent = registry.publish(adapter(), draft(encoder=encoder.digest), alias="production")
    child = registry.publish(adapter(1), draft(parents=[parent.ref]), alias="production")
    other = registry.publish(adapter(2), draft("other", parents=[parent.digest]))
    for version, message in (
        (encoder, rf"{encoder.ref} is in use .*got the encoder of {parent.ref}; .*delete {parent.ref} first"),
        (parent, rf"got a parent of {child.ref}, a parent of {other.ref}; expected a version that nothing names"),
        (child, rf"got the alias like@latest, .*like@production; .*genre registry promote like:{parent.version} latest"),
        (other, r"got the alias other@latest; .*it is the only version of other"),
    ):
        with pytest.raises(RegistryError, match=message):
            registry.delete(version.ref)
        assert registry.resolve(version.ref) == version
    with pytest.raises(RegistryError, match=f"{child.ref} is in use"):
        registry.delete("like")
    with pytest.raises(NotFoundError, match="no version like:000000000000"):
        registry.delete("like:000000000000")


def test_delete_removes_a_version_and_its_record(registry: Registry, adapter: Adapter) -> None:
    first = registry.publish(adapter(), draft(), alias="production")
    second = registry.publish(adapter(1), draft(), alias="production")
    registry.record_baselines(first, {"like": {"item_mean": {"auc": {"value": 0.7, "interval": None, "n": 9}}}})
    (registry.fetch(first) / "heads.safetensors").write_bytes(b"damaged")
    deleted = registry.delete(first.ref)
    assert deleted.ref == first.ref and deleted.freed_bytes > 0 and deleted.formerly == ("latest", "production")
    assert registry.versions("like") == [second.version] and registry.verify() == []
    with pytest.raises(NotFoundError, match=f"no version {first.ref}"):
        registry.rollback("like")
    again = registry.publish(adapter(), draft(), alias=())
    assert again.digest == first.digest and registry.baselines(again) is None


def test_gc_keeps_history_and_parents_and_removes_the_unfinished(registry: Registry, adapter: Adapter) -> None:
    grandparent = registry.publish(adapter(), draft(), alias=())
    parent = registry.publish(adapter(1), draft(parents=[grandparent.digest]), alias=())
    registry.publish(adapter(2), draft(parents=[parent.ref]), alias="production")
    registry.publish(adapter(3), draft(), alias="production")
    lost = registry.publish(adapter(4), draft(parents=[parent.ref]), alias=())
    unfinished = registry.store.root / "like" / ".tmp-dead"  # type: ignore[attr-defined]
    unfinished.mkdir()
    (unfinished / "heads.safetensors").write_bytes(b"x" * 100)
    with registry.store.stage("like") as living:
        assert living.name not in str(registry.gc(dry_run=True).unfinished)
        swept = registry.gc()
        assert living.exists()
    assert swept.versions == (lost.ref,) and swept.unfinished == ("like/.tmp-dead",) and not unfinished.exists()
    assert len(registry.versions("like")) == 4 and registry.verify() == []


def test_diff_names_the_fields(registry: Registry, adapter: Adapter) -> None:
    a, b = registry.publish(adapter(), draft(auc=0.7)), registry.publish(adapter(1), draft(auc=0.8))
    changes = registry.diff(a, b)
    assert changes["metrics.like.auc.value"] == (0.7, 0.8)
    assert "files.adapter_model.safetensors" in changes and "name" not in changes


def test_check_fit_names_the_field_and_both_values() -> None:
    manifest = draft(encoder="e" * 64)
    fits = {"base_fingerprint": "f" * 64, "depth": 2, "tokenizer": "t" * 64, "encoder": "e" * 64}
    sequence = {"item": "token", "feedback": "rating"}
    check_fit(manifest, sequence=sequence, **fits)  # type: ignore[arg-type]
    check_fit(manifest, depth=2)
    wrong = [
        ("base_fingerprint", "a", "base.fingerprint"),
        ("depth", None, "base.depth"),
        ("tokenizer", "u", "tokenizer"),
    ]
    for argument, value, field in [*wrong, ("encoder", None, "encoder")]:
        with pytest.raises(ManifestError, match=rf"{field} differs: got (null|\"{value}\"); expected"):
            check_fit(manifest, sequence=sequence, **(fits | {argument: value}))  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match=r'sequence.item differs: got "text"; expected "token"'):
        check_fit(manifest, sequence=sequence | {"item": "text"}, **fits)  # type: ignore[arg-type]


def test_a_wrong_manifest_names_the_field(registry: Registry, adapter: Adapter) -> None:
    folder = adapter()
    for change, message in [
        ({"kind": "odd"}, "field kind: got 'odd'"),
        ({"extra": 1}, "field extra"),
        ({"base": {"name": "x", "fingerprint": "y", "depth": 0}}, "field base.depth: got 0"),
        ({"parents": ["../x"]}, "field parents|not a usable name"),
        ({"tasks": [{}]}, "every task needs a name"),
        ({"notes": {"x": float("nan")}}, "not JSON|NaN"),
    ]:
        (folder / "manifest.json").write_text(json.dumps(draft().raw() | change))
        with pytest.raises(RegistryError, match=message):
            registry.publish(folder)
    assert registry.names() == []


def test_a_version_that_cannot_be_written_leaves_nothing(
    registry: Registry, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(Exception, match="no space left") as caught:
        registry.publish(adapter(), draft())
    assert type(caught.value).__name__ == "DiskError"
    assert registry.names() == [] and registry.gc(dry_run=True).unfinished == ()


def test_list_of_10_000_versions_reads_no_manifest(registry: Registry, adapter: Adapter) -> None:
    registry.publish(adapter(), draft())
    root = registry.store.root  # type: ignore[attr-defined]
    for number in range(10_000):
        folder = root / f"n{number % 100}" / f"{number:012x}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()  # an empty one cannot be read
    rows = registry.list()
    assert len(rows) == 10_001 and rows[0].aliases == ("latest",)


def test_a_link_in_the_store_is_not_followed(registry: Registry, adapter: Adapter, tmp_path: Path) -> None:
    version = registry.publish(adapter(), draft())
    root = registry.store.root  # type: ignore[attr-defined]
    (root / "like" / version.version).rename(tmp_path / "outside")
    (root / "like" / version.version).symlink_to(tmp_path / "outside")
    with pytest.raises(NotFoundError):
        registry.fetch(version.ref)
    os.symlink(tmp_path / "outside", root / "other")
    assert registry.names() == [] and {problem.name for problem in registry.verify()} >= {"other"}
    with pytest.raises(RegistryError):
        registry.publish(write_adapter(tmp_path / "x"), draft("other"))
