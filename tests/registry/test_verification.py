"""`verify` reads the store: what is missing, cut, exchanged or unknown has a line."""

import shutil
import uuid
from pathlib import Path

import pytest
from journal_fakes import as_earlier_release, entry_of, read_entry, rewrite
from registry_fakes import draft, write_adapter, write_encoder

from genre.errors import IntegrityError, NotFoundError
from genre.registry import Registry
from genre.registry.journal import Journal


def lines(registry: Registry, name: str | None = None) -> list[str]:
    return [str(problem) for problem in registry.verify(name)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three versions, of which production has named two."""
    folder = tmp_path_factory.mktemp("made")
    registry = Registry(folder / "registry")
    versions = [registry.publish(write_adapter(folder / str(seed), seed=seed), draft()) for seed in range(3)]
    for version in versions[:2]:
        registry.promote(version)
    return folder / "registry", versions


@pytest.fixture
def moved(made, registry):
    """The same in a registry of one's own."""
    shutil.copytree(made[0], registry.url)
    return made[1]


def test_a_whole_copy_in_the_cache_does_not_hide_damage_in_the_store(tmp_path):
    registry = Registry(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    version = registry.publish(write_adapter(tmp_path / "a"), draft())
    registry.fetch(version)
    fs, root = registry.store.objects.fs, registry.store.objects.root
    path = f"{root}/like/{version.version}/heads.safetensors"
    whole = fs.cat_file(path)
    fs.pipe_file(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "heads.safetensors has changed" in lines(registry)[0] and registry.fetch(version).is_dir()
    fs.rm(path)
    assert "heads.safetensors is missing" in lines(registry)[0]
    fs.pipe_file(path, whole)
    assert lines(registry) == [] and not list((tmp_path / "cache").glob(".tmp-*"))


def test_a_missing_version_that_only_the_history_names(registry, moved):
    shutil.rmtree(Path(registry.url) / "like" / moved[0].version)
    (line,) = lines(registry)
    assert line.startswith(f"{moved[0].ref} is missing but the history of production names it; restore it from a copy")
    shutil.rmtree(Path(registry.url) / "like" / moved[1].version)
    assert f"{moved[1].ref} is missing but production names it" in lines(registry)


def test_a_deletion_on_purpose_is_recorded(registry, moved):
    assert registry.delete(moved[0].ref).formerly == ("latest", "production")
    move = registry.history("like")[-1]
    assert (move.action, move.alias, move.version, move.digest) == ("delete", "", moved[0].version, moved[0].digest)
    assert lines(registry) == [] and registry.aliases("like") == {"latest": moved[2].version, "production": moved[1].version}
    with pytest.raises(NotFoundError, match=f"no version {moved[0].ref}"):
        registry.delete(moved[0].ref)
    registry.promote(moved[2])
    shutil.rmtree(Path(registry.url) / "like" / moved[1].version)  # by an earlier release, or by hand
    assert len(lines(registry)) == 1
    assert registry.delete(moved[1].ref).freed_bytes == 0 and lines(registry) == []


def test_a_name_whose_versions_are_gone(registry, moved):
    for version in moved:
        shutil.rmtree(Path(registry.url) / "like" / version.version)
    found = lines(registry, "like")
    assert "like has a journal, but all of its versions are gone" in found and len(found) == 4
    with pytest.raises(NotFoundError, match="no adapter 'other'"):
        registry.verify("other")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["like/aliases/5.json"], "like/aliases is cut: it ends with 4.json, but 5.json was written"),
        (["like/aliases/4.json", "like/aliases/5.json"], "like/aliases is cut: it ends with 3.json"),
        (["like/aliases"], "like/aliases is gone: 5 entries were written"),
        (["like"], "like/aliases is gone: 5 entries were written"),
        (["like/aliases/2.json"], "like/aliases/2.json is missing"),
    ],
)
def test_a_journal_without_an_entry(registry, moved, gone, message):
    for each in gone:
        path = Path(registry.url) / each
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert any(line.startswith(message) for line in lines(registry)), lines(registry)


def test_a_loss_is_still_reported_after_the_next_moves(registry, moved):
    entry_of(registry, 5).unlink()
    for version in moved:
        registry.promote(version, "candidate")
    assert any("aliases/5.json is not the entry that was written" in line for line in lines(registry))
    shutil.rmtree(Path(registry.url) / ".heads" / "like")
    registry.promote(moved[0], "candidate")
    assert lines(registry) == []


