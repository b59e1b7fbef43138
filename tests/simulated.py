"""A simulated accelerator, `sim`: what CUDA refuses and what CUDA waits for, seen on a machine without a GPU.

Owns: the device. Ignores: what runs on it. Its tensors wrap CPU tensors and every operator runs on the CPU, so it says nothing of
speed or memory. Registering it is for the whole process, and must come before torch's first backward pass; see
`tests/accelerator/conftest.py`.

    simulated.register()
    x = torch.ones(3, device="sim")
    x + torch.ones(3)                       # RuntimeError: Expected all tensors to be on the same device, …
    with simulated.watching() as seen:
        float(x.sum())
    seen.waits                              # [Event("_local_scalar_dense", "training/loop.py:291 step")]

Like CUDA: a 0-dimensional CPU tensor may take part in an elementwise operator, CPU tensors may index, everything else must be on
one device. Random numbers are the device's own. A copy between host and device waits for the device unless it is asked not to
(`non_blocking`) and, towards the device, starts in pinned memory; see `docs/decisions/simulated-accelerator.md`.
"""

import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _foreach_supported_types as optimizer_types
from torch.utils._foreach_utils import _foreach_supported_types as foreach_types
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "sim"
MOST_DEVICES = 2
aten = torch.ops.aten

WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
    "_linalg_check_errors",
    "linalg_eig",
    "linalg_lstsq",
}
"""Operators whose result the host must see before it can go on: its value, or its shape."""

INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_"}
RESHAPING = {"squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_", "resize_"}
COPIES = {"copy_", "_to_copy", "_copy_from", "_foreach_copy_"}
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "linear"}
MIX = "Expected all tensors to be on the same device, but found at least two devices, {} and {}! (aten::{})"


@dataclass(frozen=True)
class Event:
    """Something that `Seen` notes.

    Attributes:
        operator: The operator's name, without namespace and overload.
        line: The innermost line of the library, `training/loop.py:291 step`; of whoever called torch if it is not in there.
    """

    operator: str
    line: str


@dataclass
class Seen:
    """What the device did within `watching`.

    Attributes:
        waits: For each time that the host waited for the device, in order.
        pageable: For each copy to the device from memory that is not pinned.
        dtypes: For each operator, the precisions of its floating-point results.
    """

    waits: list[Event] = field(default_factory=list)
    pageable: list[Event] = field(default_factory=list)
    dtypes: dict[str, Counter[torch.dtype]] = field(default_factory=dict)

    def lines(self) -> str:
        """The waits by line, for a message."""
        found = Counter(f"{each.line}: {each.operator}" for each in self.waits)
        return "\n".join(f"{count} x {line}" for line, count in found.most_common())


class Device:
    """The state of the simulated devices.

    Attributes:
        count: The number of devices.
        shares_random: Draw from the CPU's generator, so that a run draws what it would on the CPU.
        watchers: The open `watching` blocks.
    """

    def __init__(self) -> None:
        self.count = 1
        self.shares_random = False
        self.watchers: list[Seen] = []
        self.random: dict[int, Tensor] = {}
        self.current = threading.local()
        self.pinned: dict[int, Any] = {}
        self.kept: list[Any] = []

    def note(self, kind: str, operator: str) -> None:
        """Note an event with the line that it comes from."""
        if self.watchers:
            event = Event(operator, _line())
            for each in self.watchers:
                getattr(each, kind).append(event)

    def index(self, device: torch.device | str | int | None) -> int:
        """The index of a device; of the current one where none is named."""
        if device is None or device == NAME:
            return getattr(self.current, "index", 0)
        if isinstance(device, int):
            found = device
        else:
            named = torch.device(device).index
            found = getattr(self.current, "index", 0) if named is None else named
        if not 0 <= found < self.count:
            raise RuntimeError(f"invalid device ordinal: {NAME}:{found} of {self.count}")
        return found

    @contextmanager
    def drawing(self, index: int) -> Iterator[None]:
        """A block in which the CPU's operators draw from a device's generator."""
        if self.shares_random:
            yield
            return
        host = torch.get_rng_state()
        torch.set_rng_state(self.random[index])
        try:
            yield
        finally:
            self.random[index] = torch.get_rng_state()
            torch.set_rng_state(host)


DEVICE = Device()


@contextmanager
def watching() -> Iterator[Seen]:
    """A block of which everything that the devices do is noted, in all threads."""
    seen = Seen()
    DEVICE.watchers.append(seen)
    try:
        yield seen
    finally:
        DEVICE.watchers.remove(seen)


