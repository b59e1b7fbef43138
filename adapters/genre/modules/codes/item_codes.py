"""The codes of items: a path of codes from coarse to fine, the last of which parts items whose paths collide.

Owns: their storage with the behaviour encoder, the vectors of code tokens, codes of items that were not there when the codes were
fitted. Ignores: how codes are fitted (`genre.modules.codes.fitting`), how they are generated.

    codes.codes[i]           (levels,) the code of item i on each level, level l from 0 to sizes[l] - 1; no two items share all
    codes.offsets[level]     the row of a level's first code in the one table of all levels; code + offset is a code's token
    codes.token_vectors()    (sum(sizes), D) the vectors of code tokens in the base's embedding space
    codes.of(vectors)        codes of new items: the nearest path that an item has already, and a free place on it
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.code_trie import CodeTrie
from genre.errors import DataError, ManifestError
from genre.modules.codes.layers import layers_of, run
from genre.modules.codes.quantization import distances

BEAM = 32
"""Prefixes among which the nearest path of a new item is sought."""


@dataclass(frozen=True)
class CodeSpec:
    """The shape of an encoder's item codes.

    Attributes:
        method: What made them.
        balanced: Every code of a level, but the last, has the same number of items.
        size: Codes that were asked for on each level but the last.
        sizes: Codes of each level; the last level parts collisions.
        features: For each feature of items that they are made of its name, its dimensions, and those it is projected to.
        hidden: Widths of the layers between the projected features and what is quantized; empty where there are none.
    """

    method: str
    balanced: bool
    size: int
    sizes: tuple[int, ...]
    features: tuple[tuple[str, int, int], ...]
    hidden: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Dimensions of an item's vector before it is quantized or goes through layers."""
        return sum(size for *_, size in self.features)

    @classmethod
    def read(cls, value: Any) -> "CodeSpec":
        """Read a description as `encoder.json` holds it.

        Raises:
            ManifestError: It is none.
        """
        try:
            sizes, hidden = tuple(value["sizes"]), tuple(value["hidden"])
            features = tuple((str(name), own, used) for name, own, used in value["features"])
            numbers = [value["size"], *sizes, *hidden, *(size for _, own, used in features for size in (own, used))]
            if len(sizes) < 2 or not features or any(type(number) is not int or number < 1 for number in numbers):
                raise ValueError(f"sizes {sizes}, features {features}")
            return cls(str(value["method"]), bool(value["balanced"]), value["size"], sizes, features, hidden)
        except (KeyError, TypeError, ValueError) as error:
            what = "encoder.json: codes"
            raise ManifestError(what, got=str(error)[:80], expected="a description as GENRE writes it") from None


