"""A base without its weights, to plan memory with: the same modules on PyTorch's `meta` device, from `config.json` alone.

Owns: making it, the bytes of its weights in each quantization, the memory of its passes. Ignores: recipes, adapters, what the
figures are for.

    base = PlannedBase.read("Qwen/Qwen3-8B", quantization="nf4", device="cuda")
    base.weight_bytes                                       # 6.0e9
    base.plan(rows=8, tokens=512, train=True).peak          # what a step adds

A pass on `meta` runs every operator of the real one on shapes alone. Two things are replaced, since they would choose otherwise
there: attention keeps what PyTorch's fused kernels keep, and a quantized linear unpacks its weight for each product.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from genre.errors import BaseModelError, first_line
from genre.modules.base.base import Base
from genre.modules.base.fused_layers import fuse_layers
from genre.modules.base.kinds import EAGER, need_kind
from genre.modules.base.loading import IN_PARTS, Quantization, cut_layers
from genre.modules.base.quiet import quiet
from genre.modules.base.source import find, is_encoder, read_config
from genre.modules.live_tensors import LiveTensors

NAME = "genre_planned"
NF4_BLOCK = 64
"""Weights that share a scale of 4 bytes in nf4, as bitsandbytes has it by default."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes that a pass of a base takes beside the weights and what it is given.

    Attributes:
        kept: What lives at its end: what a backward pass needs, the states that it gives, gradients not among them.
        peak: The most at one time, the backward pass included in training.
    """

    kept: int
    peak: int


class PlannedLinear(nn.Linear):
    """A quantized linear, whose weight is unpacked for each product."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y: Tensor = _Unpacked.apply(x, self.weight)
        bias: Any = self.bias
        return y if bias is None else y + bias


class PlannedBase(Base):
    """A base on `meta`; see the module. It computes nothing: its states are shapes, its vectors zeros."""

    @classmethod
    def read(
        cls,
        name: str,
        *,
        quantization: Quantization = "none",
        depth: int | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        tokenizer: bool = True,
    ) -> Self:
        """Read a configuration.

        Args:
            name: A packaged name, a local folder or a hub id, as in `Base.load`.
            quantization: What the weights would be stored in.
            depth: Keep the first so many layers.
            dtype: As in `Base.load`.
            device: `cpu` or `cuda`: where the base would be, which decides its precision and its fused layers.
            tokenizer: Read the tokenizer too, which nothing but rows needs.

        Raises:
            BaseModelError: It is no base.
        """
        folder = find(name)
        config, words = read_config(name, folder) if tokenizer else (_config(name, folder), None)
        return cls.of(name, config, words, folder, quantization=quantization, depth=depth, dtype=dtype, device=device)

    @classmethod
    def of(
        cls,
        name: str,
        config: Any,
        tokenizer: Any = None,
        folder: Path | None = None,
        *,
        quantization: Quantization = "none",
        depth: int | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
    ) -> Self:
        """The same from a configuration of transformers' own (mutated: its depth)."""
        from transformers import AttentionInterface, AutoModel, AutoModelForCausalLM

        full_depth = cut_layers(name, config, depth)
        precision = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
        encoder = is_encoder(config)
        kind: Any = AutoModel if encoder else AutoModelForCausalLM
        AttentionInterface.register(NAME, _attend)
        with quiet(), torch.device("meta"):
            model = kind.from_config(config, dtype=precision, attn_implementation=NAME)
        if device == "cpu" and precision in (torch.float32, torch.bfloat16) and config.model_type in IN_PARTS:
            fuse_layers(model)
        if quantization != "none":
            _quantize(model)
        model.eval().requires_grad_(False)
        base = cls(name, model, tokenizer, quantization, "", "", folder or Path(), full_depth, bidirectional=encoder)
        base.planned_device = torch.device(device)
        return base

    planned_device = torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """The CPU: what is beside the base is made there, and counted."""
        return torch.device("cpu")

    def _pass(self, **given: Any) -> Tensor:
        """States on `meta`, which cannot go where the base would be."""
        states: Tensor = self.body(**given).last_hidden_state
        return states

    @property
    def embedding_rms(self) -> float:
        """A usual one."""
        return 0.02

    @property
    def offloaded(self) -> bool:
        """False: it is planned to be on a device."""
        return False

    @property
    def takes_blocks(self) -> bool:
        """False: its attention is a stand-in already."""
        return False

    @torch.no_grad()
    def text_vectors(self, token_ids: list[list[int]], **_: Any) -> Tensor:
        """(N, D) numbers in place of vectors."""
        return torch.randn(len(token_ids), self.hidden_size, generator=torch.Generator().manual_seed(0))

    def word_logits(self, hidden: Tensor, word_ids: Tensor) -> Tensor:
        """(n, C) zeros in place of logits."""
        return hidden.new_zeros(len(hidden), len(word_ids), dtype=torch.float32) + 0.0 * hidden[:, :1].float()

    @property
    def checkpoints(self) -> bool:
        """True if the layers can be run again in the backward pass."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        return any(isinstance(module, GradientCheckpointingLayer) for module in self.body.modules())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the base's weights, its buffers among them, in its precision and quantization."""
        return weight_bytes(self.model, self.quantization)

    def plan(
        self,
        rows: int,
        tokens: int,
        *,
        train: bool,
        masked: bool = False,
        soft: bool = True,
        checkpoint: bool = False,
        read: int | None = None,
        again: bool = False,
    ) -> PassMemory:
        """Run a pass on shapes, with what is attached to the base.

        Args:
            rows: B of the batch.
            tokens: T, padding included.
            train: With a backward pass.
            masked: The rows have branches, so that there is a mask.
            soft: The embedded tokens need a gradient: the encoder is being fitted.
            checkpoint: Keep only each layer's input for the backward pass.
            read: The number of tokens whose states are read; None for all of them.
            again: Gradients are there already, which are not counted and added to.

        Raises:
            BaseModelError: The model cannot run on shapes, since what it does depends on values (experts, for one).
        """
        width = self.embedding.weight.shape[1]
        embeds = torch.empty(rows, tokens, width, device="meta", dtype=self.dtype, requires_grad=train and soft)
        given: dict[str, Any] = {}
        if self.bidirectional:
            given["lengths"] = torch.empty(rows, device="meta", dtype=torch.long)
        elif masked:
            given["positions"] = torch.empty(rows, tokens, device="meta", dtype=torch.long)
            given["mask"] = torch.empty(rows, 1, tokens, tokens, device="meta", dtype=torch.bool)
        if read is not None and not self.bidirectional:
            given["read"] = torch.empty(read, device="meta", dtype=torch.long)
        with torch.set_grad_enabled(train):
            try:
                for parameter in filter(lambda each: again and each.requires_grad, self.model.parameters()):
                    parameter.grad = torch.empty_like(parameter)
                there = [each.grad for each in self.model.parameters() if each.grad is not None]
                with LiveTensors() as live:
                    live.forget([*self.model.parameters(), *self.model.buffers(), *there, embeds, *given.values()])
                    hidden = self.hidden(embeds, checkpoint=checkpoint and train, **given)
                    kept = live.now
                    if hidden.requires_grad:
                        hidden.backward(torch.empty_like(hidden))
            except (NotImplementedError, RuntimeError, ValueError) as error:
                what = f"the memory of a pass of base {self.name!r} cannot be planned"
                raise BaseModelError(what, got=first_line(error), expected="a model whose operators follow from shapes") from None
            finally:
                for parameter in self.model.parameters():
                    parameter.grad = None
        return PassMemory(kept, live.peak)


