"""Items that nothing is learnt of: no vectors bound to their ids, no negatives, still ranked; their figures beside all."""

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, recipe, rows_of
from fakes import planted_log
from genre.data.sequences.batches import collate
from genre.data.sequences.windows import training_windows
from genre.data.splits import SplitConfig, split, training_events
from genre.engine.versions import read_adapter
from genre.errors import ManifestError, RecipeError
from genre.jobs.encoders import check_leak
from genre.jobs.evaluate import evaluate
from genre.jobs.train import train
from genre.modules.base.base import Base
from genre.modules.losses import Negatives
from genre.registry import Registry
from genre.training.assembly import assemble
from genre.training.parts import warm_items

SPLIT = {"kind": "last_n", "n": 2, "cold_items": 0.25}


@pytest.fixture(scope="module")
def some():
    return planted_log(users=24, items=24, events=12)


@pytest.fixture
def base(tiny):
    return Base.load(str(tiny))


def test_cold_items_have_no_vectors_of_their_own(base, some):
    made = assemble(recipe(base.name, NEXT, data={"split": SPLIT}), some, base)
    counts = np.bincount(some.item_codes[made.train_mask], minlength=24)
    cold = counts == 0
    assert cold.sum() >= 6
    encoder = made.shared.encoder
    assert encoder.item_ids == [item for item, none in zip(some.catalogue.item_ids, cold, strict=True) if not none]
    assert len(encoder.learned.weight) == (~cold).sum() and (made.model.soft.table.rows.numpy() < 0).tolist() == cold.tolist()
    assert np.allclose(encoder.collaborative.numpy().mean(0), 0, atol=1e-5)  # the rows that are kept are those with events
    assert made.model.cold.numpy().tolist() == cold.tolist()


def test_items_with_few_events_have_none_either(base, some):
    wanted = recipe(base.name, NEXT, data={"split": {"kind": "last_n"}}, encoder={"min_events": 9})
    made = assemble(wanted, some, base)
    counts = np.bincount(some.item_codes[made.train_mask], minlength=24)
    assert 0 < (counts < 9).sum() < 24 and len(made.shared.encoder.item_ids) == (counts >= 9).sum()
    assert made.model.cold is None  # each has an event, and so is a negative
    assert warm_items(recipe(base.name, NEXT), some, np.zeros(len(some), dtype=bool)).all()  # by default all have one


def test_vectors_of_ids_need_an_item_with_enough_events(base, some):
    with pytest.raises(RecipeError, match=r"min_events: no item has so many .*: got 999; expected at most \d+, .*learned"):
        assemble(recipe(base.name, NEXT, encoder={"min_events": 999}), some, base)
    made = assemble(recipe(base.name, NEXT, encoder={"min_events": 999, "learned": 0, "collaborative": 0}), some, base)
    assert not made.shared.encoder.item_ids


def test_cold_items_are_no_negatives_but_are_ranked(base, some):
    made = assemble(recipe(base.name, NEXT, data={"split": SPLIT}, encoder={"dropout": 0.0}), some, base)
    model, builder = made.model.eval(), made.builder
    rows = rows_of(made, training_windows(some, made.train_mask, max_events=16, min_events=2)[0])
    batch = collate(rows[:4], builder.data.supervise(list(model.tasks.values())))
    hidden = model.hidden(batch)
    logits, labels = model.output("next_item", hidden, batch), batch.reads["next_item"].labels
    assert torch.isfinite(logits).all()
    kept = torch.where(model.cold, -torch.inf, logits)
    expected = torch.nn.functional.cross_entropy(kept, labels)
    assert model.losses(hidden, batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected < torch.nn.functional.cross_entropy(logits, labels)


def test_no_draw_of_negatives_is_absent():
    counts, absent = np.array([5, 0, 3, 0, 1]), np.array([False, True, False, True, False])
    some = Negatives(counts, 2, absent)
    torch.manual_seed(0)
    drawn = torch.cat([some.draw()[0] for _ in range(50)])
    assert set(drawn.tolist()) == {0, 2, 4}
    codes, log_count = Negatives(counts, 3, absent).draw()
    assert codes.tolist() == [0, 2, 4] and log_count.tolist() == [0, 0, 0]


def test_a_version_says_which_items_it_knows_and_cold_targets_have_figures(base, some, tmp_path):
    registry = Registry(tmp_path / "registry")
    run = train(recipe(base.name, NEXT, LIKE, data={"split": SPLIT}, train={"epochs": 1}), log=some, base=base, registry=registry)
    version = registry.publish(run)
    assert "cold_items 0.25" in version.manifest.protocol["next_item"]
    assert some.tie_rule in version.manifest.protocol["next_item"]
    loaded = read_adapter(registry, version, base)
    counts = training_events(some, _part(some))
    assert loaded.shared.encoder.item_ids == [i for i, n in zip(some.catalogue.item_ids, counts, strict=True) if n]
    assert loaded.shared.catalogue.size == 24
    found = evaluate(registry, version.ref, some, base)["tasks"]["next_item"]
    whole, cold = found["adapter"], found["cold"]
    for name in ("ndcg@10", "diversity@10", "novelty@10", "serendipity@10"):
        assert whole[name]["n"] == 48 and len(whole[name]["interval"]) == 2
        assert {"popularity", "ease", "text_neighbours"} <= set(found["baselines"]) and name in found["baselines"]["ease"]
    targets = some.item_codes[_part(some) == 2]
    assert cold["adapter"]["ndcg@10"]["n"] == (counts[targets] < 5).sum() > 0
    assert "coverage@10" in whole and "coverage@10" not in cold["adapter"]
    assert set(cold["baselines"]) == set(found["baselines"]) and cold["items"] == "items with fewer than 5 training events"
    assert found["baselines"]["popularity"]["serendipity@10"]["value"] == 0  # what it hits is what it expects


def test_an_encoder_that_has_learnt_from_cold_items_is_refused(trained, tiny):
    fitted = trained.registry.resolve("encoder-planted").manifest
    wanted = recipe(tiny, LIKE, data={"split": fitted.data.split["split"] | {"cold_items": 0.25, "cold_seed": 0}})
    check_leak(fitted, recipe(tiny, LIKE, data={"split": fitted.data.split["split"]}), trained.log)
    with pytest.raises(ManifestError, match="fitted on events that this recipe is evaluated on"):
        check_leak(fitted, wanted, trained.log)


def _part(log):
    return split(log, SplitConfig(**SPLIT)).part
