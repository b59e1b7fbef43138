"""From a folder that somebody wrote to a sealed version in a folder aside.

Owns: reading the draft, copying, checking and sealing. Ignores: where the result goes.
"""

import os
import shutil
import stat
from pathlib import Path

from genre.errors import IntegrityError, ManifestError
from genre.files import disk_errors
from genre.registry import limits
from genre.registry.card import render_card
from genre.registry.integrity import CARD, check_content, hash_files, list_files
from genre.registry.journal import utc_now
from genre.registry.manifest import Manifest, seal
from genre.registry.names import MANIFEST


def prepare(folder: Path, staged: Path, draft: Manifest) -> Manifest:
    """Fill an empty folder with a complete version: the files, the card, the sealed manifest.

    Raises:
        IntegrityError: A file is not accepted, or the weights are not usable.
    """
    copy_files(folder, staged)
    if not (staged / CARD).exists():
        (staged / CARD).write_text(render_card(draft), encoding="utf-8")
    check_content(staged, draft.kind)
    size = sum(list_files(staged).values())
    sealed, data = seal(draft, hash_files(staged), created=utc_now(), size_bytes=size)
    (staged / MANIFEST).write_bytes(data)
    return sealed


def read_draft(folder: Path) -> Manifest:
    """The draft that lies in a folder as `manifest.json`; what publishing fills in is emptied.

    Raises:
        ManifestError: There is none, or a field is wrong.
        IntegrityError: It is not JSON.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError:
        raise ManifestError(f"no {MANIFEST}", got=folder, expected="a draft in the folder, or the manifest argument") from None
    raw = limits.parse_json(data, MANIFEST, limit=limits.MAX_MANIFEST_BYTES)
    empty = {"version": "", "digest": "", "created": "", "checksum": "", "files": {}}
    return Manifest.parse(raw | empty if isinstance(raw, dict) else raw)


def copy_files(folder: Path, staged: Path) -> None:
    """Copy the files; what is then checked and hashed is the copy, so a source that changes meanwhile does no harm.

    Raises:
        IntegrityError: A file is not accepted in a version.
    """
    for name in list_files(folder):
        if name == MANIFEST:
            continue
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise IntegrityError(f"{name} cannot be read", got=error.strerror) from None
        with open(descriptor, "rb") as source, disk_errors(staged), open(staged / name, "wb") as target:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise IntegrityError(f"{name} is not a plain file")
            shutil.copyfileobj(source, target, 2**20)
