"""The moving average of weights: its arithmetic, what is validated and kept, and that it changes no step."""

import pytest
import torch

from builders import LIKE, NEXT, weights
from genre.errors import RecipeError
from genre.recipe import Recipe
from genre.training import fit
from genre.training.averaging import Average
from genre.training.checkpoints import read_checkpoint


def test_it_is_the_weighted_sum_by_hand():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    average = Average({"w": weight}, 0.25)
    for step, value in enumerate([1.0, 2.0, 4.0], start=1):
        with torch.no_grad():
            weight.fill_(value)
        average.update(step)
    # decays 2/11, 3/12 and, at most, 0.25: 1·9/11 → 9/44 + 2·3/4 → 9/176 + 3/8 + 4·3/4
    assert average.values["w"].item() == pytest.approx(9 / 176 + 3 / 8 + 3)
    with average.applied():
        assert weight.item() == pytest.approx(9 / 176 + 3 / 8 + 3)
    assert weight.item() == 4.0


def test_weights_come_back_after_a_failure():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    average = Average({"w": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(8.0)
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert weight.item() == 8.0


def test_without_a_decay_nothing_is_kept_or_moved():
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    average = Average({"w": weight}, 0.0)
    average.update(1)
    with average.applied():
        assert weight.item() == 3.0
    assert average.values == {}


def test_the_average_is_validated_and_kept_and_changes_no_step(build, tmp_path):
    """The same run with and without: equal steps, the average of them at the end."""
    train = {"epochs": 2, "dropout": 0.3}
    plain = build(LIKE, NEXT, train=train)
    fit(plain, tmp_path / "plain")
    last = read_checkpoint(tmp_path / "plain", torch.device("cpu"))
    made = build(LIKE, NEXT, train={**train, "average": 0.9})
    seen = []
    fitted = fit(made, tmp_path / "averaged", on_validation=lambda state: seen.append(state.epoch))
    held = read_checkpoint(tmp_path / "averaged", torch.device("cpu"))
    assert all(torch.equal(value, held["weights"][name]) for name, value in last["weights"].items())
    assert last["average"] == {} and seen == [1, 2]
    kept = weights(made)
    if fitted.state.best_epoch == 1:
        assert all(torch.equal(value, held["average"][name]) for name, value in kept.items())
    assert any(not torch.equal(value, held["weights"][name]) for name, value in kept.items())


@pytest.mark.parametrize("value", [1.0, -0.1, "often"])
def test_a_decay_that_is_none_is_refused(value):
    raw = {"name": "like", "data": {"path": "x"}, "tasks": [LIKE], "train": {"average": value}}
    with pytest.raises(RecipeError, match=r"train\.average"):
        Recipe.parse(raw)
