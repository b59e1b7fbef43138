"""What a registry works with: its store, who changes it, who is trusted, and this machine's copies.

Owns: fetching under a trust policy, journals in the author's name, and who may move an alias. Ignores: what is published
or moved.
"""

from dataclasses import dataclass
from pathlib import Path

from genre.errors import TrustError
from genre.registry.cache import LocalCopies
from genre.registry.journal import Journal
from genre.registry.manifest import Version
from genre.registry.signatures import check_signed
from genre.registry.stores.store import Store
from genre.registry.trust.actor import Author
from genre.registry.trust.keys import SIGN_VARIABLE
from genre.registry.trust.policy import Trust


@dataclass(frozen=True)
class Access:
    """The parts of an open registry."""

    store: Store
    author: Author
    trust: Trust
    copies: LocalCopies

    def fetch(self, version: Version, *, recheck: bool = True) -> Path:
        """Return a folder with a version's files; see `Registry.fetch`."""
        if self.trust.require:
            check_signed(self.store, version, self.trust)
        return self.copies.fetch(version, recheck=recheck)

    def journal(self, name: str) -> Journal:
        """Return the journal of a name, whose new entries are the author's."""
        return Journal(self.store, name, self.author)

    def check_signer(self) -> None:
        """Refuse to move an alias where the policy requires signatures and the entry could not have a trusted one."""
        if self.trust.require and (self.author.signer is None or self.author.signer.key not in self.trust.keys):
            got = "no key" if self.author.signer is None else f"a key that is not trusted, {self.author.signer.key}"
            raise TrustError(
                "the trust policy requires signatures, so moves need a trusted key",
                got=got,
                expected=f"the private key of {' or '.join(self.trust.keys)}",
                todo=f"name it with {SIGN_VARIABLE} or --key",
            )
