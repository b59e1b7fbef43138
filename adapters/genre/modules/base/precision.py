"""The precision that this machine is faster in: bfloat16 where its processor multiplies it and a measurement says so.

Owns: the processor's name and instructions, the half-second measurement and what is kept of it. Ignores: loading a base, recipes.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import Tensor, nn

from genre.files import cache_folder, write_json

PRECISIONS: dict[str, torch.dtype | None] = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""Precisions by their name in a recipe; None is bfloat16 on CUDA and float32 on a CPU."""
MEASURED = "measured"
"""The name in a recipe of whichever precision is faster on the machine that trains."""
ROWS = (4, 64, 512)
"""Rows of the products that are measured: a few new events, one history, a batch."""
WIDTH = 768
SECONDS = 0.5
LEAST_GAIN = 1.1
"""How many times as fast bfloat16 has to be, on the geometric mean; below, rounding would buy nothing."""
INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of processors that multiply bfloat16: those of Intel and AMD, and Arm's."""
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
    """Choose the faster precision of a device: `cuda` if there is one, else `cpu`, if None.

    Measures products for half a second where that has not been done on this machine; `keep` remembers it.
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", "the GPU multiplies it", {})
        return Precision("float32", "the GPU does not multiply bfloat16", {})
    if kind != "cpu":
        return Precision("float32", f"nothing is known of bfloat16 on {kind}", {})
    if not bfloat16_instructions():
        return Precision("float32", "the processor has no instructions for bfloat16", {})
    gains = _gains(keep)
    least, most = min(gains.values()), max(gains.values())
    mean = math.exp(sum(map(math.log, gains.values())) / len(gains))
    how = f"its products are {least:.2g} to {most:.2g} times as fast as float32's on this processor"
    if mean >= LEAST_GAIN:
        return Precision("bfloat16", how, gains)
    return Precision("float32", f"bfloat16 gains nothing here: {how}", gains)


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


def _gains(keep: bool) -> dict[int, float]:
    """The gain at each number of rows: what is kept, or a measurement."""
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
                write_json(file, {"machine": machine, "gains": {str(rows): gain for rows, gain in found.items()}})
        return found
    except OSError as error:
        logging.getLogger(__name__).warning("%s cannot be written, so each process measures anew: %s", file, error)
        return _measure()


def _read(file: Path, machine: Mapping[str, Any]) -> dict[int, float] | None:
    """The gains that were kept for a machine; None if there are none, or they are not what `_gains` writes."""
    if not file.exists():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        gains = {int(rows): float(gain) for rows, gain in held["gains"].items()}
        whole = held["machine"] == machine and tuple(gains) == ROWS
        if whole and all(math.isfinite(gain) and gain > 0 for gain in gains.values()):
            return gains
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    logging.getLogger(__name__).warning("%s is damaged: the precision is measured again", file)
    return None


@torch.inference_mode()
def _measure() -> dict[int, float]:
    """For each number of rows, the time of a product in float32 over that in bfloat16; the two alternate."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, generator=draw)
    found = {}
    for rows in ROWS:
        x = torch.randn(rows, WIDTH, generator=draw)
        exact, rough = _product(x, weight), _product(x.bfloat16(), weight.bfloat16())
        taken: tuple[list[float], list[float]] = ([], [])
        exact(), rough()  # the first call prepares the kernel
        until = time.perf_counter() + SECONDS / len(ROWS)
        while len(taken[0]) < 3 or time.perf_counter() < until:
            for call, seconds in zip((exact, rough), taken, strict=True):
                begun = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - begun)
        found[rows] = median(taken[0]) / median(taken[1])
    return found


def _product(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: nn.functional.linear(x, weight)
