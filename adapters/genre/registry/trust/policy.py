"""The policy of whoever loads: the keys that are trusted, and whether nothing else may be loaded.

Owns: its form, the file and the environment variable that hold it. Ignores: what is signed. A policy file:

    registry:
      trust:
        keys: ["ed25519:3b6a27bc…", release.key.pub]     # as text, or PEM files beside this one
        require: true                                    # the default: load nothing without a signature by one of them

It belongs to the one who loads, so it is no part of a recipe, which is published with the version that it is to judge.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genre.errors import InputError, fault_of_file, kind_of
from genre.registry.trust.keys import need_cryptography, read_public_key
from genre.validation import refusal

TRUST_VARIABLE = "GENRE_TRUST"


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[str, ...] = Field(min_length=1)
    require: bool = True


@dataclass(frozen=True)
class Trust:
    """Trusted public keys, as text.

    Attributes:
        keys: As text; without any, nobody is trusted and nothing required.
        require: Refuse what none of them has signed; otherwise signatures are only reported by `verify`.
    """

    keys: tuple[str, ...] = ()
    require: bool = False

    @classmethod
    def of(cls, given: "Trust | Mapping[str, Any] | Path | str | None") -> "Trust":
        """Return a policy as `Registry` takes it; errors as of `make` and `read`."""
        if isinstance(given, Trust):
            return given
        if given is None:
            return cls.find()
        return cls.read(Path(given)) if isinstance(given, Path | str) else cls.make(given)

    @classmethod
    def make(cls, fields: Mapping[str, Any], folder: Path = Path()) -> Self:
        """Return a policy from `{"keys": […], "require": True}`; keys in files are looked for from `folder` on.

        Raises:
            InputError: A field is missing, unknown or wrong, or a key cannot be read.
        """
        try:
            form = _Form.model_validate(dict(fields) if isinstance(fields, Mapping) else fields)
        except ValidationError as error:
            raise refusal(error, "registry.trust", list(_Form.model_fields), InputError) from None
        need_cryptography()
        return cls(tuple(dict.fromkeys(read_public_key(key, folder) for key in form.keys)), form.require)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a policy file.

        Raises:
            InputError: It cannot be read, or is no policy.
        """
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            got = f"{path}: {fault_of_file(error)}"
            raise InputError("the trust policy cannot be read", got=got, expected="a YAML file with registry.trust") from None
        for key in ("registry", "trust"):
            if not isinstance(raw, dict) or set(raw) != {key}:
                got = f"{path}: {', '.join(map(str, raw)) or 'no key' if isinstance(raw, dict) else kind_of(raw)}"
                expected = "registry: {trust: {keys: [...], require: true}}"
                raise InputError("the trust policy has another form", got=got, expected=expected)
            raw = raw[key]
        if not isinstance(raw, dict):
            raise InputError("registry.trust has another form", got=kind_of(raw), expected="{keys: [...], require: true}")
        return cls.make(raw, path.parent)

    @classmethod
    def find(cls) -> Self:
        """Return the policy of the file that the environment variable GENRE_TRUST names; one that requires nothing without it."""
        given = os.environ.get(TRUST_VARIABLE)
        return cls.read(Path(given)) if given else cls()


NOBODY = Trust()
"""The policy that requires nothing."""
