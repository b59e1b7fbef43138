"""The fingerprint of a base: one hash over all its weights, read without torch.

Owns: the hash and its memo in the user's cache. Ignores: finding a base, configurations, tokenizers (see `source`).

    fingerprint(Path("bases/smollm2-135m"))  ->  "5f1c0a…"
"""

import hashlib
import json
import logging
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open

from genre.errors import BaseModelError
from genre.files import cache_folder, write_text

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
_DTYPES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}


def fingerprint(folder: Path) -> str:
    """Hash every weight (name, dtype, shape, bytes) with sha256, sorted by name, however the file is sharded.

    The result is kept in the user's cache under each file's path, size and time.

    Raises:
        BaseModelError: The folder holds no safetensors, or a damaged one.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelError(f"base folder {folder} has no safetensors", todo="convert the weights to safetensors first")
    stamp = json.dumps([(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files])
    memo = cache_folder() / "fingerprints" / f"{hashlib.sha256(stamp.encode()).hexdigest()}.txt"
    if memo.exists():
        found, _, check = memo.read_bytes().decode("ascii", "replace").strip().partition(" ")
        if check == _check(stamp, found):
            return found
        logging.getLogger(__name__).warning("%s is damaged: the base's fingerprint is computed again", memo)
    weights = {name: (file, *entry) for file in files for name, entry in _read_header(file).items()}
    total = hashlib.sha256()
    for name, (file, dtype, shape, begin, end) in sorted(weights.items()):
        total.update(f"{name}\0torch.{dtype}\0{shape}\0".encode())
        with file.open("rb") as source:
            source.seek(begin)
            for size in [2**24] * ((end - begin) // 2**24) + [(end - begin) % 2**24]:
                total.update(source.read(size))
    found = total.hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_text(memo, f"{found} {_check(stamp, found)}\n")
    return found


def _check(stamp: str, found: str) -> str:
    """The check of a memo: it belongs to these files, and has not changed."""
    return hashlib.sha256(f"{stamp} {found}".encode()).hexdigest()


def _read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """The weights of a safetensors file by name: torch's name of the dtype, the shape, first byte and end in the file."""
    try:
        with safe_open(file, framework="np"):  # checks the header against the file
            pass
    except SafetensorError as error:
        raise BaseModelError(f"{file} is damaged", got=str(error)[:200], expected="a safetensors file") from None
    with file.open("rb") as source:
        (size,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(size))
    header.pop("__metadata__", None)
    return {
        name: (_DTYPES.get(of["dtype"], of["dtype"]), tuple(of["shape"]), *(8 + size + offset for offset in of["data_offsets"]))
        for name, of in header.items()
    }
