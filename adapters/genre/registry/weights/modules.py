"""The linear of a base that a module of an adapter is, whatever model classes the two were saved from.

Owns: matching names, the way in which a base keeps its matrices. Ignores: the update, files. One linear under two names:

    bert.encoder.layer.0.output.dense      in a BertForMaskedLM
    encoder.layer.0.output.dense           in a BertModel
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from genre.errors import ManifestError
from genre.registry.weights.base import layer_of
from genre.registry.weights.tensors import Weights

_PREFIXES = """
albert backbone base_model bert biogpt convbert cpmant data2vec_text deberta distilbert electra ernie esm esmc fnet funnel git
gpt_neox gpt_neox_japanese gte ibert language_model layoutlm longformer luke mobilebert model mpnet mra nomic_bert nystromformer
perceiver prophetnet reformer rembert roberta roberta_prelayernorm roc_bert roformer rwkv tapas transformer yoso
"""
PREFIXES = frozenset(_PREFIXES.split())
"""Names under which classes with a head hold the model's body: transformers' `base_model_prefix` of causal and masked models."""
_TIED = ("embed_tokens.weight", "wte.weight")


@dataclass(frozen=True)
class Linears:
    """The matrices of a base, found by the names that any of its classes gives them.

    Attributes:
        weights: All weights of the base.
    """

    weights: Weights

    def find(self, path: str) -> str:
        """The path in the base of the linear that an adapter's class calls `path`.

        Raises:
            ManifestError: The base has none, or several that could be meant.
        """
        if self.weight_of(path) in self.weights:
            return path
        found = self._paths.get(stem(path), [])
        if len(found) == 1:
            return found[0]
        if found:
            got = ", ".join(found)[:200]
            raise ManifestError(f"LoRA of {path} could be of several linears of the base", got=got, expected="one of that name")
        expected = f"one of the base's modules, such as those of {', '.join(list(self.weights)[:3])}"
        raise ManifestError(f"LoRA of {path} has no linear in the base", expected=expected)

    def weight_of(self, path: str) -> str:
        """The name of a module's weight; a head without its own is tied to the embedding."""
        if path == "lm_head" and "lm_head.weight" not in self.weights:
            return next((name for name in self.weights if name.endswith(_TIED)), "")
        return f"{path}.weight"

    def shape(self, path: str) -> tuple[int, ...]:
        """The shape of a module's weight, as it is kept."""
        return self.weights[self.weight_of(path)][1].shape

    def swapped(self, path: str) -> bool:
        """True if the weight of a module is kept as (in, out), as GPT-2 keeps those in its layers.

        An adapter's config says so too, but for all of its modules at once, and PEFT sets it to what the last one needed.
        """
        return layer_of(path) is not None and self._columns_first

    def in_body(self, path: str) -> str:
        """A module's path in the body alone, as `AutoModel` names it."""
        first, _, rest = path.partition(".")
        inside = any(name.startswith(f"{first}.") and layer_of(name) is None for name in self.weights)
        return rest if rest and inside and first in PREFIXES else path

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        """The modules that hold a matrix, by their stem."""
        paths: dict[str, list[str]] = {}
        for name, (_, tensor) in self.weights.items():
            if name.endswith(".weight") and len(tensor.shape) == 2:
                path = name.removesuffix(".weight")
                paths.setdefault(stem(path), []).append(path)
        return paths

    @cached_property
    def _columns_first(self) -> bool:
        """True if a bias in the layers has as many values as its weight has columns."""
        return any(
            layer_of(name) is not None
            and len(tensor.shape) == 2
            and tensor.shape[0] != tensor.shape[1]
            and (bias := self.weights.get(name.removesuffix("weight") + "bias")) is not None
            and bias[1].shape == tensor.shape[1:]
            for name, (_, tensor) in self.weights.items()
            if name.endswith(".weight")
        )


def stem(path: str) -> str:
    """A module's path without the names of what holds the body: `layers.0.mlp.up_proj` for `model.layers.0.mlp.up_proj`."""
    parts = path.split(".")
    while len(parts) > 1 and parts[0] in PREFIXES:
        parts.pop(0)
    return ".".join(parts)


def after_states(paths: list[str]) -> Iterator[str]:
    """The modules of an encoder's adapter that no state depends on: its pooler, and those of its language-model head.

    A class with a head holds the layers under a prefix, and its head beside that.
    """
    firsts = {path.partition(".")[0] for path in paths if layer_of(path) is not None}
    prefix = firsts if len(firsts) == 1 and firsts <= PREFIXES else None
    for path in paths:
        beside = prefix is not None and path.partition(".")[0] not in prefix
        if layer_of(path) is None and (beside or stem(path).startswith("pooler.")):
            yield path
