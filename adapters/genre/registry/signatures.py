"""Signatures of versions, in files beside them.

Owns: their form and their check. Ignores: keys' files, who is trusted. A signature is a DSSE envelope around in-toto's statement
about the version, so that other tools can read and check it too; one file per version and key:

    like/signatures/a3f09c12be77-3b6a27bc….json
    {"payload": "eyJfdHlwZSI6…", "payloadType": "application/vnd.in-toto+json",
     "signatures": [{"keyid": "ed25519:3b6a27bc…", "sig": "…"}]}
"""

import base64
from typing import Any

from genre.errors import IntegrityError, NotFoundError, TrustError
from genre.registry.limits import MAX_MANIFEST_BYTES, parse_json
from genre.registry.manifest import Version, canonical, render
from genre.registry.names import SIGNATURES
from genre.registry.stores.store import Store
from genre.registry.trust.keys import ALGORITHM, Signer, is_signed
from genre.registry.trust.policy import Trust
from genre.registry.trust.provenance import UNKNOWN, builder_of, state_provenance

_KIND = "application/vnd.in-toto+json"


def sign_version(store: Store, version: Version, signer: Signer) -> None:
    """Write the signature of a version by a key, or replace it."""
    body = canonical(state_provenance(version.manifest.raw()))
    signature = {"keyid": signer.key, "sig": base64.b64encode(signer.sign(_KIND, body)).decode()}
    envelope = {"payloadType": _KIND, "payload": base64.b64encode(body).decode(), "signatures": [signature]}
    store.put(version.name, SIGNATURES, file_of(version.version, signer.key), render(envelope))


def signers_of(store: Store, version: Version) -> list[str]:
    """Return the public keys that have a signature file beside a version, good or not."""
    own = f"{version.version}-"
    files = sorted(file for file in store.files(version.name, SIGNATURES) if file.startswith(own) and file.endswith(".json"))
    return [ALGORITHM + file.removeprefix(own).removesuffix(".json") for file in files]


def signatures_of(store: Store, version: Version) -> list[tuple[str, str | None]]:
    """Return the key of every signature file beside a version, and what is wrong with the signature; None if it holds."""
    found: list[tuple[str, str | None]] = []
    for key in signers_of(store, version):
        try:
            predicate = read_statement(store, version, key).get("predicate")
        except IntegrityError as error:
            found.append((key, str(error)))
            continue
        except NotFoundError:  # removed just now
            continue
        stated, written = builder_of(predicate), builder_of(version.manifest.provenance) or UNKNOWN
        same = stated == written
        found.append((key, None if same else f"names another builder than the manifest: got {written}; expected {stated}"))
    return found


def check_signed(store: Store, version: Version, trust: Trust) -> None:
    """Refuse a version that no trusted key has signed.

    Raises:
        TrustError: It is not signed, or by none of them, or was sealed again since; the message says which.
    """
    expected = f"a signature by {' or '.join(trust.keys)}"
    reasons = []
    for key in trust.keys:
        try:
            read_statement(store, version, key)
            return
        except NotFoundError:
            continue
        except IntegrityError as error:
            reasons.append(str(error))
    if reasons:
        raise TrustError(f"{version.ref} is not loaded: {'; '.join(reasons)}", expected=expected)
    others = signers_of(store, version)
    got = f"one by {', '.join(others[:3])}" if others else "none"
    todo = f"genre registry sign {version.ref} --key KEY, after a look at it"
    raise TrustError(f"{version.ref} has no trusted signature and is not loaded", got=got, expected=expected, todo=todo)


def read_statement(store: Store, version: Version, key: str) -> dict[str, Any]:
    """Return what a key has stated about a version, after checking the signature.

    Raises:
        NotFoundError: The key has not signed it.
        IntegrityError: The signature is wrong, or over another digest.
    """
    file = file_of(version.version, key)
    what = f"the signature of {version.ref} by {key}"
    envelope = parse_json(store.read(version.name, SIGNATURES, file, MAX_MANIFEST_BYTES), what, limit=MAX_MANIFEST_BYTES)
    try:
        body = base64.b64decode(envelope["payload"], validate=True)
        sound = envelope["payloadType"] == _KIND
        found = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"] if each["keyid"] == key]
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(f"{what} has another form", expected="a DSSE envelope") from None
    if not sound or not any(is_signed(key, _KIND, body, each) for each in found):
        raise IntegrityError(f"{what} does not fit its content")
    statement = parse_json(body, what, limit=MAX_MANIFEST_BYTES)
    try:
        digest = statement["subject"][0]["digest"]["sha256"]
    except (KeyError, TypeError, IndexError):
        raise IntegrityError(f"{what} is about something else", expected="a statement about a version") from None
    if digest != version.digest:
        raise IntegrityError(
            f"{version.ref} was sealed again after it was signed", got=f"digest {version.digest}", expected=digest
        )
    return dict(statement)


def find_wrong_signatures(store: Store, version: Version) -> list[tuple[str, str]]:
    """Return a (file, problem) for every signature beside a version that does not hold."""
    found = signatures_of(store, version)
    return [(f"{SIGNATURES}/{file_of(version.version, key)}", problem) for key, problem in found if problem is not None]


def file_of(version: str, key: str) -> str:
    """Return the name of the file that holds a key's signature of a version."""
    return f"{version}-{key.removeprefix(ALGORITHM)}.json"