@contextmanager
def random_of_the_cpu() -> Iterator[None]:
    """A block in which the devices draw from the CPU's generator: a run is then comparable to one on the CPU."""
    DEVICE.shares_random = True
    try:
        yield
    finally:
        DEVICE.shares_random = False


def _line() -> str:
    """The innermost frame of the library on the stack; without one the innermost that is not torch's or this file's."""
    frame: Any = sys._getframe(2)
    outside = None
    while frame is not None:
        file = frame.f_code.co_filename
        if "/genre/" in file:
            return f"{file.rpartition('/genre/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        if outside is None and "/torch/" not in file and file != __file__ and not file.endswith("contextlib.py"):
            outside = f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return outside or "autograd"


class SimTensor(torch.Tensor):
    """A tensor on the simulated device; `inner` is the CPU tensor that holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, index: int = 0, requires_grad: bool = False) -> Any:
        if isinstance(inner, SimTensor):  # accelerate makes a parameter anew by its type
            return torch.nn.Parameter(inner, requires_grad)
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, index),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(issubclass(each, SimTensor) or each is torch.nn.Parameter for each in types):
            return NotImplemented
        return run(func, args, kwargs or {})

    def __repr__(self, **rest: Any) -> str:  # printing waits for the device, a debugger's printing must not be counted
        return f"{self.inner!r} on {NAME}:{self.device.index}"

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        """As torch's, whose own ends in an internal error for tensors of such a device."""
        place = {"dtype": dtype or self.dtype, "device": device or self.device}
        if isinstance(data, Tensor):
            return data.detach().to(**place, copy=True).requires_grad_(requires_grad)
        return torch.tensor(data, **place, requires_grad=requires_grad)

    def record_stream(self, stream: Any) -> None:
        """Nothing: memory is not given away while a copy reads it."""

    def tolist(self) -> Any:
        """As torch's, which takes no wrapper."""
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        """Where the values are: accelerate tells tied weights by it."""
        return self.inner.data_ptr()

    def numpy(self, **rest: Any) -> Any:
        """Refused, as on CUDA."""
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """As torch's; setting it takes the values over too."""
        return self.detach()

    @data.setter
    def data(self, value: "SimTensor") -> None:
        if not isinstance(value, SimTensor):
            raise RuntimeError("Attempted to call `variable.set_data(tensor)`, but they have incompatible tensor type")
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        note_wait("save")
        return rebuild, (self.inner.detach(), self.device.index, self.requires_grad)

    def __deepcopy__(self, memo: Any) -> Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made


def note_wait(operator: str) -> None:
    """Note that the host waits for the device."""
    DEVICE.note("waits", operator)


def rebuild(inner: Tensor, index: int, requires_grad: bool) -> Tensor:
    """A tensor of the device from what a file holds."""
    return SimTensor(inner, index).requires_grad_(requires_grad)


