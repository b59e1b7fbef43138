"""Item-to-item baselines against sums written out by hand."""

import numpy as np
import pytest
from tests.evaluation.test_baselines import make_log, planted

from genre.data.splits import SplitConfig, split
from genre.evaluation.ease import FADES, ease
from genre.evaluation.history import Histories
from genre.evaluation.item_models import EaseText, FadedModel, item_neighbours, nearest, text_neighbours, transitions
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import targets


def scores_of(model, found):
    return np.concatenate([block for _, block in model.blocks(found)])


def test_weights_of_a_history_fade_from_each_items_latest_event():
    log = make_log([(0, 1, 1), (0, 2, 1), (0, 1, 1), (0, 3, 1), (0, 0, 1), (1, 2, 1)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=0.2))
    found = Histories(log, parts).item_weights(np.array([4, 5]), 0.5).toarray()
    assert found.tolist() == [[0, 0.5, 0.25, 1], [0, 0, 0, 0]]
    assert Histories(log, parts).item_weights(np.array([4]), 1.0).toarray().tolist() == [[0, 1, 1, 1]]


def test_transitions_count_what_came_right_after_and_popularity_breaks_ties():
    log = make_log([(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 2, 1), (0, 2, 1), (1, 1, 1), (2, 0, 1), (2, 1, 1), (2, 2, 1)])
    parts = split(log, SplitConfig(kind="last_n", n=1))
    assert (parts.part == 0).sum() == 3  # of each user the first event trains: no transition is known
    found = targets(log, parts, 2)
    assert scores_of(transitions(log, parts), found)[0] == pytest.approx([3 / 4, 0, 0])


def test_item_neighbours_are_cosines_of_users():
    log = planted()
    parts = split(log, SplitConfig(kind="last_n"))
    found = targets(log, parts, 2)
    x = np.zeros((40, 12))
    train = parts.part == 0
    x[log.user_codes[train], log.item_codes[train]] = 1
    norm = np.linalg.norm(x, axis=0)
    cosine = x.T @ x / norm / norm[:, None] * ~np.eye(12, dtype=bool)
    model = item_neighbours(log, parts)
    assert model.fade in FADES
    wanted = Histories(log, parts).item_weights(found.event, model.fade) @ cosine
    assert scores_of(model, found) == pytest.approx(wanted, abs=1e-5)


def test_the_nearest_are_kept_block_by_block(monkeypatch):
    import scipy.sparse as sp

    monkeypatch.setattr("genre.evaluation.item_models.BLOCK_CELLS", 12)
    matrix = sp.random(5, 6, density=0.7, random_state=0, format="csr")
    whole = (matrix.T @ matrix).toarray() * ~np.eye(6, dtype=bool)
    kept = nearest(matrix.T.tocsr(), matrix, 2).toarray()
    for row, own in zip(whole, kept, strict=True):
        assert np.flatnonzero(own).tolist() == sorted(np.argsort(-row)[:2][np.sort(-row)[:2] < 0])
        assert own[own > 0] == pytest.approx(row[own > 0])


def test_the_sum_weighs_text_by_validation_and_finds_what_events_cannot():
    log = planted()
    parts = split(log, SplitConfig(kind="last_n"))
    found = targets(log, parts, 2)
    taste = np.eye(2)[np.array([int(item.lstrip("i")) for item in log.catalogue.item_ids]) // 6]
    useful, useless = text_neighbours(log, parts, taste), text_neighbours(log, parts, np.ones((12, 2)))
    model = ease(log, parts)
    assert rank_in_blocks(log, parts, found, useful.blocks(found)).ranks.mean() == 1
    both = EaseText(model, useful)
    ranks = rank_in_blocks(log, parts, found, both.blocks(found)).ranks
    assert ranks.mean() <= rank_in_blocks(log, parts, found, model.blocks(found)).ranks.mean() + 0.1
    alone = rank_in_blocks(log, parts, found, model.blocks(found)).ranks
    assert rank_in_blocks(log, parts, found, EaseText(model, useless).blocks(found)).ranks.tolist() == alone.tolist()


def test_fading_is_chosen_without_the_test_part():
    log = planted(seed=3)
    parts = split(log, SplitConfig(kind="last_n"))
    asked = []

    class Spy(FadedModel):
        def blocks(self, found):
            asked.append(set(found.event.tolist()))
            return super().blocks(found)

    Spy(log, parts, lambda history: history.toarray())
    test = set(np.flatnonzero(parts.part == 2).tolist())
    assert len(asked) == len(FADES) and not any(each & test for each in asked)
