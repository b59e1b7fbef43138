"""Locks of a registry in a folder: by the rules of NFS, on mounts without them, and readers beside gc and failing publishers."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_fakes import draft, write_adapter

from genre.errors import DiskError, IntegrityError, NotFoundError
from genre.registry import Registry
from genre.registry.stores.local import LocalStore
from genre.registry.stores.locks import check_mount

Adapter = Callable[..., Path]
flock = fcntl.flock


def flock_as_nfs(descriptor: int, mode: int) -> None:
    """flock(2): over NFS an exclusive lock needs a file that is open for writing, a shared one a file open for reading."""
    access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if (mode & fcntl.LOCK_EX and access == os.O_RDONLY) or (mode & fcntl.LOCK_SH and access == os.O_WRONLY):
        raise OSError(errno.EBADF, "Bad file descriptor")
    flock(descriptor, mode)


def test_publishes_and_gc_keep_to_the_rules_of_nfs(registry: Registry, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", flock_as_nfs)
    version = registry.publish(adapter(), draft())
    registry.promote(version)
    store = registry.store
    with store.stage("like") as staged:
        (staged / "half").write_bytes(b"half")
        assert registry.gc().unfinished == () and (staged / "half").exists(), "its writer lives"
    left = Path(registry.url) / "like" / ".tmp-left"
    (left / "version").mkdir(parents=True)
    (left / ".owner").touch()
    (Path(registry.url) / "like" / ".tmp-bare").mkdir()
    assert registry.gc().unfinished == ("like/.tmp-bare", "like/.tmp-left")
    assert registry.verify() == [] and os.listdir(Path(registry.url) / "like" / version.version).count(".owner") == 0


def test_a_writer_of_an_earlier_release_is_left_alone(registry: Registry) -> None:
    folder = Path(registry.url) / "like" / ".tmp-earlier"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert registry.gc().unfinished == ()
    os.close(descriptor)
    assert registry.gc().unfinished == ("like/.tmp-earlier",)


MOUNT = "36 35 0:50 / {point} rw,relatime shared:1 - {kind} server:/export rw,vers=4.2,{options},addr=10.0.0.1\n"
ROOT = "22 1 254:0 / / rw - ext4 /dev/vda rw\n"


@pytest.mark.parametrize(
    ("kind", "options", "local"),
    [
        ("nfs4", "local_lock=none", ""),
        ("nfs", "nolock,local_lock=all", "local_lock=all, nolock"),
        ("nfs", "local_lock=flock", "local_lock=flock"),
        ("nfs", "local_lock=posix", ""),
        ("ext4", "nolock", ""),
    ],
)
def test_locks_that_stay_on_the_machine_are_refused(tmp_path: Path, kind: str, options: str, local: str) -> None:
    folder, mounts = tmp_path / "a mount" / "registry", tmp_path / "mountinfo"
    folder.mkdir(parents=True)
    point = str(folder.parent.resolve()).replace(" ", r"\040")
    mounts.write_text(ROOT + MOUNT.format(point=point, kind=kind, options=options))
    check_mount(tmp_path, mounts)
    if local:
        with pytest.raises(DiskError, match=f"locks hold on this machine only: got .*a mount of type {kind} with {local};"):
            check_mount(folder, mounts)
    else:
        check_mount(folder, mounts)
    check_mount(folder, tmp_path / "none")


def test_the_last_of_two_mounts_on_one_point_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    lines = [MOUNT.format(point=tmp_path.resolve(), kind="nfs", options=options) for options in ("nolock", "local_lock=none")]
    mounts.write_text(ROOT + "".join(lines) + "odd line\n")
    check_mount(tmp_path, mounts)
    mounts.write_text(ROOT + "".join(reversed(lines)))
    with pytest.raises(DiskError):
        check_mount(tmp_path, mounts)


def test_a_repeated_link_finds_its_own_first_attempt(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", repeated)
    assert registry.store.create_entry("like", 1, b"first")
    monkeypatch.undo()
    assert not registry.store.create_entry("like", 1, b"second")


def test_a_listing_beside_a_writer_is_no_gap(registry: Registry, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        registry.publish(adapter(seed), draft())
    listings = [[1, 3], [1, 2, 3]]
    monkeypatch.setattr(LocalStore, "entries", lambda store, name: listings.pop(0) if listings else [1, 3])
    assert [move.n for move in registry.history("like")] == [1, 2, 3]
    with pytest.raises(IntegrityError, match="has a gap"):
        registry.history("like")


def test_readers_beside_gc_and_failing_publishers(registry: Registry, adapter: Adapter, tmp_path: Path) -> None:
    kept = registry.publish(adapter(), draft())
    good, bad = adapter(1), write_adapter(tmp_path / "zero", seed=2, zero=True)
    over, failures = threading.Event(), []

    def work(act: Callable[[], object], *allowed: type[Exception]) -> None:
        while not over.is_set():
            try:
                act()
            except allowed:
                continue
            except Exception as error:
                failures.append(error)
                return

    def first_of_another_name() -> None:
        registry.publish(bad, draft("other"))

    readers = [
        registry.list,
        lambda: registry.versions("like"),
        lambda: registry.history("like"),
        lambda: registry.aliases("other"),
    ]
    writers = [lambda: registry.publish(good, draft(), alias=()), registry.gc]
    threads = [threading.Thread(target=work, args=(act,)) for act in (*readers, *writers)]
    threads.append(threading.Thread(target=work, args=(first_of_another_name, IntegrityError)))
    threads.append(threading.Thread(target=work, args=(lambda: registry.fetch(kept),)))
    for thread in threads:
        thread.start()
    for _ in range(6):
        assert [str(problem) for problem in registry.verify()] == []
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    registry.gc()
    assert registry.versions("like") == [kept.version] and registry.names() == ["like"]


def test_what_gc_removes_while_it_is_read_is_gone_and_not_damaged(
    registry: Registry, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(adapter(), draft())
    lost = registry.publish(adapter(1), draft(), alias=())
    open_version = "genre.registry.cache.open_version"
    found = registry.open_version("like", lost.version)

    def then_removed(*_: object) -> object:
        registry.gc()
        return found

    monkeypatch.setattr(open_version, then_removed)
    with pytest.raises(NotFoundError, match=f"no version {lost.ref}"):
        registry.promote(lost)
