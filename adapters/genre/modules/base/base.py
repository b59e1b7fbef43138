"""The base: a frozen pretrained LLM, on the devices where it is, and what runs through it.

Owns: device and dtype, hidden states, what is attached. Ignores: adapters, data, where a base comes from, how its model is loaded
(`genre.modules.base.source` and `loading`).

    >>> base = Base.load("smollm2-135m", depth=4)      # doctest: +SKIP
    >>> base.hidden_size, base.depth, base.quantization  # doctest: +SKIP
    (576, 4, 'none')
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genre.data.sequences.transfer import DIRECT
from genre.errors import BaseModelError, InputError
from genre.modules.base.attention import Blocks, PackedPart, Prefixes, added, attend_by_blocks, block_attention, masks_of
from genre.modules.base.checkpointing import checkpointing
from genre.modules.base.devices import choose_device
from genre.modules.base.fingerprint import fingerprint
from genre.modules.base.kinds import EAGER, VERIFIED, check_branches, need_positions, position_limit
from genre.modules.base.loading import IN_PARTS, Quantization, cut_layers, device_of, load_model, weight_of
from genre.modules.base.quiet import quiet_casts
from genre.modules.base.source import find, is_encoder, max_row_tokens, need_causal, read_config, tokenizer_digest
from genre.modules.base.unread import skip_unread
from genre.modules.base.words import TEXT_TOKENS, text_vectors, word_logits


@dataclass(eq=False)
class Base:
    """A frozen pretrained LLM on one or more devices.

    Attributes:
        name: As the user gave it.
        model: The transformers causal LM, or the encoder's body; its parameters never require gradients here.
        tokenizer: The base's own tokenizer.
        quantization: `none`, `int8` or `nf4`.
        fingerprint: sha256 of the full-precision weights (all layers, whatever the depth), so it says which base this is.
        tokenizer_digest: sha256 of the vocabulary and merges as the tokenizer serializes them.
        folder: Where the weights were read from.
        full_depth: Layers that the base has on disk.
        bidirectional: Whether it is an encoder.
    """

    name: str
    model: Any
    tokenizer: Any
    quantization: Quantization
    fingerprint: str
    tokenizer_digest: str
    folder: Path
    full_depth: int
    bidirectional: bool = False
    _holder: str | None = field(default=None, init=False, repr=False)
    _by_blocks: bool = field(default=False, init=False, repr=False)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        quantization: Quantization = "none",
        depth: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        device_map: Mapping[str, str | int] | None = None,
        offload_folder: str | Path | None = None,
    ) -> "Base":
        """Load and freeze a base.

        Args:
            name: A base that comes as a package (`smollm2-135m`), a local folder, or a hub id.
            quantization: `int8` and `nf4` go through bitsandbytes; embeddings and heads stay in full precision.
            depth: Keep the first so many layers, followed by the base's own final norm.
            device: `cpu`, `cuda` or `cuda:1`; by default that of `GENRE_DEVICE`, else `cuda` if there is one, else `cpu`. `auto`
                lets accelerate spread the base over what there is.
            dtype: bfloat16 on CUDA, float32 on CPU (many processors have no instructions for bfloat16).
            device_map: Where each module goes, as accelerate spells it (`{"model.layers.0": 0, …, "lm_head": "disk"}`), in
                place of `device`; for bases that no one device holds.
            offload_folder: For what the map, or `auto`, leaves on the disk.

        Raises:
            InputError: There is no such device, or a launcher gave this process another one.
            BaseModelError: The folder is neither a causal LM nor an encoder, or is one whose layers cannot keep the branches of
                a row apart; the depth is too large, or the device cannot hold the quantization.
        """
        folder = find(name)
        config, tokenizer = read_config(name, folder)
        full_depth = cut_layers(name, config, depth)
        place = str(device or "") if device_map else choose_device(device)
        model = load_model(name, folder, config, quantization, place, dtype, device_map, offload_folder)
        marks = fingerprint(folder), tokenizer_digest(tokenizer)
        base = cls(name, model, tokenizer, quantization, *marks, folder, full_depth, bidirectional=is_encoder(config))
        if base.device.type not in DIRECT and base.takes_blocks:
            attend_by_blocks(model)  # see `hidden`; for good, so that nothing is put back while the interpreter ends
            base._by_blocks = True
        if not (base.bidirectional or base.offloaded or config.model_type in VERIFIED):
            check_branches(base)
        return base

    @property
    def body(self) -> nn.Module:
        """The stack of layers with its final norm, without the language-model head."""
        return self.model.base_model

    @property
    def depth(self) -> int:
        """Layers that are loaded."""
        return self.model.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """The device that token ids go to, where the embedding computes."""
        return device_of(self.embedding)

    @property
    def devices(self) -> list[torch.device]:
        """The devices that hold its weights, that of the embedding first."""
        return list(dict.fromkeys([self.device, *(each.device for each in self.model.parameters() if not each.is_meta)]))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of hidden states."""
        return self.embedding.weight.dtype

    @property
    def precision(self) -> str:
        """The name of `dtype`, as in a recipe."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding, (V, D)."""
        return self.model.get_input_embeddings()

    @property
    def embedding_rms(self) -> float:
        """Root mean square of the token embedding's entries: the scale that soft tokens start at."""
        scale = float(getattr(self.embedding, "embed_scale", 1.0))  # of Gemma's kind, which its embedding multiplies by
        return scale * float(weight_of(self.embedding)[:4096].float().square().mean().sqrt())

    @property
    def offloaded(self) -> bool:
        """True if weights stay in CPU memory or on the disk until a layer runs; such a base scores but trains nothing."""
        return any(parameter.is_meta for parameter in self.model.parameters())

    @property
    def sharded(self) -> bool:
        """True if FSDP2 has sharded the layers over processes, each of which must then run them as often as the others."""
        from torch.distributed.fsdp import FSDPModule

        return any(isinstance(module, FSDPModule) for module in self.body.modules())

    @property
    def occupied_by(self) -> str | None:
        """The holder of `attached`; None for a bare base."""
        return self._holder

    @contextmanager
    def attached(self, holder: str) -> Iterator[None]:
        """A block in which one holder changes the base's layers.

        Raises:
            InputError: Another one does.
        """
        self.need_bare()
        self._holder = holder
        try:
            yield
        finally:
            self._holder = None

    def need_bare(self) -> None:
        """Check that nothing is attached.

        Raises:
            InputError: Something is.
        """
        if self._holder is not None:
            todo = "close the engine or the run that holds it, or load the base a second time"
            raise InputError("the base already carries adapters", got=self._holder, expected="a bare base", todo=todo)

    @property
    def max_tokens(self) -> int | None:
        """The longest row that an encoder's absolute positions reach; None for a base without such a limit."""
        return max_row_tokens(self.model.config, self.tokenizer) if self.bidirectional else None

    @property
    def position_limit(self) -> int | None:
        """The number of positions that a causal base can tell apart (learned ones, mostly); None without such a limit."""
        return None if self.bidirectional else position_limit(self.model.config)

    def need_causal(self, what: str) -> None:
        """Check that the base reads from left to right, as slots, branches and many targets in one row need it.

        Raises:
            BaseModelError: It is an encoder.
        """
        need_causal(self, what)

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        blocks: Blocks | None = None,
        checkpoint: bool = False,
        read: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            embeds: (B, T, D) token embeddings and soft tokens, right-padded.
            positions: (B, T) int64, or None for 0, 1, 2, …
            mask: (B, 1, T, T) bool, True where a query may look at a key; None for plain attention.
            lengths: (B,) int64 tokens of each row that are not padding, which an encoder must know; in plain causal attention
                nothing looks ahead, so right padding needs no mask.
            blocks: The same as a mask, where `takes_blocks` holds, within `by_blocks`.
            checkpoint: Keep only each layer's input for the backward pass, and run the layer again in it: less memory, more
                time, the same gradients.
            read: The tokens whose states are read, as `skip_unread` takes them; the states of others are undefined then.

        Returns:
            (B, T, D) in the base's dtype.

        Raises:
            BaseModelError: Positions or a mask are given to an encoder, or the base's layers cannot be run again.
            InputError: A row needs more positions than the base can tell apart.
        """
        if checkpoint:
            with checkpointing(self.body, self.name, partial(self._each_pass, read)):
                return self.hidden(embeds, positions, mask, lengths=lengths)
        if self.bidirectional:
            if positions is not None or mask is not None:
                self.need_causal("a row with branches")
            assert lengths is not None, "an encoder needs to know what is padding"
            there = torch.arange(embeds.shape[1], device=embeds.device) < lengths.to(embeds.device)[:, None]
            return self._pass(inputs_embeds=embeds, attention_mask=there.long())
        need_positions(self.position_limit, embeds.shape[1], positions)
        more: dict[str, Any] = {}
        given: Any = None
        if mask is not None:
            given = masks_of(self.model.config, mask, positions, embeds.dtype)
        elif blocks is not None:
            given = embeds.new_zeros(1, 1, 1, 1)  # any 4-D mask keeps transformers from making a whole one; nobody reads it
            more["blocks"] = blocks
        elif self._by_blocks and embeds.device.type not in DIRECT and positions is None:
            given = embeds.new_zeros(1, 1, 1, 1)  # without one transformers looks for packed rows, and waits for what it finds
            more["plain"] = True
        with self._skipping(read):
            return self._pass(inputs_embeds=embeds, position_ids=positions, attention_mask=given, use_cache=False, **more)

    def packed(
        self,
        embeds: Sequence[Tensor],
        positions: Sequence[Tensor | None],
        masks: Sequence[Tensor | None],
        *,
        read: Tensor | None = None,
    ) -> list[Tensor]:
        """Hidden states of several batches in one pass, none padded to another's length, each as `hidden` gives them alone.

        Within `by_blocks`.

        Args:
            embeds: For each batch (B, T, D).
            positions: For each batch (B, T) int64, or None for 0, 1, 2, …
            masks: For each batch (B, 1, T, T) bool, or None for plain attention.
            read: (n,) int64, the tokens of the packed batch that are read, as in `hidden`.

        Returns:
            For each batch (B, T, D).
        """
        parts: list[PackedPart] = []
        steps = []
        for each, own, mask in zip(embeds, positions, masks, strict=True):
            need_positions(self.position_limit, each.shape[1], own)
            start, (rows, length) = parts[-1].stop if parts else 0, each.shape[:2]
            scores = None if mask is None else added(mask, each.dtype)
            parts.append(PackedPart(start, start + rows * length, (rows, length), scores, own))
            steps.append(torch.arange(length, device=each.device).repeat(rows) if own is None else own.reshape(-1))
        flat = torch.cat([each.flatten(0, 1) for each in embeds])[None]
        unread = flat.new_zeros(1, 1, 1, 1)  # as in `hidden`
        given = {"inputs_embeds": flat, "position_ids": torch.cat(steps)[None], "attention_mask": unread}
        with self._skipping(read):
            hidden = self._pass(**given, use_cache=False, packed=tuple(parts))[0]
        return [hidden[part.start : part.stop].view(*part.shape, -1) for part in parts]

    @contextmanager
    def by_blocks(self) -> Iterator[None]:
        """A block in which attention layers take blocks and packed batches (mutates the model), where `takes_blocks` holds."""
        if self._by_blocks:
            yield
            return
        with block_attention(self.model):
            self._by_blocks = True
            try:
                yield
            finally:
                self._by_blocks = False

    @contextmanager
    def _each_pass(self, read: Tensor | None) -> Iterator[None]:
        """A block for a checkpointed layer's pass."""
        with self._quiet(), self._skipping(read):
            yield

    def _pass(self, **given: Any) -> Tensor:
        """(B, T, D) states after all layers and the final norm, where the embedding is: the last layer may be elsewhere."""
        with self._quiet():
            return self.body(**given).last_hidden_state.to(self.device)

    def _skipping(self, read: Tensor | None) -> AbstractContextManager[None]:
        """A block in which the last layer's MLP runs on the tokens that are read, where that can be done.

        An int8 base rounds by columns of the whole batch, so leaving tokens out would change the states that are read.
        """
        if read is None or not self.in_parts or self.quantization == "int8":
            return nullcontext()
        body: Any = self.body
        return skip_unread(body.layers[-1].mlp, read)

    def _quiet(self) -> AbstractContextManager[None]:
        """A block for a pass of the layers."""
        return quiet_casts() if self.quantization == "int8" else nullcontext()

    @property
    def takes_blocks(self) -> bool:
        """True if attention by blocks works here: the model passes unknown arguments on to the attention function."""
        own = self.model.config.model_type in EAGER
        return not self.bidirectional and not own and self.model.is_backend_compatible()

    @property
    def in_parts(self) -> bool:
        """True if some of the layers can be run alone (`run`)."""
        return self.model.config.model_type in IN_PARTS

    def run(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        blocks: Blocks,
        *,
        read: Tensor | None = None,
        prefixes: Prefixes | None = None,
    ) -> Tensor:
        """Run the layers from `first` up to, not including, `last`; the final norm follows the base's last layer.

        Args:
            hidden: (B, T, D) embeddings for layer 0, else what the layer before gave.
            first: From 0.
            last: Up to the depth.
            blocks: What may see what, and the positions.
            read: As in `hidden`; has no effect unless the base's last layer is among the layers.
            prefixes: Where `genre.modules.base.prefixes.takes_prefixes` holds, within `by_blocks`.

        Returns:
            (B, T, D).

        Raises:
            BaseModelError: The base's layers cannot be run apart.
            InputError: A row is longer than the base can read.
        """
        if not self.in_parts:
            raise BaseModelError(
                "the base's layers cannot be run separately", got=self.model.config.model_type, expected=", ".join(IN_PARTS)
            )
        need_positions(self.position_limit, blocks.longest, blocks.positions)
        body: Any = self.body
        rotary = body.rotary_emb(hidden, position_ids=blocks.positions)
        shared = {"position_ids": blocks.positions, "position_embeddings": rotary, "blocks": blocks}
        if prefixes is not None:
            shared["prefixes"] = prefixes
        with self._quiet(), self._skipping(read if last == self.depth else None):
            for number, layer in enumerate(body.layers[first:last], first):
                if prefixes is not None:
                    prefixes.enter(number, hidden)
                hidden = layer(hidden, attention_mask=None, use_cache=False, **shared)
        return body.norm(hidden) if first < last == self.depth else hidden

    def word_logits(self, hidden: Tensor, word_ids: Tensor) -> Tensor:
        """The language-model head's logits of some tokens only.

        Args:
            hidden: (n, D).
            word_ids: (C,) token ids.

        Returns:
            (n, C) float32.

        Raises:
            BaseModelError: The base is an encoder.
        """
        self.need_causal("head 'verbalizer'")
        return word_logits(self.model, hidden, word_ids)

    def text_vectors(
        self, token_ids: list[list[int]], *, batch_tokens: int = TEXT_TOKENS, forward: AbstractContextManager[Any] | None = None
    ) -> Tensor:
        """Mean hidden state over each text, computed once per catalogue.

        Args:
            token_ids: N texts as token ids; an empty one gives zeros.
            batch_tokens: Padded tokens of one forward pass.
            forward: Entered anew for each pass, such as a lock.

        Returns:
            (N, D) float32 on the CPU.
        """
        return text_vectors(self, token_ids, batch_tokens=batch_tokens, forward=forward)
