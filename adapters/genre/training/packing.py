"""Batches of several runs side by side in one pass of a base, none padded to another's length.

Owns: whether a base can do that. Ignores: adapters, losses, how it is done (`Base.line`).
"""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from genre.data.sequences.batches import Batch
from genre.errors import BaseModelError
from genre.modules.base.attention import install, restore
from genre.modules.base.base import Base


class Segments:
    """A base that reads several batches in one pass, between `begin` and `end`.

    Args:
        base: A causal base.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._before = ""

    def begin(self) -> None:
        """Let the base's attention know segments (mutates it until `end`).

        Raises:
            BaseModelError: The base's attention cannot be replaced.
        """
        if not self.base.takes_blocks:
            raise self._unfit("its attention cannot be replaced")
        self._before = install(self.base.model)

    def end(self) -> None:
        """Give the base its own attention back."""
        restore(self.base.model, self._before)

    def hidden(self, embeds: Rows[Tensor], batches: Rows[Batch]) -> list[Tensor]:
        """Hidden states of several batches, each as `Base.hidden` gives them alone.

        Args:
            embeds: For each batch (B, T, D).
            batches: The batches; their positions and masks are used.

        Returns:
            For each batch (B, T, D).
        """
        if len(batches) == 1:
            alone = batches[0]
            return [self.base.hidden(embeds[0], alone.positions, alone.mask)]
        return self.base.line(embeds, [each.positions for each in batches], [each.mask for each in batches])

    @torch.no_grad()
    def check(self) -> None:
        """Compare a pass of two short batches with passes of each alone; the base must be bare, and is left so.

        Raises:
            BaseModelError: They differ: something beside the base's attention looks at more than one token.
        """
        draw = torch.Generator().manual_seed(0)
        sizes, scale = ((1, 7), (2, 4)), self.base.embedding_rms
        drawn = [torch.randn(*size, self.base.hidden_size, generator=draw) * scale for size in sizes]
        embeds = [each.to(self.base.device, self.base.dtype) for each in drawn]
        wanted = [self.base.hidden(each) for each in embeds]
        self.begin()
        try:
            got = self.base.line(embeds, [None, None], [None, None])
        finally:
            self.end()
        close = 1e-3 if self.base.quantization == "none" and self.base.dtype == torch.float32 else 0.1  # activations are rounded
        for one, other in zip(got, wanted, strict=True):
            if not (one - other).float().norm() <= close * other.float().norm():
                raise self._unfit("tokens see each other outside its attention")

    def _unfit(self, why: str) -> BaseModelError:
        return BaseModelError(
            f"base {self.base.name!r} cannot train several adapters at once", got=why,
            todo="train the recipes one after the other",
        )  # fmt: skip
