"""Limits that are checked before the work that they bound, on harmless stand-ins: small sizes, limits that are said here."""

import errno
import fcntl
import json
import os
import shutil
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from registry_fakes import BASE, PATH, draft, lora_config, write_adapter, write_encoder
from safetensors.numpy import load_file, save_file

from genre.errors import DiskError, IntegrityError, ManifestError, NotFoundError, RegistryError
from genre.registry import Registry, integrity, limits, publishing
from genre.registry.journal import Journal
from genre.registry.manifest import checksum_of, digest_of, render
from genre.registry.weights import lora


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


def stored(registry, tmp_path, **options):
    """A published version and its folder."""
    version = registry.publish(write_adapter(tmp_path / "made", **options), draft())
    return version, Path(registry.url) / version.name / version.version


def hollow(path, size):
    """A file of one hole: it takes no room."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)


def never(*_, **__):
    raise AssertionError("it was hashed")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "holes", "large", "total"])
def test_kinds_and_sizes_are_looked_at_before_anything_is_hashed(registry, tmp_path, monkeypatch, kind):
    version, folder = stored(registry, tmp_path)
    target = folder / "adapter_model.safetensors"
    target.unlink()
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "link":
        target.symlink_to("/dev/zero")
    else:
        monkeypatch.setattr(limits, "HOLLOW_BYTES", 2**16 if kind == "holes" else 2**40)
        hollow(target, 2**20)
        if kind != "holes":
            monkeypatch.setattr(limits, "MAX_TOTAL_BYTES" if kind == "total" else "MAX_FILE_BYTES", 2**19)
            monkeypatch.setitem(integrity._KINDS, "safetensors", (2**19 if kind == "large" else 2**30, never))
    if kind in ("holes", "large", "total"):
        monkeypatch.setattr(integrity, "_hash", never)
    with pytest.raises(IntegrityError, match="is damaged: adapter_model.safetensors is not (a plain file|acceptable)"):
        registry.fetch(version)


def test_a_file_of_holes_is_not_copied_either(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "HOLLOW_BYTES", 2**16)
    folder = write_adapter(tmp_path / "made")
    hollow(folder / "heads.safetensors", 2**20)
    with pytest.raises(IntegrityError, match="heads.safetensors is mostly holes: got 1,048,576 bytes, of which 0 were written"):
        registry.publish(folder, draft())
    (folder / "heads.safetensors").write_bytes(os.urandom(2**20))
    limits.check_written(folder / "heads.safetensors", os.stat(folder / "heads.safetensors"))


@pytest.mark.parametrize("name", ["manifest.json", "1.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_no_pipe_is_waited_for_and_no_link_followed(registry, tmp_path, name, kind):
    version, folder = stored(registry, tmp_path)
    path = folder / name if name == "manifest.json" else folder.parent / "aliases" / name
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink("/dev/zero", path)}[kind](path)
    with pytest.raises(IntegrityError, match="is not a plain file"):
        registry.resolve(version.ref if name == "manifest.json" else "like@latest")


def test_json_is_bounded_by_its_values_before_it_is_parsed(monkeypatch):
    assert limits.parse_json(b"[" + b"[]," * 30 + b"1]", "it") == [*[[]] * 30, 1]
    monkeypatch.setattr(limits, "MAX_JSON_NODES", 50)
    with pytest.raises(IntegrityError, match="it has too many values: got about 61; expected at most 50"):
        limits.parse_json(b"[" + b"[]," * 30 + b"1]", "it")
    assert limits.parse_json(b'["' + b"x" * 100 + b'"]', "it") == ["x" * 100]


def test_a_small_kind_of_file_has_few_values():
    data = b"[" + b"0," * 999 + b"0]"
    assert len(limits.parse_json(data, "it", limit=16_000)) == 1000
    with pytest.raises(IntegrityError, match="it has too many values: got about 1,000; expected at most 500"):
        limits.parse_json(data, "it", limit=8_000)


def test_lists_and_objects_are_counted_apart(monkeypatch):
    monkeypatch.setattr(limits, "MAX_JSON_CONTAINERS", 20)
    assert len(limits.parse_json(b"[" + b"0," * 99 + b"0]", "it")) == 100
    with pytest.raises(IntegrityError, match="it has too many lists and objects: got about 31; expected at most 20"):
        limits.parse_json(b"[" + b"[]," * 30 + b"1]", "it")


def test_a_config_is_bounded_as_one_by_the_first_look_at_it(registry, tmp_path):
    folder = write_adapter(tmp_path / "made")
    (folder / "adapter_config.json").write_bytes(b'{"x": [' + b"0," * 300_000 + b"0]}")
    with pytest.raises(
        IntegrityError, match="adapter_config.json has too many values: got about 300,002; expected at most 262,144"
    ):
        registry.publish(folder, draft())


@pytest.mark.parametrize("path", ["/etc/passwd", "../like/x.json", "a/b.json", ".x.json", "x.py", ""])
def test_no_path_in_a_manifest_leads_out_of_its_folder(registry, tmp_path, monkeypatch, path):
    version, folder = stored(registry, tmp_path)
    monkeypatch.setattr(integrity, "_hash", lambda file: hashed.append(file) or version.manifest.files.get(file.name, ""))
    hashed: list[Path] = []
    manifest = version.manifest.model_copy(update={"files": {**version.manifest.files, path: "0" * 64}})
    assert integrity.find_damage(folder, manifest) == [(repr(path), "is not accepted in a version")]
    assert {file.parent for file in hashed} == {folder}


def test_a_manifest_of_many_files_is_refused_before_any_is_looked_for(registry, tmp_path):
    _, folder = stored(registry, tmp_path)
    raw = json.loads((folder / "manifest.json").read_bytes())
    raw["files"] |= {f"x{number}.json": "0" * 64 for number in range(100)}
    raw["digest"] = digest_of(raw)
    raw["version"] = raw["digest"][:12]
    raw["checksum"] = checksum_of(raw)
    other = folder.with_name(raw["version"])
    shutil.copytree(folder, other)
    (other / "manifest.json").write_bytes(render(raw))
    with pytest.raises(IntegrityError, match="is damaged: got .*field files"):
        registry.fetch(f"like:{raw['version']}")


def test_lines_of_ever_new_columns_are_refused(registry, tmp_path, monkeypatch):
    folder = write_encoder(tmp_path / "encoder")
    monkeypatch.setattr(limits, "MAX_COLUMNS", 20)
    (folder / "catalogue.jsonl").write_text("".join(json.dumps({f"c{n}": 1}) + "\n" for n in range(30)))
    with pytest.raises(IntegrityError, match="catalogue.jsonl has too many columns: got 21 up to line 21"):
        registry.publish(folder, draft("encoder", kind="encoder", tasks=(), metrics={}, protocol={}))


def patterned(tmp_path, patterns, modules, name="layers.{}.self_attn.q_proj"):
    """An adapter with so many modules and patterns."""
    folder = write_adapter(tmp_path / "made", config=lora_config(rank_pattern=patterns))
    one = load_file(folder / "adapter_model.safetensors")
    a, b = (one[f"base_model.model.{PATH}.lora_{side}.weight"] for side in "AB")
    (folder / "adapter_model.safetensors").unlink()
    paths = [f"base_model.model.{name.format(number)}" for number in range(modules)]
    save_file(
        {f"{path}.lora_{side}.weight": value for path in paths for side, value in (("A", a), ("B", b))},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_as_many_patterns_as_a_large_model_has_modules_are_read_at_once(tmp_path):
    patterns = {f"layers.{number}.self_attn.q_proj": 2 for number in range(600)}
    folder = patterned(tmp_path, patterns, 600)
    begun = time.process_time()
    assert len(lora.read_adapter(folder).modules) == 600
    assert time.process_time() - begun < 10  # one compilation for each, not one for each pair: that took half a minute


@pytest.mark.parametrize(
    ("patterns", "modules", "name"),
    [
        ({f"p{number}": 2 for number in range(3000)}, 2000, "layers.{}.q"),
        ({f"a*a*a*b{number}": 2 for number in range(50)}, 20, "a" * 400 + "{}"),
    ],
)
def test_patterns_that_would_take_seconds_to_match_are_refused(tmp_path, patterns, modules, name):
    folder = patterned(tmp_path, patterns, modules, name)
    begun = time.process_time()
    with pytest.raises(IntegrityError, match="has too many patterns for its modules: got .* patterns over .* modules"):
        lora.read_adapter(folder)
    assert time.process_time() - begun < 5


def heads(folder, **tensors):
    (folder / "heads.safetensors").unlink()
    save_file({"like.weight": np.ones((1, 8), np.float32), **tensors}, folder / "heads.safetensors")
    return folder


NEIGHBOURS = np.array([[1, 2], [0, 2], [0, 1]], np.int32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"like.bias": np.ones(1, np.int64)}, "wrong dtype for tensor 'like.bias': got I64"),
        ({"like.bias": np.ones(1, np.bool_)}, "wrong dtype for tensor 'like.bias': got BOOL"),
        ({"like.terms.keys": np.ones(1, np.float32)}, "wrong dtype for tensor 'like.terms.keys': got F32; expected I64"),
        ({"like.bias": np.full(1, 1e39)}, "a weight that is not finite: got nan or inf in like.bias"),
        ({"next.neighbours.items": NEIGHBOURS.astype(np.int64)}, "got I64; expected I32"),
        ({"next.neighbours.items": NEIGHBOURS + 1}, "names rows that it does not have: got 1 to 3 in next.neighbours.items"),
        ({"next.neighbours.items": NEIGHBOURS - 1}, "got -1 to 1 in next.neighbours.items; expected 0 to 2"),
    ],
)
def test_heads_hold_finite_weights_and_rows_that_are_there(registry, tmp_path, tensors, message):
    with pytest.raises(IntegrityError, match=message):
        registry.publish(heads(write_adapter(tmp_path / "made"), **tensors), draft())


def test_rows_hashes_and_half_precision_are_accepted_in_heads(registry, tmp_path):
    values = np.ones((3, 2), np.float16)
    more = {"like.terms.keys": np.arange(3), "next.neighbours.items": NEIGHBOURS, "next.neighbours.values": values}
    version = registry.publish(heads(write_adapter(tmp_path / "made"), **more), draft())
    registry.fetch(version)


def test_integers_are_no_weights_of_an_encoder(registry, tmp_path):
    folder = write_encoder(tmp_path / "encoder")
    (folder / "encoder.safetensors").unlink()
    save_file({"projection.weight": np.ones((4, 8), np.int32)}, folder / "encoder.safetensors")
    with pytest.raises(IntegrityError, match="wrong dtype for tensor 'projection.weight': got I32"):
        registry.publish(folder, draft("encoder", kind="encoder", tasks=(), metrics={}, protocol={}))


def test_a_journal_is_read_up_to_a_number_of_moves(registry, tmp_path, monkeypatch):
    version, folder = stored(registry, tmp_path)
    for number in range(8):
        registry.promote(version, f"alias-{number}")
    monkeypatch.setattr("genre.registry.journal.MAX_MOVES", 5)
    with pytest.raises(IntegrityError, match="the journal of like is too long to be read: got 9 entries"):
        registry.history("like")
    assert len(registry.history("like", after=5)) == 4 and registry.aliases("like")["alias-7"] == version.version
    registry.promote(version, "one-more")
    assert "has too many entries to be read: 10" in str(registry.verify("like"))


def test_a_journal_of_one_entry_with_a_large_number_is_told_without_counting_up_to_it(registry, tmp_path):
    _, folder = stored(registry, tmp_path)
    aliases = folder.parent / "aliases"
    (aliases / "999999999.json").write_bytes((aliases / "1.json").read_bytes())
    begun = time.process_time()
    assert ("aliases/2.json to 999999998.json", "is missing") in Journal(registry.store, "like").audit()[0]
    assert time.process_time() - begun < 2


def test_a_journal_that_begins_with_a_rollback_is_told_so(registry, tmp_path):
    version, _ = stored(registry, tmp_path)
    Journal(registry.store, "like").append("odd", version.version, "rollback")
    with pytest.raises(IntegrityError, match="rolls odd back before it moved"):
        registry.rollback("like", "odd")
    with pytest.raises(NotFoundError):
        registry.rollback("like", "latest")


def test_nothing_here_is_another_kind_of_error(registry, tmp_path):
    version, folder = stored(registry, tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    for act in (registry.fetch, registry.promote):
        with pytest.raises(RegistryError):
            act(version)


def test_an_encoder_that_goes_during_a_publish_is_missed_before_the_version_appears(registry, tmp_path, monkeypatch):
    encoder = registry.publish(
        write_encoder(tmp_path / "encoder"), draft("encoder", kind="encoder", tasks=(), metrics={}, protocol={})
    )
    prepare = publishing.prepare

    def meanwhile(*given):
        shutil.rmtree(Path(registry.url) / "encoder")
        return prepare(*given)

    monkeypatch.setattr(publishing, "prepare", meanwhile)
    with pytest.raises(ManifestError, match="needs an encoder that this registry does not have"):
        registry.publish(write_adapter(tmp_path / "made"), draft(encoder=encoder.digest))
    assert registry.names() == []


def test_a_disk_without_locks_is_refused(registry, tmp_path, monkeypatch):
    def unlocked(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unlocked)
    with pytest.raises(DiskError, match="has no file locks: got No locks available; .* an object store"):
        registry.publish(write_adapter(tmp_path / "made"), draft())


def test_listings_beside_versions_that_come_and_go(registry, tmp_path):
    version, folder = stored(registry, tmp_path)
    other, end = folder.parent / "0123456789ab", threading.Event()

    def come_and_go():
        while not end.is_set():
            other.mkdir()
            other.rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(300):
            assert version.version in registry.versions("like")
            assert version.version in [row.version for row in registry.list()]
            assert registry.history("like")
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize(
    "inside", ["adapter_config.json/", "adapter_config.json/x", "d/adapter_config.json/x", "manifest.json/x"]
)
def test_folders_named_like_files_of_an_adapter_are_one_line(registry, tmp_path, inside):
    packed, folder = tmp_path / "made.tar", tmp_path / "made" / inside
    folder.mkdir(parents=True)
    with tarfile.open(packed, "w") as tar:
        tar.add(tmp_path / "made", ".")
        tar.addfile(tarfile.TarInfo(f"{inside.strip('/')}/file"))
    for source in (packed, tmp_path / "made"):
        with pytest.raises(IntegrityError, match="is missing or a link"):
            registry.import_peft(source, "x", base=BASE, base_folder=tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "manifest.json"])
def test_no_pipe_of_a_folder_is_waited_for(registry, tmp_path, name):
    folder = write_adapter(tmp_path / "made")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(RegistryError, match="plain file"):
        registry.publish(folder, None if name == "manifest.json" else draft())
