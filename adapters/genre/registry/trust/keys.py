"""Ed25519 keys, and signatures over bytes of a stated kind.

Owns: key files, the text form of a public key, signing and checking. Ignores: what is signed, and which keys are trusted.

Signed are not the bytes themselves but DSSE's encoding of them (https://github.com/secure-systems-lab/dsse, protocol.md), which
holds their kind, so that a signature over a move cannot stand under a version:

    PAE(kind, body) = "DSSEv1" SP LEN(kind) SP kind SP LEN(body) SP body

    signer = Signer.read(Path("release.key"))
    signer.key                                                                   # "ed25519:3b6a27bc…", 64 hex digits
    is_signed(signer.key, "text/plain", b"…", signer.sign("text/plain", b"…"))   # True
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from genre.errors import InputError, IntegrityError, fault_of_file
from genre.files import check_writable, disk_errors, sync
from genre.registry.limits import open_plain
from genre.registry.names import is_digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGN_VARIABLE = "GENRE_SIGN_KEY"
ALGORITHM = "ed25519:"
_SECRETS = ("PRIVATE KEY", "MC4CAQ")
"""Marks of a private key's text, which no message repeats: PEM's header, and PKCS #8 in base64."""
MAX_KEY_BYTES = 2**16
"""Longer files are no key."""


@dataclass(frozen=True)
class Signer:
    """A private key; `key` is the public one as text."""

    key: str
    _private: "Ed25519PrivateKey" = field(repr=False, compare=False)

    @classmethod
    def generate(cls, path: Path) -> Self:
        """Write a new private key, and the public one to `<path>.pub`, both as PEM; nothing is overwritten.

        Raises:
            InputError: A file is there already.
            DiskError: The disk is full or not writable.
        """
        need_cryptography()
        from cryptography.hazmat.primitives import serialization as forms
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private, beside = Ed25519PrivateKey.generate(), Path(f"{path}.pub")
        for each in (path, beside):
            if os.path.lexists(each):
                raise InputError("a key is never overwritten", got=each, expected="a new file")
        secret = private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
        public = private.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
        check_writable(path, "a key")
        written: list[Path] = []
        try:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                for file, data, mode in ((path, secret, 0o600), (beside, public, 0o644)):
                    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                    written.append(file)
                    with open(descriptor, "wb") as target:
                        target.write(data)
                    sync(file)
        except BaseException:  # Ctrl-C too: half a pair would be in the way of the next try
            for file in written:
                file.unlink(missing_ok=True)
            raise
        return cls(_text_of(private.public_key()), private)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a private key: PEM without a passphrase, as `generate` and `openssl genpkey -algorithm ed25519` write it.

        Raises:
            InputError: There is no such file, or it is no such key; what the file holds is never shown.
        """
        need_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _read(path, "the private key")
        try:
            private = load_pem_private_key(data, password=None)
        except TypeError:
            todo = "openssl pkey -in KEY -out PLAIN takes it off; keep that file where only you can read it"
            raise InputError("the private key has a passphrase", got=path, expected="one without", todo=todo) from None
        except Exception:  # any parser's complaint; its text may hold a part of the key
            raise _no_key(path, "a private Ed25519 key as PEM") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise _no_key(path, "a private Ed25519 key as PEM")
        return cls(_text_of(private.public_key()), private)

    def sign(self, kind: str, body: bytes) -> bytes:
        """Return the signature over a body of a kind, 64 bytes."""
        return self._private.sign(_encoded(kind, body))


def is_signed(key: str, kind: str, body: bytes, signature: bytes) -> bool:
    """Return whether a signature over a body is one by a public key; InputError without the library to check it."""
    need_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.removeprefix(ALGORITHM))).verify(signature, _encoded(kind, body))
    except (InvalidSignature, ValueError):
        return False
    return True


def is_key(text: object) -> bool:
    """Return whether a value is a public key as text: `ed25519:` and 64 hex digits."""
    return isinstance(text, str) and text.startswith(ALGORITHM) and is_digest(text.removeprefix(ALGORITHM))


def read_public_key(text: str, folder: Path) -> str:
    """Return a public key as text, given so or as the path of a PEM file, from `folder` on.

    Raises:
        InputError: It is neither.
    """
    if text.startswith(ALGORITHM):
        if not is_key(text.lower()):
            raise InputError("not a public key", got=repr(text[:80]), expected=f"{ALGORITHM} and 64 hex digits, or a PEM file")
        return text.lower()
    need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    path = folder / text
    data = _read(path, "the public key")
    try:
        public = load_pem_public_key(data)
    except Exception:
        raise _no_key(path, "a public Ed25519 key as PEM") from None
    if not isinstance(public, Ed25519PublicKey):
        raise _no_key(path, "a public Ed25519 key as PEM")
    return _text_of(public)


def need_cryptography() -> None:
    """Raise InputError if the library that signatures need is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        todo = "pip install 'genre-adapters[sign]'"
        raise InputError("signatures need another package", got="no cryptography", todo=todo) from None


def _encoded(kind: str, body: bytes) -> bytes:
    name = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(body), body)


def _text_of(public: "Ed25519PublicKey") -> str:
    return ALGORITHM + public.public_bytes_raw().hex()


def _read(path: Path, what: str) -> bytes:
    try:
        with open_plain(path.resolve()) as file:
            return file.read(MAX_KEY_BYTES)
    except (OSError, IntegrityError) as error:
        secret = any(mark in str(path) for mark in _SECRETS)
        got = "the key itself and not its file" if secret else f"{path}: {fault_of_file(error)}"
        raise InputError(f"{what} cannot be read", got=got, expected="a PEM file") from None


def _no_key(path: Path, expected: str) -> InputError:
    todo = "genre registry keygen KEY makes a pair"
    return InputError("not a usable key", got=path, expected=expected, todo=todo)
