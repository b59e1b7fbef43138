"""Remote stores: fsspec's memory store, and S3 over a real socket with conditional writes (moto's server)."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import draft, write_adapter, write_encoder

from genre.errors import ConflictError, IntegrityError, NotFoundError, RegistryError
from genre.registry import Registry
from genre.registry.journal import Journal

# moto and botocore use what Python and their own dependencies are phasing out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
KEYS = {"key": "test", "secret": "test"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server on this machine, with a bucket."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    s3fs.S3FileSystem(endpoint_url=endpoint, **KEYS).mkdir("bucket")
    yield endpoint
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Registry]:
    """Opens one and the same remote registry, each time as another machine (its own cache) would."""
    place = uuid.uuid4().hex
    if request.param == "memory":
        return lambda cache="cache": Registry(f"memory://{place}", cache=tmp_path / cache)
    options: dict[str, Any] = KEYS | {"endpoint_url": request.getfixturevalue("s3")}
    return lambda cache="cache": Registry(f"s3://bucket/{place}/deep", cache=tmp_path / cache, storage_options=options)


def file_system(registry: Registry) -> tuple[Any, str]:
    return registry.store._fs, registry.store._root  # type: ignore[attr-defined]


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

    monkeypatch.setattr(registry.store, "_create", killed)
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
    if isinstance(file_system(registry)[0], __import__("s3fs").S3FileSystem):
        assert sum(wins) == 1
        assert (
            file_system(registry)[0].cat_file(f"{file_system(registry)[1]}/like/aliases/2.json")
            == f"{wins.index(True)}".encode() * 20
        )
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


def test_gc_leaves_alone_what_is_young(remote: Callable[..., Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = remote()
    kept = registry.publish(write_adapter(tmp_path / "a"), draft())
    lost = registry.publish(write_adapter(tmp_path / "b", seed=1), draft(), alias=())
    assert registry.gc().versions == ()
    monkeypatch.setattr("genre.registry.maintenance.GRACE_S", -1.0)
    assert registry.gc(dry_run=True).versions == (lost.ref,)
    swept = registry.gc()
    assert swept.versions == (lost.ref,) and swept.freed_bytes > 0
    assert registry.versions("like") == [kept.version] and registry.verify() == []


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