class ItemCodes(nn.Module):
    """The codes of M items, and what gives further items codes.

    Attributes:
        spec: Its shape.
        codes: (M, levels) int64, in the order of the encoder's catalogue.
        vectors: A trainable row for each code of each level, in the base's embedding space.
        scale: The root mean square of a code token's vector.
        gain: Of the logits of codes.
    """

    codes: Tensor

    def __init__(self, spec: CodeSpec, items: int, width: int, *, scale: float) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("codes", torch.zeros(items, len(spec.sizes), dtype=torch.int64))
        self.vectors = nn.Embedding(sum(spec.sizes), width)
        nn.init.normal_(self.vectors.weight, std=0.25)  # so that all codes are about as likely at first
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.gain = nn.Parameter(torch.tensor(1.0))
        for name, own, used in spec.features:
            self.register_buffer(f"project_{name}", torch.zeros(own, used))
        widths = (spec.width, *spec.hidden)
        self.layers = layers_of(widths).requires_grad_(False)
        for level, size in enumerate(spec.sizes[:-1]):
            self.register_buffer(f"centroids_{level}", torch.zeros(size, widths[-1]))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level; the last level parts collisions."""
        return self.spec.sizes

    @property
    def levels(self) -> int:
        """Codes of an item, the one that parts collisions included."""
        return len(self.spec.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The row of each level's first code in the table of all levels."""
        return (0, *accumulate(self.sizes[:-1]))

    def token_vectors(self, tokens: Tensor | None = None) -> Tensor:
        """(…, D) float32 vectors of some rows of the table of all levels, (sum(sizes), D) of all if None."""
        value = self.vectors.weight if tokens is None else self.vectors(tokens)
        return self.scale * value * torch.rsqrt(value.square().mean(-1, keepdim=True) + 1e-6)

    def output_vectors(self, level: int) -> Tensor:
        """(size, D) float32 rows that a state's products with are the logits of a level's codes, w_c · gain / √D.

        They are the same rows as those of `token_vectors`, before these are brought to one length.
        """
        own = self.vectors.weight[self.offsets[level] : self.offsets[level] + self.sizes[level]]
        return own * (self.gain / own.shape[1] ** 0.5)

    def centroids(self, level: int) -> Tensor:
        """(size, d) float32 centroids of a level other than the last."""
        return self.get_buffer(f"centroids_{level}")

    def project(self, features: Mapping[str, Tensor]) -> Tensor:
        """(n, d) float32 vectors of items to be quantized, from (n, own) features with NaN rows where one is not known."""
        return torch.cat([features[name] @ self.get_buffer(f"project_{name}") for name, *_ in self.spec.features], 1)

    def latent(self, vectors: Tensor) -> Tensor:
        """(n, e) float32: projected vectors after the layers, where there are any, for which unknown dimensions are zero."""
        return run(self.layers, vectors.nan_to_num()) if len(self.layers) else vectors

    @torch.no_grad()
    def of(self, vectors: Tensor, taken: Tensor | None = None) -> Tensor:
        """Codes of items that have none yet, one after the other: the nearest path with a free place, and that place.

        Args:
            vectors: (n, d) float32 from `project`.
            taken: (m, levels) int64 codes of other items that have been given codes since the fit.

        Returns:
            (n, levels) int64 on the CPU.

        Raises:
            DataError: No path near an item has a place left.
        """
        trie, last = self._trie, self.levels - 1
        added: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for *path, place in [] if taken is None else taken.tolist():
            added[tuple(path)].add(place)
        held: dict[int, set[int]] = {}
        latent = self.latent(vectors.to(self.codes.device)).cpu().numpy()
        found = np.empty((len(latent), self.levels), dtype=np.int64)
        for number, value in enumerate(latent):
            for node, path in self._nearest(value):
                if node not in held:
                    first, end = trie.spans(last, np.array([node]))
                    held[node] = {*trie.rows[first[0] : end[0], last].tolist(), *added[path]}
                used = held[node]
                place = next((place for place in range(self.sizes[-1]) if place not in used), None)
                if place is not None:
                    used.add(place)
                    found[number] = *path, place
                    break
            else:
                got = f"{self.sizes[-1]} items on each of the nearest paths"
                todo = "fit a new encoder over the grown catalogue (encoder.use: fit)"
                raise DataError("a new item finds no free code", got=got, expected="a place that is left", todo=todo)
        return torch.from_numpy(found)

    @cached_property
    def _trie(self) -> CodeTrie:
        return CodeTrie(self.codes.cpu().numpy(), self.sizes)

    def _nearest(self, value: np.ndarray) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Paths, all codes but the last, from near to far of a vector (d,), by a beam over their prefixes: nodes, and codes."""
        trie, last = self._trie, self.levels - 1
        nodes, residuals = np.arange(trie.nodes(0)), torch.from_numpy(value)[None]
        for level in range(last):
            parents, nodes, codes = trie.children(level, nodes)
            residuals = residuals[parents] - self.centroids(level).cpu()[codes]
            away = distances(residuals, torch.zeros_like(residuals[:1]))[:, 0].numpy()
            kept = np.argsort(away, kind="stable")[: None if level == last - 1 else BEAM]
            nodes, residuals = nodes[kept], residuals[kept]
        for node, path in zip(nodes.tolist(), trie.prefixes(last, nodes).tolist(), strict=True):
            yield node, tuple(path)

    def check(self) -> None:
        """Check codes that were read from a file.

        Raises:
            ManifestError: A code is outside its level, or two items share all of them.
        """
        if not len(self.codes):
            return
        low, high = int(self.codes.min()), self.codes.max(0).values.tolist()
        if low < 0 or any(most >= size for most, size in zip(high, self.sizes, strict=True)):
            got, expected = f"{low} to {high}", f"0 to below {list(self.sizes)}"
            raise ManifestError("encoder tensor codes.codes", got=got, expected=expected)
        if len(torch.unique(self.codes, dim=0)) < len(self.codes):
            raise ManifestError(
                "encoder tensor codes.codes", got="items with the same codes", expected="other codes for each item"
            )
