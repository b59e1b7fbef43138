"""Codes for the items of a catalogue, fitted to their features.

Owns: the vectors that are quantized, both methods, the level that parts collisions. Ignores: recipes, text, the base.

    codes = fit_codes(CodesConfig(levels=3, size=256), features, width=576, scale=0.1)

Each feature is projected to its first principal components, of equal variance, and weighs as much as any other. Residual k-means
(as in QARM and OneRec) takes the nearest centroid on each level and hands on what is left; RQ-VAE (TIGER, Rajput et al. 2023)
does so with a small autoencoder's latent vectors, and learns it together with the centroids.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from genre.errors import DataError
from genre.modules.codes.item_codes import CodeSpec, ItemCodes
from genre.modules.codes.layers import run
from genre.modules.codes.quantization import assign, balance, centroids
from genre.modules.codes.rqvae import HIDDEN, STEPS, train_rqvae
from genre.modules.text_vectors import MAX_WHITENED
from genre.recipe import CodesConfig

LEAST_PLACES = 8
"""Codes of the last level at least, so that new items find places."""
COLLAPSED = 0.1
"""A first level is refused whose items spread as if over fewer than this share of the codes that it could use."""
LEAST_SPREAD = 1.5
"""The same in codes, for levels of few codes."""


@torch.no_grad()
def fit_codes(
    config: CodesConfig, features: Mapping[str, Tensor], *, width: int, scale: float, seed: int = 0, steps: int = STEPS
) -> ItemCodes:
    """Fit codes to items.

    Args:
        config: What is asked for; its features are those given here.
        features: Name → (M, d) float32 features of the items, NaN rows where one is not known.
        width: D of the base.
        scale: The root mean square of the base's token embeddings.
        seed: Of everything that is drawn.
        steps: Of the training of an RQ-VAE.

    Raises:
        DataError: There is one item, nothing is known of the items, the first level collapses, or more items collide than places
            part.
    """
    features = {name: value.cpu() for name, value in features.items() if bool(value.isfinite().any())}
    if not features:
        raise DataError("encoder.codes: nothing is known of the items", got="no features", expected="text or training events")
    projections = {name: principal(value, config.dimensions) for name, value in features.items()}
    vectors = torch.cat([features[name] @ projection for name, projection in projections.items()], 1)
    if len(vectors) < 2:
        raise DataError("encoder.codes: there is nothing to tell apart", got="a catalogue of 1 item", expected="at least 2 items")
    levels, size = config.shape(len(vectors))
    layers, given = None, None
    if config.method == "rqvae":
        blocks = tuple(projection.shape[1] for projection in projections.values())
        layers, given = train_rqvae(vectors, blocks, levels, size, seed, steps)
    latent = vectors if layers is None else run(layers, vectors.nan_to_num())
    centres, codes = residual(latent, config, given, seed=seed)
    check_first_level(codes[:, 0].numpy(), size)
    place, most = places(codes.numpy())
    if most > config.places:
        got, expected = f"{most:,} items with the same codes", f"at most {config.places:,}, encoder.codes.places"
        todo = "more levels, a larger size, balanced: true, or more places"
        raise DataError("encoder.codes: too many items collide", got=got, expected=expected, todo=todo)
    last = min(max(2 * most, LEAST_PLACES), config.places)
    shapes = tuple((name, *projection.shape) for name, projection in projections.items())
    hidden = () if layers is None else HIDDEN
    spec = CodeSpec(config.method, config.balanced, size, (*map(len, centres), last), shapes, hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ItemCodes(spec, len(codes), width, scale=scale)
    made.codes.copy_(torch.cat([codes, torch.from_numpy(place)[:, None]], 1))
    for name, projection in projections.items():
        made.get_buffer(f"project_{name}").copy_(projection)
    if layers is not None:
        made.layers.load_state_dict(layers.state_dict())
    for level, values in enumerate(centres):
        made.centroids(level).copy_(values)
    return made


def principal(features: Tensor, dimensions: int) -> Tensor:
    """(d, k) float32 projection of (n, d) features to their first k principal components, of equal variance, k / d of it each.

    Rows that are not known do not count. A feature without variance is projected to one dimension of zeros.
    """
    known = features[features.isfinite().all(1)]
    sample = known[:: max(1, len(known) // MAX_WHITENED)].double()
    values, directions = torch.linalg.eigh(sample.t() @ sample / len(sample))
    kept = (values > values[-1].clamp_min(1e-12) * 1e-6).nonzero().squeeze(1).flip(0)[:dimensions]
    if not len(kept):
        return torch.zeros(features.shape[1], 1)
    return (directions[:, kept] / (values[kept] * len(kept)).sqrt()).float()


def residual(
    vectors: Tensor, config: CodesConfig, given: list[Tensor] | None = None, *, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Quantize vectors level by level.

    Args:
        vectors: (M, d) float32, NaN where a dimension is not known.
        config: What is asked for.
        given: The (k, d) centroids of each level, where they are there already.
        seed: Of where k-means starts.

    Returns:
        The centroids of each level, those given moved where codes are balanced, and the (M, levels) int64 codes.
    """
    left, centres, codes = vectors, [], []
    levels, size = config.shape(len(vectors))
    for level in range(levels):
        found = centroids(left, size, seed + level) if given is None else given[level]
        if config.balanced:
            found, own = balance(left, found)
        else:
            own = assign(left, found)
        centres.append(found)
        codes.append(own)
        left = left - found[own]
    return centres, torch.stack(codes, 1)


def places(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """(M,) int64 place of each item, from 0, among those with the same codes (M, levels), and the most items that share codes."""
    _, path, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(path, kind="stable")
    place = np.empty(len(codes), dtype=np.int64)
    place[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, int(counts.max())


def perplexity(counts: np.ndarray) -> float:
    """The number of equally used codes that would have the entropy of these counts."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def check_first_level(codes: np.ndarray, size: int) -> None:
    """Refuse a first level on which most items share few codes: generation would begin with a choice that says nothing.

    Raises:
        DataError: The items (M,) spread as if over fewer than `COLLAPSED` of the codes that they could use.
    """
    usable = min(size, len(codes))
    used, least = perplexity(np.bincount(codes)), max(COLLAPSED * usable, LEAST_SPREAD)
    if used < least:
        got, expected = f"{used:.1f} of {usable} codes, by perplexity", f"at least {least:g}"
        todo = "set encoder.whiten, a smaller encoder.codes.size, or encoder.codes.balanced: true"
        raise DataError("encoder.codes: the first level collapses", got=got, expected=expected, todo=todo)
