"""Item neighbours: the arithmetic by hand, restored heads, and equality of engine and evaluation."""

import numpy as np
import pytest
import torch

from genre.modules.heads.neighbours import ItemIndex, ItemNeighbours, faded_weights
from genre.modules.text_vectors import whitening_of


def made(seed=0, size=7, known=6, count=3, width=4, stand_ins=0):
    """A catalogue whose item 3 the encoder does not know, and whose encoder knows an item (row 2) that it lacks."""
    random = np.random.default_rng(seed)
    rows = torch.tensor([4, 0, 1, -1, 3, 5, -1])[:size]
    index = ItemIndex.of(rows, known, torch.from_numpy(random.normal(size=(size, width))).float())
    neighbours = ItemNeighbours(known, count, stand_ins)
    neighbours.items.copy_(torch.from_numpy(np.stack([random.permutation(known)[:count] for _ in range(known)])))
    neighbours.values.copy_(torch.from_numpy(random.normal(size=(known, count))))
    neighbours.blend.copy_(torch.tensor([0.7, 1.5]))
    neighbours.fade.copy_(torch.tensor([0.5, 0.8]))
    return index, neighbours


def shares_by_hand(rows, text, stand_ins):
    """(N, N) the share of each known item in the place of every item."""
    known, shares = np.flatnonzero(rows >= 0), np.diag((rows >= 0).astype(float))
    for item in np.flatnonzero(rows < 0):
        close = (text[known] @ text[item]).clip(0)
        best = np.argsort(-close)[:stand_ins]
        shares[known[best], item] = close[best] ** 4 / (close[best] ** 4).sum()
    return shares


def by_hand(index, neighbours, history, weights):
    size = len(index.rows)
    matrix = np.zeros((size, size))
    for item, row in enumerate(index.rows.tolist()):
        for column, value in (
            zip(neighbours.items[row].tolist(), neighbours.values[row].tolist(), strict=True) if row >= 0 else ()
        ):
            if (other := int(index.codes[column])) < size:
                matrix[item, other] += value
    if neighbours.stand_ins:
        matrix = matrix @ shares_by_hand(index.rows.numpy(), index.text.numpy(), neighbours.stand_ins)
    events = [(item, weight) for item, weight in zip(history, weights, strict=True) if item >= 0]
    ages = range(len(events) - 1, -1, -1)
    together = sum(0.5**age * weight * matrix[item] for age, (item, weight) in zip(ages, events, strict=True))
    asked = sum(0.8**age * weight * index.text.numpy()[item] for age, (item, weight) in zip(ages, events, strict=True))
    text = index.text.numpy() @ asked / np.linalg.norm(asked) * 2
    return 0.7 * (together - together.mean()) / together.std() + 1.5 * text


@pytest.mark.parametrize("stand_ins", [0, 2])
def test_the_terms_are_the_sums_over_a_fading_history(stand_ins):
    index, neighbours = made(stand_ins=stand_ins)
    history = torch.tensor([[2, 5, 0, -1], [3, 4, 4, 1]])
    weights = torch.tensor([[1.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 0.25]])
    found = neighbours(index, history, weights)
    for row in range(2):
        assert found[row].numpy() == pytest.approx(
            by_hand(index, neighbours, history[row].tolist(), weights[row].tolist()), abs=2e-3
        )
    some = torch.tensor([5, 0, 6])
    assert torch.allclose(neighbours(index, history, weights, some), found[:, some], atol=1e-6)


def test_gathering_in_parts_changes_nothing(monkeypatch):
    index, neighbours = made()
    history = torch.randint(0, 7, (9, 5))
    whole = neighbours(index, history, torch.ones(9, 5))
    monkeypatch.setattr("genre.modules.heads.neighbours.MAX_CELLS", 30)
    assert torch.allclose(neighbours(index, history, torch.ones(9, 5)), whole, atol=1e-6)


def test_a_new_item_has_neighbours_by_text_alone():
    index, neighbours = made()
    grown = index.with_text(torch.nn.functional.normalize(torch.ones(1, 4), dim=-1))
    new, ones = torch.tensor([[7]]), torch.ones(1, 1)
    text = neighbours.text(grown, new, ones, torch.tensor([7, 0]))
    assert text[0, 0] == pytest.approx(2.0) and neighbours.together(grown, new, ones).abs().max() == 0
    assert neighbours(grown, new, ones, torch.tensor([7, 0])).tolist() == [pytest.approx((1.5 * text[0]).tolist())]


def test_a_new_item_stands_where_its_nearest_items_stand():
    index, neighbours = made(stand_ins=2)
    history, ones = torch.tensor([[2, 5, 0], [4, 4, 1]]), torch.ones(2, 3)
    before = neighbours.together(index, history, ones)
    twin = index.with_text(index.text[[3]]).with_text(index.text[[0]])
    after = neighbours.together(twin, history, ones)
    assert torch.allclose(after[:, :7], before, atol=1e-6) and after.shape == (2, 9)
    assert torch.allclose(after[:, 7], before[:, 3], atol=1e-6)  # the text of another item that the encoder does not know
    close = (index.text[index.rows >= 0] @ index.text[0]).clamp_min(0).topk(2)
    shares = close.values**4 / (close.values**4).sum()
    nearest = (index.rows >= 0).nonzero().squeeze(1)[close.indices]
    assert torch.allclose(after[:, 8], before[:, nearest] @ shares, atol=1e-5)
    scored = neighbours(twin, history, ones, torch.tensor([8, 0]))
    text = neighbours.text(twin, history, ones, torch.tensor([8, 0]))
    assert torch.allclose(scored[:, 0], 0.7 * after[:, 8] + 1.5 * text[:, 0], atol=1e-5)


def test_without_known_items_or_a_text_nothing_stands_in():
    index, neighbours = made(stand_ins=2)
    assert not index.with_text(torch.zeros(1, 4)).stand_ins(2).shares[-1].any()
    nothing = ItemIndex.of(torch.full((7,), -1), 6, index.text)
    assert neighbours.together(nothing, torch.tensor([[2, 5, 0]]), torch.ones(1, 3)).abs().max() == 0


def test_an_empty_history_adds_nothing():
    index, neighbours = made()
    assert neighbours(index, torch.full((2, 3), -1), torch.ones(2, 3)).abs().max() == 0
    assert neighbours(index, torch.zeros(2, 0, dtype=torch.long), torch.ones(2, 0)).shape == (2, 7)


def test_padding_may_stand_anywhere():
    ages = faded_weights(torch.tensor([[-1, 3, -1, 4, 5, -1]]), torch.ones(1, 6), torch.tensor(0.5))
    assert ages.tolist() == [[0, 0.25, 0, 0.5, 1, 0]]


def test_whitening_makes_the_covariance_unit_and_shrinks_for_few_items():
    random = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 6, generator=random) @ torch.diag(torch.tensor([3.0, 2.5, 2, 1.5, 1, 1]))
    white = features @ whitening_of(features)
    assert torch.allclose(white.t() @ white / 4000, torch.eye(6), atol=0.1)
    few = torch.cat([torch.ones(4, 20), -torch.ones(4, 20)]) + 0.5 * torch.randn(8, 20, generator=random)
    unit = torch.nn.functional.normalize(few @ whitening_of(few), dim=-1)
    alike = unit @ unit.t()
    assert alike[:4, :4].mean() > 0.3 > alike[:4, 4:].mean()  # their sample covariance would part items that are alike
    assert whitening_of(torch.zeros(1, 3)).tolist() == torch.eye(3).tolist()
