"""The simulated accelerator itself: it refuses what CUDA refuses, and counts what CUDA waits for."""

import copy
import io

import pytest
import torch
from torch import nn

import simulated

REFUSED = {
    "sum": lambda here, cpu: here + cpu,
    "product": lambda here, cpu: here @ cpu,
    "cat": lambda here, cpu: torch.cat([here, cpu]),
    "scalar in a cat": lambda here, cpu: torch.stack([here.sum(), cpu.sum()]),
    "indices": lambda here, cpu: cpu[torch.tensor([0], device="sim")],
    "gather": lambda here, cpu: here.index_select(0, torch.tensor([0])),
    "embedding": lambda here, cpu: nn.functional.embedding(torch.tensor([0]), here),
    "written rows": lambda here, cpu: here.index_put_((torch.tensor([0]),), cpu[:1]),
    "other device": lambda here, cpu: here + torch.ones(3, 3, device="sim:1"),
    "other device's scalar": lambda here, cpu: here + torch.ones((), device="sim:1"),
}
WAITS = {
    "item": (lambda x: x.sum().item(), 1),
    "truth": (lambda x: bool((x > 0).any()), 1),
    "numpy": (lambda x: x.cpu().numpy(), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "mask": (lambda x: x[x > 0], 1),
    "masked_select": (lambda x: x.masked_select(x > 0), 1),
    "write by a mask": (lambda x: x.clone().__setitem__(x > 0, 0.0), 1),
    "unique": (lambda x: torch.unique(x), 1),
    "repeat": (lambda x: x[0].repeat_interleave((x[0] * 0).long()), 1),
    "repeat to a size": (lambda x: x[0].repeat_interleave((x[0] * 0).long(), output_size=0), 0),
    "upload": (lambda x: torch.ones(3).to(x.device), 1),
    "literal": (lambda x: torch.tensor([1.0], device=x.device), 1),
    "pinned upload": (lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True), 0),
    "indexed by the CPU": (lambda x: x[torch.tensor([0])], 1),
    "elementwise": (lambda x: (x * 2 + torch.tensor(1.0)).masked_fill(x > 0, 0.0).softmax(-1).sum(), 0),
    "synchronize": (lambda x: torch.get_device_module("sim").synchronize(), 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mixes_are_refused(name: str) -> None:
    with simulated.devices(2), pytest.raises(RuntimeError, match="same device"):
        REFUSED[name](torch.ones(3, 3, device="sim"), torch.ones(3, 3))


def test_cpu_scalars_and_cpu_indices_may_take_part() -> None:
    here = torch.arange(6.0, device="sim").view(2, 3)
    assert (here + torch.tensor(1.0)).sum().item() == 21.0
    assert here[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]]
    here[torch.tensor([0]), torch.tensor([2])] = torch.tensor(7.0)
    assert here.tolist()[0] == [0.0, 1.0, 7.0]


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted_with_their_line(name: str) -> None:
    work, expected = WAITS[name]
    x = torch.ones(2, 3, device="sim")
    with simulated.watching() as seen:
        work(x)
    assert len(seen.waits) == expected, seen.lines()
    assert all("test_device.py" in each.line for each in seen.waits)


def test_memory_that_is_not_pinned_is_counted() -> None:
    with simulated.watching() as seen:
        torch.ones(3).to("sim", non_blocking=True)
        torch.ones(3).pin_memory()[1:].to("sim", non_blocking=True)
    assert len(seen.pageable) == 1 and not seen.waits


def test_gradients_and_an_optimizer_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    found = []
    for device in ("cpu", "sim"):
        own = copy.deepcopy(layer).to(device)
        optimizer = torch.optim.AdamW(own.parameters(), lr=0.1)
        for _ in range(3):
            own(torch.ones(2, 4, device=device)).log_softmax(-1)[:, 0].sum().backward()
            nn.utils.clip_grad_norm_(own.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        found.append([value.detach().cpu() for value in own.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_moving_a_module_keeps_its_parameters() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight
    layer.to("sim")
    assert layer.weight is weight and weight.device.type == "sim"


def test_random_numbers_are_the_devices_own() -> None:
    module = torch.get_device_module("sim")
    torch.manual_seed(3)
    host, state = torch.get_rng_state(), module.get_rng_state()
    first = torch.rand(4, device="sim")
    assert torch.equal(torch.get_rng_state(), host)
    module.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="sim"), first)
    with torch.random.fork_rng(devices=[0], device_type="sim"):
        torch.rand(4, device="sim")
    module.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="sim"), first)
    with simulated.random_of_the_cpu():
        torch.manual_seed(3)
        assert torch.equal(torch.rand(4, device="sim").cpu(), torch.manual_seed(3) and torch.rand(4))


def test_files_come_back_to_the_place_that_is_asked_for() -> None:
    file = io.BytesIO()
    torch.save({"here": nn.Parameter(torch.ones(2, device="sim")), "there": torch.ones(2)}, file)
    for place, expected in ((None, ("sim", "cpu")), ("cpu", ("cpu", "cpu")), ("sim", ("sim", "sim"))):
        file.seek(0)
        found = torch.load(file, map_location=place, weights_only=True)
        assert (found["here"].device.type, found["there"].device.type) == expected


def test_torch_knows_the_device() -> None:
    assert torch.accelerator.current_accelerator() == torch.device("sim")
    with simulated.devices(2):
        assert torch.accelerator.device_count() == 2
        assert torch.ones(1, device="sim:1").device == torch.device("sim", 1)
    with pytest.raises(RuntimeError, match="ordinal"):
        torch.ones(1, device="sim:1")
    with pytest.raises(TypeError, match="Tensor.cpu"):
        torch.ones(1, device="sim").numpy()
