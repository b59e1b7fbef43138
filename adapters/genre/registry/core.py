"""The registry as people use it: publish, resolve, fetch, promote, roll back, verify.

Owns: the methods, their arguments and errors. Ignores: how each is done (`publishing`, `moves`, `lookup`, `maintenance`,
`verification`, `export`), how a store writes (`stores`), what weights mean, torch.

    >>> registry = Registry("registry")                                  # doctest: +SKIP
    >>> version = registry.publish("runs/like/version", manifest, alias="candidate")  # doctest: +SKIP
    >>> registry.promote(version.ref, "production", floor={"auc": 0.7}, not_worse=True)  # doctest: +SKIP
    >>> registry.fetch("like@production")                                # doctest: +SKIP
    PosixPath('registry/like/a3f09c12be77')
"""

import builtins
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genre import display
from genre.errors import RegistryError
from genre.files import cache_folder
from genre.registry import checkpoint, lookup, maintenance, moves, publishing, records, verification
from genre.registry.access import Access
from genre.registry.cache import LocalCopies
from genre.registry.entries import Move
from genre.registry.journal import Journal
from genre.registry.lookup import Listed
from genre.registry.manifest import BaseInfo, Manifest, Publishable, Version
from genre.registry.names import LATEST, PRODUCTION, Ref, check_name, check_version, is_version, parse_ref
from genre.registry.stores.opening import open_store
from genre.registry.trust.actor import Author, check_actor, current_actor, current_signer
from genre.registry.trust.keys import Signer
from genre.registry.trust.policy import Trust


