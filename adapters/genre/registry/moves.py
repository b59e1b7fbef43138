"""Moves of aliases, and signatures: everything is checked before a journal says so.

Owns: what must hold before an alias names a version, or a key vouches for one. Ignores: the bounds themselves (`quality`), the
form of entries and signatures (`journal`, `signatures`).
"""

from collections.abc import Iterable, Mapping

from genre.errors import ConflictError, InputError
from genre.registry import lookup
from genre.registry.access import Access
from genre.registry.entries import Move
from genre.registry.manifest import Manifest, Version
from genre.registry.names import check_name, parse_ref
from genre.registry.quality import check_floor, check_not_worse
from genre.registry.signatures import sign_version
from genre.registry.trust.keys import SIGN_VARIABLE


def promote(
    access: Access,
    ref: str | Version,
    alias: str,
    *,
    floor: Mapping[str, float] | None,
    not_worse: bool,
    instead_of: str | None,
    checks: Iterable[str],
    measured: Mapping[str, Manifest] | None,
) -> Move:
    """Point an alias at a version, after checking it; see `Registry.promote`."""
    check_name(alias, "alias")
    access.check_signer()
    version = lookup.resolve(access.store, ref, access.trust)
    journal = access.journal(version.name)
    before = journal.aliases()
    believed = measured or {}
    claims = believed.get(version.digest, version.manifest)
    found, compared = check_floor(claims, floor or {}), [version.manifest]
    holder = before.targets.get(alias)
    if instead_of is not None and (holder is None or not holder.means(instead_of)):
        raise ConflictError(
            f"{version.name}@{alias} was moved meanwhile",
            got=holder.version if holder else "no holder",
            expected=instead_of,
            todo="compare with the present holder and decide again",
        )
    if not_worse and holder is not None:
        present = lookup.open_version(access.store, version.name, holder.pin)
        found += check_not_worse(claims, believed.get(present.digest, present.manifest))
        compared.append(present.manifest)
    if found and any(manifest.withholds_figures for manifest in compared):
        found = ["compared; the figures are withheld (train.privacy.metrics)"]
    checks = [*checks, *found]
    access.fetch(version)
    if holder is not None and holder.means(version.digest):
        return journal.move(holder.n)
    with access.store.writing():
        lookup.keep(access.store, version.name, version.digest)
        return journal.append(alias, version.version, "promote", digest=version.digest, expected=before, checks=tuple(checks))


def rollback(access: Access, name: str, alias: str) -> Move:
    """Move an alias back to its previous version; see `Registry.rollback`."""
    access.check_signer()
    lookup.versions_of(access.store, name)
    journal = access.journal(name)
    before = journal.aliases()
    target = journal.rollback_target(check_name(alias, "alias"), access.trust)
    version = lookup.open_version(access.store, name, target.pin)
    access.fetch(version)
    with access.store.writing():
        lookup.keep(access.store, name, version.digest)
        return journal.append(alias, target.version, "rollback", digest=version.digest, expected=before)


def sign(access: Access, ref: str | Version) -> list[str]:
    """Sign a version, its encoder, and the alias that the reference names, if it names one; see `Registry.sign`."""
    if access.author.signer is None:
        todo = f"name one with --key, or with {SIGN_VARIABLE}; genre registry keygen KEY makes one"
        raise InputError("there is no key to sign with", todo=todo)
    version = lookup.resolve(access.store, ref)  # what is not trusted yet
    signed = [version]
    if version.manifest.encoder is not None:
        signed.append(lookup.find(access.store, version.manifest.encoder))
    for each in signed:
        access.copies.fetch(each)
    with access.store.writing():
        for each in signed:
            lookup.keep(access.store, each.name, each.digest)
            sign_version(access.store, each, access.author.signer)
        lines = [f"{each.ref} ({each.manifest.kind}), digest {each.digest}" for each in signed]
        alias = parse_ref(ref).alias if isinstance(ref, str) and "@" in ref else None
        if alias is not None:
            journal = access.journal(version.name)
            before = journal.aliases()
            if not before.targets[alias].means(version.digest):
                raise ConflictError(f"{ref} was moved meanwhile", todo="look at the history and sign again")
            move = journal.append(alias, version.version, "sign", digest=version.digest, expected=before)
            lines.append(f"{version.name}@{alias} → {version.version}, entry {move.n}")
    return lines
