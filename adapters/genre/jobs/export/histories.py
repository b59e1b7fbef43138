"""The users of an export, with histories that end where they are asked to.

Owns: histories cut before a part of the version's split, so that what is made of them may be measured on that part. Ignores:
what is made of them.

    cut_log(log, manifest, "next_item", before="test")     # each user's events before the first one that tests
"""

from typing import Literal, get_args

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import PARTS, SplitConfig
from genre.errors import InputError, ManifestError
from genre.registry.manifest import Manifest

Before = Literal["valid", "test"]


def cut_log(log: Interactions, manifest: Manifest, task: str, before: Before | None) -> Interactions:
    """The log whose histories end before each user's first event of a part, or of a later one; itself for None.

    Users without an event before it have no history, and are not in the log.

    Args:
        log: The log.
        manifest: Of the version, which names its split.
        task: The task, since tasks of a merged version may have splits of their own.
        before: The part.

    Raises:
        ManifestError: The version does not record its split.
        InputError: There is no such part, or it was trained on other data, of which its split says nothing.
    """
    if before is None:
        return log
    if before not in get_args(Before):
        raise InputError("histories cannot end before that", got=repr(before)[:80], expected="valid or test")
    if manifest.data is None:
        raise ManifestError("data.split", got=None, expected="the split that the version was trained under")
    if manifest.data.digest != log.digest:
        what, expected = "--before needs the data that the version was trained on", f"digest {manifest.data.digest[:12]}"
        raise InputError(what, got=f"data of digest {log.digest[:12]}", expected=expected, todo="leave it out for other data")
    own = manifest.notes.get("splits")
    config = own[task] if isinstance(own, dict) else (manifest.data.split or {}).get("split")
    split = log.split(SplitConfig.model_validate(config))
    late = split.part >= PARTS[before]
    if not split.transductive:
        late = _from_first(late, log.user_offsets)
    return log.select(~late)


def _from_first(mask: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n,) bool: events of a user from the first one that a mask names, users being slices between offsets."""
    counts = np.concatenate([[0], np.cumsum(mask)])
    so_far = counts[1:] - np.repeat(counts[offsets[:-1]], np.diff(offsets))
    return so_far > 0