def test_an_entry_that_was_changed_and_sealed_again_breaks_the_chain(registry, moved):
    rewrite(entry_of(registry, 2), lambda raw: raw.update(actor="somebody else"))
    assert lines(registry) == ["like/aliases/3.json was written after another entry than the one before it"]


def test_an_entry_whose_state_is_made_up(registry, moved):
    held = read_entry(registry, 4)["state"]["production"]
    rewrite(entry_of(registry, 5), lambda raw: raw["state"].update(candidate=held))
    assert any("5.json does not follow from the entry before" in line for line in lines(registry))


def test_no_entry_leaves_the_chain(registry, moved):
    rewrite(entry_of(registry, 5), as_earlier_release)
    assert any("5.json is not chained, but the entry before it is" in line for line in lines(registry))


def test_the_entry_of_another_name_is_refused(registry, adapter):
    registry.publish(adapter(), draft("like")), registry.publish(adapter(), draft("other"))
    shutil.copy(entry_of(registry, 1, "other"), entry_of(registry, 1))
    assert any("aliases/1.json of like is damaged" in line for line in lines(registry))


def test_a_head_that_was_not_written_in_time_is_no_loss(registry, moved, monkeypatch):
    """A writer may be killed between its entry and the head, and of two writers the slower one may write an older head."""
    monkeypatch.setattr(Journal, "_note_head", lambda *given: None)
    registry.promote(moved[2])
    assert lines(registry) == []
    monkeypatch.undo()
    registry.promote(moved[1])
    entry_of(registry, 7).unlink()
    assert any("is cut: it ends with 6.json, but 7.json was written" in line for line in lines(registry))


def test_unknown_files_have_a_line(registry, moved):
    root = Path(registry.url)
    folder = root / "like" / moved[0].version
    (root / "like" / "baselines").mkdir()
    (root / "like" / "baselines" / "000000000000.json").write_text("{}")
    (root / ".heads" / "odd").write_text("")
    (root / ".heads" / "like" / "odd").write_text("")
    (folder / "notes.txt").write_text("more")
    expected = {
        ".heads/odd does not belong here",
        ".heads/like/odd does not belong here",
        "like/baselines/000000000000.json belongs to no version",
        f"{moved[0].ref}/notes.txt is not in the manifest",
    }
    assert expected == set(lines(registry))
    assert expected == {str(problem) for problem in registry.verify(hashes=False)}


@pytest.mark.parametrize(
    "change", [{"action": "\x1b[31m"}, {"actor": {"id": 1}}, {"created": 5}, {"checks": [None]}, {"previous": 7}], ids=repr
)
def test_an_entry_of_other_kinds_of_values_is_damaged(registry, moved, change):
    rewrite(entry_of(registry, 5), lambda raw: raw.update(change))
    assert lines(registry)[0].startswith("like/aliases/5.json aliases/5.json of like is damaged")
    for call in (registry.history, registry.aliases, registry.resolve):
        with pytest.raises(IntegrityError, match=r"aliases/5.json of like is damaged"):
            call("like")


def test_a_missing_or_damaged_encoder_has_a_line_of_its_own(registry, adapter, tmp_path):
    encoder = registry.publish(write_encoder(tmp_path / "e"), draft("enc", kind="encoder", tasks=[], metrics={}), alias=())
    user = registry.publish(adapter(), draft(encoder=encoder.digest))
    manifest = Path(registry.url) / "enc" / encoder.version / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-9])
    assert {line.split(" ")[0] for line in lines(registry)} == {encoder.ref, user.ref}
    shutil.rmtree(manifest.parent)
    assert f"{user.ref} names an encoder that is not here: {encoder.digest}" in lines(registry)


def test_moves_record_the_actor(registry, adapter, monkeypatch):
    monkeypatch.setenv("GENRE_ACTOR", "nightly refresh")
    other = Registry(registry.url)
    other.publish(adapter(), draft(), alias="production")
    assert [move.actor for move in other.history("like")] == ["nightly refresh"] * 2
    Registry(registry.url, actor="ann").promote(other.publish(adapter(1), draft()))
    assert registry.history("like")[-1].actor == "ann"
