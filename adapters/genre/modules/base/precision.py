"""The precision that this machine is faster in: bfloat16 where its processor multiplies it and a measurement says so.

Owns: the processor's name and instructions, the half-second measurement and what is kept of it, whether torch's other library of
products is faster in float32. Ignores: loading a base, recipes, who computes.

    found = measured()
    found.name, found.why     # ("bfloat16", "its products are 2.1 to 4.3 times as fast as float32's on this processor")

The measurement is kept in the user's cache under the processor, its instructions and torch's version, so that a machine decides
once; a file that is damaged, or of another machine, is measured anew.
"""

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import nn

from genre.files import cache_folder, write_json
from genre.modules.base.devices import AUTO, chosen_type
from genre.unpromised import onednn_linear

PRECISIONS: dict[str, torch.dtype | None] = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""Precisions by their name in a recipe; None is bfloat16 on CUDA and float32 on a CPU."""
MEASURED = "measured"
"""The name in a recipe of whichever precision is faster on the machine that trains."""
ROWS = (4, 64, 512)
"""Rows of the products that are measured: a few new events, one history, a batch."""
WIDTH = 768
SECONDS = 0.5
LEAST_GAIN = 1.1
"""How many times as fast a way has to be, on the geometric mean; below, it would buy nothing."""
BFLOAT16, ONEDNN = "bfloat16", "onednn"
"""The ways that are measured against torch's own product in float32: the other precision, the other library."""
INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors that multiply bfloat16: those of Intel and AMD, and Arm's."""
Gains = dict[str, dict[int, float]]
"""For each way and number of rows, how many times as fast it is."""
_SWITCHES = ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
"""Variables that keep torch's library from using instructions that are there."""


@dataclass(frozen=True)
class Precision:
    """A precision, and the reason for it.

    Attributes:
        name: `float32` or `bfloat16`.
        why: In a few words.
        gains: For each number of rows, how many times as fast as float32's bfloat16's products are; empty if not measured.
    """

    name: Literal["float32", "bfloat16"]
    why: str
    gains: Mapping[int, float]

    @property
    def dtype(self) -> torch.dtype:
        """As torch names it."""
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def measured(device: str | torch.device | None = None, *, keep: bool = True) -> Precision:
    """Choose the faster precision of a device; None is the one that a base would be on.

    Measures products for half a second where that has not been done on this machine; `keep` remembers it.
    """
    kind = chosen_type(device) if device in (None, AUTO) else torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", "the GPU multiplies it", {})
        return Precision("float32", "the GPU does not multiply bfloat16", {})
    if kind != "cpu":
        return Precision("float32", f"nothing is known of bfloat16 on {kind}", {})
    if not bfloat16_instructions():
        return Precision("float32", "the processor has no instructions for bfloat16", {})
    ways = _gains(keep)
    gains, other = ways[BFLOAT16], _mean(ways[ONEDNN]) if ONEDNN in ways else 1.0
    least, most = min(gains.values()), max(gains.values())
    how = f"its products are {least:.2g} to {most:.2g} times as fast as float32's on this processor"
    if _mean(gains) >= LEAST_GAIN * max(1.0, other):  # float32 may have the faster library, too
        return Precision("bfloat16", how, gains)
    return Precision("float32", f"bfloat16 gains nothing here: {how}", gains)


def onednn_gain() -> float:
    """How many times as fast oneDNN's products in float32 are on this CPU, on the geometric mean; 1 where torch has none."""
    return _mean(_gains(keep=True)[ONEDNN]) if torch.backends.mkldnn.is_available() else 1.0


def _mean(gains: Mapping[int, float]) -> float:
    return math.exp(sum(map(math.log, gains.values())) / len(gains))


def kept_measurement() -> str | None:
    """The faster precision of the CPU and why, where it has been measured on this machine or needs no measurement."""
    if bfloat16_instructions() and _read(*_memo()) is None:
        return None
    return str(measured("cpu"))


def processor() -> str:
    """The CPU's name, torch's instruction set on it, and its bfloat16 instructions: what speed and rounding depend on."""
    name = _cpu_facts().get("model name") or platform.processor() or platform.machine()
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), *bfloat16_instructions()])


def bfloat16_instructions() -> list[str]:
    """The flags of the CPU that stand for products of bfloat16; none where the system does not list flags."""
    facts = _cpu_facts()
    return sorted(INSTRUCTIONS.intersection((facts.get("flags") or facts.get("Features") or "").split()))


def _cpu_facts() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _memo() -> tuple[Path, dict[str, Any]]:
    """The file that keeps a measurement, and what it is kept for."""
    facts = _cpu_facts()
    flags = " ".join(sorted((facts.get("flags") or facts.get("Features") or "").split()))
    machine: dict[str, Any] = {"processor": processor(), "flags": hashlib.sha256(flags.encode()).hexdigest()[:16]}
    machine |= {"torch": torch.__version__, "switches": {name: os.environ[name] for name in _SWITCHES if name in os.environ}}
    key = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "precision" / f"{key}.json", machine


def _gains(keep: bool) -> Gains:
    """The gains of the ways of this machine: what is kept, or a measurement."""
    file, machine = _memo()
    if (found := _read(file, machine)) is not None:
        return found
    if not keep:
        return _measure()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # two measurements at once would disturb each other
            if (found := _read(file, machine)) is None:
                found = _measure()
                write_json(file, {"machine": machine, "gains": found})
        return found
    except OSError as error:
        logging.getLogger(__name__).warning("%s cannot be written, so each process measures anew: %s", file, error)
        return _measure()


def _read(file: Path, machine: Mapping[str, Any]) -> Gains | None:
    """The gains that were kept for a machine; None if there are none, or they are not what `_gains` writes."""
    if not file.exists():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        gains = {way: {int(rows): float(gain) for rows, gain in own.items()} for way, own in held["gains"].items()}
        whole = held["machine"] == machine and list(gains) == _ways() and all(tuple(own) == ROWS for own in gains.values())
        if whole and all(math.isfinite(gain) and gain > 0 for own in gains.values() for gain in own.values()):
            return gains
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    logging.getLogger(__name__).warning("%s is damaged: the precision is measured again", file)
    return None


def _ways() -> list[str]:
    """What is measured here: bfloat16 without instructions for it may be a hundred times slower, and is not tried."""
    return [ONEDNN] * torch.backends.mkldnn.is_available() + [BFLOAT16] * bool(bfloat16_instructions())


@torch.inference_mode()
def _measure() -> Gains:
    """The time of a product in float32 over that of each way, which take turns."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, generator=draw)
    found: Gains = {way: {} for way in _ways()}
    for rows in ROWS:
        x = torch.randn(rows, WIDTH, generator=draw)
        calls = [partial(nn.functional.linear, x, weight)]
        calls += [partial(onednn_linear, x, weight, None)] * (ONEDNN in found)
        calls += [partial(nn.functional.linear, x.bfloat16(), weight.bfloat16())] * (BFLOAT16 in found)
        for call in calls:  # the first one prepares the kernel
            call()
        taken: list[list[float]] = [[] for _ in calls]
        until = time.perf_counter() + SECONDS / len(ROWS)
        while len(taken[0]) < 3 or time.perf_counter() < until:
            for call, seconds in zip(calls, taken, strict=True):
                begun = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - begun)
        own, *others = map(min, taken)  # whatever else runs meanwhile adds to the others
        for way, other in zip(found, others, strict=True):
            found[way][rows] = own / other
    return found
