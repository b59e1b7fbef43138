"""The store of histories' states: bounded bytes, tiers in the order of use, time limits, forgetting, exact or rounded tensors."""

import gc
import multiprocessing
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genre.engine.history_arena import Arena
from genre.engine.history_packing import lay_out, pack, unpack
from genre.engine.history_store import HistoryStore
from genre.engine.history_tiers import ENTRY_BYTES, PREFIX
from genre.errors import InputError

STATE_BYTES = 4096
CHARGE = STATE_BYTES + ENTRY_BYTES
FILE_BYTES = 2 * STATE_BYTES


def state(number, rows=16):
    """A state of `STATE_BYTES` bytes, whose values tell its number."""
    return (torch.full((rows, 32), float(number)), torch.arange(rows * 32, dtype=torch.float32).view(rows, 32) + number)


def put(store, number, owner=None, **options):
    store.put(("digest", number), state(number), owner=owner or f"user {number}", tokens=16, **options)


def held(store, numbers):
    return [number for number in numbers if ("digest", number) in store]


def files(folder):
    return sorted(path.name for path in folder.rglob("*.safetensors"))


def on_disk(tmp_path, memory=2, disk=3, **options):
    return HistoryStore(memory * CHARGE, disk=tmp_path / "states", disk_bytes=disk * FILE_BYTES, **options)


def stored(tensors, storage):
    """The tensors as they come back."""
    layout = lay_out(tensors, storage)
    buffer = torch.empty(layout.size, dtype=torch.uint8)
    pack(tensors, layout, buffer)
    return unpack(buffer, layout)


def same(found, number):
    return found is not None and all(torch.equal(mine, theirs) for mine, theirs in zip(found, state(number), strict=True))


def test_the_least_recently_used_leave_first_and_the_bytes_stay_within_the_bound():
    store = HistoryStore(3 * CHARGE)
    for number in range(3):
        put(store, number)
    assert same(store.get(("digest", 0)), 0)
    put(store, 3)
    assert held(store, range(4)) == [0, 2, 3]
    for number in range(4, 100):
        put(store, number)
        assert store.counters.device_bytes <= 3 * CHARGE
    found = store.counters
    assert (found.entries, found.evictions, found.device_bytes) == (3, 97, 3 * CHARGE)


def test_hits_misses_and_the_tokens_that_were_spared_are_counted():
    store = HistoryStore(10 * CHARGE)
    put(store, 1)
    assert store.get(("digest", 2)) is None
    assert same(store.get(("digest", 1)), 1)
    assert same(store.get(("digest", 1)), 1)
    found = store.counters
    assert (found.hits, found.misses, found.tokens_spared) == (2, 1, 32)
    assert ("digest", 1) in store and same(store.look(("digest", 1))[1], 1)
    assert store.counters == found  # a look counts nothing
    store.count(5)
    store.count(0)
    found = store.counters
    assert (found.hits, found.misses, found.tokens_spared) == (3, 2, 37)


def test_a_state_is_a_copy_and_one_of_the_same_key_is_replaced():
    store = HistoryStore(10 * CHARGE)
    batch = torch.ones(8, 1024)
    store.put("key", (batch[3],), owner="a", tokens=1)
    batch.zero_()
    (found,) = store.get("key")
    assert found.eq(1).all()
    store.put("key", (batch[3],), owner="b", tokens=1)
    assert store.get("key")[0].eq(0).all() and store.counters.entries == 1
    assert store.forget("a") == 0 and store.forget("b") == 1


def test_what_is_larger_than_the_store_is_not_kept_and_drives_nobody_out():
    store = HistoryStore(3 * CHARGE)
    put(store, 1)
    store.put("large", state(2, rows=128), owner="b", tokens=1)
    assert "large" not in store and held(store, [1]) == [1]
    assert HistoryStore(0).counters.device_bytes == 0


