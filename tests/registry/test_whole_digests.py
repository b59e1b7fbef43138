"""References bind the whole digest: a version with the same first digits never takes the place of another."""

import contextlib
import shutil
from pathlib import Path

import pytest
from journal_fakes import as_earlier_release, entry_of, publish_twins, read_entry, rewrite
from registry_fakes import draft, write_adapter, write_encoder

from genre.errors import IntegrityError, NotFoundError, RegistryError
from genre.registry import Registry


def put_in_place(registry: Registry, second, other: Registry) -> None:
    place = Path(registry.url) / "like" / second.version
    shutil.rmtree(place)
    shutil.copytree(other.fetch(second), place)


def test_a_second_version_with_the_same_digits_is_refused(registry, tmp_path, monkeypatch):
    first, second, _ = publish_twins(tmp_path, monkeypatch, registry)
    with pytest.raises(RegistryError, match=f"another version of like has the same 1 first digits: got digest {second.digest}; "):
        registry.publish(tmp_path / "twin", second.manifest.model_copy(update={"version": "", "digest": "", "files": {}}))
    assert registry.resolve("like@production").digest == first.digest and registry.verify() == []
    assert registry.publish(tmp_path / "twin", draft()).digest == first.digest


def test_a_twin_in_the_place_of_a_version_is_found_and_never_loaded(registry, tmp_path, monkeypatch):
    first, second, other = publish_twins(tmp_path, monkeypatch, registry)
    registry.promote(first, "candidate")
    put_in_place(registry, second, other)
    for act in (
        lambda: registry.resolve("like@production"),
        lambda: registry.fetch("like"),
        lambda: registry.fetch(first),
        lambda: registry.fetch(first, recheck=False),
        lambda: registry.resolve(first.exact),
        lambda: registry.promote(first, "staging"),
    ):
        with pytest.raises(IntegrityError, match="is not the version that was named: got a version with digest"):
            act()
    with pytest.raises(NotFoundError, match=f"no version with digest {first.digest}"):
        registry.find(first.digest)
    assert registry.find(second.digest).digest == second.digest
    (problem,) = registry.verify()
    assert "is not the version that candidate was moved to" in str(problem) and first.digest in str(problem)


def test_a_roll_back_is_bound_to_what_was_promoted(registry, tmp_path, monkeypatch):
    first, second, other = publish_twins(tmp_path, monkeypatch, registry)
    for number in range(100):  # until one begins with another digit
        with contextlib.suppress(RegistryError):
            later = registry.publish(tmp_path / "twin", draft(notes={"later": number}), alias="production")
            break
    put_in_place(registry, second, other)
    with pytest.raises(IntegrityError, match="is not the version that was named"):
        registry.rollback("like")
    assert registry.resolve("like@production").digest == later.digest


def test_more_digits_than_12_are_compared(registry, adapter):
    version = registry.publish(adapter(), draft())
    for digits in (12, 13, 40, 64):
        assert registry.resolve(f"like:{version.digest[:digits]}") == version
    assert registry.open_version("like", version.digest) == version and version.exact == f"like:{version.digest}"
    wrong = version.digest[:63] + ("0" if version.digest[63] != "0" else "1")
    with pytest.raises(IntegrityError, match=f"expected digest {wrong}"):
        registry.resolve(f"like:{wrong}")
    for text in ("like:" + version.digest[:11], "like:" + version.digest + "0", "like:" + "G" * 12):
        with pytest.raises(RegistryError, match="not a version"):
            registry.resolve(text)
    with pytest.raises(RegistryError, match="in use"):
        registry.delete(version.exact)
    with pytest.raises(IntegrityError, match="is not the version"):
        registry.delete(f"like:{wrong}")
    assert registry.publish(adapter(1), draft(parents=[version.exact])).manifest.parents == (version.exact,)
    assert registry.lineage("like")[1][2] == version and registry.gc().versions == ()


def test_promotions_compare_with_the_digest(registry, adapter):
    first, second = (registry.publish(adapter(seed), draft()) for seed in range(2))
    registry.promote(first, "production", instead_of=None)
    assert registry.promote(second, "production", instead_of=first.digest).digest == second.digest


def test_an_alias_of_an_earlier_release_means_what_stands_there(registry, adapter):
    first = registry.publish(adapter(), draft(), alias="production")
    for number in (1, 2):
        rewrite(entry_of(registry, number), as_earlier_release)
    shutil.rmtree(Path(registry.url) / ".heads")
    assert registry.verify() == [] and registry.resolve("like@production") == first
    move = registry.history("like")[0]
    assert move.digest is None and move.actor is None
    before = registry.aliases("like")
    second = registry.publish(adapter(1), draft())
    raw = read_entry(registry, 3)
    assert raw["state"]["production"]["digest"] == first.digest and raw["state"]["latest"]["digest"] == second.digest
    assert raw["before"] and registry.aliases("like") == before | {"latest": second.version} and registry.verify() == []
    registry.promote(second)
    assert registry.rollback("like").digest == first.digest and registry.verify() == []


def test_an_alias_of_an_earlier_release_without_its_version_is_told(registry, adapter):
    first = registry.publish(adapter(), draft(), alias=["production", "old"])
    for number in (1, 2, 3):
        rewrite(entry_of(registry, number), as_earlier_release)
    shutil.rmtree(Path(registry.url) / "like" / first.version)
    registry.publish(adapter(1), draft(), alias="production")
    with pytest.raises(NotFoundError, match=f"no version {first.ref}"):
        registry.resolve("like@old")
    assert f"{first.ref} is missing but old names it" in str(registry.verify()[-1])


def test_a_damaged_version_elsewhere_does_not_hide_an_encoder(registry, tmp_path):
    encoders = [
        registry.publish(write_encoder(tmp_path / f"e{n}"), draft(f"enc{n}", kind="encoder", tasks=[], metrics={}), alias=())
        for n in range(2)
    ]
    shutil.rmtree(Path(registry.url) / "enc0")
    shutil.copytree(Path(registry.url) / "enc1", Path(registry.url) / "enc0")  # under a name that it does not have
    assert registry.find(encoders[1].digest) == encoders[1]
    registry.publish(write_adapter(tmp_path / "a"), draft(encoder=encoders[1].digest))
    (Path(registry.url) / "enc1" / encoders[1].version / "manifest.json").write_text("{}")
    with pytest.raises(IntegrityError):
        registry.find(encoders[1].digest)
    assert {problem.name for problem in registry.verify()} == {"enc0", "enc1", "like"}
