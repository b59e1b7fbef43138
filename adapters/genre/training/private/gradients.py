"""The clipped gradient of every user of a step, and their sum.

Owns: exact gradients by user whatever the users' rows share, micro-batches of users, clipping. Ignores: which users take part,
noise, the optimizer.

Every user of a micro-batch gets a copy of all trained tensors: low-rank layers as in `genre.modules.lora.per_user`, heads by
calling them with the copy. What flows into a copy is that user's gradient and nothing else, for any head and any loss.

    norm_u = sqrt(Σ_p |∂L_u / ∂p|²),    sum = Σ_u min(1, C / norm_u) ∂L_u / ∂p,    L_u = Σ_t weight_t · mean loss of u's targets
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from genre.data.dataset import Slot
from genre.data.sequences.batches import Batch, collate
from genre.data.sequences.layout import Sequence
from genre.errors import DivergedError
from genre.modules.heads.heads import CatalogueHead
from genre.modules.lora.layer import PackedSpans, attach, detach
from genre.modules.lora.per_user import per_user_layers
from genre.modules.recommender import Recommender
from genre.training.micro_batches import count_targets, shares

Labels = Mapping[str, tuple[Slot, np.ndarray]]


@dataclass(frozen=True)
class Clipped:
    """The outcome of a step's users.

    Attributes:
        total: (d,) float32 sum of the users' clipped gradients, all trained tensors in a row.
        norms: (k,) float64 norm of each user's gradient before clipping.
        largest: The largest norm after it, measured on what was added.
        losses: For each task the mean over users of their mean loss, and the number of targets.
        tokens: Of all rows, without padding.
    """

    total: Tensor
    norms: Tensor
    largest: float
    losses: dict[str, tuple[float, int]]
    tokens: int


class _Losses(nn.Module):
    """A model's losses as a module, so that `functional_call` can exchange parameters of its heads."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Tensor, batch: Batch, *given: Any) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """See `Recommender.losses`."""
        return self.model.losses(hidden, batch, *given)