def weight_bytes(model: nn.Module, quantization: Quantization) -> int:
    """Bytes of a model's own weights and buffers as they would be stored; layers that are attached to it do not count."""
    found, seen = 0, set()
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if "lora_" in name or id(value) in seen:
            continue
        seen.add(id(value))
        owner = model.get_submodule(name.rpartition(".")[0])
        if name.endswith("weight") and isinstance(owner, PlannedLinear):
            found += _packed_bytes(value, quantization)
        else:
            found += value.nbytes
    return found


def _packed_bytes(weight: Tensor, quantization: Quantization) -> int:
    if quantization == "int8":
        return weight.numel() + 4 * weight.shape[0]
    return weight.numel() // 2 + 4 * -(-weight.numel() // NF4_BLOCK) + 4 * 16


def _quantize(model: Any) -> None:
    """Replace the linears that bitsandbytes would: all but the head (mutates the model)."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            module.__class__ = PlannedLinear


def _config(name: str, folder: Path) -> Any:
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"base {name!r} cannot be read", got=first_line(error), expected="a folder with config.json"
            ) from None
    need_kind(name, config)
    return config


class _Unpacked(torch.autograd.Function):
    """x Wᵀ for a W that is made for the product, and made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x @ torch.empty_like(weight).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ torch.empty_like(weight), None


class _Fused(torch.autograd.Function):
    """Attention that keeps its inputs, its output and a number per query, as PyTorch's kernels do."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, tokens, _ = query.shape
        found = query.new_empty(batch, tokens, heads, value.shape[-1])
        sums = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, found, sums, *(() if mask is None else (mask,)))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """What transformers' attention layers call; with a mask, keys and values are repeated for their groups."""
    layer: Any = module
    shared, own = query.shape[1] // key.shape[1], layer.config.model_type in EAGER
    if shared > 1 and (own or attention_mask is not None):
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    if own:
        scores = torch.tanh(query @ key.transpose(2, 3) * 1.0) * 1.0
        shares = torch.softmax(scores + scores[:1, :1], dim=-1, dtype=torch.float32).to(query.dtype)
        return (shares @ value).transpose(1, 2).contiguous(), None
    return _Fused.apply(query, key, value, attention_mask), None
