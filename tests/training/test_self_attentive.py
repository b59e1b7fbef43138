"""The self-attentive baseline: what it learns, what it must not see, when it stops."""

import numpy as np
import pytest
import torch
from tests.evaluation.test_baselines import make_log

from genre.data.splits import SplitConfig, split
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import targets
from genre.training import self_attentive as module
from genre.training.self_attentive import Network, self_attentive

ITEMS = 9
LAST = SplitConfig(kind="last_n")


def circling(users=18, events=12, last=None):
    """Users who go round a circle of items, each from an own start; `last` replaces everybody's last item."""
    rows = []
    for place in range(events):
        for user in range(users):
            item = (user + place) % ITEMS
            rows.append((user, last if last is not None and place == events - 1 else item, 1))
    return make_log(rows)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr(module, "PATIENCE", 2)


@pytest.fixture(scope="module")
def circle():
    log = circling()
    return log, split(log, LAST)


def small(log, parts, **options):
    return self_attentive(log, parts, **{"width": 16, "length": 4, "dropout": 0.0, "seen": "kept", **options})


def test_it_learns_what_comes_next_in_windows_shorter_than_histories(circle):
    log, parts = circle
    lines = []
    model = small(log, parts, progress=lines.append)
    found = targets(log, parts, 2)
    assert rank_in_blocks(log, parts, found, model.blocks(found), seen="kept").ranks.mean() < 1.1
    assert model.settings["validation_ndcg@10"] > 0.9 and model.settings["epochs"] % module.EPOCHS_A_READING == 0
    assert lines[-1] == f"epoch {len(lines)}, validation NDCG@10 {model.settings['validation_ndcg@10']:.4f}"
    assert len(lines) == min(model.settings["epochs"] + module.PATIENCE * module.EPOCHS_A_READING, module.MOST_EPOCHS)


def test_a_state_sees_neither_later_events_nor_padding():
    torch.manual_seed(0)
    network = Network(ITEMS, width=8, length=6, dropout=0.5).eval()
    codes = torch.tensor([[3, 1, 4, 1, 5]])
    states = network(codes)
    later = codes.clone()
    later[0, 3] = 2
    assert torch.equal(network(later)[:, :3], states[:, :3]) and not torch.allclose(network(later)[:, 3:], states[:, 3:])
    padded = network(torch.cat([torch.zeros(1, 1, dtype=torch.long), codes], 1))
    assert torch.allclose(padded[:, 1:], states, atol=1e-6)
    assert network.logits(states).shape == (1, 5, ITEMS)


def test_scores_are_those_of_the_latest_events_alone(circle, monkeypatch):
    monkeypatch.setattr(module, "MOST_EPOCHS", 5)
    log, parts = circle
    model = small(log, parts)
    found = targets(log, parts, 2)
    scores = np.concatenate([block for _, block in model.blocks(found)])
    for row in (0, 17):
        event = found.event[row]
        codes = torch.from_numpy(log.item_codes[event - 4 : event].astype(np.int64) + 1)[None]
        with torch.no_grad():
            assert scores[row] == pytest.approx(model.network.logits(model.network(codes)[0, -1]).numpy(), abs=1e-5)


def test_the_test_part_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "MOST_EPOCHS", 5)
    weights = []
    for last in (None, 0):
        log = circling(last=last)
        weights.append(small(log, split(log, LAST)).network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_step_in_pieces_has_the_gradient_of_the_whole_loss(monkeypatch):
    torch.manual_seed(0)
    network, codes = Network(ITEMS, width=8, length=5, dropout=0.0), torch.randint(1, ITEMS + 1, (7, 6))
    codes[:3, :2] = 0
    known = (codes[:, 1:] > 0) & (codes[:, :-1] > 0)
    torch.nn.functional.cross_entropy(network.logits(network(codes[:, :-1])[known]), codes[:, 1:][known] - 1).backward()
    wanted = {name: value.grad.clone() for name, value in network.named_parameters()}
    monkeypatch.setattr(module, "CELLS", 4 * ITEMS)
    module._Training(network, [], 5, (), np.random.default_rng(0))._take_step(codes)
    assert all(torch.allclose(value.grad, wanted[name], atol=1e-6) for name, value in network.named_parameters())


def test_random_numbers_outside_stay(circle, monkeypatch):
    monkeypatch.setattr(module, "MOST_EPOCHS", 1)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    small(*circle)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("better", ["weights", "average"])
def test_an_average_of_the_weights_is_kept_where_it_is_better(better):
    torch.manual_seed(0)
    network = Network(ITEMS, width=8, length=5, dropout=0.0)
    training = module._Training(network, [], 5, (0.5,), np.random.default_rng(0))
    for _ in range(3):
        training._take_step(torch.randint(1, ITEMS + 1, (7, 6)))
    own = network.bias.detach().clone()
    values = iter([0.2, 0.1] if better == "weights" else [0.1, 0.2])
    assert training._read(lambda: next(values), 1) and torch.equal(network.bias, own)
    assert training.best == {"epochs": 1, "validation_ndcg@10": 0.2} | ({"average": 0.5} if better == "average" else {})
    assert torch.equal(training.weights["bias"], own) == (better == "weights")


def test_without_validation_it_trains_a_fixed_number_of_epochs(monkeypatch):
    monkeypatch.setattr(module, "EPOCHS_UNREAD", 2)
    log = circling(users=6)
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=0.2))
    model = small(log, parts)
    assert model.settings["epochs"] == 2 and "validation_ndcg@10" not in model.settings


def test_users_of_one_training_event_leave_nothing_to_learn():
    log = make_log([(user, (user + place) % 5, 1) for place in range(3) for user in range(5)])
    parts = split(log, LAST)  # of three events the first trains
    model = small(log, parts)
    found = targets(log, parts, 2)
    assert model.settings["epochs"] == 0
    assert np.isfinite(rank_in_blocks(log, parts, found, model.blocks(found)).ranks).all()
