"""Publishing: a folder's files become a version, and aliases name it.

Owns: the order of a publish, so that nothing half-done is ever visible. Ignores: which files are accepted (`integrity`), how a
store writes (`stores`).
"""

import os
from collections.abc import Iterable
from pathlib import Path

from genre.errors import NotFoundError, RegistryError
from genre.registry import lookup
from genre.registry.access import Access
from genre.registry.integrity import prepare, read_draft
from genre.registry.manifest import Manifest, Publishable, Version
from genre.registry.names import LATEST, check_name
from genre.registry.signatures import sign_version


def publish(
    access: Access,
    source: str | Path | Publishable,
    manifest: Manifest | None,
    *,
    alias: str | Iterable[str],
    latest: bool,
) -> Version:
    """Copy a folder's files into the store as a new version; see `Registry.publish`."""
    folder = Path(source) if isinstance(source, str | os.PathLike) else Path(source.folder)
    wanted = [alias] if isinstance(alias, str) else list(alias)
    aliases = [check_name(item, "alias") for item in dict.fromkeys([LATEST, *wanted] if wanted and latest else wanted)]
    if aliases:
        access.check_signer()
    if not folder.is_dir():
        raise NotFoundError("no such folder to publish", got=folder, expected="a folder with the files of a version")
    draft = manifest or (read_draft(folder) if isinstance(source, str | os.PathLike) else source.manifest)
    name = check_name(draft.name)
    lookup.check_encoder(access.store, draft)
    with access.store.stage(name) as staged:
        sealed = prepare(folder, staged, draft, access.author.actor)
        with access.store.writing():
            lookup.keep_references(access.store, draft)  # gc may have come meanwhile
            if not access.store.commit(staged, name, sealed.version):
                sealed = _same_content(access, name, sealed)
            version = Version(name, sealed.version, sealed.digest, sealed)
            if access.author.signer is not None:
                sign_version(access.store, version, access.author.signer)
            journal = access.journal(name)
            for item in aliases:
                held = journal.aliases().targets.get(item)
                if held is None or not held.means(version.digest):
                    journal.append(item, version.version, "publish", digest=version.digest)
    return version


def publish_with_encoder(
    access: Access, folder: Path, draft: Manifest, encoder: tuple[Path, Manifest] | None, *, alias: str | Iterable[str]
) -> Version:
    """Publish a folder after the encoder that came along with it, where that is not in the store; see `Registry.import_peft`."""
    with access.store.writing():  # gc must not come between the encoder, which may have no alias, and its user
        if encoder is not None and lookup.look_up(access.store, encoder[1].digest) is None:
            known = encoder[1].name in access.store.names()
            publish(access, encoder[0], None, alias=() if known else LATEST, latest=True)
        return publish(access, folder, draft, alias=alias, latest=True)


def _same_content(access: Access, name: str, sealed: Manifest) -> Manifest:
    """The stored manifest of what was published before, whole; RegistryError if another version has the same 12 digits."""
    there = lookup.open_version(access.store, name, sealed.version)
    if there.digest != sealed.digest:
        raise RegistryError(
            f"another version of {name} has the same {len(there.version)} first digits",
            got=f"digest {sealed.digest}",
            expected=f"other digits than {there.digest} begins with",
            todo="change a note of the manifest, which gives another digest, and publish again",
        )
    access.copies.fetch(there)
    return there.manifest