def test_a_disk_takes_what_leaves_memory_and_gives_it_back_exactly(tmp_path):
    store = on_disk(tmp_path)
    for number in range(5):
        put(store, number)
    assert len(files(tmp_path)) == 3 and store.counters.disk_bytes == 3 * FILE_BYTES
    assert same(store.get(("digest", 0)), 0)  # up again, and the oldest in memory goes down
    assert len(files(tmp_path)) == 3 and held(store, range(5)) == [0, 1, 2, 3, 4]
    put(store, 5)
    assert held(store, range(6)) == [0, 2, 3, 4, 5] and store.counters.evictions == 1
    for path in (tmp_path / "states").glob(f"{PREFIX}*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    store.close()
    assert list((tmp_path / "states").iterdir()) == []


def test_forgetting_a_user_leaves_neither_memory_nor_files(tmp_path):
    store = on_disk(tmp_path, disk=6)
    for number in range(8):
        put(store, number, owner="even" if number % 2 == 0 else "odd")
    assert store.forget("even") == 4 and store.forget("even") == 0
    assert held(store, range(8)) == [1, 3, 5, 7] and len(files(tmp_path)) == 3
    assert store.drop(lambda key: key[1] > 4) == 2
    store.clear()
    found = store.counters
    assert (found.entries, found.device_bytes, found.disk_bytes, files(tmp_path)) == (0, 0, 0, [])
    store.close()


def test_a_call_under_way_does_not_bring_a_forgotten_user_back():
    store = HistoryStore(10 * CHARGE)
    begun = time.monotonic()
    put(store, 1, owner="a", begun=begun)
    store.forget("a")
    put(store, 1, owner="a", begun=begun)
    put(store, 2, owner="b", begun=begun)
    assert held(store, [1, 2]) == [2]
    put(store, 1, owner="a", begun=time.monotonic())  # who comes again is a user as any
    assert held(store, [1, 2]) == [1, 2]
    assert store.clear() == 2
    put(store, 2, owner="b", begun=begun)
    assert len(store) == 0


def test_calls_that_wait_keep_nothing_of_a_forgotten_user_either():
    store = HistoryStore(10 * CHARGE)
    store.forget("a", hold_s=60)
    put(store, 1, owner="a", begun=time.monotonic())
    put(store, 2, owner="b", begun=time.monotonic())
    assert held(store, [1, 2]) == [2]
    store.clear(hold_s=60)
    put(store, 2, owner="b", begun=time.monotonic())
    assert len(store) == 0


def test_states_go_when_their_time_is_over_without_any_call(tmp_path):
    store = on_disk(tmp_path, ttl_s=0.3)
    for number in range(4):
        put(store, number)
    time.sleep(0.15)
    assert same(store.get(("digest", 3)), 3)
    time.sleep(0.2)
    assert held(store, range(4)) == [3]  # the rest is over, whether or not somebody has looked
    end = time.monotonic() + 10
    while store.counters.entries or files(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert store.get(("digest", 3)) is None
    store.close()


def test_a_file_that_is_gone_or_damaged_is_a_miss(tmp_path):
    store = on_disk(tmp_path, memory=1)
    for number in range(4):
        put(store, number)
    paths = sorted((tmp_path / "states").rglob("*.safetensors"))
    paths[0].unlink()
    paths[1].write_bytes(b"no tensors")
    assert store.get(("digest", 0)) is None and store.get(("digest", 1)) is None
    assert same(store.get(("digest", 2)), 2)
    assert store.counters.disk_failures == 2 and store.counters.misses == 2
    store.close()


def test_a_disk_that_takes_nothing_costs_the_states_not_the_calls(tmp_path):
    store = on_disk(tmp_path, memory=1)
    for path in (tmp_path / "states").glob(f"{PREFIX}*"):
        path.rmdir()
    for number in range(3):
        put(store, number)
    found = store.counters
    assert held(store, range(3)) == [2] and found.disk_failures == 2 and found.disk_bytes == 0
    store.close()


def leave(folder, ready):
    store = HistoryStore(0, disk=folder, disk_bytes=2**20)
    put(store, 1)
    ready.set()
    time.sleep(60)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child needs none of the threads
def test_files_of_a_killed_process_go_at_the_next_start_and_a_living_one_keeps_its_own(tmp_path):
    folder, forking = tmp_path / "states", multiprocessing.get_context("fork")  # spares the seconds of importing torch again
    ready = forking.Event()
    other = forking.Process(target=leave, args=(folder, ready))
    other.start()
    try:
        assert ready.wait(30)
        first = HistoryStore(0, disk=folder, disk_bytes=2**20)
        assert len(files(folder)) == 1  # the other lives
        other.kill()
        other.join()
        assert len(files(folder)) == 1
        second = HistoryStore(0, disk=folder, disk_bytes=2**20)
        assert files(folder) == []
        del first  # as at the end of a process
        gc.collect()
        second.close()
        assert list(folder.iterdir()) == []
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize(
    ("storage", "size", "bound"), [("auto", 4, 0.0), ("float32", 4, 0.0), ("bfloat16", 2, 2**-8), ("int8", 1.25, 1 / 250)]
)
def test_stored_types_take_their_bytes_and_lose_what_they_say(storage, size, bound):
    torch.manual_seed(0)
    exact = torch.randn(3, 40, 16) * torch.logspace(-3, 3, 40)[:, None]
    codes = torch.arange(40)
    before = exact.clone()
    found, kept = stored((exact, codes), storage)
    assert torch.equal(exact, before)
    assert lay_out((exact, codes), storage).size == pytest.approx(exact.numel() * size + 320, abs=128)
    assert found.dtype == torch.float32 and torch.equal(kept, codes)
    largest = exact.abs().amax(-1, keepdim=True)
    assert ((found - exact).abs() / largest).max() <= bound
    again, _ = stored((found, codes), storage)
    torch.testing.assert_close(again, found, rtol=1e-6, atol=0)  # a state that is stored again loses no more


def test_what_is_not_finite_stays_so_and_empty_tensors_stay_empty():
    exact = torch.zeros(4, 16)
    exact[1, 3], exact[2, 3] = float("nan"), float("inf")
    found, none, half = stored((exact, torch.empty(0, 16), torch.ones(2, 16, dtype=torch.bfloat16)), "int8")
    assert found[0].eq(0).all() and found[3].eq(0).all()
    assert not found[1].isfinite().all() and not found[2].isfinite().all()
    assert none.shape == (0, 16) and half.dtype == torch.bfloat16 and half.eq(1).all()


def test_many_threads_at_once_lose_nothing(tmp_path):
    store = on_disk(tmp_path, memory=8, disk=8)
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for number in torch.randint(0, 30, (150,), generator=generator).tolist():
            found = store.get(("digest", number))
            if found is not None and not same(found, number):
                wrong.append(number)
            put(store, number)
            if number == 7:
                store.forget("user 7")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.counters
    assert wrong == [] and found.hits + found.misses == 600
    assert found.device_bytes <= 8 * CHARGE and found.disk_bytes == len(files(tmp_path)) * FILE_BYTES <= 8 * FILE_BYTES
    # What another thread still read when it left the store had its place a moment longer; now nobody reads.
    for number in range(30, 46):
        put(store, number)
    found = store.counters
    assert (found.entries, found.device_bytes, found.disk_bytes) == (8 + 8, 8 * CHARGE, 8 * FILE_BYTES)
    assert len(files(tmp_path)) == 8
    store.close()


def test_states_of_every_size_fill_the_bound_and_are_read_as_they_were_put():
    store = HistoryStore(2**20)
    sizes = torch.randint(1, 3000, (3000,), generator=torch.Generator().manual_seed(1)).tolist()
    for number, size in enumerate(sizes):
        store.put(number, (torch.full((size,), float(number)),), owner="a", tokens=size)
        old = max(0, number - 100)
        found = store.get(old)
        assert found is None or (found[0].shape == (sizes[old],) and found[0].eq(old).all())
        assert store.counters.device_bytes <= 2**20
    assert store.counters.device_bytes > 0.9 * 2**20


def test_a_state_that_is_read_keeps_its_memory_when_it_leaves_the_store():
    store = HistoryStore(2 * CHARGE)
    put(store, 1)
    mine = store.get(("digest", 1))
    store.forget("user 1")
    for number in range(2, 9):
        put(store, number)
    assert all(torch.equal(got, wanted) for got, wanted in zip(mine, state(1), strict=True))


def test_an_arena_gives_its_first_gap_and_joins_what_comes_back():
    arena = Arena(1024)
    first, second, third = arena.take(100), arena.take(256), arena.take(640)
    assert third is not None and arena.take(1) is None and not arena.fits(1)
    view = second.view(torch.float32)[3:]
    del second
    assert not arena.fits(1)  # a view of it is left
    del view
    assert arena.fits(256) and not arena.fits(257) and not arena.fits(256, limit=383)
    del first
    gone = arena.take(384)
    assert gone is not None and arena.holds(gone) and not arena.holds(torch.empty(8, dtype=torch.uint8))
    gone.fill_(7)
    del gone, third
    whole = arena.take(1024)
    assert whole.eq(0).all()  # which came from the system anew


def test_an_arena_keeps_a_block_without_a_tensor_until_it_is_released():
    arena = Arena(256)
    tensor = arena.take(200)
    tensor.fill_(7)
    block = arena.keep(tensor)
    assert block == (0, 200)
    del tensor
    assert not arena.fits(1)
    again = arena.view(block)
    assert again.numel() == 200 and again.eq(7).all()
    arena.release(block)
    assert not arena.fits(1)  # somebody reads it
    del again
    assert arena.fits(256)


def test_more_memory_than_can_be_is_refused():
    with pytest.raises(InputError, match="at most the machine's"):
        HistoryStore(2**62)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": -1}, "capacity of the history cache: got -1"),
        ({"capacity": 1, "storage": "int4"}, "got int4"),
        ({"capacity": 1, "ttl_s": 0}, "seconds above 0"),
        ({"capacity": 1, "disk_bytes": 5}, "a folder and the bytes of its files, or neither"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        HistoryStore(**options)


def test_a_folder_in_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="lies in a file"):
        HistoryStore(1, disk=tmp_path / "file" / "states", disk_bytes=1)


def test_labels_come_back_as_they_were_put_from_memory_and_disk_in_every_storage(tmp_path):
    for storage in ("auto", "bfloat16", "int8"):
        store = HistoryStore(3 * CHARGE, disk=tmp_path / storage, disk_bytes=9 * FILE_BYTES, storage=storage)
        labels = [np.arange(12 * (number + 1), dtype=np.int32).reshape(-1, 6) - 2**30 for number in range(8)]
        for number, label in enumerate(labels):
            put(store, number, label=label)
        for number, label in enumerate(labels):
            found, tensors = store.look(("digest", number))
            assert found.dtype == np.int32 and np.array_equal(found, label)
            assert len(tensors) == 2
        store.close()


def test_memory_beside_the_arena_is_what_is_counted_where_large_tensors_come_and_go():
    """A kept object in the heap would pin the large tensors' room around it: a process grew by 1.41 times what was counted."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown, counted = pool.apply(_fill, (150,))
    assert grown < 1.1 * counted, (grown, counted)


def _fill(calls):
    """The bytes that a process grows by while a store takes states between tensors of other work, and the bytes it counts."""
    torch.set_num_threads(1)
    store = HistoryStore(2**28)
    draw = np.random.default_rng(0)
    _work(draw)
    before = _resident()
    for number in range(calls):
        for place in range(8):
            states = torch.ones(8, 128, 16)
            work = _work(draw)
            label = np.ones((129, 6), dtype=np.int32)
            store.put((number, place), (states,), owner=str(number), tokens=128, label=label, part_of=number)
            del work
    return _resident() - before, store.counters.device_bytes


def _work(draw):
    return [torch.ones(int(draw.integers(20, 400)), 576) for _ in range(4)]


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
