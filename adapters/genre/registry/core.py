"""The registry itself: publish, resolve, fetch, promote, roll back, verify.

Owns: the order of things, so that nothing half-done is ever visible and nothing bad is ever loaded. Ignores: how a
store writes (`store`, `remote`), what weights mean, torch.

    >>> registry = Registry("registry")                                  # doctest: +SKIP
    >>> version = registry.publish("runs/like/version", manifest, alias="candidate")  # doctest: +SKIP
    >>> registry.promote(version.ref, "production", floor={"auc": 0.7}, not_worse=True)  # doctest: +SKIP
    >>> registry.fetch("like@production")                                # doctest: +SKIP
    PosixPath('registry/like/a3f09c12be77')
"""

import builtins
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre.errors import ConflictError, ManifestError, NotFoundError, RegistryError
from genre.files import cache_folder
from genre.registry import limits
from genre.registry.cache import cached_folder, fetch_cached
from genre.registry.checked import Checks
from genre.registry.integrity import check_stored
from genre.registry.journal import Journal, Move
from genre.registry.manifest import BaseInfo, Manifest, open_sealed
from genre.registry.names import LATEST, MANIFEST, PRODUCTION, Ref, check_name, check_version, is_digest, parse_ref
from genre.registry.quality import check_floor, check_not_worse
from genre.registry.staging import prepare, read_draft
from genre.registry.store import LocalStore, Store
from genre.registry.values import Listed, Problem, Publishable, Version

if TYPE_CHECKING:
    from genre.registry.gc import Garbage


