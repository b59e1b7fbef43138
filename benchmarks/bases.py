"""The base that PEFT's layers get: ours, but with torch's own linears, which PEFT's layers multiply with."""

from unittest.mock import patch

import genre


def with_torchs_linears(depth: int) -> genre.Base:
    """SmolLM2-135M whose linears are transformers' own; the norms and gated products between them are ours.

    Nor are its batches filled up to counts of tokens that repeat.
    """
    with (
        patch("genre.modules.base.fused_layers.library", lambda: "torch"),
        patch("genre.modules.base.loading.library", lambda: "torch"),
    ):
        return genre.Base.load("smollm2-135m", depth=depth)
