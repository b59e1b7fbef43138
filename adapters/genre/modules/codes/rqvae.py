"""RQ-VAE: an autoencoder whose latent vectors are quantized level by level, centroids and layers learned together.

Owns: the loss and its optimization. Ignores: items, how codes are stored.

    loss = |x - x'|² + Σ_level |stop(r) - c|² + β |r - stop(c)|²,    x' = decoder(Σ c), r what is left of the latent vector

Centroids start at k-means of the latent vectors, and one that was nearest to nothing for `RENEWED` steps moves to a vector of the
batch. Without both, most items end up at few centroids of the first level.

Sources: Lee et al. 2022 (residual quantization), Rajput et al. 2023 (TIGER).
"""

import torch
from torch import Tensor, nn

from genre.modules.codes.layers import layers_of, run
from genre.modules.codes.quantization import assign, centroids

HIDDEN = (256, 128, 32)
"""Widths of the encoder's layers, the latent vectors' last; the decoder has them the other way round."""
STEPS = 1500
BATCH = 512
LEARNING_RATE = 1e-3
COMMITMENT = 0.25
RENEWED = 100
HIDE = 0.2
"""Probability that a feature of an item is taken away in training, so that items of which it is not known find a path too."""


@torch.enable_grad()
def train_rqvae(
    vectors: Tensor, blocks: tuple[int, ...], levels: int, size: int, seed: int, steps: int = STEPS
) -> tuple[nn.ModuleList, list[Tensor]]:
    """Train on some vectors; torch's own random numbers stay as they are.

    Args:
        vectors: (n, d) float32 with NaN where a feature is not known.
        blocks: Dimensions of each feature, in order; they sum to d.
        levels: Levels of centroids.
        size: Centroids of a level, fewer where there are fewer distinct vectors.
        seed: Of weights, batches and what is hidden.
        steps: Steps of Adam.

    Returns:
        The encoder's layers, and the centroids of each level, (k, e).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(vectors, blocks, levels, size, seed, steps)


def _train(
    vectors: Tensor, blocks: tuple[int, ...], levels: int, size: int, seed: int, steps: int
) -> tuple[nn.ModuleList, list[Tensor]]:
    widths = (vectors.shape[1], *HIDDEN)
    encoder, decoder = layers_of(widths), layers_of(widths[::-1])
    quantizer = _Quantizer(run(encoder, vectors.nan_to_num()).detach(), levels, size, seed)
    trained = [*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    block = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(blocks))
    for step in range(steps):
        some = vectors[torch.randint(len(vectors), (min(BATCH, len(vectors)),))]
        shown = torch.rand(len(some), len(blocks)) >= HIDE
        shown |= ~shown.any(1, keepdim=True)
        latent = run(encoder, some.nan_to_num() * shown[:, block])
        quantized, loss = quantizer(latent, step)
        wrong = (some - run(decoder, latent + (quantized - latent).detach())).nan_to_num()
        optimizer.zero_grad()
        (wrong.square().sum(1).mean() + loss).backward()
        optimizer.step()
    return encoder.requires_grad_(False), [centres.detach() for centres in quantizer.centres]


class _Quantizer(nn.Module):
    """Centroids that train; see the module.

    Attributes:
        centres: (k, e) of each level.
        used: (k,) int64 of each level, the last step at which each centroid was nearest to something.
    """

    def __init__(self, latent: Tensor, levels: int, size: int, seed: int) -> None:
        super().__init__()
        self.centres = nn.ParameterList()
        for level in range(levels):
            centres = centroids(latent, size, seed + level)
            latent = latent - centres[assign(latent, centres)]
            self.centres.append(nn.Parameter(centres))
        self.used = [torch.zeros(len(centres), dtype=torch.int64) for centres in self.centres]

    def forward(self, latent: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(n, e) sums of the nearest centroids of (n, e) vectors, and the mean loss; moves centroids that are out of use."""
        left, total = latent, latent.new_zeros(())
        for centres, used in zip(self.centres, self.used, strict=True):
            with torch.no_grad():
                found = assign(left, centres)
                used[found] = step
                lost = (used < step - RENEWED).nonzero().squeeze(1)
                if len(lost):
                    centres[lost] = left[torch.randint(len(left), (len(lost),))]
                    used[lost] = step
            own = centres[found]
            total = (
                total + (left.detach() - own).square().sum(1).mean() + COMMITMENT * (left - own.detach()).square().sum(1).mean()
            )
            left = left - own.detach()
        return latent - left, total
