"""States of users' histories, kept between calls within a bound of bytes.

Owns: tiers, who leaves them, time limits, forgetting, counters. Ignores: what the states are and what their keys mean.

    put ──► device ── room needed ──► host (CUDA only) ── room needed ──► disk ── room needed ──► gone
              ▲                              │                              │
              └───────────── get ────────────┴──────────────────────────────┘

    store = HistoryStore(2 * 2**30, device="cuda", host=8 * 2**30, ttl_s=3600)
    store.put(key, (keys, values), owner="196", tokens=198)
    keys, values = store.get(key)
    store.forget("196")                         # entries dropped, files among them

The least recently used state leaves first. A state that comes back from a lower tier moves up. Threads: any number.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre.engine.history_packing import STORAGES, Layout, Storage, lay_out, pack, unpack
from genre.engine.history_tiers import ENTRY_BYTES, MemoryTier, Tier, tiers_of
from genre.errors import DiskError, InputError

LONGEST_CALL_S = 3600.0
"""Seconds that a call can be under way: so long is it remembered that a user was forgotten."""
UNLABELLED = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class StoreCounters:
    """The figures of a store.

    Attributes:
        hits, misses: Lookups since the start.
        tokens_spared: Tokens of the states that were found.
        evictions: States that left the store for want of room, parts by themselves.
        disk_failures: States that a disk did not take, or did not give back.
        entries: States now, those that are parts of one counted once.
        device_bytes, host_bytes, disk_bytes: Bytes now, what is kept about each state among them.
    """

    hits: int
    misses: int
    tokens_spared: int
    evictions: int
    disk_failures: int
    entries: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int


@dataclass(eq=False)
class _Entry:
    """A state: its key, whose it is, where it lies.

    Attributes:
        whole: What it is a part of; its key if it is whole.
        tokens: Tokens that were read for it.
        used: When it was put or found last, in seconds of the monotonic clock.
        label: What `look` returns beside the tensors; None if it lies behind them in the buffer.
        level: The index of its tier.
        held: What the tier gave for it.
        charge: Bytes of the tier.
    """

    key: Hashable
    whole: Hashable
    owner: str
    tokens: int
    layout: Layout
    used: float
    label: np.ndarray | None
    level: int = 0
    held: Any = None
    charge: int = 0

    @property
    def beside(self) -> int:
        """Bytes outside of its buffer, wherever that lies."""
        return ENTRY_BYTES + self._label_bytes

    def charge_of(self, tier: Tier) -> int:
        """Bytes of a tier that it takes."""
        return tier.charge(self.layout.size) + self._label_bytes

    @property
    def _label_bytes(self) -> int:
        return 0 if self.label is None else self.label.nbytes


class _Shelf:
    """The entries of a tier, the least recently used first."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self.bytes = 0
        self.beside = 0


