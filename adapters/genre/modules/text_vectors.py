"""The base's own embedding of texts, computed once and kept in the user's cache, and how it is whitened.

Owns: the cache of text vectors. Ignores: items, what the vectors are for.
"""

import hashlib
import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genre.data.sequences.control import ControlTokens, describe_rule, token_ids
from genre.files import atomic, cache_folder
from genre.modules.base.base import Base
from genre.modules.base.words import TEXT_TOKENS

MAX_WHITENED = 50_000
"""Texts of about this many items, evenly spread, decide the whitening."""
MAX_TEXT_TOKENS = 128
"""Tokens of an item's text that the base embeds."""
FEWEST_KEPT = 64
"""Texts that are embedded anew each time, rather than read from the cache."""


def whitening_of(features: Tensor) -> Tensor:
    """The ZCA whitening matrix V (Λ + ρ λ̄)^-½ Vᵀ, (d, d), of (n, d) features with mean zero; identity for n < 2.

    Λ and V are of their covariance, λ̄ is the mean eigenvalue, ρ = (d / n)²: a covariance of few items has directions of almost
    no variance, and whitening alone would make items that are alike orthogonal.
    """
    if len(features) < 2:
        return torch.eye(features.shape[1], device=features.device)
    sample = features[:: max(1, len(features) // MAX_WHITENED)].double().cpu()
    values, vectors = torch.linalg.eigh(sample.t() @ sample / len(sample))
    ridge = values.mean() * (sample.shape[1] / len(sample)) ** 2 + 1e-12
    return ((vectors / (values.clamp_min(0) + ridge).sqrt()) @ vectors.t()).to(features)


def text_vectors(
    texts: list[str],
    base: Base,
    control_tokens: ControlTokens = "text",
    *,
    forward: AbstractContextManager[Any] | None = None,
    pass_tokens: int = TEXT_TOKENS,
    keep: bool = True,
) -> Tensor:
    """The base's own embedding of each text, (N, D) float32; computed once, kept in the user's cache by content.

    The mean hidden state of the loaded layers, in evaluation, from the bare base.

    Args:
        texts: N texts, of which the first 128 tokens count.
        base: The base.
        control_tokens: The rule for control tokens in the texts.
        forward: Entered for each of its passes, such as a lock.
        pass_tokens: Padded tokens of one of them.
        keep: Keep them in the cache, and look there first.
    """
    rule = describe_rule(control_tokens)
    known = [base.fingerprint, base.tokenizer_digest, base.depth, base.quantization, str(base.dtype), *rule.items(), texts]
    file: Path = cache_folder() / "texts" / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()}.safetensors"
    kept = keep and len(texts) > FEWEST_KEPT
    if kept and file.exists():
        if (found := _read_vectors(file, (len(texts), base.hidden_size))) is not None:
            return found
        logging.getLogger(__name__).warning("%s is damaged: text vectors are computed again", file)
    ids = [token_ids(base.tokenizer, text, control_tokens)[:MAX_TEXT_TOKENS] if text else [] for text in texts]
    vectors = base.text_vectors(ids, batch_tokens=pass_tokens, forward=forward)
    if kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as aside:
            save_file({"vectors": vectors, "sha256": _sha256(vectors)}, aside)
    return vectors


def _read_vectors(file: Path, shape: tuple[int, int]) -> Tensor | None:
    """The vectors that were kept; None if they are not what was written."""
    try:
        found = load_file(file)
        vectors, digest = found["vectors"], found["sha256"]
    except (OSError, SafetensorError, KeyError):
        return None
    whole = vectors.dtype == torch.float32 and tuple(vectors.shape) == shape and torch.equal(digest, _sha256(vectors))
    return vectors if whole else None


def _sha256(vectors: Tensor) -> Tensor:
    """(32,) uint8."""
    return torch.tensor(list(hashlib.sha256(vectors.contiguous().numpy().data).digest()), dtype=torch.uint8)
