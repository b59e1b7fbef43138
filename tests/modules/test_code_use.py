"""Codes in figures, against counts by hand."""

import numpy as np
import pytest
import torch

from genre.modules.codes.use import collisions, levels, shared_prefixes

CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [2, 0, 0]])


def test_the_use_of_each_level_is_counted():
    first, second, _ = levels(CODES, (4, 2, 8))
    assert first == {"size": 4, "used": 2, "perplexity": pytest.approx(1.75, abs=0.01), "largest": 3}  # exp of .562 nats
    assert (second["used"], second["largest"]) == (2, 3)


def test_items_that_share_all_codes_but_the_last_collide():
    assert collisions(CODES) == {"paths": 3, "items": 2, "share": 0.5, "most": 2}


def test_prefixes_that_near_items_share_are_set_against_any_two():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.2], [-1.0, 0.0]])
    one, two = shared_prefixes(CODES, vectors)  # of four items all three others are near ones
    assert one == {"length": 1, "near": 0.5, "any": 0.5}
    assert two == {"length": 2, "near": pytest.approx(1 / 6, abs=1e-6), "any": pytest.approx(1 / 6, abs=1e-6)}
    many = torch.cat([vectors[:1].repeat(20, 1), -vectors[:1].repeat(20, 1)])
    (found,) = shared_prefixes(np.repeat([[0, 0], [1, 0]], 20, axis=0), many)
    assert found["near"] == 1.0 and found["any"] == pytest.approx(19 / 39, abs=1e-6)
