"""Others beside hostile calls: what a client with small calls waits for while somebody else sends heavy ones.

Owns: the section `others` of `serving.py`. Ignores: what the hostile calls are.

A process of its own sends a small call every 200 ms from one address, by the clock; latencies count from when a call was due.
Hostile clients send theirs from two other addresses meanwhile. The same small calls without anything beside them, before and
after, are the control: a call is late by what it takes beyond the control's median.
"""

import asyncio
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from genre.data.interactions import Interactions
from genre.registry import Registry
from serving_hostile import HEAVY, HUGE, heavy_call
from serving_load import TOKEN, Client, Lost, Refused, Server, run_clients
from serving_world import World, body

EVERY_S = 0.2
CONTROL_S = 10.0
LATE_S = 0.5
VARIANTS = 10
"""Calls of a kind that differ, made beforehand: making them takes as much of the machine as answering them."""
HOSTILE_CLIENTS = 4
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
Waits = list[tuple[float, float, int]]
"""Of each small call: when it was due, its seconds, its status (0: lost)."""


def others(world: World, folder: Path, scale: float) -> dict[str, dict[str, Any]]:
    """2,000 heavy and hostile calls beside a client with small ones."""
    count = max(len(HEAVY), int(2000 * scale))
    registry = _with_huge_scores(world, folder / "registry-of-others")
    log = Interactions.read(world.data)
    users, items = list(log.user_ids), list(log.catalogue.item_ids)
    tally, slow, errors, under_way = Counter[str](), Counter[str](), list[str](), list[tuple[float, float, str]]()
    load = [os.getloadavg()[0]]
    with Server(folder, replace(world, registry=registry).arguments()) as server:
        _watch(server, world, CONTROL_S / 2)  # what is imported or compiled at first use
        control = _watch(server, world, CONTROL_S)
        made = [heavy_call(number, users, items) for number in range(min(count, VARIANTS * len(HEAVY)))]
        numbers = iter(range(count))

        async def work(client: Client, number: int) -> None:
            client = Client(server.address, f"127.0.0.{2 + number % 2}")
            for number in numbers:
                kind, sent = made[number % len(made)]
                begun = time.monotonic()
                try:
                    status, answer = await asyncio.wait_for(client.send(sent), 120)
                    tally[f"{status // 100}xx"] += 1
                    if status >= 500:
                        errors.append(f"{kind}: {status} {answer[:160].decode(errors='replace')}")
                except Lost:
                    tally["closed"] += 1
                except (Refused, TimeoutError):
                    tally["gone"] += 1
                    client.close()
                under_way.append((begun, time.monotonic(), kind))
                slow[kind] = max(slow[kind], int(1000 * (time.monotonic() - begun)))
            client.close()

        watch = _Watch(server, world)
        seconds = run_clients(server.address, HOSTILE_CLIENTS, work)
        beside = watch.end()
        load.append(os.getloadavg()[0])
        control += _watch(server, world, CONTROL_S)
        operates = _operates(server)
    usual = float(np.median([taken for _, taken, _ in control]))
    late = [(due, taken) for due, taken, _ in beside if taken > usual + LATE_S]
    blamed = Counter(kind for due, taken in late for begun, ended, kind in under_way if begun < due + taken and ended > due)
    return {
        "counts": {
            "others_hostile": count,
            "others_calls": len(beside),
            "others_late": len(late),
            "others_late_in_control": sum(taken > usual + LATE_S for _, taken, _ in control),
            "others_not_200": sum(status != 200 for _, _, status in beside + control),
            "others_server_errors": tally["5xx"],
            "others_gone": tally["gone"],
            "others_operator_locked_out": not operates,
        },
        "statuses": {f"others_{name}": number for name, number in sorted(tally.items())},
        "ms": _quantiles("others", beside) | _quantiles("others_control", control),
        "seconds": {"others": seconds},
        "load": {"others": [round(value, 2) for value in load]},
        "slowest_ms": dict(slow),
        "examples": {
            "others_late_beside": dict(blamed.most_common(8)),
            "others_server_errors": errors[:10],
            "others_statuses": dict(Counter(str(status) for _, _, status in beside)),
            "others_late": [[round(due, 2), round(taken, 3)] for due, taken in sorted(late, key=lambda one: -one[1])[:10]],
        },
    }


def _quantiles(name: str, waits: Waits) -> dict[str, float]:
    taken = [1000 * seconds for _, seconds, _ in waits]
    middle, tail, most = np.quantile(taken, [0.5, 0.99, 1.0])
    return {f"p50_{name}": float(middle), f"p99_{name}": float(tail), f"max_{name}": float(most)}


def _with_huge_scores(world: World, folder: Path) -> Path:
    """The world's registry with one more version, whose low-rank products overflow."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.registry, folder)
    registry, aside = Registry(folder), folder.with_name("huge")
    good = registry.resolve("like@production")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(registry.fetch(good), aside)
    file = aside / "adapter_model.safetensors"
    tensors = {name: np.where(value < 0, -1e38, 1e38).astype(np.float32) for name, value in load_file(file).items()}
    file.unlink()
    save_file(tensors, file)
    registry.publish(aside, good.manifest.model_copy(update={"name": HUGE}), alias="production")
    return folder


def _operates(server: Server) -> bool:
    """True if the right token is still taken, from an address that guessed."""

    async def ask() -> int:
        client = Client(server.address, "127.0.0.2")
        status, _ = await client.call("/v1/admin/load", b'{"ref": "like@production"}', headers=ADMIN)
        client.close()
        return status

    return asyncio.run(ask()) == 200


class _Watch:
    """A process that sends small calls until it is told to end."""

    def __init__(self, server: Server, world: World) -> None:
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        row = next(row for row in world.rows if "user_id" in row and "candidates" in row)
        self.process = context.Process(target=_small_calls, args=(theirs, server.address, body([row])))
        self.process.start()
        self.ours.recv()

    def end(self) -> Waits:
        """End it; what its calls took."""
        self.ours.send(None)
        found: Waits = self.ours.recv()
        self.process.join()
        return found


def _watch(server: Server, world: World, seconds: float) -> Waits:
    watch = _Watch(server, world)
    time.sleep(seconds)
    return watch.end()


def _small_calls(pipe: Any, address: tuple[str, int], sent: bytes) -> None:
    taken: Waits = []

    async def one(free: list[Client], due: float) -> None:
        client = free.pop(0) if free else Client(address)  # in turn, so that none idles until it is closed
        try:
            status, answer = await client.call("/v1/score", sent)
            if status == 200 and "error" in json.loads(answer)["responses"][0]:
                status = 1
            free.append(client)
        except (Lost, Refused):
            status = 0
        taken.append((due, time.monotonic() - due, status))

    async def main() -> None:
        free: list[Client] = []
        tasks = []
        pipe.send(None)
        due = time.monotonic()
        while not pipe.poll():
            tasks.append(asyncio.ensure_future(one(free, due)))
            due += EVERY_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*tasks)
        for client in free:
            client.close()

    asyncio.run(main())
    pipe.send(taken)
