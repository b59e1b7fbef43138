"""Remote stores: fsspec's memory store, and S3 over a real socket with conditional writes (moto's server)."""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import KEYS, draft, write_adapter, write_encoder

from genre.errors import ConflictError, InputError, IntegrityError, NotFoundError, RegistryError
from genre.registry import Garbage, Registry
from genre.registry.journal import Journal

# moto and botocore use what Python and their own dependencies are phasing out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Registry]:
    """Opens one and the same remote registry, each time as another machine (its own cache) would."""
    place = uuid.uuid4().hex
    if request.param == "memory":
        return lambda cache="cache": Registry(f"memory://{place}", cache=tmp_path / cache)
    options: dict[str, Any] = KEYS | {"endpoint_url": request.getfixturevalue("s3")}
    return lambda cache="cache": Registry(f"s3://bucket/{place}/deep", cache=tmp_path / cache, storage_options=options)


def file_system(registry: Registry) -> tuple[Any, str]:
    objects = registry.store.objects  # type: ignore[attr-defined]
    return objects.fs, objects.root


def test_everything_works_as_on_a_local_store(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    assert registry.names() == [] and registry.list() == []
    encoder = registry.publish(write_encoder(tmp_path / "e"), draft("enc", kind="encoder"))
    a, b = (registry.publish(write_adapter(tmp_path / f"{n}", seed=n), draft(encoder=encoder.digest)) for n in range(2))
    assert registry.publish(tmp_path / "0", draft(encoder=encoder.digest), alias=()) == a
    for version in (a, b):
        registry.promote(version, "production", floor={"auc": 0.7})
    other = remote("elsewhere")
    assert other.resolve("like@production") == b and other.find(encoder.digest) == encoder
    assert sorted(other.versions("like")) == sorted([a.version, b.version])
    folder = other.fetch("like@production")
    assert folder == tmp_path / "elsewhere" / b.digest
    assert (folder / "heads.safetensors").read_bytes() == (tmp_path / "1" / "heads.safetensors").read_bytes()
    assert other.rollback("like").version == a.version and registry.aliases("like")["production"] == a.version
    assert [move.n for move in registry.history("like")] == [1, 2, 3, 4, 5]
    assert {row.version: row.aliases for row in other.list()}[b.version] == ("latest",)
    assert registry.verify() == []
    with pytest.raises(NotFoundError, match="no alias like@candidate"):
        registry.resolve("like@candidate")


def test_a_cached_version_is_checked_and_healed(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    version = registry.publish(write_adapter(tmp_path / "a"), draft())
    weights = registry.fetch(version) / "heads.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert (registry.fetch(version) / "heads.safetensors").read_bytes() == good
    fs, root = file_system(registry)
    fs.rm(f"{root}/like/{version.version}/heads.safetensors")
    assert registry.fetch(version).is_dir(), "the digest is the identity: a whole copy is good without the store"


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "empty manifest"])
def test_a_damaged_version_never_reaches_the_cache(remote: Callable[..., Registry], tmp_path: Path, damage: str) -> None:
    registry = remote()
    version = registry.publish(write_adapter(tmp_path / "a"), draft())
    fs, root = file_system(registry)
    file = "manifest.json" if "manifest" in damage else "heads.safetensors"
    path = f"{root}/like/{version.version}/{file}"
    data = fs.cat_file(path)
    if damage == "missing":
        fs.rm(path)
    else:
        changed = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "empty manifest": b""}.get(damage, data[:-9])
        fs.pipe_file(path, changed)
    with pytest.raises(IntegrityError, match=file):
        remote("fresh").fetch(version.ref)
    assert not list((tmp_path / "fresh").glob("*")) if (tmp_path / "fresh").exists() else True
    assert [problem.name for problem in remote("other").verify()] == ["like"]