class Registry:
    """Versions and aliases in a folder or behind any fsspec URL.

    Args:
        url: A folder (made by the first publish) or a URL such as `s3://bucket/prefix`.
        cache: The folder for versions of a remote store; by default in the user's cache folder.
        storage_options: Passed to the fsspec file system.
        actor: The person or program that changes it, for journals; by default GENRE_ACTOR or the user of this process.
        trust: The keys that are trusted: a policy file, its fields `{"keys": […], "require": True}`, or a `Trust`; by default
            the file that GENRE_TRUST names.
        sign_key: The private key that signs what is published and moved; by default the one that GENRE_SIGN_KEY names, if any.
        single_writer: Nobody else writes to this remote store while this object does. Only then may it be one without
            conditional writes, on which two writers would lose each other's moves; without this, the first write tries the
            store and is refused there. By default what the variable GENRE_SINGLE_WRITER says.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        cache: Path | str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        actor: str | None = None,
        trust: Trust | Mapping[str, Any] | Path | str | None = None,
        sign_key: Path | str | None = None,
        single_writer: bool | None = None,
    ) -> None:
        self.url = str(url)
        self.trust = Trust.of(trust)
        signer = current_signer() if sign_key is None else Signer.read(Path(sign_key))
        self.author = Author(current_actor() if actor is None else check_actor(actor), signer, self.trust.keys)
        self.store = open_store(self.url, storage_options or {}, single_writer)
        self._copies = LocalCopies(self.store, Path(cache) if cache is not None else cache_folder() / "registry")

    @property
    def _access(self) -> Access:
        return Access(self.store, self.author, self.trust, self._copies)

    def __repr__(self) -> str:
        return f"Registry({self.url})"

    def _repr_html_(self) -> str:
        try:
            rows = [(row.name, row.version, ", ".join(row.aliases)) for row in self.list()]
        except RegistryError as error:  # a notebook shows what is wrong, not a traceback of its own
            return display.facts(repr(self), {"error": error})
        return display.table(
            repr(self), ["name", "version", "aliases"], rows, note="" if rows else "Empty: genre.train publishes into it."
        )

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
            latest: Move `latest` too.

        Raises:
            ManifestError: The manifest is wrong, or names an encoder that this registry does not have.
            IntegrityError: A file is not accepted, or the weights are not usable.
            DiskError: The disk is full or not writable; nothing is left behind.
        """
        return publishing.publish(self._access, source, manifest, alias=alias, latest=latest)

    def record_baselines(self, ref: str | Version, baselines: Mapping[str, Any], *, notes: Iterable[str] = ()) -> None:
        """Write beside a version what its metrics compare with; its digest stays, and an earlier record is replaced.

        Nothing is written beside a version that withholds figures of its users (`Manifest.withholds_figures`).

        Args:
            ref: The version.
            baselines: By task, baseline and metric the value, interval and n, as a run has them.
            notes: What a baseline left out, in a line each.

        Raises:
            NotFoundError: There is no such version.
            DiskError: The disk is full or not writable.
        """
        version = self.resolve(ref)
        if not version.manifest.withholds_figures:
            records.write_baselines(self.store, version, baselines, notes)

    def baselines(self, ref: str | Version) -> records.BaselineRecord | None:
        """What a version was measured against; None if that is not recorded, IntegrityError if it is damaged."""
        version = self.resolve(ref)
        return records.read_baselines(self.store, version.name, version.version)

    def record_audit(self, ref: str | Version, report: Mapping[str, Any], *, lines: Iterable[str], page: str) -> None:
        """Write the audit of a version's privacy beside it; its digest stays, and an earlier record is replaced.

        Args:
            ref: The version.
            report: The report, JSON values.
            lines: Its figures in lines for people.
            page: Its page, HTML.

        Raises:
            NotFoundError: There is no such version.
            DiskError: The disk is full or not writable.
        """
        records.write_audit(self.store, self.resolve(ref), report, lines, page)

    def audit_of(self, ref: str | Version) -> records.AuditRecord | None:
        """The last audit of a version's privacy; None if none is recorded, IntegrityError if it is damaged."""
        version = self.resolve(ref)
        return records.read_audit(self.store, version.name, version.version)

    def check_writable(self, name: str) -> None:
        """Raise InputError if a version could not be published, before the work that makes it; a remote store is not asked."""
        self._access.check_signer()
        self.store.check_writable(check_name(name))

    def resolve(self, ref: str | Version) -> Version:
        """Find the version that a reference means now and read its manifest.

        Raises:
            NotFoundError: No such name, alias or version; the message lists what there is.
            IntegrityError: The manifest is damaged.
            TrustError: The policy requires signatures, and the alias was moved without one by a trusted key.
        """
        return lookup.resolve(self.store, ref, self.trust)

    def open_version(self, name: str, version: str) -> Version:
        """Read a version's manifest by its name and 12 to 64 digits of its digest; see `resolve` for the errors."""
        return lookup.open_version(self.store, check_name(name), check_version(version))

    def find(self, digest: str) -> Version:
        """Find a version by its digest, whatever its name, as an adapter's encoder; NotFoundError if no name has it."""
        return lookup.find(self.store, digest)

    def fetch(self, ref: str | Version, *, recheck: bool = True) -> Path:
        """Return a folder on this machine with the version's files, re-hashed and checked just now.

        Args:
            ref: The version.
            recheck: False trusts an earlier check by this object as long as no file's name, size, times or inode have changed,
                so that a server need not hash the same versions again and again.

        Raises:
            NotFoundError: There is no such version.
            IntegrityError: It is damaged or unsafe; it must not be loaded.
            TrustError: The policy requires signatures, and no trusted key has signed it.
        """
        return self._access.fetch(self.resolve(ref), recheck=recheck)

    def names(self) -> builtins.list[str]:
        """All names that have a version."""
        return self.store.names()

    def versions(self, name: str) -> builtins.list[str]:
        """All versions of a name, oldest first; NotFoundError if there is no such name."""
        return lookup.versions_of(self.store, name)

    def list(self) -> builtins.list[Listed]:
        """Every version and the aliases that name it, without opening any."""
        return lookup.list_versions(self.store)

    def aliases(self, name: str) -> dict[str, str]:
        """The version that each alias of a name names now, sorted by alias."""
        return {alias: target.version for alias, target in lookup.targets_of(self.store, name).items()}

    def pins(self, name: str) -> dict[str, str]:
        """The digest that each alias of a name is bound to; 12 digits of it where an earlier release moved the alias."""
        return {alias: target.pin for alias, target in lookup.targets_of(self.store, name).items()}

    def history(self, name: str, alias: str | None = None, *, after: int = 0) -> builtins.list[Move]:
        """All moves of a name's aliases, or of one alias, oldest first; NotFoundError if there is no such name.

        Moves up to the number `after` are left out and not read again, as they never change.
        """
        self.versions(name)
        return Journal(self.store, name).history(alias, after=after)

    def promote(
        self,
        ref: str | Version,
        alias: str = PRODUCTION,
        *,
        floor: Mapping[str, float] | None = None,
        not_worse: bool = False,
        instead_of: str | None = None,
        checks: Iterable[str] = (),
        measured: Mapping[str, Manifest] | None = None,
    ) -> Move:
        """Point an alias at a version, after checking it.

        Moves of other aliases in the meantime do not matter; a move of this alias does, since the decision was made on
        its holder. An alias that names the version already stays as it is: the move that brought it there is returned.

        Args:
            ref: The version.
            alias: The alias.
            floor: Bounds by metric or `task.metric`; for a metric where lower is better, a ceiling.
            not_worse: Refuse if any metric is worse than the present holder's, or cannot be compared with it.
            instead_of: The version, or digest, that the caller compared with: refuse if the alias names another one by now.
            checks: What the caller compared, in words, for the journal.
            measured: By digest, manifests whose metrics were found by measuring again; they are held against the bounds
                instead of the stored ones (see `genre.jobs.recheck`).

        Raises:
            QualityError: The version is not good enough.
            IntegrityError: The version is damaged.
            ConflictError: Another writer moved the alias meanwhile.
        """
        return moves.promote(
            self._access, ref, alias, floor=floor, not_worse=not_worse, instead_of=instead_of, checks=checks, measured=measured
        )

    def rollback(self, name: str, alias: str = PRODUCTION) -> Move:
        """Move an alias back to its previous version; a second call goes one version further back.

        Raises:
            NotFoundError: There is nothing to go back to.
            IntegrityError: The earlier version is damaged.
            ConflictError: Another writer moved the alias meanwhile.
        """
        return moves.rollback(self._access, name, alias)

    def sign(self, ref: str | Version) -> builtins.list[str]:
        """Sign a version with this registry's key, its encoder too, and the alias that the reference names, if it names one.

        Everything is re-hashed and checked first. An alias stays where it is; its journal gets an entry with a signature.

        Returns:
            What was signed, in a line each.

        Raises:
            InputError: There is no key.
            NotFoundError: There is no such version, or its encoder is not here.
            IntegrityError: The version, its encoder or the journal is damaged.
        """
        return moves.sign(self._access, ref)

    def checkpoint(self, out: Path | str) -> Path:
        """Write what the whole registry holds now to a file, which is to be kept elsewhere; signed if this registry has a key.

        Raises:
            NotFoundError: There is nothing in the registry yet.
            IntegrityError: A journal is damaged.
            DiskError: The disk is full or not writable.
        """
        checkpoint.write_checkpoint(Path(out), self.store, self.author)
        return Path(out)

    def verify(
        self, name: str | None = None, *, hashes: bool = True, since: Path | str | None = None
    ) -> builtins.list[verification.Problem]:
        """Check everything, or all of one name, and return what is wrong; empty if all is well.

        Args:
            name: Only this name.
            hashes: Re-hash the files; otherwise manifests and journals are read and files are counted, which is fast.
            since: A checkpoint, which the registry must continue.

        Raises:
            NotFoundError: There is no such name.
            InputError: The checkpoint cannot be read.
            TrustError: Keys are trusted, and none of them has signed the checkpoint.
        """
        seen = None if since is None else checkpoint.read_checkpoint(Path(since), self.trust)
        if name is not None and name not in self.store.known() and (seen is None or name not in seen.names):
            self.versions(name)
        found = verification.verify(self.store, name, self._copies.check_stored if hashes else None, self.trust)
        return found if seen is None else [*found, *checkpoint.compare(self.store, seen, name)]

    def diff(self, a: str | Version, b: str | Version) -> dict[str, tuple[Any, Any]]:
        """The manifest fields in which two versions differ, by dotted name; None where a side has no such field."""
        return lookup.differences(self.resolve(a).manifest, self.resolve(b).manifest)

    def lineage(self, ref: str | Version) -> builtins.list[tuple[int, str, Version | None]]:
        """The version, its encoder, its parents and theirs, depth first: (depth, reference, version or None if not here)."""
        return lookup.ancestors(self.store, self.resolve(ref))

    def gc(self, dry_run: bool = False, *, grace: float | None = None) -> maintenance.Garbage:
        """Remove unfinished publishes and versions that nothing names; see `genre.registry.maintenance`.

        An object store has no lock that shuts writers out. There a first call marks what is garbage, and a later one removes
        what is still garbage after the grace time; a publish or a move of an alias takes a mark back.

        Args:
            dry_run: Report only.
            grace: Seconds for which garbage stays, since it was marked or, in a folder, since it was published. By default an
                hour on an object store and none in a folder; 0 removes in one call what no writer at work may need.

        Raises:
            InputError: The grace time is negative.
            IntegrityError: A manifest or journal is damaged, so it is not known what it names; nothing is removed.
        """
        return maintenance.collect_garbage(self.store, dry_run=dry_run, grace=grace)

    def delete(self, ref: str | Version) -> maintenance.Deleted:
        """Delete a version for good, if no alias names it and no version has it as its encoder or parent.

        Args:
            ref: The version; a damaged one too, if it is named exactly (`name:version`).

        Raises:
            NotFoundError: There is no such version.
            RegistryError: Something names it; the message says what.
            ConflictError: A writer is at work on this object store, and may need it.
            IntegrityError: Another manifest or a journal is damaged, so it is not known what it names.
        """
        parsed = parse_ref(ref) if isinstance(ref, str) else Ref(ref.name, ref.version, None)
        exactly = parsed.version if parsed.version is not None and is_version(parsed.version) else self.resolve(ref).version
        return maintenance.delete(self.store, parsed.name, exactly, self.author)

    def export(
        self,
        ref: str | Version,
        out: str | Path,
        *,
        to: str = "peft",
        base: str | Path | None = None,
        tar: bool = False,
        canaries: bool = True,
        licence: str | None = None,
    ) -> Path:
        """Write a version as a folder that stock PEFT, transformers or a server of language models loads.

        Args:
            ref: The version.
            out: A new folder; with `tar`, `<out>.tar` is written beside it.
            to: `peft`, `hub-folder`, `merged`, `vllm`, `sglang` or `gguf`; see the modules of `genre.registry.export`.
            base: The base's transformers folder.
            tar: Also write a tar.
            canaries: Where items are text and answers are label words, write `canaries.json`: two prompts with the base's
                answer and the adapter's, by which a server is checked. Base and adapter are run for it on the CPU.
            licence: Of a hub folder, as the hub spells it; without one the card says that the base's and the data's apply.

        Raises:
            RegistryError: There is no such form, or this version cannot take it.
            ManifestError: The folder holds another base, or other weights of it.
            IntegrityError: The version is damaged, or its shapes do not fit the base.
        """
        from genre.registry.export import export  # rarely needed, and slower to import than the rest

        version, encoder = self.resolve(ref), None
        if to in ("peft", "hub-folder") and version.manifest.encoder is not None:
            found = lookup.look_up(self.store, version.manifest.encoder)
            encoder = None if found is None else self.fetch(found)
        folder = None if base is None else Path(base)
        return export(
            version,
            self.fetch(version),
            Path(out),
            folder,
            to=to,
            tar=tar,
            encoder=encoder,
            baselines=self.baselines(version),
            canaries=canaries,
            licence=licence,
        )

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
        """Publish a PEFT LoRA adapter from elsewhere, after checking every shape against its base.

        Only `adapter_config.json` and `adapter_model.safetensors` are taken; the config is written anew from the fields
        that LoRA needs, and what else lay there is listed in `notes.not_imported`. A folder of our own export comes back
        with all of its files, and with its encoder where this registry does not have it.

        Args:
            source: A folder, a tar or a zip.
            name: The adapter's name in the registry.
            base: The base that it is for.
            base_folder: That base as a transformers folder.
            alias: Aliases that will name the version.
            fields: Further fields of the manifest, such as `tasks` or `tokenizer`.

        Raises:
            IntegrityError: It is not plain LoRA (DoRA, biases, LoHa, …; the reason is given), or a file is unsafe.
            ManifestError: A module is not in the base, has another shape, or lies beyond `base.depth`.
        """
        from genre.registry.export.foreign import prepare_import

        unpacked = prepare_import(Path(source), check_name(name), base, Path(base_folder), fields)
        with unpacked as (folder, draft, encoder):
            return publishing.publish_with_encoder(self._access, folder, draft, encoder, alias=alias)
