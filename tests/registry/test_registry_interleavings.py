"""gc, publish, promote, rollback and delete on an object store: in any order of their requests, nothing finished is lost."""

import contextlib
import hashlib
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import KEYS, draft, write_adapter, write_encoder
from stepping import Actor, Bucket, Plan, lengths_of, opened, run, switches

from genre.errors import GenreError, NotFoundError, RegistryError
from genre.registry import Registry, Version, maintenance
from genre.registry.stores.objects import Objects
from genre.registry.stores.remote import RemoteStore
from genre.registry.stores.tombstones import Tombstones

ROOT = "bucket/registry"
SHARE = 8
LATER = 100_000.0


@dataclass(frozen=True)
class World:
    """A store with a version that production names, and versions that nothing names.

    Attributes:
        bucket: The store, as it is before each plan.
        old: A version that production named before.
        unnamed: A version without an alias.
        encoder: An encoder without an alias.
        user: A version without an alias, whose encoder that is.
        folders: The files that versions were made of, by name.
    """

    bucket: Bucket
    old: Version
    unnamed: Version
    encoder: Version
    user: Version
    folders: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folders, bucket = tmp_path_factory.mktemp("folders"), Bucket()
    registry = opened(bucket, ROOT, folders / "cache")
    for seed in range(5):
        write_adapter(folders / str(seed), seed=seed)
    old = registry.publish(folders / "0", draft(), alias="production")
    registry.publish(folders / "1", draft(), alias="production")
    unnamed = registry.publish(folders / "2", draft(), alias=())
    encoder = registry.publish(write_encoder(folders / "e"), draft("enc", kind="encoder"), alias=())
    user = registry.publish(folders / "3", draft(encoder=encoder.digest), alias=())
    return World(bucket, old, unnamed, encoder, user, folders)


def marked(world: World) -> Bucket:
    """The store in which gc has marked everything unnamed long ago."""
    bucket = world.bucket.copy()
    assert len(opened(bucket, ROOT, world.folders / "cache").gc().marked) == 3
    bucket.now += LATER
    return bucket


def interrupted(world: World) -> Bucket:
    """A store in which a publish of new content was killed before its manifest, and gc has marked what it left."""
    bucket = marked(world)
    registry = opened(bucket, ROOT, world.folders / "cache")
    new = registry.publish(world.folders / "4", draft(), alias=())
    bucket.rm_file(f"{ROOT}/like/{new.version}/manifest.json")
    assert registry.gc(grace=1e9).marked[-1] == f"like/{new.version}"
    bucket.now += LATER
    return bucket


def gone_before(world: World) -> Bucket:
    """A store whose gc was killed when it had given up the unnamed version, and removed one of its files."""
    bucket = marked(world)
    lives = opened(bucket, ROOT, world.folders / "cache").store.tombstones  # type: ignore[attr-defined]
    assert lives.bury(f"like/{world.unnamed.version}", 1)
    bucket.rm_file(f"{ROOT}/like/{world.unnamed.version}/heads.safetensors")
    return bucket


def gc(registry: Registry) -> Any:
    return registry.gc()


def sweep(registry: Registry) -> Any:
    return registry.gc(grace=0)


def publish(world: World, folder: str, alias: str = "candidate", **changes: Any) -> Actor:
    return lambda registry: registry.publish(world.folders / folder, draft(**changes), alias=alias)


def record(world: World) -> Actor:
    def write(registry: Registry) -> None:
        registry.promote(world.unnamed, "candidate")
        registry.record_baselines(world.unnamed, {"like": {}})

    return write


