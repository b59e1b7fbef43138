"""Records beside versions: a version's baselines come after it is published and leave its digest alone."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_fakes import draft, write_adapter

from genre.errors import IntegrityError, NotFoundError
from genre.registry import Registry

FIGURES = {"like": {"additive": {"auc": {"value": 0.72, "interval": [0.71, 0.73], "n": 100}}}}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "local":
        return Registry(tmp_path / "registry")
    return Registry(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")


def test_a_record_is_read_back_and_moves_nothing(store: Registry, tmp_path: Path) -> None:
    version = store.publish(write_adapter(tmp_path / "0"), draft(), alias="production")
    assert store.baselines("like") is None
    before = store.history("like")
    store.record_baselines("like", FIGURES, notes=["like: ease knows 10 items"])
    found = store.baselines(version)
    assert found is not None and found.version == version.version
    assert found.baselines["like"]["additive"]["auc"].value == 0.72 and found.notes == ("like: ease knows 10 items",)
    assert store.resolve("like") == version and store.history("like") == before
    assert store.verify() == [] and store.versions("like") == [version.version] and store.names() == ["like"]
    store.record_baselines("like", {"like": {}})  # a later one replaces it
    again = store.baselines("like")
    assert again is not None and again.baselines == {"like": {}} and again.notes == ()
    with pytest.raises(NotFoundError):
        store.record_baselines("like:0123456789ab", FIGURES)


def test_an_audit_is_read_back_and_moves_nothing(store: Registry, tmp_path: Path) -> None:
    version = store.publish(write_adapter(tmp_path / "0"), draft(), alias="production")
    assert store.audit_of("like") is None
    store.record_baselines("like", FIGURES)
    store.record_audit("like", {"task": "like"}, lines=["epsilon at least 1.20"], page="<html>")
    found = store.audit_of(version)
    assert found is not None and (found.report, found.lines, found.page) == (
        {"task": "like"},
        ("epsilon at least 1.20",),
        "<html>",
    )
    assert store.baselines("like") is not None and store.verify() == [] and store.names() == ["like"]
    other = store.publish(write_adapter(tmp_path / "1", seed=1), draft(), alias="production")
    store.record_audit(other, {}, lines=[], page="")
    store.rollback("like", "production")
    assert store.audit_of("like@production") == found
    with pytest.raises(NotFoundError):
        store.record_audit("like:0123456789ab", {}, lines=[], page="")


def test_a_damaged_audit_is_named_and_goes_with_its_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    kept = registry.publish(write_adapter(tmp_path / "0"), draft())
    lost = registry.publish(write_adapter(tmp_path / "1", seed=1), draft(), alias=())
    for version in (kept, lost):
        registry.record_audit(version, {"epsilon": 1.2}, lines=["epsilon"], page="")
    file = tmp_path / "registry" / "like" / "audits" / f"{kept.version}.json"
    file.write_text(file.read_text().replace("1.2", "0.2"))
    with pytest.raises(IntegrityError, match=r"audits/.*\.json of like is damaged"):
        registry.audit_of(kept)
    assert len(registry.verify()) == 1 and registry.resolve(kept.ref) == kept
    registry.delete(lost)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    (file.parent / "notes.txt").write_text("mine")
    assert any("notes.txt" in str(problem) for problem in registry.verify())


def test_a_record_goes_with_its_version(store: Registry, tmp_path: Path) -> None:
    kept = store.publish(write_adapter(tmp_path / "0"), draft())
    lost = store.publish(write_adapter(tmp_path / "1", seed=1), draft(), alias=())
    for version in (kept, lost):
        store.record_baselines(version, FIGURES)
    assert store.gc(grace=0).versions == (lost.ref,)
    assert store.baselines(kept) is not None and store.verify() == []
    with pytest.raises(NotFoundError):
        store.store.read("like", "baselines", f"{lost.version}.json", 100)


@pytest.mark.parametrize("change", ["value", "version", "cut", "extra"])
def test_a_damaged_record_is_named_and_hides_no_version(change: str, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    version = registry.publish(write_adapter(tmp_path / "0"), draft())
    registry.record_baselines(version, FIGURES)
    file = tmp_path / "registry" / "like" / "baselines" / f"{version.version}.json"
    damage: dict[str, Callable[[str], str]] = {
        "value": lambda text: text.replace("0.72", "0.92"),
        "version": lambda text: text.replace(version.version, "0" * 12),
        "cut": lambda text: text[:-20],
        "extra": lambda text: json.dumps(json.loads(text) | {"more": 1}),
    }
    file.write_text(damage[change](file.read_text()))
    with pytest.raises(IntegrityError, match=r"baselines/.*\.json of like is"):
        registry.baselines("like")
    assert len(registry.verify()) == 1 and registry.fetch("like").is_dir()


def test_what_does_not_belong_among_the_records_is_found(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.record_baselines(registry.publish(write_adapter(tmp_path / "0"), draft()), FIGURES)
    folder = tmp_path / "registry" / "like" / "baselines"
    (folder / "notes.txt").touch()
    assert [problem.name for problem in registry.verify()] == ["like/baselines/notes.txt"]
    (folder / "notes.txt").rename(folder / ".tmp-1234")  # an unfinished write
    assert registry.verify() == [] and registry.gc().unfinished == ("like/baselines/.tmp-1234",)
