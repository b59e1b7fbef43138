"""Safetensors files, read without trusting them and without torch.

Owns: the header (JSON, sizes, dtypes, offsets), a streamed look at the values, and copying tensors into a new file. Ignores:
what the tensors are for.

A file is 8 bytes of header length, the header, then the data, with no gap and no overlap:

    {"like.weight": {"dtype": "F32", "shape": [1, 64], "data_offsets": [0, 256]}}
"""

import json
import math
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genre.errors import IntegrityError
from genre.registry.limits import MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_TENSOR_NAME, MAX_TENSORS, parse_json

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES = FLOATS | INTEGERS

_CHUNK_BYTES = 8 * 2**20
_FORMATS = ((b"PK\x03\x04", "a zip (a torch checkpoint is one)"), (b"\x1f\x8b", "gzip"), (b"GGUF", "GGUF"))


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the header: `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


Weights = Mapping[str, tuple[Path, Tensor]]
"""Tensors by name: the file that holds each, and its header entry."""


@dataclass(frozen=True)
class Content:
    """Properties of the values of one tensor.

    Attributes:
        finite: Whether all of them are, in float32 at most, as which weights are loaded.
        zero: Whether all of them are.
        least, most: Of integers; 0 and -1 where there are none.
    """

    finite: bool
    zero: bool
    least: int = 0
    most: int = -1


def read_header(path: Path, allowed: Collection[str] = SIZES.keys()) -> dict[str, Tensor]:
    """Read and check the header; return the tensors by name, in the order of their data. No tensor is allocated.

    Raises:
        IntegrityError: The file is not safetensors (a pickle, a zip), a dtype is not among the `allowed` ones, or the header
            breaks the format or a limit.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise _bad(path, "is cut off", f"{size} bytes", "at least 8")
        (length,) = struct.unpack("<Q", start)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise _bad(path, "is not safetensors", _guess(start), f"a header of at most {MAX_HEADER_BYTES:,} bytes in the file")
        head = file.read(length)
    if not head.startswith(b"{"):
        raise _bad(path, "is not safetensors", _guess(start + head[:8]), "a JSON header")
    raw = parse_json(head, f"the header of {path.name}", limit=MAX_HEADER_BYTES)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(path, "has metadata that is not text", None, "a mapping of text to text")
    if len(raw) > MAX_TENSORS:
        raise _bad(path, "has too many tensors", len(raw), f"at most {MAX_TENSORS:,}")
    tensors = sorted((_tensor(path, name, row, 8 + length) for name, row in raw.items()), key=lambda t: (t.begin, t.end))
    for tensor in tensors:
        if tensor.dtype not in allowed:
            raise _bad(path, f"has a wrong dtype for tensor {tensor.name!r}", tensor.dtype, ", ".join(sorted(allowed)))
    _check_offsets(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def scan(path: Path, tensors: Iterable[Tensor]) -> dict[str, Content]:
    """Read tensors in chunks; return by name whether each is finite and whether it is all zero."""
    return {tensor.name: _scan_one(path, tensor) for tensor in tensors}


def read_array(path: Path, tensor: Tensor) -> npt.NDArray[np.generic]:
    """Read one tensor; bfloat16, which numpy does not have, comes as float32."""
    data = np.fromfile(path, dtype=np.uint8, count=tensor.end - tensor.begin, offset=tensor.begin)
    return _decode(data, tensor.dtype).reshape(tensor.shape)


def write_weights(target: Path, weights: Weights) -> None:
    """Copy tensors byte by byte into a new safetensors file, in the order of their names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (_, tensor) in sorted(weights.items()):
        begin, end = end, end + tensor.end - tensor.begin
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, (path, tensor) in sorted(weights.items()):
            file.writelines(_chunks(path, tensor))


def _chunks(path: Path, tensor: Tensor) -> Iterator[bytes]:
    with open(path, "rb") as source:
        source.seek(tensor.begin)
        for begin in range(tensor.begin, tensor.end, _CHUNK_BYTES):
            wanted = min(_CHUNK_BYTES, tensor.end - begin)
            data = source.read(wanted)
            if len(data) != wanted:
                raise _bad(path, "was cut off while it was read", len(data), wanted)
            yield data


def _tensor(path: Path, name: str, row: object, data_start: int) -> Tensor:
    wrong = _bad(path, f"has a malformed entry for tensor {name[:80]!r}", repr(row)[:120], "dtype, shape and data_offsets")
    if not name or len(name) > MAX_TENSOR_NAME or not name.isprintable():
        raise _bad(path, "has a wrong tensor name", repr(name[:80]), f"1 to {MAX_TENSOR_NAME} printable characters")
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        raise wrong
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise _bad(path, f"has a dtype that is not accepted for tensor {name!r}", repr(dtype)[:40], ", ".join(SIZES))
    # Python integers do not overflow, so a huge shape is a huge number and nothing more.
    if math.prod(shape) * SIZES[dtype] != offsets[1] - offsets[0]:
        raise _bad(path, f"has a shape that does not fill its bytes for tensor {name!r}", f"{shape} in {offsets}", dtype)
    return Tensor(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _check_offsets(path: Path, tensors: list[Tensor], start: int, size: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.begin != end:
            raise _bad(path, f"has a gap or an overlap before tensor {tensor.name!r}", tensor.begin, end)
        end = tensor.end
    if end != size:
        raise _bad(path, "is not as long as its header says", f"{size:,} bytes", f"{end:,}")


def _scan_one(path: Path, tensor: Tensor) -> Content:
    finite, zero, bounds = True, True, []
    for data in _chunks(path, tensor):
        values: npt.NDArray[Any] = _decode(np.frombuffer(data, dtype=np.uint8), tensor.dtype)
        zero = zero and not values.any()
        if tensor.dtype not in FLOATS:
            bounds += [int(values.min()), int(values.max())]
        elif finite:
            with np.errstate(over="ignore"):
                finite = bool(np.isfinite(values.astype(np.float32, copy=False)).all())
    return Content(finite, zero, min(bounds, default=0), max(bounds, default=-1))


def _decode(data: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.generic]:
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.astype(bool) if dtype == "BOOL" else data.view(f"<{dtype[0].lower()}{SIZES[dtype]}")


def _guess(start: bytes) -> str:
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "a pickle, which is never opened"
    return next((kind for magic, kind in _FORMATS if start.startswith(magic)), f"bytes {start[:8].hex(' ')}")


def _bad(path: Path, what: str, got: object, expected: object) -> IntegrityError:
    return IntegrityError(f"{path.name} {what}", got=got, expected=expected)