Scene = tuple[Callable[[World], Bucket], Callable[[World], dict[str, Actor]]]
SCENES: dict[str, Scene] = {
    "the unnamed version is published again": (marked, lambda w: {"gc": gc, "publish": publish(w, "2")}),
    "it is published again while gc marks and sweeps at once": (
        lambda w: w.bucket.copy(),
        lambda w: {"gc": sweep, "publish": publish(w, "2")},
    ),
    "it is published again after gc was killed": (gone_before, lambda w: {"gc": gc, "publish": publish(w, "2")}),
    "a killed publish is done again": (interrupted, lambda w: {"gc": gc, "publish": publish(w, "4")}),
    "the unnamed version is promoted": (marked, lambda w: {"gc": gc, "promote": lambda r: r.promote(w.unnamed)}),
    "it is promoted while gc marks and sweeps at once": (
        lambda w: w.bucket.copy(),
        lambda w: {"gc": sweep, "promote": lambda r: r.promote(w.unnamed)},
    ),
    "it is promoted, with a record": (marked, lambda w: {"gc": gc, "record": record(w)}),
    "the user of an unnamed encoder is promoted": (marked, lambda w: {"gc": gc, "promote": lambda r: r.promote(w.user)}),
    "a new version needs the unnamed encoder": (
        marked,
        lambda w: {"gc": gc, "publish": publish(w, "4", encoder=w.encoder.digest)},
    ),
    "the unnamed version is deleted and promoted": (
        lambda w: w.bucket.copy(),
        lambda w: {"delete": lambda r: r.delete(w.unnamed), "promote": lambda r: r.promote(w.unnamed)},
    ),
    "an old version is deleted and rolled back to": (
        lambda w: w.bucket.copy(),
        lambda w: {"delete": lambda r: r.delete(w.old), "rollback": lambda r: r.rollback("like")},
    ),
    "the unnamed version is deleted and published again": (
        marked,
        lambda w: {"delete": lambda r: r.delete(w.unnamed), "publish": publish(w, "2")},
    ),
}
AT_ONCE = "it is promoted while gc marks and sweeps at once"


def sweep_what_one_look_finds(patch: pytest.MonkeyPatch) -> None:
    """As gc did before there were tombstones."""
    patch.setattr(RemoteStore, "settled", lambda store, paths, grace: dict.fromkeys(paths, 0))
    patch.setattr(RemoteStore, "bury", lambda store, path, mark: True)
    patch.setattr(RemoteStore, "remove", lambda store, name, version: remove_all(store.objects, f"{name}/{version}"))


def remove_all(objects: Objects, path: str) -> None:
    for file in objects.find(path):
        objects.remove(file)


def look_once(patch: pytest.MonkeyPatch) -> None:
    look = maintenance._look
    patch.setattr(maintenance, "_look", lambda store: store.__dict__.setdefault("looked", look(store)))


def bury_in_any_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        maintenance, "_bury", lambda store, found, settled: [path for path in settled if store.bury(path, settled[path])]
    )


def publish_into_the_same_folder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("genre.registry.stores.remote._folder", lambda path, generation: path)


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the gc of before": ("the unnamed version is promoted", sweep_what_one_look_finds),
    "no claims": (AT_ONCE, lambda patch: patch.setattr(Tombstones, "writing", lambda self: contextlib.nullcontext())),
    "no taking back": ("the unnamed version is promoted", lambda patch: patch.setattr(Tombstones, "keep", Tombstones.life)),
    "no second look": (AT_ONCE, look_once),
    "no order": ("the user of an unnamed encoder is promoted", bury_in_any_order),
    "no generations": ("it is published again after gc was killed", publish_into_the_same_folder),
}
MAY_FAIL: dict[str, type[GenreError]] = {
    "promote": NotFoundError,
    "record": NotFoundError,
    "rollback": NotFoundError,
    "publish": GenreError,  # only for want of the encoder, see `lost`
    "delete": RegistryError,
}


def lost(fs: Any, root: str, cache: Path, results: dict[str, Any]) -> list[str]:
    """What is wrong after all actors have ended; and again after another gc, which must find nothing to lose."""
    found = []
    for name, result in results.items():
        if isinstance(result, Exception) and not isinstance(result, MAY_FAIL.get(name, ())):
            found.append(f"{name} failed: {type(result).__name__}: {result}")
        if name == "publish" and isinstance(result, Exception) and "needs an encoder" not in str(result):
            found.append(f"{name} failed: {result}")
    registry = opened(fs, root, cache)
    for moment in ("after", "after another gc"):
        named = {f"{name}:{version}" for name in ("like", "enc") for version in registry.aliases(name).values()}
        for ref in named | {result.ref for result in results.values() if isinstance(result, Version)}:
            found += [f"{moment}: {ref}: {problem}" for problem in damage(registry, ref)]
        if "record" in results and not isinstance(results["record"], Exception) and registry.baselines("like@candidate") is None:
            found.append(f"{moment}: the record is gone")
        found += [f"{moment}: {problem}" for problem in registry.verify(hashes=False)]
        registry.gc(grace=0)
    return found


