"""The layers between the features of items and the vectors that are quantized, where a method has any."""

from itertools import pairwise

import torch
from torch import Tensor, nn


def layers_of(widths: tuple[int, ...]) -> nn.ModuleList:
    """Linear layers from each width to the next."""
    return nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))


def run(layers: nn.ModuleList, values: Tensor) -> Tensor:
    """Apply layers with a ReLU between them, (n, d) to (n, e)."""
    for number, layer in enumerate(layers, 1):
        values = layer(values)
        if number < len(layers):
            values = torch.relu(values)
    return values