class UserGradients:
    """Gradients of a model user by user.

    Args:
        model: The model, on its base; left as it is.
        parameters: All trained parameters by name: low-rank layers and heads.
        tokens: Most padded tokens of a micro-batch; a user with more goes alone, in parts.
        users: Most users of one.
    """

    def __init__(
        self, model: Recommender, parameters: Mapping[str, nn.Parameter], *, tokens: int, users: int | None = None
    ) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self.tokens = tokens
        self.users = users or most_users(model, sum(value.numel() for value in parameters.values()), tokens)
        self.losses = _Losses(model)
        self.packed = PackedSpans()
        self.layers = per_user_layers(model.layers, self.packed)
        self.tables: dict[str, tuple[Tensor, ...]] | None = None

    def clipped(self, users: Rows[Rows[Sequence]], labels: Labels, clip: float) -> Clipped:
        """Sum the clipped gradients of some users, each given by all of its rows.

        Raises:
            DivergedError: A loss or a gradient is not finite.
        """
        device = self.model.base.device
        total = torch.zeros(sum(value.numel() for value in self.parameters.values()), device=device)
        norms, largest, tokens = [torch.zeros(0, dtype=torch.float64)], 0.0, 0
        sums: dict[str, list[float]] = {name: [] for name in labels}
        counts = dict.fromkeys(labels, 0)
        with self._by_user():
            for chunk in self.chunks(users):
                gradients, losses = self._gradients(chunk, labels)
                own = squared_norms(gradients).sqrt()
                if not torch.isfinite(own).all():
                    todo = "lower train.learning_rate; the last checkpoint is intact"
                    raise DivergedError("the gradient of a user is not finite", got=float(own.max()), todo=todo)
                factor = (clip / own.clamp_min(1e-30)).clamp_max(1.0)
                clipped = [value.mul_(factor.to(value).view(-1, *[1] * (value.ndim - 1))) for value in gradients]
                largest = max(largest, float(squared_norms(clipped).max().sqrt()))
                total += torch.cat([value.sum(0).reshape(-1) for value in clipped])
                norms.append(own.cpu())
                tokens += sum(len(row) for rows in chunk for row in rows)
                for name, (values, count) in losses.items():
                    sums[name] += values
                    counts[name] += count
        means = {name: (float(np.mean(values)) if values else 0.0, counts[name]) for name, values in sums.items()}
        return Clipped(total, torch.cat(norms), largest, means, tokens)

    def chunks(self, users: Rows[Rows[Sequence]]) -> Iterator[list[Rows[Sequence]]]:
        """Micro-batches of users within the budgets, those with rows of one length together."""
        chunk: list[Rows[Sequence]] = []
        count = 0
        for rows in sorted(users, key=lambda rows: max(map(len, rows))):
            longest = max(map(len, rows))
            if chunk and ((count + len(rows)) * longest > self.tokens or len(chunk) == self.users):
                yield chunk
                chunk, count = [], 0
            chunk.append(rows)
            count += len(rows)
        if chunk:
            yield chunk

    def _gradients(self, chunk: list[Rows[Sequence]], labels: Labels) -> tuple[list[Tensor], dict[str, tuple[list[float], int]]]:
        """Every user's gradient of every parameter, (U, …) each, and for each task the users' losses and the targets."""
        if len(chunk) > 1 or len(chunk[0]) == 1:
            return self._pass(chunk, labels, [None] * len(chunk))
        rows, whole = chunk[0], count_targets(chunk[0], labels)
        size = max(1, self.tokens // max(map(len, rows)))
        found: list[Tensor] = []
        losses: dict[str, tuple[list[float], int]] = {}
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            share = shares(count_targets(part, labels), whole)
            gradients, own = self._pass([part], labels, [share])
            found = [a.add_(b) for a, b in zip(found, gradients, strict=True)] if found else gradients
            for name, (values, count) in own.items():
                before, counted = losses.get(name, ([0.0], 0))
                losses[name] = ([before[0] + share[name] * sum(values)], counted + count)
        return found, losses

    def _pass(
        self, chunk: list[Rows[Sequence]], labels: Labels, share: list[dict[str, float] | None]
    ) -> tuple[list[Tensor], dict[str, tuple[list[float], int]]]:
        device, sizes = self.model.base.device, [len(rows) for rows in chunk]
        batch = collate([row for rows in chunk for row in rows], labels).to(device)
        copies = {
            name: value.detach().expand(len(chunk), *value.shape).requires_grad_() for name, value in self.parameters.items()
        }
        for name, layer in self.layers.items():
            layer.copies = copies[f"{name}.lora_A"], copies[f"{name}.lora_B"]
        self._route(batch, sizes)
        states = self.model.hidden(batch).split(sizes)
        heads = {f"model.{name}": value.unbind() for name, value in copies.items() if name.startswith("heads.")}
        total: Any = 0
        losses: dict[str, tuple[list[float], int]] = {name: ([], 0) for name in labels}
        for user, (rows, hidden) in enumerate(zip(chunk, states, strict=True)):
            given = hidden, collate(rows, labels, masked=False).to(device), share[user], self.tables
            loss, parts = functional_call(self.losses, {name: own[user] for name, own in heads.items()}, given, tie_weights=False)
            total = total + loss
            for name, (value, count) in parts.items():
                if count:
                    losses[name] = ([*losses[name][0], float(value)], losses[name][1] + count)
        if not total.requires_grad:  # no user has a target
            return [torch.zeros_like(value) for value in copies.values()], losses
        found = torch.autograd.grad(total, list(copies.values()), allow_unused=True)
        zeros = (torch.zeros(value.shape, device=device) for value in copies.values())
        return [zero if own is None else own.float() for own, zero in zip(found, zeros, strict=True)], losses

    def _route(self, batch: Batch, sizes: list[int]) -> None:
        """Tell the low-rank layers which tokens are whose."""
        length = batch.tokens.shape[1]
        ends = np.cumsum(sizes) * length
        starts = ends - np.array(sizes) * length
        self.packed.spans = tuple(zip(range(len(sizes)), starts.tolist(), ends.tolist(), strict=True))
        self.packed.read = ()
        if batch.read_tokens is not None:
            tokens = batch.read_tokens.cpu().numpy()
            first, last = np.searchsorted(tokens, starts), np.searchsorted(tokens, ends)
            self.packed.read = tuple(zip(range(len(sizes)), first.tolist(), last.tolist(), strict=True))

    @contextmanager
    def _by_user(self) -> Iterator[None]:
        """A block in which the base has the users' layers, and catalogue heads score without tables of their own weights."""
        model = self.model
        heads = [head for head in model.heads.values() if isinstance(head, CatalogueHead)]
        with ExitStack() as undo:
            attach(model.base.model, self.layers)
            undo.callback(detach, model.base.model, self.layers)
            for head in heads:
                head.by_direction = True
                undo.callback(setattr, head, "by_direction", False)
            if self.tables is None:
                with torch.no_grad():
                    self.tables = {name: own for name, own in model.catalogue_tables().items() if name not in model.negatives}
            yield


def squared_norms(gradients: Rows[Tensor]) -> Tensor:
    """(U,) float64 squared norm of each user's gradient over all tensors, (U, …) each."""
    return (
        torch.stack([torch.linalg.vector_norm(value.reshape(len(value), -1), dim=1, dtype=torch.float64) for value in gradients])
        .square()
        .sum(0)
    )


def most_users(model: Recommender, parameters: int, tokens: int) -> int:
    """The users of a micro-batch whose copies take about an eighth of the memory of the states that its backward pass needs."""
    base = model.base
    wide = max((getattr(module, "out_features", 0) for module in base.body.modules()), default=0)
    states = tokens * base.depth * (8 * base.hidden_size + 3 * wide)
    return max(1, states // (8 * max(parameters, 1)))