class HistoryStore:
    """A bounded store of tensors by key.

    Args:
        capacity: Bytes of the device's memory; on a processor of its memory, where `host` adds to it: they are one.
        host: Bytes of pinned memory beside a CUDA device.
        disk: A folder for what has no room in memory; a private folder in it holds the files, and goes with the process.
        disk_bytes: Bytes of files there.
        storage: The type that floating-point tensors are stored in: their own, or a smaller one (`history_packing.pack`).
        device: Where tensors are put from and returned to.
        ttl_s: Seconds that a state is kept after it was put or found last; None for no such limit.

    Raises:
        InputError: An amount is negative, a storage unknown, or a folder cannot be used.
    """

    def __init__(
        self,
        capacity: int,
        *,
        host: int = 0,
        disk: Path | None = None,
        disk_bytes: int = 0,
        storage: Storage = "auto",
        device: torch.device | str = "cpu",
        ttl_s: float | None = None,
    ) -> None:
        for name, value in (("capacity", capacity), ("host", host), ("disk_bytes", disk_bytes)):
            if value < 0:
                raise InputError(f"{name} of the history cache", got=value, expected="bytes, at least 0")
        if storage not in STORAGES:
            raise InputError("storage of the history cache", got=storage, expected=", ".join(STORAGES))
        if ttl_s is not None and not ttl_s > 0:
            raise InputError("ttl_s of the history cache", got=ttl_s, expected="seconds above 0")
        if (disk is None) != (disk_bytes == 0):
            got = f"{disk} and {disk_bytes} bytes"
            raise InputError("disk of the history cache", got=got, expected="a folder and the bytes of its files, or neither")
        self.storage = storage
        self.ttl_s = ttl_s
        self.device = torch.device(device)
        self._shelves = [_Shelf(tier) for tier in tiers_of(self.device, capacity, host, disk, disk_bytes)]
        self._owned: dict[str, set[Hashable]] = {}
        self._found: dict[Hashable, _Entry] = {}
        self._wholes: Counter[Hashable] = Counter()
        self._forgotten: dict[int | None, float] = {}  # by hash: not even the id is kept
        self._hits = 0
        self._misses = 0
        self._spared = 0
        self._evictions = 0
        self._failures = 0
        self._timer: threading.Timer | None = None
        self._open = True
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._wholes)

    def __contains__(self, key: Hashable) -> bool:
        """True if a state is there; counts nothing."""
        with self._lock:
            entry = self._found.get(key)
            return entry is not None and not self._expired(entry)

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """Return a state's tensors, on the device and of the types that were put; None if it is not there.

        They may be the store's own: nobody may write into them. Counts a hit, with the tokens that were read for it, or a miss.
        """
        with self._lock:
            found = self.look(key)
            self.count(0 if found is None else self._found[key].tokens)
            return None if found is None else found[1]

    def look(self, key: Hashable) -> tuple[np.ndarray, tuple[Tensor, ...]] | None:
        """The state's label and tensors, for who does not know yet if it fits, and counts it then."""
        with self._lock:
            entry = self._found.get(key)
            if entry is not None and self._expired(entry):
                self._remove(entry)
                entry = None
            buffer = None if entry is None else self._shelves[entry.level].tier.bring(entry.held)
            if entry is None or buffer is None:
                if entry is not None:
                    self._failures += 1
                    self._remove(entry)
                return None
            entry.used = time.monotonic()
            if entry.level:
                self._take_out(entry)
                self._place(entry, buffer, 0)
            else:
                self._shelves[0].entries.move_to_end(key)
        tensors = unpack(buffer, entry.layout)
        return (tensors[-1].numpy(), tensors[:-1]) if entry.label is None else (entry.label, tensors)

    def touch(self, keys: Iterable[Hashable]) -> None:
        """Take states as used in this order, the last one as the latest."""
        with self._lock:
            for key in keys:
                entry = self._found.get(key)
                if entry is not None:
                    self._shelves[entry.level].entries.move_to_end(key)

    def count(self, tokens: int) -> None:
        """Count a lookup: a hit that spared so many tokens, or a miss for 0."""
        with self._lock:
            self._hits += tokens > 0
            self._misses += tokens <= 0
            self._spared += max(0, tokens)

    def put(
        self,
        key: Hashable,
        tensors: Sequence[Tensor],
        *,
        owner: str,
        tokens: int,
        begun: float | None = None,
        label: np.ndarray = UNLABELLED,
        part_of: Hashable = None,
    ) -> None:
        """Keep a copy of a state's tensors; one of the same key is replaced. One that is larger than every tier is not kept.

        Args:
            key: Its key; kept as it is, so better short.
            tensors: Tensors of the device.
            owner: The id of the user whose it is, which `forget` takes.
            tokens: Tokens that were read for it.
            begun: When the call that made it began (`time.monotonic()`): it is not kept if the user was forgotten since.
            label: What tells if it fits, kept in the host's memory, where it is read without waiting for the device; on a
                processor it lies with the tensors.
            part_of: States with the same are parts of one; None for a state of its own.
        """
        inside = self.device.type == "cpu"
        if inside:
            tensors = [*tensors, torch.from_numpy(label)]
        layout = lay_out(tensors, self.storage)
        with self._lock:
            if not self._open or (begun is not None and begun <= self._forgotten_at(owner)):
                return
            old = self._found.get(key)
            if old is not None:
                self._remove(old)
            whole = key if part_of is None else part_of
            entry = _Entry(key, whole, owner, tokens, layout, time.monotonic(), None if inside else label)
            buffer = self._room(entry)
            pack(tensors, layout, buffer)
            self._found[key] = entry
            self._wholes[whole] += 1
            self._owned.setdefault(owner, set()).add(key)
            self._place(entry, buffer, 0)
            self._watch()

    def forget(self, owner: str, *, hold_s: float = 0.0) -> int:
        """Drop every state of a user, in memory and on disk; what calls that are under way make of them is not kept.

        Args:
            owner: The user's id.
            hold_s: Seconds in which calls that begin keep nothing of the user either: for those that wait to be computed.

        Returns:
            How many states there were.
        """
        with self._lock:
            now = time.monotonic()
            self._forgotten = {who: when for who, when in self._forgotten.items() if when > now - LONGEST_CALL_S}
            self._forgotten[hash(owner)] = now + hold_s
            return self._remove_all(self._found[key] for key in list(self._owned.get(owner, ())))

    def drop(self, where: Callable[[Hashable], bool]) -> int:
        """Drop the states whose key meets a condition; return how many."""
        with self._lock:
            return self._remove_all(entry for key, entry in list(self._found.items()) if where(key))

    def clear(self, *, hold_s: float = 0.0) -> int:
        """Drop everything, as `forget` does for a user; return how many states there were."""
        with self._lock:
            self._forgotten[None] = time.monotonic() + hold_s
            return self._remove_all(list(self._found.values()))

    def expire(self) -> int:
        """Drop the states whose time is over, as happens by itself soon after; return how many."""
        with self._lock:
            return self._remove_all(entry for entry in list(self._found.values()) if self._expired(entry))

    def close(self) -> None:
        """Drop everything, remove the private folder, and keep nothing from now on."""
        with self._lock:
            self._open = False
            self.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for shelf in self._shelves:
                shelf.tier.close()

    @property
    def counters(self) -> StoreCounters:
        """The figures now."""
        with self._lock:
            held = {shelf.tier.name: shelf.bytes for shelf in self._shelves}
            return StoreCounters(
                hits=self._hits,
                misses=self._misses,
                tokens_spared=self._spared,
                evictions=self._evictions,
                disk_failures=self._failures,
                entries=len(self._wholes),
                device_bytes=held.get("device", 0),
                host_bytes=held.get("host", 0),
                disk_bytes=held.get("disk", 0),
            )

    def _forgotten_at(self, owner: str) -> float:
        return max(self._forgotten.get(hash(owner), -1.0), self._forgotten.get(None, -1.0))

    def _expired(self, entry: _Entry) -> bool:
        return self.ttl_s is not None and time.monotonic() - entry.used >= self.ttl_s

    def _room(self, entry: _Entry) -> Tensor:
        """Memory for an entry's buffer, of the first tier if it has a place or makes one."""
        shelf, size = self._shelves[0], entry.layout.size
        charge = entry.charge_of(shelf.tier)
        if charge <= shelf.tier.capacity and isinstance(shelf.tier, MemoryTier):
            self._make_room(shelf, charge)
            while (block := shelf.tier.room(size, shelf.beside + entry.beside)) is None and shelf.entries:
                self._move_down(next(iter(shelf.entries.values())))
            if block is not None:
                return block
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def _make_room(self, shelf: _Shelf, charge: int) -> None:
        while shelf.bytes + charge > shelf.tier.capacity:
            self._move_down(next(iter(shelf.entries.values())))

    def _place(self, entry: _Entry, buffer: Tensor, level: int) -> None:
        """Put an entry that is in no tier into one, or a lower one where that is too small; others make room."""
        for index in range(level, len(self._shelves)):
            shelf = self._shelves[index]
            charge = entry.charge_of(shelf.tier)
            if charge > shelf.tier.capacity:
                continue
            self._make_room(shelf, charge)
            while not (fits := shelf.tier.fits(buffer, shelf.beside + entry.beside)) and shelf.entries:
                self._move_down(next(iter(shelf.entries.values())))
            try:
                if fits:
                    self._hold(entry, buffer, index, charge)
                    return
            except DiskError:  # a cache that holds less is better than a call that fails
                self._failures += 1
        self._evictions += 1
        self._unlist(entry)

    def _hold(self, entry: _Entry, buffer: Tensor, level: int, charge: int) -> None:
        shelf = self._shelves[level]
        entry.held = shelf.tier.keep(buffer, shelf.beside + entry.beside)
        entry.level = level
        entry.charge = charge
        shelf.entries[entry.key] = entry
        shelf.bytes += charge
        shelf.beside += entry.beside

    def _move_down(self, entry: _Entry) -> None:
        level = entry.level
        if level + 1 == len(self._shelves):
            self._evictions += 1
            self._remove(entry)
            return
        buffer = self._shelves[level].tier.lower(entry.held)
        self._take_out(entry)
        self._place(entry, buffer, level + 1)

    def _take_out(self, entry: _Entry) -> None:
        """Take an entry out of its tier."""
        shelf = self._shelves[entry.level]
        del shelf.entries[entry.key]
        shelf.bytes -= entry.charge
        shelf.beside -= entry.beside
        shelf.tier.release(entry.held)
        entry.held = None

    def _remove(self, entry: _Entry) -> None:
        self._take_out(entry)
        self._unlist(entry)

    def _unlist(self, entry: _Entry) -> None:
        del self._found[entry.key]
        self._wholes[entry.whole] -= 1
        if not self._wholes[entry.whole]:
            del self._wholes[entry.whole]
        keys = self._owned[entry.owner]
        keys.discard(entry.key)
        if not keys:
            del self._owned[entry.owner]

    def _remove_all(self, entries: Iterable[_Entry]) -> int:
        before = len(self._wholes)
        for entry in entries:
            self._remove(entry)
        return before - len(self._wholes)

    def _watch(self) -> None:
        """See that what is kept now goes when its time is over, whether or not calls come."""
        if self.ttl_s is None or self._timer is not None or not self._found or not self._open:
            return
        oldest = min(entry.used for entry in self._found.values())
        wait = max(oldest + self.ttl_s - time.monotonic(), min(1.0, self.ttl_s / 10))
        self._timer = threading.Timer(wait, self._over)
        self._timer.daemon = True
        self._timer.start()

    def _over(self) -> None:
        with self._lock:
            self._timer = None
            self.expire()
            self._watch()
