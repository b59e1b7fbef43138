"""Slots: rows of one batch with adapters of different ranks and targets equal one adapter at a time."""

import pytest
import torch

from genre.modules.live_tensors import LiveTensors
from genre.modules.lora import grouped
from genre.modules.lora.layer import LoraLinear, attach, detach, find_linears
from genre.modules.lora.slots import AdapterSlots, bucket, group_by_input

SAME = 1e-5


def low(base, rank, *, targets="all-linear", layers="all", seed=0):
    """Random low-rank weights: A, B and scale of each chosen linear."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name in find_linears(base.model, targets, layers):
        linear = base.model.get_submodule(name)
        a = torch.randn(rank, linear.in_features, generator=draw) / linear.in_features**0.5
        b = torch.randn(linear.out_features, rank, generator=draw) / rank**0.5
        found[name] = (a, b, 0.7)
    return found


def alone(base, weights, embeds):
    """One adapter's hidden states, by the trainable layer."""
    layers = {}
    for name, (a, b, scale) in weights.items():
        layers[name] = LoraLinear(base.model.get_submodule(name), rank=a.shape[0], scale=scale)
        layers[name].lora_A.data, layers[name].lora_B.data = a, b
    attach(base.model, layers)
    try:
        return base.hidden(embeds)
    finally:
        detach(base.model, layers)


def routed(base, slots, chosen, embeds):
    slots.route(chosen)
    try:
        return base.hidden(embeds)
    finally:
        slots.clear()


