"""Which labelled texts are learnt from, which validate, which test.

Owns: the split by group. Ignores what the texts say.

    split_groups(["dress-1", "dress-1", "coat-7"], SplitConfig(kind="group", valid=0.1, test=0.1)).part
    # int8[n]: 0 train, 1 valid, 2 test; one value per group
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from genre.data.splits import PARTS, TEST, TRAIN, VALID, Split, SplitConfig
from genre.errors import DataError


def split_groups(groups: Sequence[str], config: SplitConfig) -> Split:
    """Split texts so that no group is on two sides.

    A group's draw is u = (first 8 bytes of sha256(seed, the byte 0x1f, group)) / 2^64: it tests if u < test, validates if
    u < test + valid, and trains otherwise. So a group stays where it is when texts are added, taken away or reordered, and the
    shares hold over groups, and over texts only in expectation.

    Args:
        groups: The group of each text.
        config: Of kind `group`.

    Raises:
        DataError: If the kind is another, or a part that was asked for is left empty.
    """
    if config.kind != "group":
        raise DataError(
            f"labelled texts cannot be split by {config.kind}",
            expected="kind: group",
            todo="set data.split to {kind: group, valid: 0.1, test: 0.1}",
        )
    assert config.valid is not None and config.test is not None
    parts = {group: _part(group, config.seed or 0, config.valid, config.test) for group in dict.fromkeys(groups)}
    part = np.fromiter((parts[group] for group in groups), dtype=np.int8, count=len(groups))
    counts = {name: int((part == code).sum()) for name, code in PARTS.items()}
    counts |= {f"groups that {word}": list(parts.values()).count(code) for word, code in _WORDS.items()}
    for name, wanted in (("train", 1.0), ("valid", config.valid), ("test", config.test)):
        if wanted and not counts[name]:
            raise DataError(
                f"the split leaves no {name} texts",
                got=f"{len(groups):,} texts of {len(parts):,} groups",
                expected="at least one",
                todo="choose other shares or another seed",
            )
    part.setflags(write=False)
    return Split(config, part, False, counts)


_WORDS = {"train": TRAIN, "validate": VALID, "test": TEST}


def _part(group: str, seed: int, valid: float, test: float) -> int:
    digest = hashlib.sha256(f"{seed}\x1f{group}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return TEST if drawn < test else VALID if drawn < test + valid else TRAIN
