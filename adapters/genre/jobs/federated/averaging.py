"""The average of what clients learnt: products of low-rank factors, and plain means of everything else.

Owns: the arithmetic of a round. Ignores: who takes part, how tensors travel.

    >>> import numpy as np
    >>> one = {"q.lora_A": np.ones((1, 2), "f"), "q.lora_B": np.ones((3, 1), "f")}
    >>> turned = {"q.lora_A": -one["q.lora_A"], "q.lora_B": -one["q.lora_B"]}        # the same product
    >>> both = average(one, [one, turned], [1, 3], seed=0)
    >>> np.allclose(both["q.lora_B"] @ both["q.lora_A"], 1)
    True

The mean of factors is no mean of updates: B A = (B R)(R⁻¹ A) for any R. So the server takes the mean of the products, keeps its
largest singular values up to the recipe's rank (exact where the mean has no more), and sends it as factors again, largest first.
A client of a lower rank k trains the first k components; the others count as it got them. Where all clients hold the same A, the
mean of their B is the mean of the products, and no SVD is needed.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from genre.errors import InputError
from genre.jobs.federated.packets import State
from genre.jobs.merge.methods import best_of_rank

A, B = ".lora_A", ".lora_B"
START_NORM = 3**-0.5
"""The expected length of a row of A as LoRA starts it: entries uniform up to 1 / sqrt(in)."""


def average(state: State, replies: Sequence[State], weights: Sequence[float], *, seed: int) -> State:
    """Average what clients made of a state.

    Args:
        state: What they were sent.
        replies: What each of them has now, at its own rank.
        weights: One per reply, above 0.
        seed: Of the directions that start anew, where the mean leaves a component empty.

    Raises:
        InputError: A reply has other tensors than the state.
    """
    whole = [completed(state, reply) for reply in replies]
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    averaged = {name: mean([each[name] for each in whole], shares) for name in state if not name.endswith((A, B))}
    for linear in linears(state):
        ours, downs = [each[linear + B] for each in whole], [each[linear + A] for each in whole]
        if all(np.array_equal(down, downs[0]) for down in downs):
            averaged[linear + A] = downs[0]
            averaged[linear + B] = mean(ours, shares)
        else:
            draw = zlib.crc32(f"{seed}:{linear}".encode())
            averaged[linear + A], averaged[linear + B] = factored(downs, ours, shares, seed=draw)
    return {name: averaged[name] for name in state}


def linears(state: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The names of the adapted linears of a state."""
    return (name.removesuffix(A) for name in state if name.endswith(A))


def completed(state: State, reply: State) -> State:
    """A client's tensors, with the components of the state that it does not train.

    Raises:
        InputError: They are not those of the state.
    """
    if stray := sorted(state.keys() ^ reply.keys()):
        raise InputError("a client's tensors are not those it was sent", got=stray[:3], expected=f"{len(state)} tensors")
    whole: State = {}
    for name, sent in state.items():
        value = np.asarray(reply[name], dtype=np.float32)
        if name.endswith(A) and value.shape[1:] == sent.shape[1:]:
            value = np.concatenate([value, sent[len(value) :]])
        elif name.endswith(B) and value.shape[:1] == sent.shape[:1] and value.ndim == 2:
            value = np.concatenate([value, sent[:, value.shape[1] :]], axis=1)
        if value.shape != sent.shape or not np.isfinite(value).all():
            got = "values that are no numbers" if value.shape == sent.shape else str(value.shape)
            raise InputError(f"a client's tensor {name}", got=got, expected=f"finite values of shape {sent.shape}")
        whole[name] = value
    for linear in linears(state):
        if (ranks := (len(reply[linear + A]), reply[linear + B].shape[1]))[0] != ranks[1]:
            got = f"{ranks[0]} and {ranks[1]}"
            raise InputError(f"a client's factors of {linear} differ in rank", got=got, expected="one rank")
    return whole


def shrunk(state: State, rank: int) -> State:
    """A state with the first `rank` components of its factors."""
    return {
        name: value[:rank] if name.endswith(A) else value[:, :rank] if name.endswith(B) else value
        for name, value in state.items()
    }


def mean(values: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """The weighted mean of arrays of one shape, float32; equal ones come back bit for bit."""
    if all(np.array_equal(value, values[0]) for value in values):
        return values[0]
    total = sum(share * value.astype(np.float64) for share, value in zip(shares, values, strict=True))
    return np.asarray(total, dtype=np.float32)


def factored(
    downs: Sequence[np.ndarray], ups: Sequence[np.ndarray], shares: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factors A (r, in) and B (out, r) of the mean product, largest component first.

    A's rows have at least the length that LoRA starts them at, which keeps its pace of learning. Components that the mean does
    not need start as LoRA starts: A random, B zero.
    """
    rank = downs[0].shape[0]
    parts = [
        (torch.from_numpy(down), torch.from_numpy(up), float(share)) for down, up, share in zip(downs, ups, shares, strict=True)
    ]
    a, b = (value.numpy().astype(np.float64) for value in best_of_rank(parts, rank))
    lengths = np.linalg.norm(a, axis=1)
    used = lengths > 1e-6 * lengths.max(initial=0.0)
    stretch = np.where(used, np.maximum(1.0, START_NORM / np.where(used, lengths, 1.0)), 1.0)
    a, b = a * stretch[:, None], b / stretch
    bound = 1 / math.sqrt(a.shape[1])
    a[~used] = np.random.default_rng(seed).uniform(-bound, bound, size=a.shape)[~used]
    b[:, ~used] = 0.0
    return a.astype(np.float32), b.astype(np.float32)


def flat(update: State) -> np.ndarray:
    """(n,) float64 the tensors of an update one after another, by name."""
    return np.concatenate([update[name].astype(np.float64).ravel() for name in sorted(update)])


def unflat(vector: np.ndarray, like: State) -> State:
    """The tensors of a vector that `flat` made of an update with the shapes of `like`."""
    found, start = {}, 0
    for name in sorted(like):
        found[name] = vector[start : start + like[name].size].reshape(like[name].shape)
        start += like[name].size
    return found


def moved(state: State) -> State:
    """The tensors of a state that change where A stays as it is."""
    return {name: value for name, value in state.items() if not name.endswith(A)}


def difference(state: State, reply: State) -> State:
    """What a client has changed of a state whose A stays as it is, in float64."""
    after = completed(state, reply)
    return {name: after[name].astype(np.float64) - value for name, value in moved(state).items()}


def plus(state: State, update: State) -> State:
    """A state with an update added."""
    return {name: (value + update[name]).astype(np.float32) if name in update else value for name, value in state.items()}