@pytest.fixture
def embeds(base):
    ids = torch.randint(3, 250, (6, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return base.embedding(ids)


@pytest.fixture
def adapters(base):
    return {
        "rank 2": low(base, 2, seed=1),
        "rank 8": low(base, 8, seed=2),
        "rank 5, some": low(base, 5, targets=("q_proj", "down_proj"), seed=3),
        "rank 8, one layer": low(base, 8, targets=("v_proj",), layers=(1,), seed=4),
        "bare": {},
    }


@torch.no_grad()
@pytest.mark.parametrize(
    "order",
    [
        ["rank 2", "rank 8", "rank 5, some", "rank 8, one layer", "bare", "rank 8"],
        ["rank 8"] * 6,
        ["rank 8", "rank 8, one layer"] * 3,
        ["bare"] * 6,
        ["bare", "rank 2", "bare", "rank 2", "rank 2", "bare"],
    ],
    ids=["mixed", "one", "one bucket", "bare", "half"],
)
def test_every_row_equals_its_own_adapter_alone(base, adapters, embeds, order):
    wanted = {name: alone(base, weights, embeds) for name, weights in adapters.items()}
    slots = AdapterSlots(base.model, find_linears(base.model, "all-linear"), slots=5, dtype=base.dtype)
    chosen = {name: slots.write(weights) for name, weights in adapters.items()}
    assert chosen["bare"] is None and chosen["rank 5, some"].rank == 8 and chosen["rank 2"].rank == 2
    try:
        hidden = routed(base, slots, [chosen[name] for name in order], embeds)
        for row, name in enumerate(order):
            assert (hidden[row] - wanted[name][row]).abs().max() < SAME
            if name != "bare":
                assert (hidden[row] - wanted["bare"][row]).abs().max() > 1e-2
        assert torch.equal(base.hidden(embeds), wanted["bare"])  # nothing is routed any more
    finally:
        slots.detach()
    assert torch.equal(base.hidden(embeds), wanted["bare"])


@torch.no_grad()
def test_a_slot_is_clean_when_it_is_used_again(base, adapters, embeds):
    """A smaller adapter in the slot of a larger one: nothing of the old one is left."""
    wanted = alone(base, adapters["rank 8, one layer"], embeds)
    slots = AdapterSlots(base.model, find_linears(base.model, "all-linear"), slots=1, dtype=base.dtype)
    try:
        first = slots.write(adapters["rank 8"])
        slots.erase(first)
        second = slots.write(adapters["rank 8, one layer"])
        assert second == first
        assert (routed(base, slots, [second] * 6, embeds) - wanted).abs().max() < SAME
    finally:
        slots.detach()


@torch.no_grad()
def test_writing_and_erasing_beside_an_adapter_leaves_it_as_it_is(base, adapters, embeds):
    slots = AdapterSlots(base.model, find_linears(base.model, "all-linear"), slots=3, dtype=base.dtype)
    try:
        kept = slots.write(adapters["rank 8"])
        before = routed(base, slots, [kept] * 6, embeds)
        slots.erase(slots.write(adapters["rank 5, some"]))
        slots.write(adapters["rank 2"])
        assert torch.equal(routed(base, slots, [kept] * 6, embeds), before)
    finally:
        slots.detach()


def test_memory_is_that_of_the_buckets_in_use(base, adapters):
    slots = AdapterSlots(base.model, find_linears(base.model, "all-linear"), slots=3, dtype=base.dtype)
    try:
        assert slots.memory_bytes() == 0
        slots.write(adapters["rank 2"])
        sides = sum(layer.base.in_features + layer.base.out_features for layer in slots.layers.values())
        assert slots.memory_bytes() == 3 * 2 * sides * 4  # slots, rank, float32
        slots.write({name: (a[:1], b[:, :1], 1.0) for name, (a, b, _) in adapters["rank 2"].items()})
        assert slots.memory_bytes() == 3 * 2 * sides * 4
    finally:
        slots.detach()


@pytest.mark.parametrize(("rank", "size"), [(1, 2), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (64, 64)])
def test_ranks_share_buckets(rank, size):
    assert bucket(rank) == size


def test_linears_that_read_the_same_input_share_the_first_product():
    names = [f"m.0.attn.{part}_proj" for part in "qkvo"] + [f"m.0.mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert [[name.rsplit(".", 1)[-1] for name in group] for group in group_by_input([*names, "m.1.attn.q_proj"])] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
        ["q_proj"],
    ]


@pytest.mark.parametrize(
    "order", [["rank 8", "rank 8, one layer", "other"], ["rank 8"] * 2 + ["bare"], ["rank 4", "rank 8", "other"]]
)
@torch.no_grad()
def test_products_in_groups_are_those_of_rows(base, adapters, embeds, order):
    """Where rows are sorted by slot, and where they are not, with rows of other buckets and of the bare base between."""
    adapters = adapters | {"other": low(base, 8, seed=7), "rank 4": low(base, 4, seed=8)}
    slots = AdapterSlots(base.model, find_linears(base.model, "all-linear"), slots=8, dtype=base.dtype)
    try:
        places = {name: slots.write(adapters[name]) for name in dict.fromkeys(order)}
        for rows in (sorted(order * 2), order * 2):
            chosen = [places[name] for name in rows]
            chosen.sort(key=lambda slot: (-1, -1) if slot is None else (slot.rank, slot.index))
            mixed = chosen[::-1]
            for some in (chosen, mixed):
                found = {}
                for grouped in (False, True):
                    slots.routing.grouped = grouped
                    found[grouped] = routed(base, slots, some, embeds)
                assert torch.allclose(found[True], found[False], atol=SAME)
    finally:
        slots.detach()


@torch.no_grad()
def test_products_in_groups_copy_no_weights(base, embeds):
    """Bytes made in a pass: gathered they grow with the rows' weights, in groups they do not."""
    several = [low(base, 8, seed=seed) for seed in range(6)]
    slots = AdapterSlots(base.model, find_linears(base.model, "all-linear"), slots=8, dtype=base.dtype)
    try:
        places = [slots.write(each) for each in several]
        size = slots.memory_bytes() // 8
        made = {}
        for grouped in (False, True):
            slots.routing.grouped = grouped
            with LiveTensors() as live:
                live.forget([*base.model.parameters(), *base.model.buffers(), embeds])
                live.forget([value for group in slots.groups for value in group.stacks.values()])
                routed(base, slots, places, embeds)
            made[grouped] = live.made
        assert made[False] - made[True] > 0.8 * 6 * size
    finally:
        slots.detach()


def test_where_groups_are_chosen():
    """On Hopper and Blackwell in bfloat16, with aligned sizes; nowhere on a CPU."""
    assert grouped.fits((8, 576, 1536), torch.bfloat16) and not grouped.fits((4, 576), torch.bfloat16)
    assert grouped.fits((4, 576), torch.float32) and not grouped.fits((8, 577), torch.bfloat16)
    assert not grouped.worth(torch.zeros(4, dtype=torch.bfloat16), 2**30)
    weights = torch.randn(3, 8, 16)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    x = torch.randn(5, 8)
    wanted = torch.cat([x[:2] @ weights[0], x[2:] @ weights[2]])
    assert torch.allclose(grouped.multiply(x, weights, ends), wanted, atol=1e-6)
