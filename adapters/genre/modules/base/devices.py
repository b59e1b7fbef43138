"""The device that a base is loaded on.

Owns: what names it (an argument, `GENRE_DEVICE`, a launcher), refusing one that is not there. Ignores: loading, several devices.

    choose_device(None)        # "cuda" where there is one, else "cpu"
    choose_device("cuda:1")    # the second of those that CUDA_VISIBLE_DEVICES leaves
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from genre.distributed import Processes, cpu_requested
from genre.errors import InputError

VARIABLE = "GENRE_DEVICE"
AUTO = "auto"
"""All devices that there are, between which accelerate spreads a base."""


def choose_device(wanted: str | torch.device | None) -> str:
    """The device for a base: the one wanted, else that of `GENRE_DEVICE`, else the launcher's, else CUDA's if there is one.

    Raises:
        InputError: There is no such device, or a launcher has given this process another one.
    """
    named = str(wanted or os.environ.get(VARIABLE) or "")
    launched = _launched()
    if named:
        named = _checked(named)
        if launched is not None and named != launched and f"{named}:0" != launched:
            todo = "leave the device out, or have accelerate choose it (--cpu, --gpu_ids, CUDA_VISIBLE_DEVICES)"
            what = "the device is another one than accelerate gave this process"
            raise InputError(what, got=named, expected=launched, todo=todo)
        return named
    return launched or ("cuda" if torch.cuda.is_available() else "cpu")


def chosen_type(wanted: str | torch.device | None = None) -> str:
    """The type of the device for a base, such as `cuda`; of several devices that of the first.

    Raises:
        InputError: As `choose_device`.
    """
    named = choose_device(wanted)
    if named == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(named).type


@contextmanager
def default_device(named: str | None) -> Iterator[None]:
    """A block in which bases are loaded on a device unless another one is asked for, in child processes too.

    Raises:
        InputError: As `choose_device`.
    """
    if named is None:
        yield
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = choose_device(named)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def _launched() -> str | None:
    """The device that a launcher asks for; None if it leaves the choice open."""
    there = Processes.current().device
    return str(there) if there is not None else "cpu" if cpu_requested() else None


def _checked(named: str) -> str:
    """A device's name, if it is there."""
    if named == AUTO:
        return named
    try:
        device = torch.device(named)
        module: Any = torch.get_device_module(device.type)
    except (RuntimeError, AttributeError):
        raise InputError("no such device", got=named, expected=_known("cuda")) from None
    count = module.device_count() if hasattr(module, "device_count") else 1
    if not module.is_available() or (device.index or 0) >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if device.type == "cuda" else None
        left = f" (CUDA_VISIBLE_DEVICES={visible} leaves {count}, numbered from 0)" if visible is not None else ""
        raise InputError("no such device", got=f"{named}{left}", expected=_known(device.type))
    return "cpu" if device.type == "cpu" else named  # a base on the CPU has no number


def _known(kind: str) -> str:
    """The devices that can be named."""
    try:
        module: Any = torch.get_device_module(kind)
        count = module.device_count() if module.is_available() else 0
    except (RuntimeError, AttributeError):
        count = 0
    return ", ".join(["cpu", *(f"{kind}:{index}" for index in range(count)), *([AUTO] if count else [])])
