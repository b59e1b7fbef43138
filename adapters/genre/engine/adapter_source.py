"""Versions out of the registry, ready for an adapter slot.

Owns: reading a version once, and sharing what versions have in common (encoder, catalogue tables, layout). Ignores: which
versions stay in memory.

    registry ── AdapterSource.read ──► Ready ── Slots.put ──► Resident

What is shared lives as long as a version that uses it is in a slot, in the CPU tier, or under a request.
"""

import dataclasses
import json
from dataclasses import dataclass
from weakref import WeakValueDictionary

from genre.data.catalogue import Catalogue
from genre.data.interactions import Interactions
from genre.data.sequences.layout import Layout
from genre.data.sequences.text_rows import TextLayout
from genre.engine.items import ItemSpace
from genre.engine.turn import ForwardTurn
from genre.engine.versions import Loaded, read_adapter, readable
from genre.errors import InputError
from genre.modules.base.base import Base
from genre.modules.lora.layer import layer_of
from genre.modules.lora.slot_layers import Slot
from genre.modules.lora.slots import AdapterSlots, SlotWeights
from genre.registry import Registry, Version
from genre.training.parts import SharedEncoder


@dataclass(frozen=True)
class Ready:
    """A version with everything that a slot needs: coming back takes a copy, and no file.

    Attributes:
        loaded: Its heads and what its manifest says; without low-rank weights, which are in `packed`.
        packed: The low-rank weights as a slot holds them, on the CPU; None runs on the bare base.
        space: The catalogue as its encoder sees it.
        first: The lowest layer that it adapts; the base's depth for none.
    """

    loaded: Loaded
    packed: SlotWeights | None
    space: ItemSpace
    first: int

    @property
    def digest(self) -> str:
        """The version's digest."""
        return self.loaded.digest


@dataclass(eq=False)
class Resident:
    """A version in a slot.

    Attributes:
        loaded, space, first: As in `Ready`.
        slot: Where its weights are; None runs on the bare base.
        users: Requests under way that began with it.
    """

    loaded: Loaded
    space: ItemSpace
    first: int
    slot: Slot | None
    users: int = 0

    @property
    def digest(self) -> str:
        """The version's digest."""
        return self.loaded.digest


class AdapterSource:
    """Reads versions for one engine.

    Args:
        base: The base that they must fit.
        registry: The registry that they are in.
        slots: The slot layers that they are packed for.
        data: A data set whose catalogue replaces the versions' own.
        forward: Held while the bare base embeds texts.
    """

    def __init__(
        self, base: Base, registry: Registry, slots: AdapterSlots, data: Interactions | None, forward: ForwardTurn
    ) -> None:
        self.base = base
        self.registry = registry
        self.slots = slots
        self.data = data
        self._forward = forward
        self._encoders: WeakValueDictionary[str, SharedEncoder] = WeakValueDictionary()
        self._spaces: WeakValueDictionary[tuple[str | None, str, tuple[str, ...]], ItemSpace] = WeakValueDictionary()
        self._layouts: WeakValueDictionary[str, Layout | TextLayout] = WeakValueDictionary()

    def read(self, version: Version) -> Ready:
        """Read and check a version. One thread at a time.

        Raises:
            ManifestError, IntegrityError: It cannot be loaded here.
            InputError: It adapts what the base does not have.
        """
        with readable(version.ref):
            return self._read(version)

    def _read(self, version: Version) -> Ready:
        loaded = read_adapter(self.registry, version, self.base, encoders=self._encoders, recheck=False)
        unknown = sorted(set(loaded.low) - set(self.slots.layers))
        if unknown:
            outside = [name for name in unknown if name in dict(self.base.model.named_modules())]
            if outside:
                expected, todo = "linears inside the layers", "genre registry export --to merged puts it into its base"
                raise InputError(f"{version.ref} adapts what an engine cannot", got=outside[0], expected=expected, todo=todo)
            raise InputError(f"{version.ref} adapts a linear that the base does not have", got=unknown[0])
        space = self._space(loaded)
        first = min((layer for name in loaded.low if (layer := layer_of(name)) is not None), default=self.base.depth)
        kept = dataclasses.replace(loaded, low={}, reading=self._layout(loaded.reading), catalogue=space.catalogue)
        return Ready(kept, self.slots.pack(loaded.low), space, first)

    def catalogue_of(self, loaded: Loaded) -> Catalogue:
        """The items that a version's requests may name."""
        return self.data.catalogue if self.data is not None else loaded.catalogue

    def _space(self, loaded: Loaded) -> ItemSpace:
        catalogue = self.catalogue_of(loaded)
        text = () if loaded.text_layout is not None else loaded.layout.text
        key = (loaded.shared.digest if loaded.shared else None, catalogue.digest, text)
        space = self._spaces.get(key)
        if space is None:
            space = self._spaces[key] = ItemSpace(catalogue, text, loaded.shared, self.base, self._forward)
        return space

    def _layout(self, layout: Layout | TextLayout) -> Layout | TextLayout:
        """One layout for all versions that lay out events alike: it remembers the tokens of texts."""
        return self._layouts.setdefault(json.dumps(layout.describe(), sort_keys=True), layout)
