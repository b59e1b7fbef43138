"""The codes of a data set's items by an encoder, in figures.

Owns: finding the encoder and what it makes of the items. Ignores: arithmetic, printing.
"""

from typing import Any

import torch

from genre.data.interactions import Interactions
from genre.engine.versions import read_encoder
from genre.errors import InputError
from genre.jobs.loading import load_base
from genre.modules.base.base import Base
from genre.modules.codes.use import collisions, levels, shared_prefixes
from genre.registry import Registry


@torch.no_grad()
def describe_codes(registry: Registry, ref: str, log: Interactions, base: str | Base | None = None) -> dict[str, Any]:
    """Describe the codes that an encoder gives a log's items.

    Args:
        registry: Holds the encoder.
        ref: An encoder, or an adapter that has one.
        log: The log; items that the encoder does not know get codes as they would in a request.
        base: The encoder's base, or its folder or hub id; by default found by its name.

    Returns:
        `encoder`, `method`, `items`, `new` (items that were not there when the codes were fitted), `levels`, `collisions` and
        `prefixes`, which near items share.

    Raises:
        InputError: The encoder has no codes, or there is none.
        DataError: A new item finds no free code.
    """
    version = registry.resolve(ref)
    if version.manifest.encoder is not None:
        version = registry.find(version.manifest.encoder)
    elif version.manifest.kind != "encoder":
        raise InputError(f"{version.ref} has no encoder", got="an adapter of texts alone", expected="an encoder with codes")
    loaded = base if isinstance(base, Base) else load_base(version.manifest, base)
    encoder = read_encoder(registry, version.digest, loaded).encoder
    if encoder.codes is None:
        todo = "genre train with encoder.codes fits one that has"
        raise InputError(f"{version.ref} has no codes of items", got="none", expected="an encoder with codes", todo=todo)
    table = encoder.table(log.catalogue, loaded)
    assert table.codes is not None
    codes, spec = table.codes.cpu().numpy(), encoder.codes.spec
    return {
        "encoder": version.ref,
        "method": f"{spec.method}{', balanced' if spec.balanced else ''}",
        "items": len(codes),
        "new": encoder.count_new(log.catalogue),
        "levels": levels(codes, spec.sizes),
        "collisions": collisions(codes),
        "prefixes": shared_prefixes(codes, encoder.item_vectors(table)) if len(codes) > 1 else [],
    }
