"""The history cache beside a device: states go to pinned memory without a wait, come back to the device, and on to the disk."""

import pytest
import torch

import simulated
from genre.engine.history_store import HistoryStore
from genre.engine.history_tiers import ENTRY_BYTES

STATE_BYTES = 4096
CHARGE = STATE_BYTES + ENTRY_BYTES


@pytest.fixture
def pinned(monkeypatch):
    """Memory that is made pinned, which torch asks the hooks of a real device for."""
    plain = torch.empty

    def empty(*size, pin_memory=False, **options):
        made = plain(*size, **options)
        return made.pin_memory() if pin_memory else made

    monkeypatch.setattr(torch, "empty", empty)


def state(number):
    return torch.full((16, 64), float(number), device="sim")


def test_states_go_down_and_come_up_without_a_wait(tmp_path, pinned):
    store = HistoryStore(2 * CHARGE, host=3 * CHARGE, disk=tmp_path, disk_bytes=2**20, device="sim")
    states = [state(number) for number in range(5)]
    with simulated.watching() as seen:
        for number, each in enumerate(states):
            store.put(number, (each,), owner="a", tokens=1)
        found = [store.get(number)[0] for number in range(5)]
    copies = [each for each in seen.waits if each.operator != "copy to the CPU"]  # which are counted though they do not block
    assert copies == [] and seen.pageable == []
    assert all(each.device.type == "sim" and each.eq(number).all().item() for number, each in enumerate(found))
    counters = store.counters
    assert (counters.device_bytes, counters.host_bytes, counters.disk_bytes) == (2 * CHARGE, 3 * CHARGE, 0)
    store.put(5, (state(5),), owner="b", tokens=1)
    assert store.counters.disk_bytes > 0
    (last,) = store.get(0)  # of the disk
    assert last.device.type == "sim" and last.eq(0).all().item()
    assert store.forget("a") == 5 and list(tmp_path.rglob("*.safetensors")) == []
    store.close()


def test_stored_types_are_made_on_the_device():
    store = HistoryStore(2**20, storage="int8", device="sim")
    store.put("key", (state(3),), owner="a", tokens=1)
    with simulated.watching() as seen:
        (found,) = store.get("key")
    assert seen.waits == [] and found.device.type == "sim" and (found - 3).abs().max().item() < 0.02
