"""The baselines on ML-100K: the figures that every adapter is shown beside (docs/protocols.md).

The expected figures are those of an independent prototype; the smoothing constants differ, hence the tolerance.
"""

import numpy as np
import pytest

from genre.data.interactions import Interactions
from genre.data.packaged.sources import prepare_data
from genre.data.splits import TEST, SplitConfig, split
from genre.evaluation.baselines import feedback_baselines, ranking_baselines
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import evaluate_feedback, evaluate_ranking, targets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def log():
    return Interactions.read(prepare_data("ml-100k"))


def test_like_temporal_auc(log):
    parts = split(log, SplitConfig(kind="temporal", valid=0.1, test=0.1))
    like = (log.column("rating") > 3).astype(float)
    found = targets(log, parts, TEST, like)
    scores = feedback_baselines(log, parts, like, found, binary=True)
    auc = {name: evaluate_feedback(["auc"], found, each, resamples=0)["auc"].value for name, each in scores.items()}
    assert len(found) == 10_000
    assert auc == pytest.approx({"item_mean": 0.707, "running_user_share": 0.650, "additive": 0.744}, abs=0.003)


def test_rating_u1_rmse(log):
    parts = split(log, SplitConfig(kind="given", test_rows="0-19999", valid=0))
    rating = log.column("rating")
    found = targets(log, parts, TEST, rating)
    scores = feedback_baselines(log, parts, rating, found, binary=False)
    assert len(found) == 20_000
    assert evaluate_feedback(["rmse"], found, scores["bias_only"])["rmse"].value == pytest.approx(0.9548, abs=0.001)


def test_next_item_ndcg(log):
    parts = split(log, SplitConfig(kind="last_n", n=1))
    found = targets(log, parts, TEST)
    assert len(found) == 943
    figures = {}
    for name, blocks in ranking_baselines(log, parts, found).items():
        ranks, top = rank_in_blocks(log, parts, found, blocks(), seen="masked")
        figures[name] = evaluate_ranking(["ndcg@10", "coverage@10"], found, ranks, top, log.catalogue.size)
        assert (top >= 0).all() and all(len(np.unique(row)) == 20 for row in top)
    assert figures["popularity"]["ndcg@10"].value == pytest.approx(0.039, abs=0.003)
    assert figures["ease"]["ndcg@10"].value == pytest.approx(0.078, abs=0.003)
    assert figures["ease"]["coverage@10"].value > figures["popularity"]["coverage@10"].value