def _load_to(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.load` that knows the device as a place to load to."""

    def load(file: Any, map_location: Any = None, **rest: Any) -> Any:
        if not isinstance(map_location, str | torch.device):
            return plain(file, map_location=map_location, **rest)
        there = torch.device(map_location)
        found = plain(file, map_location="cpu" if there.type == NAME else there, **rest)
        return tree_map_only(Tensor, lambda each: each.to(there), found)

    return load


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, change) for each in value)
    return change(value)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator with at least one tensor of the device, or a factory that is asked for one, on the CPU.

    Raises:
        RuntimeError: Its tensors are on different devices.
    """
    name = func._schema.name.partition("::")[2]
    tensors = [each for each in _flat((*args, *kwargs.values())) if isinstance(each, Tensor)]
    index = _place(name, func, args, kwargs, tensors)
    _note(name, func, args, kwargs, tensors)
    if name in ("copy_", "_copy_from"):
        return _copied(name, args)
    if index is not None and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if name in PRODUCTS and tensors and tensors[0].dtype in INTEGERS:
        raise NotImplementedError(f'"{name}_cuda" not implemented for {tensors[0].dtype}')
    inner_args = _mapped(args, _inner)
    inner_kwargs = {key: _mapped(value, _inner) for key, value in kwargs.items()}
    if index is not None and torch.Tag.nondeterministic_seeded in func.tags:
        with DEVICE.drawing(index):
            found = func(*inner_args, **inner_kwargs)
    else:
        found = func(*inner_args, **inner_kwargs)
    if name in RESHAPING:
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)  # the same for the wrapper's own shape
    _note_dtypes(name, found)
    return _outputs(func, args, kwargs, found, index)


def _inner(value: Any) -> Any:
    if isinstance(value, SimTensor):
        return value.inner
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


def _place(name: str, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> int | None:
    """The index of the device of an operator's results; None if they are on the CPU. Refuses a mix as CUDA does."""
    wanted = kwargs.get("device")
    if name in COPIES:
        if wanted is not None:
            return DEVICE.index(wanted) if torch.device(wanted).type == NAME else None
        return next((each.device.index for each in tensors if isinstance(each, SimTensor)), None)
    if name in INDEXING:
        tensors = _check_indices(name, args)
    devices = list(dict.fromkeys(each.device for each in tensors if not _may_differ(each, func)))
    if len(devices) > 1:
        raise RuntimeError(MIX.format(*devices[:2], name))
    if wanted is not None:
        return DEVICE.index(wanted) if torch.device(wanted).type == NAME else None
    found = devices[0] if devices else None
    return found.index if found is not None and found.type == NAME else None


def _may_differ(tensor: Tensor, func: Any) -> bool:
    """True for a CPU scalar where CUDA's kernels take one: elementwise operators."""
    scalar = tensor.dim() == 0 and not isinstance(tensor, SimTensor)
    return scalar and (torch.Tag.pointwise in func.tags or "_foreach_" in func._schema.name or "fill" in func._schema.name)


def _check_indices(name: str, args: Any) -> list[Tensor]:
    """The tensors of an indexing that must be on one device: CPU tensors may index whatever they like, a scalar be written."""
    own = args[0]
    for each in args[1]:
        if each is not None and each.device.type != "cpu" and each.device != own.device:
            raise RuntimeError(f"indices should be either on cpu or on the same device as the indexed tensor ({own.device})")
    written = args[2] if len(args) > 2 else None
    return [own] if written is None or (written.dim() == 0 and written.device.type == "cpu") else [own, written]


def _note(name: str, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    if not DEVICE.watchers:
        return
    here = any(isinstance(each, SimTensor) for each in tensors)
    if name in WAITS or (name == "repeat_interleave" and here and kwargs.get("output_size") is None):
        note_wait(name)
    if name in INDEXING and here:
        for each in args[1]:
            if each is not None and each.dtype in (torch.bool, torch.uint8):
                note_wait(f"{name} by a mask")
            elif each is not None and not isinstance(each, SimTensor):
                _note_copy(each, args[0], blocking=True)
    if name in ("_to_copy", "_copy_from", "copy_"):
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], args[1] if name == "_copy_from" else None)
        given = kwargs.get("non_blocking", False) or (len(args) > 2 and bool(args[2]))
        to = kwargs.get("device", source.device) if target is None else target.device
        if torch.device(to or source.device).type != source.device.type:
            _note_copy(source, target, blocking=not given)
    if name == "_foreach_copy_":
        for target, source in zip(args[0], args[1], strict=True):
            if target.device.type != source.device.type:
                _note_copy(source, target, blocking=not (len(args) > 2 and args[2]))


def _note_copy(source: Tensor, target: Any, *, blocking: bool) -> None:
    """Note a copy between the host and the device.

    One to the host is counted as a wait even if it is not blocking, since nothing that reads the values could do without one.
    """
    up = not isinstance(source, SimTensor)
    if up and not is_pinned(source):
        DEVICE.note("pageable", "copy to the device")
    if blocking or not up:
        note_wait("copy to the device" if up else "copy to the CPU")


def _note_dtypes(name: str, found: Any) -> None:
    for seen in DEVICE.watchers:
        for each in _flat([found]):
            if isinstance(each, Tensor) and each.is_floating_point():
                seen.dtypes.setdefault(name, Counter())[each.dtype] += 1


def _copied(name: str, args: Any) -> Tensor:
    source, target = (args[1], args[0]) if name == "copy_" else args[:2]
    _inner(target).copy_(_inner(source))
    return target


def _outputs(func: Any, args: Any, kwargs: dict[str, Any], found: Any, index: int | None) -> Any:
    """The results as tensors of the device; where an operator writes into an argument, that argument."""
    returns = func._schema.returns
    if not returns:
        return found
    written = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            for alias in argument.alias_info.after_set:
                written[alias] = value
    if len(returns) == 1:
        return _output(returns[0], found, written, index)
    return tuple(_output(each, value, written, index) for each, value in zip(returns, found, strict=True))


def _output(described: Any, value: Any, written: dict[str, Any], index: int | None) -> Any:
    alias = described.alias_info
    if alias is not None and alias.is_write:
        target = next((written[name] for name in alias.after_set if name in written), None)
        if isinstance(target, SimTensor):
            return target
    if index is None:
        return value
    return _mapped(value, lambda each: SimTensor(each, index) if isinstance(each, Tensor) else each)


# The host's side: pinned memory.


def is_pinned(tensor: Tensor) -> bool:
    """True for a CPU tensor that `pin_memory` gave, or a view of one."""
    return tensor.untyped_storage().data_ptr() in DEVICE.pinned


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """A copy in memory that counts as pinned."""
    if is_pinned(tensor):
        return tensor
    made = tensor.clone()
    storage = made.untyped_storage()
    if storage.nbytes():
        DEVICE.pinned[storage.data_ptr()] = storage  # kept: another tensor must not get the address
    return made


# What torch asks of a device's module.


class _Current:
    def __init__(self, device: Any) -> None:
        self.index = DEVICE.index(device)
        self.before = 0

    def __enter__(self) -> None:
        self.before = DEVICE.index(None)
        DEVICE.current.index = self.index

    def __exit__(self, *rest: Any) -> None:
        DEVICE.current.index = self.before


class _Event:
    """Nothing to wait for: whatever copies to the CPU has been counted where it began."""

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...


class _Stream:
    """One after the other is an order that every stream allows."""

    def __init__(self, device: Any = None) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...


def _module() -> types.ModuleType:
    module: Any = types.ModuleType(f"torch.{NAME}")

    def set_device(device: Any) -> None:
        DEVICE.current.index = DEVICE.index(device)

    def set_rng_state(state: Tensor, device: Any = None) -> None:
        DEVICE.random[DEVICE.index(device)] = state.clone()

    def manual_seed_all(seed: int) -> None:
        for index in range(MOST_DEVICES):
            DEVICE.random[index] = torch.Generator().manual_seed(int(seed) + 1).get_state()

    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: DEVICE.count
    module.current_device = lambda: DEVICE.index(None)
    module.set_device = set_device
    module.device = _Current
    module.synchronize = lambda device=None: note_wait("synchronize")
    module.get_rng_state = lambda device=None: DEVICE.random[DEVICE.index(device)].clone()
    module.set_rng_state = set_rng_state
    module.manual_seed = module.manual_seed_all = manual_seed_all
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.current_stream = _Stream
    module.Stream = _Stream
    module.stream = nullcontext
    module.Event = _Event
    module.get_device_name = lambda device=None: "simulated"
    module.empty_cache = lambda: None
    module.mem_get_info = lambda device=None: (8 << 30, 8 << 30)
    module.memory_allocated = module.max_memory_allocated = lambda device=None: 0
    module.reset_peak_memory_stats = lambda device=None: None
    return module


def _factories() -> Iterator[tuple[str, Any]]:
    """Operators that make a tensor of nothing but numbers: they have no tensor to dispatch on, each needs a kernel."""
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if not full.startswith("aten::") or any(each in name for each in ("sparse", "quantized", "nested", "cudnn", "from_file")):
            continue
        found = getattr(getattr(aten, name, None), overload or "default", None)
        arguments = found._schema.arguments if found is not None else ()
        if any(each.name == "device" for each in arguments) and not any("Tensor" in str(each.type) for each in arguments):
            yield full.removeprefix("aten::"), found


def _factory(func: Any) -> Any:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        return run(func, args, kwargs)

    return kernel


@contextmanager
def devices(count: int) -> Iterator[None]:
    """A block with so many devices in place of one."""
    DEVICE.count = count
    try:
        yield
    finally:
        DEVICE.count = 1


def _run_backward(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The way into the autograd engine; with several devices on the caller's thread, as the engine has one for the first only.

    With one device backward passes run on a thread of the device, as on CUDA: what is bound to a thread shows.
    """

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.set_multithreading_enabled(DEVICE.count == 1):
            return plain(*args, **kwargs)

    return run_backward


def register() -> None:
    """Make `sim` a device of this process; once, and before the first backward pass."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_module())
    library = torch.library.Library("aten", "IMPL")
    for name, func in _factories():
        library.impl(name, _factory(func), "PrivateUse1")
    library.impl("_copy_from", lambda *args, **kwargs: run(aten._copy_from.default, args, kwargs), "PrivateUse1")
    DEVICE.kept.append(library)
    for index in range(MOST_DEVICES):
        DEVICE.random[index] = torch.Generator().manual_seed(index).get_state()
    torch.Tensor.pin_memory = pin_memory  # type: ignore[method-assign, assignment]
    torch.Tensor.is_pinned = lambda tensor, device=None: is_pinned(tensor)  # type: ignore[method-assign, assignment]
    torch.__future__.set_swap_module_params_on_conversion(True)  # as on CUDA, a module's parameters stay what they are
    torch.serialization.add_safe_globals([rebuild])
    torch.load = _load_to(torch.load)
    torch.autograd._engine_run_backward = _run_backward(torch.autograd._engine_run_backward)
    for supported in (optimizer_types, foreach_types):
        supported.append(SimTensor)  # CUDA's optimizers work on lists