def damage(registry: Registry, ref: str) -> list[str]:
    """What the store, not a cache, lacks of a version."""
    store, found = registry.store, []
    try:
        version = registry.resolve(ref)
        sizes = store.files(version.name, version.version)
        for file, digest in version.manifest.files.items():
            data = store.read(version.name, version.version, file, 2**20)
            if file not in sizes or hashlib.sha256(data).hexdigest() != digest:
                found.append(f"{file} is missing or has changed")
    except RegistryError as error:
        found.append(str(error))
    return found


def check(world: World, scene: str, plan: Plan) -> list[str]:
    prepare, actors = SCENES[scene]
    bucket = prepared(world, prepare).copy()
    turns = run(bucket, ROOT, world.folders / "cache", actors(world), plan)
    found = lost(bucket, ROOT, world.folders / "cache", turns.results)
    return [f"{scene}, {plan}: {problem}\n" + "\n".join(turns.trace) for problem in found]


PREPARED: dict[tuple[int, Any], Bucket] = {}


def prepared(world: World, prepare: Callable[[World], Bucket]) -> Bucket:
    key = (id(world), prepare)
    if key not in PREPARED:
        PREPARED[key] = prepare(world)
    return PREPARED[key]


def plans(world: World, scene: str, rows: int) -> Iterator[Plan]:
    prepare, actors = SCENES[scene]
    alone = actors(world)
    lengths = {}
    for name in alone:
        turns = run(prepared(world, prepare).copy(), ROOT, world.folders / "cache", {name: alone[name]}, [])
        lengths |= lengths_of(turns, [name])
    return switches(lengths, rows)


@pytest.mark.parametrize("scene", SCENES)
def test_one_runs_at_any_moment_of_the_other(world: World, scene: str) -> None:
    """A share of the moments, that of every scene another one."""
    for plan in list(plans(world, scene, 1))[list(SCENES).index(scene) % SHARE :: SHARE]:
        assert check(world, scene, plan) == []


@pytest.mark.slow  # 1,300 plans of one row, 3,600 of two: two minutes
@pytest.mark.parametrize("scene", SCENES)
def test_every_moment_and_many_pairs_of_moments(world: World, scene: str) -> None:
    pairs = list(plans(world, scene, 2))
    for plan in (*plans(world, scene, 1), *random.Random(scene).sample(pairs, min(300, len(pairs)))):
        assert check(world, scene, plan) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_without_a_part_of_the_protocol_a_plan_loses_something(world: World, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    scene, plant = FAULTS[fault]
    plant(monkeypatch)
    assert any(check(world, scene, plan) for plan in plans(world, scene, 1))


class Aged:
    """A server on which everything that was there at first is old."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._old = set(fs.find(root))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def find(self, path: str, detail: bool) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self._fs.find(path, detail=detail)
        for old in self._old & found.keys():
            found[old] |= {"LastModified": found[old]["LastModified"] - timedelta(seconds=LATER)}
        return found


def on_s3(world: World, scene: str, fs: Any, plan: Plan) -> list[str]:
    """A plan of a scene on a real server."""
    prepare, actors = SCENES[scene]
    root = f"bucket/{uuid.uuid4().hex}/registry"
    for path, (data, _) in prepared(world, prepare).objects.items():
        fs.pipe_file(path.replace(ROOT, root), data)
    aged = Aged(fs, root)
    turns = run(aged, root, world.folders / "cache", actors(world), plan)
    return [f"{scene}, {plan}: {problem}" for problem in lost(aged, root, world.folders / "cache", turns.results)]


MARKED = [name for name, (prepare, _) in SCENES.items() if prepare in (marked, interrupted, gone_before)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("scene", "share"),
    [
        ("the unnamed version is published again", 100),
        *(pytest.param(scene, 8, marks=pytest.mark.slow) for scene in MARKED),  # some 110 plans at a second each
    ],
)
def test_a_sample_on_a_real_server(world: World, s3: str, scene: str, share: int) -> None:
    fs = pytest.importorskip("s3fs").S3FileSystem(endpoint_url=s3, use_listings_cache=False, **KEYS)
    for plan in list(plans(world, scene, 1))[share // 3 :: share]:
        assert on_s3(world, scene, fs, plan) == []
