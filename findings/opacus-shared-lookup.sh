#!/usr/bin/env bash
# opacus 1.6.0, 2026-11-30
# Guess: make_private bounds each user's part of the summed gradient by max_grad_norm, or refuses the module.
# Seen: the first dimension of whatever an nn.Embedding is called with counts as the batch. A soft prompt (or positions, or an instruction)
# looked up once and broadcast gives a grad_sample per prompt token, summed over all users: 16 tokens are clipped, not 32 users. The
# validator finds nothing. Removing one user moves the clipped sum by several times max_grad_norm, and the accountant reports the same
# epsilon. With other trainable layers a step fails in torch.stack, unless the batch happens to have as many users as there are tokens.
# Matters: prompt tuning and learned positions are written like this. Expand the indices to (batch, tokens) before the lookup.
#
# Output:
#   opacus 1.6.0 max_grad_norm 1.0
#   indices expanded: False; 16 gradients clipped for 32 users; without user 0 the sum moves by 3.59
#   indices expanded: True; 32 gradients clipped for 32 users; without user 0 the sum moves by 1.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 opt_einsum==3.4.0
"$work/venv/bin/pip" install --quiet --no-deps opacus==1.6.0
"$work/venv/bin/python" -W ignore - <<'PY'
import opacus
import torch
from opacus.validators import ModuleValidator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class SoftPrompt(nn.Module):
    def __init__(self, expand):
        super().__init__()
        self.expand = expand
        self.prompt = nn.Embedding(16, 8)
        self.read = nn.Linear(8, 1).requires_grad_(False)  # the frozen base

    def forward(self, x):
        tokens = torch.arange(16)[None].expand(len(x), -1) if self.expand else torch.arange(16)
        return self.read((self.prompt(tokens) * x[:, None]).mean(1))


def clipped_sum(users, labels, expand):
    torch.manual_seed(0)
    model = SoftPrompt(expand)
    assert ModuleValidator.validate(model) == []
    engine = opacus.PrivacyEngine()
    private, optimizer, _ = engine.make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters()), data_loader=DataLoader(TensorDataset(users), batch_size=len(users)),
        noise_multiplier=0.0, max_grad_norm=1.0, poisson_sampling=False, loss_reduction="sum",
    )
    ((private(users) - labels) ** 2).sum().backward()
    samples = len(model.prompt.weight.grad_sample)
    optimizer.step()
    return model.prompt.weight.grad, samples


torch.manual_seed(1)
users, labels = torch.randn(32, 8), torch.randn(32, 1)
labels[0] = 1000.0
print("opacus", opacus.__version__, "max_grad_norm 1.0")
for expand, samples, bounded in ((False, 16, False), (True, 32, True)):
    everybody, clipped = clipped_sum(users, labels, expand)
    without, _ = clipped_sum(users[1:], labels[1:], expand)
    moved = (everybody - without).norm().item()
    print(f"indices expanded: {expand}; {clipped} gradients clipped for 32 users; without user 0 the sum moves by {moved:.2f}")
    assert clipped == samples and (moved < 1.01) == bounded
PY
