"""From a registry's address to its store.

Owns: which kind of store an address means, and the variable GENRE_SINGLE_WRITER. Ignores: what is in it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genre.errors import InputError, RegistryError
from genre.registry.stores.local import LocalStore
from genre.registry.stores.other_folders import refuse_other
from genre.registry.stores.store import Store

SINGLE_WRITER = "GENRE_SINGLE_WRITER"


def open_store(url: str, storage_options: Mapping[str, Any], single_writer: bool | None) -> Store:
    """Open the store at a folder or URL; `single_writer` by default as GENRE_SINGLE_WRITER says, see `Registry`.

    Raises:
        RegistryError: It is empty, a file, or a folder of something else.
        InputError: GENRE_SINGLE_WRITER cannot be read.
    """
    if not url:
        raise RegistryError("no registry is named", got="''", expected="a folder such as registry/, or a URL")
    if "://" in url and not url.startswith("file://"):
        from genre.registry.stores.remote import RemoteStore  # fsspec takes a while to import

        return RemoteStore(url, dict(storage_options), single_writer=_is_set() if single_writer is None else single_writer)
    folder = Path(url.removeprefix("file://"))
    if folder.is_file():
        raise RegistryError("a registry is a folder", got=f"the file {folder}", expected="a folder, or a new name")
    store = LocalStore(folder)
    refuse_other(folder, store.names)
    return store


def _is_set() -> bool:
    value = os.environ.get(SINGLE_WRITER, "")
    if value not in ("", "0", "1"):
        raise InputError(f"{SINGLE_WRITER} cannot be read", got=repr(value[:80]), expected="1 or 0")
    return value == "1"
