"""Batches of different lengths side by side in one pass of a base, none padded to another's length.

Owns: attention within each batch's own tokens. Ignores: adapters, losses.

    batch 0: 2 rows of 5 tokens, batch 1: 1 row of 3     →  13 tokens in one line through every linear and norm;
                                                            attention on (2, 5) and on (1, 3)

Everything in a decoder but its attention looks at one token at a time. So only the attention needs to know which tokens
belong together, and transformers lets a model's attention be replaced; `check` finds bases for which this is not so.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genre.base import Base
from genre.batches import Batch
from genre.errors import BaseModelError


@dataclass(frozen=True)
class Segment:
    """One batch's place in the line.

    Attributes:
        start, stop: Its tokens.
        shape: (B, T).
        mask: (B, 1, T, T) what is added to attention scores, or None for plain causal attention.
    """

    start: int
    stop: int
    shape: tuple[int, int]
    mask: Tensor | None


class Segments:
    """A base that reads several batches in one pass, between `begin` and `end`.

    Args:
        base: A causal base.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._name, self._before = f"genre_segments_{id(self)}", base.model.config._attn_implementation
        self._segments: tuple[Segment, ...] = ()

    def begin(self) -> None:
        """Put the attention of segments into the base (mutates it until `end`).

        Raises:
            BaseModelError: The base's attention cannot be replaced.
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS[self._name] = self._attend
        self.base.model.set_attn_implementation(self._name)
        if self.base.model.config._attn_implementation != self._name:
            self.end()
            raise self._unfit("its attention cannot be replaced")

    def end(self) -> None:
        """Give the base its own attention back."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.base.model.set_attn_implementation(self._before)
        del ALL_ATTENTION_FUNCTIONS[self._name]

    def hidden(self, embeds: Rows[Tensor], batches: Rows[Batch]) -> list[Tensor]:
        """Hidden states of several batches, each as `Base.hidden` gives them alone.

        Args:
            embeds: For each batch (B, T, D).
            batches: The batches; their positions and masks are used.

        Returns:
            For each batch (B, T, D).
        """
        if len(batches) == 1:  # the base's own attention on the base's own shape
            self._segments = ()
            alone = batches[0]
            return [self.base.hidden(embeds[0], alone.positions, alone.mask, places=alone.places)]
        width = embeds[0].shape[-1]
        positions = [
            torch.arange(each.shape[1], device=each.device).expand(each.shape[:2]) if batch.positions is None else batch.positions
            for each, batch in zip(embeds, batches, strict=True)
        ]
        return self._pass(
            [each.reshape(-1, width) for each in embeds], [(each.shape[0], each.shape[1]) for each in embeds],
            [each.reshape(-1) for each in positions], [batch.mask for batch in batches], places_of(batches),
        )  # fmt: skip

    def _pass(
        self, flat: list[Tensor], shapes: list[tuple[int, int]], positions: list[Tensor], masks: list[Tensor | None],
        places: Tensor | None = None,
    ) -> list[Tensor]:  # fmt: skip
        segments, start = [], 0
        for (rows, length), mask in zip(shapes, masks, strict=True):
            added = None
            if mask is not None:
                added = torch.where(mask, 0.0, torch.finfo(flat[0].dtype).min).to(flat[0].dtype)
            segments.append(Segment(start, start + rows * length, (rows, length), added))
            start += rows * length
        self._segments = tuple(segments)
        with self.base.reading(places):
            line = self.base.body(inputs_embeds=torch.cat(flat)[None], position_ids=torch.cat(positions)[None], use_cache=False)
        hidden = line.last_hidden_state[0]
        return [hidden[each.start : each.stop].view(*each.shape, -1) for each in segments]

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
    ) -> tuple[Tensor, None]:
        """Attention of one layer: (1, heads, tokens, d) each → (1, tokens, heads, d), the base's own on each segment."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        window = others.get("sliding_window")
        if not self._segments:
            mask = _window(query, query.shape[2], window) if attention_mask is None else attention_mask
            return sdpa_attention_forward(module, query, key, value, mask, **others)
        found = []
        for each in self._segments:
            own = [part[0, :, each.start : each.stop].unflatten(1, each.shape).transpose(0, 1) for part in (query, key, value)]
            mask = _window(query, each.shape[1], window) if each.mask is None else each.mask.to(query.device)
            out, _ = sdpa_attention_forward(module, *own, mask, **others)
            found.append(out.flatten(0, 1))
        return torch.cat(found)[None], None

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
        steps = [torch.arange(size[1], device=self.base.device).expand(size).reshape(-1) for size in sizes]
        self.begin()
        try:
            got = self._pass([each.flatten(0, 1) for each in embeds], list(sizes), steps, [None, None])
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


def _window(query: Tensor, tokens: int, window: int | None) -> Tensor | None:
    """What is added to the scores of rows of so many tokens that look back `window` tokens; None if that is all the way."""
    if window is None or tokens <= window:
        return None
    step = torch.arange(tokens, device=query.device)
    seen = (step[:, None] >= step) & (step[:, None] - step < window)
    return torch.where(seen, 0.0, torch.finfo(query.dtype).min).to(query.dtype)[None, None]


def read_of(batch: Batch) -> int:
    """How many of a batch's tokens are read."""
    return batch.tokens.numel() if batch.places is None else len(batch.places)


def places_of(batches: Rows[Batch]) -> Tensor | None:
    """The tokens of the whole line that are read; None if that is all of them."""
    if all(batch.places is None for batch in batches):
        return None
    found, start = [], 0
    for batch in batches:
        size = batch.tokens.numel()
        found.append(start + (torch.arange(size, device=batch.tokens.device) if batch.places is None else batch.places))
        start += size
    return torch.cat(found)
