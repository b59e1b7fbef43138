"""Fused norms and gated MLPs for bases on a CPU.

Owns: modules that take the place of transformers' own on a CPU, with the same weights under the same names. Ignores: which
bases have such parts, adapters.

    norm      y = w · x / rms(x),  rms(x)² = mean(x²) + ε
    gated     y = silu(g) · u,     silu(g) = g / (1 + exp(-g))

Norm and gated product pass over memory about half as often as operations that autograd knows one by one, and of the gated
MLP's wide tensors they keep one less for the backward pass. Sources: Zhang and Sennrich 2019 (RMSNorm), Shazeer 2020 (SwiGLU).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS, SILU = {"gate_proj", "up_proj", "down_proj", "act_fn"}, ("SiLU", "SiLUActivation")


class Normed(torch.autograd.Function):
    """x · w / rms(x) for a frozen w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """X (…, D), weight (D,) → (…, D); what is between is float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of x: (g w - x · mean(g w x) / rms²) / rms."""
        x, inverse, weight = ctx.saved_tensors
        scaled, full = (gradients[0] * weight).to(inverse.dtype), x.to(inverse.dtype)
        along = torch.linalg.vecdot(scaled, full).unsqueeze(-1).mul_(inverse.square()).div_(-x.shape[-1])
        return scaled.addcmul_(full, along).mul_(inverse).to(x.dtype), None, None


class Gated(torch.autograd.Function):
    """silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Gate and up (…, D) → (…, D)."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        to_gate = gradients[0] * up
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return to_gate, F.silu(gate).mul_(gradients[0])


class RmsNorm(nn.Module):
    """A norm with the weight of transformers' own, whose formula it uses itself while the weight trains."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight = stock.weight
        self.eps = float(stock.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        if self.weight.requires_grad:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return Normed.apply(x, self.weight, self.eps)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) · up(x)), with the linears of transformers' own."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.gate_proj = stock.gate_proj
        self.up_proj = stock.up_proj
        self.down_proj = stock.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return self.down_proj(Gated.apply(self.gate_proj(x), self.up_proj(x)))


def fuse_layers(model: nn.Module) -> None:
    """Replace the norms and gated MLPs of a model on the CPU by these modules (mutates; the weights' names stay).

    Parts of another form stay as they are.
    """
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            model.set_submodule(name, RmsNorm(module))
        elif dict(module.named_children()).keys() == PARTS and type(module.act_fn).__name__ in SILU:
            model.set_submodule(name, GatedMlp(module))
