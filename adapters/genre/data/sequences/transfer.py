"""Copies between the host and the device of a base that neither side waits for.

Owns: the way up through pinned memory, and numbers on their way down. Ignores: what is copied.

    tokens = upload(tokens, device)       # the host goes on; the device has them when it comes to need them
    found = Readback(losses)              # the copy begins once the device has computed them
    ...                                   # more work for the device
    found.read()                          # waits for that copy alone
"""

from typing import Any

import torch
from torch import Tensor

DIRECT = ("cpu", "mps", "meta")
"""Devices without memory of their own, or without copies beside the host."""


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the CPU to an accelerator through pinned memory, without waiting for either."""
    if device.type in DIRECT or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Readback:
    """A tensor on its way to the CPU, where work that the device got later need not be waited for.

    Args:
        values: A tensor of any shape, on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach()
        self._copied: Any = None
        if values.device.type in DIRECT:
            return
        module = torch.get_device_module(values.device)
        self._values = torch.empty(values.shape, dtype=values.dtype).pin_memory()
        self._values.copy_(values.detach(), non_blocking=True)
        self._copied = module.Event()
        self._copied.record(module.current_stream(values.device))

    def read(self) -> Tensor:
        """The values on the CPU, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.cpu()
