"""The behaviour encoder: how an event becomes soft tokens, shared by every adapter of a base and data set.

Owns: feature tables of a catalogue, their projection, the vector of each feedback value. Ignores: tasks, registry.

An item's vector is a gated sum of projected features, brought to the scale of the base's own token embeddings:

    e(i) = s · rms(Σ_f g_f W_f x_f(i)),    f: text, learned, collaborative, factors, each dense column

`text` is the frozen base's own embedding of the item's text, so an item that was never seen still has a vector; learned and
collaborative vectors and factors are bound to item ids and are hidden at random in training.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.catalogue import Catalogue
from genre.data.sequences.control import ControlTokens, recorded_rule
from genre.data.sequences.transfer import upload
from genre.errors import DataError, ManifestError
from genre.modules.base.base import Base
from genre.modules.base.words import TEXT_TOKENS
from genre.modules.codes.item_codes import CodeSpec, ItemCodes
from genre.modules.heads.neighbours import ItemIndex
from genre.modules.text_vectors import text_vectors, whitening_of

COMPUTED = ("collaborative", "factors")
"""Features that are computed from the training events, see `genre.modules.collaborative`."""


@dataclass(frozen=True)
class EncoderSpec:
    """The shape of an encoder.

    Attributes:
        width: D of the base.
        text: Item columns that are embedded; empty for none.
        learned, collaborative: Dimensions, 0 for none.
        dense: List-of-float item columns and their dimensions.
        feedback: Number of feedback codes, 0 for none.
        dropout: Probability that an item's id-bound vectors are hidden in training.
        factors: Dimensions of the item factors, 0 for none.
        whiten: Project the text whitened: its dimensions uncorrelated and of variance one over the catalogue.
        control_tokens: The rule for control tokens in the text.
        codes: The codes of items that the encoder has; None without them.
    """

    width: int
    text: tuple[str, ...]
    learned: int
    collaborative: int
    dense: tuple[tuple[str, int], ...]
    feedback: int
    dropout: float = 0.1
    factors: int = 0
    whiten: bool = False
    control_tokens: ControlTokens = "token"
    codes: CodeSpec | None = None

    def describe(self) -> dict[str, Any]:
        """Itself as `encoder.json` holds it; without codes it does not mention them."""
        found = asdict(self)
        return found if self.codes is not None else {key: value for key, value in found.items() if key != "codes"}

    @property
    def sources(self) -> dict[str, int]:
        """Feature name → dimensions."""
        found = {"text": self.width if self.text else 0}
        found |= {name: getattr(self, name) for name in ("learned", *COMPUTED)}
        found |= {f"dense_{name}": size for name, size in self.dense}
        return {name: size for name, size in found.items() if size}

    @property
    def binds_ids(self) -> bool:
        """True if anything of an item is known by its id alone."""
        return any(self.sources.get(name) for name in ("learned", *COMPUTED))


@dataclass
class ItemTable:
    """The features of a catalogue as one encoder sees them, N items.

    Attributes:
        features: Name → (N, d) float32; `learned` is not among them.
        rows: (N,) int64 row of each item in the encoder's id-bound tables, -1 for a cold item.
        codes: (N, levels) int64 codes of each item, no two items' the same; None where the encoder has none.
    """

    features: dict[str, Tensor]
    rows: Tensor
    codes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "ItemTable":
        """Move to another device."""
        codes = None if self.codes is None else self.codes.to(device)
        return ItemTable({name: value.to(device) for name, value in self.features.items()}, self.rows.to(device), codes)


class BehaviourEncoder(nn.Module):
    """Item and feedback vectors in the base's embedding space.

    Attributes:
        spec: Its shape.
        item_ids: Ids that learned vectors and those of `COMPUTED` are bound to.
        codes: The codes of items; None without them.
    """

    codes: ItemCodes | None

    def __init__(
        self, spec: EncoderSpec, item_ids: Sequence[str], *, scale: float, computed: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.item_ids = list(item_ids)
        self.row_of = {item: row for row, item in enumerate(self.item_ids)}
        self.project = nn.ModuleDict({name: nn.Linear(size, spec.width, bias=False) for name, size in spec.sources.items()})
        for name, size in spec.sources.items():
            nn.init.normal_(self.project[name].weight, std=size**-0.5)  # type: ignore[arg-type]
        self.gates = nn.Parameter(torch.ones(len(spec.sources)))
        self.feedback = nn.Embedding(spec.feedback, spec.width) if spec.feedback else None
        if self.feedback is not None:
            nn.init.normal_(self.feedback.weight)
        self.scale = nn.Parameter(torch.tensor([scale, scale]))
        if spec.learned:
            self.learned = nn.Embedding(len(self.item_ids), spec.learned)
            nn.init.normal_(self.learned.weight, std=0.3)
        for name, size in spec.sources.items():
            if name in COMPUTED:
                self.register_buffer(name, (computed or {}).get(name, torch.zeros(len(self.item_ids), size)))
            elif name != "learned":
                self.register_buffer(f"{name}_mean", torch.zeros(size))
                self.register_buffer(f"{name}_std", torch.ones(size))
        if spec.whiten and spec.text:
            nn.init.orthogonal_(self.project["text"].weight)  # type: ignore[arg-type]
            self.register_buffer("text_whitening", torch.eye(spec.width))
        self.codes = None

    def hold_codes(self, codes: ItemCodes, item_ids: Iterable[str]) -> None:
        """Take in the codes of items; `item_ids` are those of their rows."""
        self.codes = codes
        self.spec = replace(self.spec, codes=codes.spec)
        ids = list(item_ids)
        self._coded = self.row_of if ids == self.item_ids else {item: row for row, item in enumerate(ids)}

    def dense_features(self, catalogue: Catalogue) -> dict[str, Tensor]:
        """The dense columns that the encoder projects, each (N, d).

        Raises:
            DataError: One is missing or has another width.
        """
        found = {}
        for name, size in self.spec.dense:
            value = found[f"dense_{name}"] = torch.from_numpy(np.nan_to_num(catalogue.dense(name)))
            if value.shape[1] != size:
                raise DataError(f"dense column {name!r} has another width", got=value.shape[1], expected=size)
        return found

    def rows_of(self, catalogue: Catalogue) -> Tensor:
        """(N,) int64 row of each item in the id-bound tables, -1 for a cold item."""
        rows = torch.tensor([self.row_of.get(item, -1) for item in catalogue.item_ids], dtype=torch.long)
        return upload(rows, self.scale.device)

    def with_text(self, catalogue: Catalogue) -> Tensor:
        """(N,) bool: the items with a text that is not blank."""
        texts = catalogue.texts(list(self.spec.text))
        return upload(torch.tensor([bool(text.strip()) for text in texts]), self.scale.device)

    def standardized(
        self,
        catalogue: Catalogue,
        base: Base,
        *,
        fit: bool = False,
        forward: AbstractContextManager[Any] | None = None,
        pass_tokens: int = TEXT_TOKENS,
        keep: bool = True,
    ) -> dict[str, Tensor]:
        """Text and dense columns of a catalogue's items, name → (N, d), of mean zero and variance one; see `table`."""
        raw: dict[str, Tensor] = {}
        if self.spec.text:
            texts = catalogue.texts(list(self.spec.text))
            raw["text"] = text_vectors(texts, base, self.spec.control_tokens, forward=forward, pass_tokens=pass_tokens, keep=keep)
        raw |= self.dense_features(catalogue)
        features = {}
        for name, value in raw.items():
            mean, std = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
            if fit:
                mean.copy_(value.mean(0))
                std.copy_(value.std(0, correction=0) + 1e-6)
            features[name] = (upload(value, mean.device) - mean) / std
        return features

    def table(
        self,
        catalogue: Catalogue,
        base: Base,
        *,
        fit: bool = False,
        forward: AbstractContextManager[Any] | None = None,
        pass_tokens: int = TEXT_TOKENS,
        keep: bool = True,
        codes: Literal["together", "apart", "none"] = "together",
        taken: Tensor | None = None,
    ) -> ItemTable:
        """Compute the features of a catalogue's items, and their codes where the encoder has codes.

        Args:
            catalogue: Any catalogue with the columns that the encoder projects.
            base: The base that the encoder belongs to; embeds the text.
            fit: Take the mean and deviation of each feature, and the whitening, from this catalogue (once, before training).
            forward: Entered for each of the base's passes, such as a lock.
            pass_tokens: Padded tokens of one of them.
            keep: Keep the text vectors in the user's cache.
            codes: Give new items codes that no other item has (`together`), or each those that it would have were it the only
                new one (`apart`), or look at no codes (`none`).
            taken: (m, levels) codes that the encoder's new items have elsewhere, which items here do not get.

        Raises:
            DataError: A projected column is missing, or a new item finds no free code.
        """
        features = self.standardized(catalogue, base, fit=fit, forward=forward, pass_tokens=pass_tokens, keep=keep)
        rows = self.rows_of(catalogue)
        own = None
        if self.codes is not None and codes != "none":
            own = self._codes_of(catalogue, features, rows, taken, apart=codes == "apart")
        if "text" in features and self.spec.whiten:
            there = self.with_text(catalogue)
            whitening = self.get_buffer("text_whitening")
            if fit:
                whitening.copy_(whitening_of(features["text"][there]))
            features["text"] = features["text"] @ whitening * there[:, None]
        return ItemTable(features, rows, own)

    def code_features(self, catalogue: Catalogue, features: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """What codes can be made of, name → (N, d) with NaN rows where nothing is known: text before it is whitened.

        Args:
            catalogue: N items.
            features: From `standardized`.
            rows: From `rows_of`.
        """
        found = dict(features)
        if "text" in found:
            found["text"] = torch.where(self.with_text(catalogue)[:, None], found["text"], torch.nan)
        for name in COMPUTED:
            if self.spec.sources.get(name):
                value = self.get_buffer(name)[rows.clamp_min(0)]
                known = (rows >= 0) & value.any(1)
                found[name] = torch.where(known[:, None], value, torch.nan)
        return found

    def count_new(self, catalogue: Catalogue) -> int:
        """The number of items that were not there when the encoder's codes were fitted."""
        return sum(item not in self._coded for item in catalogue.item_ids)

    def _codes_of(
        self, catalogue: Catalogue, features: Mapping[str, Tensor], rows: Tensor, taken: Tensor | None, *, apart: bool
    ) -> Tensor:
        """(N, levels) codes of a catalogue: those that its items have, and new ones for new items."""
        assert self.codes is not None
        own = torch.tensor([self._coded.get(item, -1) for item in catalogue.item_ids], dtype=torch.long)
        codes = self.codes.codes[own.clamp_min(0).to(rows.device)]
        new = (own < 0).nonzero().squeeze(1)
        if len(new):
            some = new.to(rows.device)
            chosen = Catalogue(catalogue.frame[new.numpy()])
            part = {name: value[some] for name, value in features.items()}
            vectors = self.codes.project(self.code_features(chosen, part, rows[some]))
            made = [self.codes.of(own, taken) for own in (vectors.split(1) if apart else [vectors])]
            codes[some] = torch.cat(made).to(rows.device)
        return codes

    def index(self, table: ItemTable) -> ItemIndex:
        """The items of a table as a head's item neighbours look them up."""
        return ItemIndex.of(table.rows, len(self.item_ids), table.features["text"] if self.spec.whiten else None)

    def item_vectors(self, table: ItemTable, codes: Tensor | None = None) -> Tensor:
        """(n, D) float32 vectors of some items (all if None)."""
        rows = table.rows if codes is None else table.rows[codes]
        shown = (rows >= 0).float()[:, None]
        if self.training and self.spec.dropout:
            shown = shown * (torch.rand_like(shown) >= self.spec.dropout)
        rows = rows.clamp_min(0)
        total: Any = 0
        for gate, (name, projection) in zip(self.gates, self.project.items(), strict=True):
            if name == "learned":
                value = self.learned(rows) * shown
            elif name in COMPUTED:
                value = self.get_buffer(name)[rows] * shown
            else:
                value = table.features[name] if codes is None else table.features[name][codes]
            total = total + gate * projection(value)
        return self.scale[0] * total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6)

    def feedback_vectors(self, codes: Tensor) -> Tensor:
        """(n, D) float32 vectors of feedback codes."""
        assert self.feedback is not None
        value = self.feedback(codes)
        return self.scale[1] * value * torch.rsqrt(value.square().mean(-1, keepdim=True) + 1e-6)

    def payload(self) -> dict[str, Tensor]:
        """The content of `encoder.safetensors`: every parameter and buffer, contiguous, on the CPU."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

    @classmethod
    def restore(
        cls,
        spec: Mapping[str, Any],
        item_ids: Sequence[str],
        payload: Mapping[str, Tensor],
        coded: Sequence[str] | None = None,
    ) -> "BehaviourEncoder":
        """Rebuild from what was published; frozen, in evaluation mode.

        Args:
            spec: As `EncoderSpec.describe` gives it.
            item_ids: Ids that vectors are bound to.
            payload: The tensors.
            coded: Ids of the items that have codes, where the encoder has codes; `item_ids` if None.

        Raises:
            ManifestError: A tensor is missing, superfluous or of another shape.
        """
        for name in ("width", "learned", "collaborative", "factors", "feedback"):
            if type(size := spec.get(name, 0)) is not int or size < 0:
                raise ManifestError(f"encoder.json: {name}", got=repr(size)[:80], expected="a whole number from 0")
        if len(spec["dense"]) > len(payload):
            raise ManifestError("encoder.json: dense", got=f"{len(spec['dense']):,} columns", expected="a tensor for each")
        fields = {"text": tuple(spec["text"]), "dense": tuple(map(tuple, spec["dense"])), "control_tokens": recorded_rule(spec)}
        shape = CodeSpec.read(spec["codes"]) if spec.get("codes") is not None else None
        described = EncoderSpec(**{**spec, **fields, "codes": shape})
        with torch.device("meta"):  # shapes without memory: the description decides nothing that the tensors do not have
            encoder = cls(described, item_ids, scale=1.0)
            if shape is not None:
                ids = item_ids if coded is None else coded
                encoder.hold_codes(ItemCodes(shape, len(ids), described.width, scale=1.0), ids)
        own = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in payload.items()}
        for name in sorted(own.keys() | theirs.keys()):
            if own.get(name) != theirs.get(name):
                raise ManifestError(f"encoder tensor {name}", got=theirs.get(name), expected=own.get(name))
        encoder.to_empty(device="cpu").load_state_dict(dict(payload))
        if encoder.codes is not None:
            encoder.codes.check()
        return encoder.eval().requires_grad_(False)
