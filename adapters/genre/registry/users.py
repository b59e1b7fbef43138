"""Who trained a version, as a keyed set: its owner can ask for one user, and nobody else learns anything of it.

Owns: the file `users.json` of a version. Ignores: the key (`genre.data.user_key`), which stays in the data set folder.

    {"bits": 22640, "filter": "…", "hashes": 17, "key": "4f1c0b…", "schema": 1}

It is a Bloom filter over keyed digests: a user who trained is always found, another one is found by mistake with the probability
`false_positives`. Without the key the digests look random, so that not even somebody who knows all ids can test one of them.
24 bits a user give 1 mistake in 100,000; from about 350,000 users on the file stays at its largest, and there are more: 2 % at a
million, 70 % at ten million.
"""

import base64
import binascii
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genre.data.user_key import UserKey
from genre.errors import IntegrityError
from genre.registry.limits import MAX_MANIFEST_BYTES, parse_json

FILE = "users.json"
BITS_A_USER = 24
LEAST_BITS, MOST_BITS = 512, 2**23
MOST_HASHES = 17


class UserSet(BaseModel):
    """A set of users.

    Attributes:
        key: The name of the key that digests were made with.
        hashes: Bits that are set for each user.
        bits: Size of the filter.
        filter: Its bits, packed, in base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)
    schema_: Literal[1] = Field(default=1, alias="schema")
    key: str = Field(pattern=r"^[0-9a-f]{16}$")
    hashes: int = Field(ge=1, le=MOST_HASHES)
    bits: int = Field(ge=8, le=MOST_BITS, multiple_of=8)
    filter: str

    @classmethod
    def of(cls, users: Iterable[str], key: UserKey) -> Self:
        """Make the set of some users."""
        digests = sorted({key.digest(user) for user in users})
        count = max(1, len(digests))
        bits = -(-min(max(BITS_A_USER * count, LEAST_BITS), MOST_BITS) // 8) * 8
        hashes = min(max(round(bits / count * math.log(2)), 1), MOST_HASHES)
        marked = np.zeros(bits, dtype=bool)
        marked[_places(digests, hashes, bits)] = True
        return cls(key=key.name, hashes=hashes, bits=bits, filter=base64.b64encode(np.packbits(marked).tobytes()).decode())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the file of a version.

        Raises:
            IntegrityError: It is none.
        """
        try:
            found = cls.model_validate(parse_json(data, FILE, limit=MAX_MANIFEST_BYTES))
            if len(base64.b64decode(found.filter, validate=True)) * 8 == found.bits:
                return found
        except (ValidationError, binascii.Error):
            pass
        raise IntegrityError(f"{FILE} is damaged", got="other content", expected="a set of users")

    def write(self, folder: Path) -> None:
        """Write the file into a version's folder."""
        (folder / FILE).write_text(json.dumps(self.model_dump(), sort_keys=True) + "\n", encoding="utf-8")

    def find(self, digests: Iterable[bytes]) -> list[bool]:
        """Return for each digest whether its user is in the set, or is taken for one by mistake."""
        found: list[bool] = self._marked()[_places(list(digests), self.hashes, self.bits)].all(axis=1).tolist()
        return found

    @property
    def false_positives(self) -> float:
        """The probability with which somebody who is not in the set is found."""
        return float(self._marked().mean() ** self.hashes)

    def _marked(self) -> np.ndarray:
        return np.unpackbits(np.frombuffer(base64.b64decode(self.filter), dtype=np.uint8)).astype(bool)


def _places(digests: list[bytes], hashes: int, bits: int) -> np.ndarray:
    """(U, hashes) the bits of users, by double hashing modulo 2^64 (Kirsch and Mitzenmacher 2006)."""
    joined = bytearray().join(digests)
    halves = np.array(memoryview(joined), dtype=np.uint8).reshape(-1, 16).view(">u8").astype(np.uint64)
    first, step = halves[:, :1], halves[:, 1:] | np.uint64(1)
    return (first + np.arange(hashes, dtype=np.uint64) * step) % np.uint64(bits)