class Registry:
    """Versions and aliases in a folder or behind any fsspec URL.

    Args:
        url: A folder (made by the first publish) or a URL such as `s3://bucket/prefix`.
        cache: Where versions of a remote store are kept on this machine; by default the user's cache folder.
        storage_options: Passed to the fsspec file system.
    """

    def __init__(
        self, url: str | Path, *, cache: Path | str | None = None, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        text = str(url)
        self.url = text
        self._cache = Path(cache) if cache is not None else cache_folder() / "registry"
        self._checks = Checks()
        self.store: Store
        if "://" in text and not text.startswith("file://"):
            from genre.registry.remote import RemoteStore  # fsspec takes a while to import

            self.store = RemoteStore(text, dict(storage_options or {}))
        else:
            folder = Path(text.removeprefix("file://"))
            if folder.is_file():
                raise RegistryError("a registry is a folder", got=f"the file {folder}", expected="a folder, or a new name")
            self.store = LocalStore(folder)

    def publish(
        self,
        source: str | Path | Publishable,
        manifest: Manifest | None = None,
        *,
        alias: str | Iterable[str] = LATEST,
        latest: bool = True,
    ) -> Version:
        """Copy a folder's files into the registry as a new version, at once and for good.

        The same content published again gives the same version; only the aliases move. Each alias moves whatever it
        named before, so of two publishers the later one holds `latest`; use `promote` where that matters.

        Args:
            source: A folder with the files of a version, or a run that has one.
            manifest: The draft; by default the run's, or the folder's `manifest.json`.
            alias: Aliases that will name the new version, beside `latest`; an empty list moves none at all.
            latest: Whether `latest` moves too.

        Raises:
            ManifestError: The manifest is wrong, or names an encoder that this registry does not have.
            IntegrityError: A file is not accepted, or the weights are not usable.
            DiskError: The disk is full or not writable; nothing is left behind.
        """
        folder = Path(source) if isinstance(source, str | os.PathLike) else Path(source.folder)
        wanted = [alias] if isinstance(alias, str) else list(alias)
        aliases = [check_name(item, "alias") for item in dict.fromkeys([LATEST, *wanted] if wanted and latest else wanted)]
        if not folder.is_dir():
            raise NotFoundError("no such folder to publish", got=folder, expected="a folder with the files of a version")
        draft = manifest or (read_draft(folder) if isinstance(source, str | os.PathLike) else source.manifest)
        name = check_name(draft.name)
        self._check_encoder(draft)
        with self.store.stage(name) as staged:
            sealed = prepare(folder, staged, draft)
            with self.store.writing():
                if not self.store.commit(staged, name, sealed.version):
                    self.fetch(f"{name}:{sealed.version}")  # the same content is there: is it still whole?
                    sealed = self._open(name, sealed.version).manifest
                journal = Journal(self.store, name)
                for item in aliases:
                    held = journal.state().aliases.get(item)
                    if held is None or held.version != sealed.version:
                        journal.move(item, sealed.version, "publish")
        return Version(name, sealed.version, sealed.digest, sealed)

    def check_writable(self, name: str) -> None:
        """Refuse a folder that a version of a name could not be published into, before the work that makes it.

        Nothing is written. A remote store is not asked.

        Raises:
            InputError: The registry lies in a file, or its folder takes no new files.
        """
        self.store.check_writable(check_name(name))

    def resolve(self, ref: str | Version) -> Version:
        """Find what a reference means now and read its manifest.

        Raises:
            NotFoundError: No such name, alias or version; the message lists what there is.
            IntegrityError: The manifest is damaged.
        """
        if isinstance(ref, Version):
            return ref
        parsed = parse_ref(ref)
        return self._open(parsed.name, parsed.version or self._held(parsed))

    def find(self, digest: str) -> Version:
        """Find a version by its digest, whatever its name: how an adapter's encoder is found.

        Raises:
            NotFoundError: No name has it.
        """
        if not is_digest(digest):
            raise RegistryError("not a digest", got=repr(digest[:80]), expected="64 hex digits")
        for name in self.store.names():
            if self.store.has(name, digest[:12]):
                version = self._open(name, digest[:12])
                if version.digest == digest:
                    return version
        raise NotFoundError(f"no version with digest {digest}", got=f"the registry at {self.url}", todo="publish it first")

    def fetch(self, ref: str | Version, *, recheck: bool = True) -> Path:
        """Return a folder on this machine with the version's files, re-hashed and checked just now.

        Args:
            ref: Which version.
            recheck: False takes an earlier check by this registry for good while no file's name, size, times or inode differ
                from then: a server that reads the same versions again and again need not hash them each time.

        Raises:
            NotFoundError: There is no such version.
            IntegrityError: It is damaged or unsafe; it must not be loaded.
        """
        version = self.resolve(ref)
        local = self.store.folder(version.name, version.version)
        folder = local or cached_folder(self._cache, version.digest)
        if not recheck and self._checks.holds(folder, version.digest):
            return folder
        with self._checks.watch(folder, version.digest):
            if local is None:
                data = self.store.read(version.name, version.version, MANIFEST, limits.MAX_MANIFEST_BYTES)
                fetch_cached(self._cache, self.store, open_sealed(data, version.name, version.version), data)
            else:
                check_stored(local, self._open(version.name, version.version).manifest)
        return folder

    def names(self) -> builtins.list[str]:
        """All names that have a version."""
        return self.store.names()

    def versions(self, name: str) -> builtins.list[str]:
        """All versions of a name, oldest first.

        Raises:
            NotFoundError: There is no such name.
        """
        found = self.store.versions(check_name(name))
        if not found:
            raise self._no_name(name)
        return found

    def list(self) -> builtins.list[Listed]:
        """Every version and the aliases that name it, without opening any."""
        rows = []
        for name, versions in self.store.listing().items():
            named: dict[str, builtins.list[str]] = {}
            for alias, held in Journal(self.store, name).state().aliases.items():
                named.setdefault(held.version, []).append(alias)
            rows += [Listed(name, version, tuple(sorted(named.get(version, ())))) for version in versions]
        return rows

    def aliases(self, name: str) -> dict[str, str]:
        """The version that each alias of a name names now."""
        return {alias: held.version for alias, held in sorted(Journal(self.store, check_name(name)).state().aliases.items())}

    def history(self, name: str, alias: str | None = None, *, after: int = 0) -> builtins.list[Move]:
        """All alias moves of a name, oldest first.

        Args:
            name: Whose.
            alias: Of this alias only.
            after: Only what came after the move of this number; earlier ones are not read again, as they never change.

        Raises:
            NotFoundError: There is no such name.
        """
        self.versions(name)
        return Journal(self.store, name).moves(alias, after=after)

    def promote(
        self,
        ref: str | Version,
        alias: str = PRODUCTION,
        *,
        floor: Mapping[str, float] | None = None,
        not_worse: bool = False,
        instead_of: str | None = None,
        checks: Iterable[str] = (),
    ) -> Move:
        """Let an alias name a version, after checking it.

        Moves of other aliases in the meantime do not matter; a move of this alias does, since the decision was made on
        its holder.

        Args:
            ref: Which version.
            alias: Which alias.
            floor: Bounds by metric or `task.metric`; for a metric where lower is better, a ceiling.
            not_worse: Refuse if any metric is worse than the present holder's, or cannot be compared with it.
            instead_of: The version that the caller compared with: refuse if the alias names another one by now.
            checks: What the caller compared, in words, for the journal.

        Raises:
            QualityError: The version is not good enough.
            IntegrityError: The version is damaged.
            ConflictError: Another writer moved the alias meanwhile.
        """
        check_name(alias, "alias")
        version = self.resolve(ref)
        journal = Journal(self.store, version.name)
        seen = journal.state()
        checks = [*checks, *check_floor(version.manifest, floor or {})]
        holder = seen.aliases.get(alias)
        if instead_of is not None and (holder is None or holder.version != instead_of):
            raise ConflictError(
                f"{version.name}@{alias} was moved meanwhile",
                got=holder.version if holder else "no holder",
                expected=instead_of,
                todo="compare with the present holder and decide again",
            )
        if not_worse and holder is not None:
            checks += check_not_worse(version.manifest, self._open(version.name, holder.version).manifest)
        self.fetch(version)
        with self.store.writing():
            self._need(version.name, version.version)
            return journal.move(alias, version.version, "promote", seen=seen, checks=tuple(checks))

    def rollback(self, name: str, alias: str = PRODUCTION) -> Move:
        """Let an alias name again what it named before its present version; a second time, what came before that.

        Raises:
            NotFoundError: There is nothing to go back to.
            IntegrityError: The earlier version is damaged.
            ConflictError: Another writer moved the alias meanwhile.
        """
        self.versions(name)
        journal = Journal(self.store, name)
        seen = journal.state()
        target = journal.rollback_target(check_name(alias, "alias"))
        self.fetch(f"{name}:{target}")
        with self.store.writing():
            self._need(name, target)
            return journal.move(alias, target, "rollback", seen=seen)

    def verify(self, name: str | None = None) -> builtins.list[Problem]:
        """Re-hash everything, or all of one name.

        Returns:
            What is wrong; empty if all is well.
        """
        from genre.registry.audit import audit

        if name is not None:
            self.versions(name)
        return audit(self, name)

    def diff(self, a: str | Version, b: str | Version) -> dict[str, tuple[Any, Any]]:
        """The manifest fields in which two versions differ, by dotted name; None where a side has no such field."""
        from genre.registry.relations import differences

        return differences(self.resolve(a).manifest, self.resolve(b).manifest)

    def lineage(self, ref: str | Version) -> builtins.list[tuple[int, str, Version | None]]:
        """The version, its encoder, its parents and theirs, depth first.

        Returns:
            Rows of (depth, reference, version); the version is None where this registry does not have it.
        """
        from genre.registry.relations import ancestors

        return ancestors(self, self.resolve(ref))

    def gc(self, dry_run: bool = False) -> "Garbage":
        """Remove unfinished publishes and versions that nothing names; see `genre.registry.gc`."""
        from genre.registry.gc import collect

        return collect(self, dry_run=dry_run)

    def export(
        self,
        ref: str | Version,
        out: str | Path,
        *,
        to: str = "peft",
        base: str | Path | None = None,
        tar: bool = False,
    ) -> Path:
        """Write a version as a folder that stock PEFT or vLLM loads; see `genre.registry.interchange.export`."""
        from genre.registry.interchange import export

        return export(self, ref, Path(out), to=to, base=None if base is None else Path(base), tar=tar)

    def import_peft(
        self,
        source: str | Path,
        name: str,
        *,
        base: BaseInfo,
        base_folder: str | Path,
        alias: str | Iterable[str] = LATEST,
        **fields: Any,
    ) -> Version:
        """Publish a PEFT LoRA adapter from elsewhere; see `genre.registry.interchange.import_peft`."""
        from genre.registry.interchange import import_peft

        return import_peft(self, source, name, base=base, base_folder=base_folder, alias=alias, **fields)

    def open_version(self, name: str, version: str) -> Version:
        """Read a version's manifest by its exact place; see `resolve` for the errors."""
        return self._open(check_name(name), check_version(version))

    def _open(self, name: str, version: str) -> Version:
        self._need(name, version)
        data = self.store.read(name, version, MANIFEST, limits.MAX_MANIFEST_BYTES)
        manifest = open_sealed(data, name, version)
        return Version(name, version, manifest.digest, manifest)

    def _need(self, name: str, version: str) -> None:
        if not self.store.has(name, version):
            known = self.versions(name)
            raise NotFoundError(f"no version {name}:{version}", got=f"the registry at {self.url}", expected=_some(known))

    def _held(self, ref: Ref) -> str:
        assert ref.alias is not None
        held = Journal(self.store, ref.name).state().aliases
        if ref.alias not in held:
            self.versions(ref.name)
            expected = _some([f"{ref.name}@{alias}" for alias in sorted(held)]) or f"{ref.name}:VERSION"
            raise NotFoundError(f"no alias {ref.name}@{ref.alias}", got=f"the registry at {self.url}", expected=expected)
        return held[ref.alias].version

    def _no_name(self, name: str) -> NotFoundError:
        known = self.store.names()
        got = f"the registry at {self.url}" + ("" if known else ", which is empty")
        return NotFoundError(f"no adapter {name!r}", got=got, expected=_some(known) or None)

    def _check_encoder(self, draft: Manifest) -> None:
        if draft.encoder is None:
            return
        try:
            kind = self.find(draft.encoder).manifest.kind
        except NotFoundError:
            raise ManifestError(
                f"{draft.name} needs an encoder that this registry does not have",
                got=f"encoder {draft.encoder}",
                expected="the digest of a published encoder",
                todo="publish the encoder first",
            ) from None
        if kind != "encoder":
            raise ManifestError(f"the encoder of {draft.name} is none", got=f"a version of kind {kind}", expected="encoder")


def _some(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
