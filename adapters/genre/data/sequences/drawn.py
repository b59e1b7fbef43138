"""Items that a loss compares at the events of a row.

Owns: where their branches of code tokens stand. Ignores: how items are drawn, how branches are laid out.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DrawnItems:
    """For each of a row's E events m items, each of them in a branch of code tokens.

    Attributes:
        items: (E, m) int64 item codes, -1 for none.
        starts: (E, m) int64, the first token of each item's branch; of the event's own item for none.
        lengths: (E, m) int64, the tokens of that branch.
    """

    items: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
