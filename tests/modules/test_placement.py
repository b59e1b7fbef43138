"""A base that no one device holds: layers that accelerate leaves on the disk until they run."""

import numpy as np
import pytest
import torch

import genre
from builders import LIKE, recipe
from genre.engine import Engine, Request
from genre.errors import BaseModelError
from genre.modules.base.base import Base

PLACES = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
PLACES |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}


@pytest.fixture
def offloaded(tiny, tmp_path):
    return Base.load(str(tiny), device_map=PLACES, offload_folder=tmp_path / "offload")


def test_a_layer_on_the_disk_computes_the_same(base, offloaded):
    assert offloaded.offloaded and not base.offloaded
    assert offloaded.fingerprint == base.fingerprint
    embeds = torch.randn(2, 7, base.hidden_size)
    assert torch.allclose(base.hidden(embeds), offloaded.hidden(embeds), atol=1e-5)  # what accelerate moves keeps its own norms


def test_lanes_stand_on_offloaded_layers(base, offloaded, trained):
    """Adapters of different tasks in one batch, one of them swapped on the way: the same scores as on a base in memory."""
    requests = [
        Request("like", user_id="u3", candidates=["i1", "i2", "i5"]),
        Request("next_item", user_id="u4", k=5),
        Request("rating", user_id="u5", candidates=["i7"]),
    ]
    found = []
    for own in (base, offloaded):
        with Engine(own, trained.registry, lanes=2, data=trained.log) as engine:
            first = engine.score(requests)  # three adapters over two lanes: one is evicted
            engine.swap("like", "like@production")
            found.append(first + engine.score(requests))
    assert all(answer.error is None for answers in found for answer in answers)
    for plain, other in zip(*found, strict=True):
        assert [item.item_id for item in plain.results] == [item.item_id for item in other.results]
        assert np.allclose([item.score for item in plain.results], [item.score for item in other.results], atol=1e-6)


def test_training_on_an_offloaded_base_is_refused(tiny, offloaded, trained, tmp_path):
    with pytest.raises(BaseModelError, match="offloaded"):
        genre.train(recipe(tiny, LIKE), log=trained.log, base=offloaded, registry=trained.registry, folder=tmp_path / "run")
    assert offloaded.occupied_by is None