def test_the_manifest_comes_last(remote: Callable[..., Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = remote()
    first = registry.publish(write_adapter(tmp_path / "a"), draft())

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.store.objects, "create", killed)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        registry.publish(write_adapter(tmp_path / "b", seed=1), draft())
    again = remote()
    assert again.versions("like") == [first.version] and again.verify() == []
    fs, root = file_system(again)
    assert len(fs.find(f"{root}/like")) > 6 + 1, "its files are there, invisible"
    assert again.publish(tmp_path / "b", draft()).version in again.versions("like")


def test_of_two_writers_of_one_entry_one_wins(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    version = registry.publish(write_adapter(tmp_path / "a"), draft())
    barrier = threading.Barrier(8)

    def race(writer: int) -> bool:
        barrier.wait()
        return registry.store.create_entry("like", 2, f"{writer}".encode() * 20)

    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(race, range(8)))
    assert sum(wins) == 1
    fs, root = file_system(registry)
    assert fs.cat_file(f"{root}/like/aliases/2.json") == f"{wins.index(True)}".encode() * 20
    with pytest.raises(IntegrityError, match=r"aliases/2.json of like"):
        registry.resolve("like")
    assert registry.resolve(version.ref) == version


def test_s3_itself_refuses_the_second_write(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry("s3://bucket/conditional", cache=tmp_path, storage_options=KEYS | {"endpoint_url": s3})
    fs = file_system(registry)[0]
    monkeypatch.setattr(fs, "exists", lambda path: False)
    assert registry.store.create_entry("like", 1, b"first")
    assert not registry.store.create_entry("like", 1, b"second")
    assert registry.store.read("like", "aliases", "1.json", 100) == b"first"
    assert registry.store.create_entry("like", 1, b"first"), "a retried request finds its own first attempt"


def test_promotions_race_and_the_losers_get_a_conflict(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    versions = [registry.publish(write_adapter(tmp_path / f"{n}", seed=n), draft(), alias=()) for n in range(2)]
    journal = Journal(registry.store, "like")
    before = journal.aliases()
    journal.append("production", versions[0].version, "promote", expected=before)
    with pytest.raises(ConflictError, match="another writer moved like@production first"):
        journal.append("production", versions[1].version, "promote", expected=before)
    assert journal.append("candidate", versions[1].version, "promote", expected=before).n == 2


def test_gc_leaves_alone_what_is_young(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    kept = registry.publish(write_adapter(tmp_path / "a"), draft())
    lost = registry.publish(write_adapter(tmp_path / "b", seed=1), draft(), alias=())
    assert registry.gc(dry_run=True).versions == (lost.ref,)
    for _ in range(2):
        first = registry.gc()
        assert first.versions == () and first.marked == (lost.ref,) and first.freed_bytes == 0
    swept = registry.gc(grace=0)
    assert swept.versions == (lost.ref,) and swept.freed_bytes > 0 and swept.marked == ()
    assert registry.versions("like") == [kept.version] and registry.verify() == []


def test_what_gc_gave_up_is_published_again_beside_it(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    registry.publish(write_adapter(tmp_path / "a"), draft())
    lost = registry.publish(write_adapter(tmp_path / "b", seed=1), draft(), alias=())
    registry.record_baselines(lost, {"like": {}})
    assert registry.gc(grace=0).versions == (lost.ref,)
    with pytest.raises(NotFoundError, match=f"no version {lost.ref}"):
        registry.promote(lost)
    again = registry.publish(tmp_path / "b", draft(), alias="candidate")
    assert again.digest == lost.digest and registry.baselines(again) is None
    registry.record_baselines(again, {"like": {}})
    other = remote("elsewhere")
    assert (other.fetch("like@candidate") / "heads.safetensors").read_bytes() == (
        tmp_path / "b" / "heads.safetensors"
    ).read_bytes()
    assert other.verify() == [] and other.baselines("like@candidate") is not None
    assert other.gc(grace=0).versions == () and lost.version in other.versions("like")
    fs, root = file_system(registry)
    assert fs.exists(f"{root}/like/{lost.version}/.gen-1/manifest.json") and not fs.exists(
        f"{root}/like/{lost.version}/manifest.json"
    )


def test_a_mark_is_taken_back_and_the_next_one_waits_anew(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    registry.publish(write_adapter(tmp_path / "a"), draft())
    unnamed = registry.publish(write_adapter(tmp_path / "b", seed=1), draft(), alias=())
    assert registry.gc().marked == (unnamed.ref,)
    registry.publish(tmp_path / "b", draft(), alias=())
    marks = registry.store.tombstones.life  # type: ignore[attr-defined]
    assert marks(f"like/{unnamed.version}").action == "keep"
    assert registry.gc(grace=1e6).marked == (unnamed.ref,) and marks(f"like/{unnamed.version}").n == 3
    registry.promote(unnamed, "candidate")
    assert registry.gc(grace=0) == Garbage((), (), 0, dry_run=False)
    assert registry.resolve("like@candidate") == unnamed


def test_gc_waits_for_a_writer_and_not_for_one_that_was_killed(
    remote: Callable[..., Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = remote()
    registry.publish(write_adapter(tmp_path / "a"), draft())
    unnamed = registry.publish(write_adapter(tmp_path / "b", seed=1), draft(), alias=())
    with registry.store.writing():
        assert registry.gc(grace=0).marked == (unnamed.ref,)
        with pytest.raises(ConflictError, match="was not deleted: a writer is at work"):
            registry.delete(unnamed)
        assert unnamed.version in registry.versions("like") and registry.verify() == []
        monkeypatch.setattr("genre.registry.stores.tombstones.CLAIM_S", -1.0)
        assert registry.gc(grace=0).versions == (unnamed.ref,)
        monkeypatch.undo()
    with pytest.raises(ConflictError, match="writing took too long to be safe beside gc"), registry.store.writing():
        monkeypatch.setattr("genre.registry.stores.tombstones.CLAIM_S", 1e-9)
    fs, root = file_system(registry)
    assert not fs.find(f"{root}/.writers")


def test_a_damaged_mark_is_named(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    version = registry.publish(write_adapter(tmp_path / "a"), draft())
    fs, root = file_system(registry)
    for data in (b"", b"{}", b'{"action": "burn", "generation": 0}', b'{"action": "mark", "generation": -1}'):
        fs.pipe_file(f"{root}/like/{version.version}/.marks/1.json", data)
        with pytest.raises(IntegrityError, match=rf"{version.version}/.marks/1.json is"):
            registry.promote(version)
    assert registry.aliases("like") == {"latest": version.version}


def test_unknown_objects_have_a_line(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    version = registry.publish(write_adapter(tmp_path / "a"), draft())
    fs, root = file_system(registry)
    for path in (".heads/like/odd", f"like/{version.version}/.marks/01.json"):
        fs.pipe_file(f"{root}/{path}", b"{}")
    assert {str(problem) for problem in registry.verify()} == {
        ".heads/like/odd does not belong here",
        f"like/{version.version}/.marks/01.json does not belong here",
        f"{version.ref}/.marks/01.json is not in the manifest",
    }
    assert registry.promote(version).version == version.version


def ignores_the_condition(fs: Any) -> Callable[..., None]:
    write = fs.pipe_file
    return lambda path, value, mode="overwrite": write(path, value)


def looks_and_writes(fs: Any) -> Callable[..., None]:
    write, exists = fs.pipe_file, fs.exists

    def pipe_file(path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and exists(path):
            raise FileExistsError(path)
        time.sleep(0.3)
        write(path, value)

    return pipe_file


def knows_no_condition(fs: Any) -> Callable[..., None]:
    write = fs.pipe_file

    def pipe_file(path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise NotImplementedError
        write(path, value)

    return pipe_file


@pytest.mark.parametrize("store", [ignores_the_condition, looks_and_writes, knows_no_condition])
def test_a_store_without_conditional_writes_is_refused(
    remote: Callable[..., Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Callable[[Any], Callable[..., None]]
) -> None:
    registry = remote()
    fs, root = file_system(registry)
    monkeypatch.setattr(fs, "pipe_file", store(fs))
    with pytest.raises(RegistryError, match=r"has no conditional writes.*GENRE_SINGLE_WRITER=1"):
        registry.publish(write_adapter(tmp_path / "a"), draft())
    assert registry.names() == [] and not fs.find(root), "it leaves nothing behind"


def test_a_single_writer_needs_no_conditional_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENRE_SINGLE_WRITER", "1")
    registry = Registry(f"memory://{uuid.uuid4().hex}", cache=tmp_path)
    fs = file_system(registry)[0]
    monkeypatch.setattr(fs, "pipe_file", ignores_the_condition(fs))
    version = registry.publish(write_adapter(tmp_path / "a"), draft(), alias="production")
    assert registry.resolve("like@production") == version and registry.gc(grace=0).versions == ()
    monkeypatch.setenv("GENRE_SINGLE_WRITER", "yes")
    with pytest.raises(InputError, match="GENRE_SINGLE_WRITER cannot be read"):
        Registry("memory://any", cache=tmp_path)


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf")])
def test_a_grace_time_that_is_none(grace: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a grace time"):
        Registry(tmp_path / "registry").gc(grace=grace)


def test_delete(remote: Callable[..., Registry], tmp_path: Path) -> None:
    registry = remote()
    kept = registry.publish(write_adapter(tmp_path / "a"), draft())
    lost = registry.publish(write_adapter(tmp_path / "b", seed=1), draft(), alias=())
    with pytest.raises(RegistryError, match="got the alias like@latest"):
        registry.delete(kept)
    assert registry.delete(lost).freed_bytes > 0
    assert registry.versions("like") == [kept.version] and registry.verify() == []


def test_an_unknown_file_system_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no file system for this registry.*nope://x"):
        Registry("nope://x", cache=tmp_path)
