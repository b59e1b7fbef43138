"""Codes of items: distinct paths, balanced levels, codes of new items, storage with the encoder, a planted collapse."""

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
import torch

from genre.data.catalogue import Catalogue
from genre.errors import DataError, ManifestError
from genre.modules.codes.fitting import fit_codes
from genre.modules.codes.quantization import assign, balance, distances
from genre.modules.encoder import BehaviourEncoder, EncoderSpec
from genre.recipe import CodesConfig

WIDTH = 16


def features(items=120, clusters=6, seed=0, width=12):
    """Items in clusters of clusters, as (items, width) float32 text features."""
    draw = np.random.default_rng(seed)
    coarse, fine = draw.normal(size=(clusters, width)) * 4, draw.normal(size=(clusters, 5, width))
    which = np.arange(items) % clusters, np.arange(items) // clusters % 5
    found = coarse[which[0]] + fine[which] + draw.normal(size=(items, width)) * 0.1
    return torch.from_numpy(found - found.mean(0)).float()


def fit(value, *, collaborative=None, **options):
    given = {"text": value} | ({} if collaborative is None else {"collaborative": collaborative})
    other = {name: options.pop(name) for name in ("seed", "steps") if name in options}
    config = CodesConfig(**{"levels": 2, "size": 8, "balanced": False, **options})
    return fit_codes(config, given, width=WIDTH, scale=0.25, **other)


@pytest.mark.parametrize("balanced", [False, True])
def test_no_two_items_share_all_codes(balanced):
    codes = fit(features(), size=4, balanced=balanced)
    assert len(torch.unique(codes.codes, dim=0)) == len(codes.codes) == 120
    assert codes.sizes[:2] == (4, 4) and bool((codes.codes < torch.tensor(codes.sizes)).all())
    counts = np.bincount(codes.codes[:, 0].numpy(), minlength=4)
    assert counts.max() == 30 if balanced else counts.max() > 30


def test_the_same_seed_gives_the_same_codes_and_vectors():
    first, second, other = fit(features(), seed=3), fit(features(), seed=3), fit(features(), seed=4)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.vectors.weight, other.vectors.weight)


def test_near_items_share_prefixes():
    value = features()
    codes = fit(value, size=6).codes
    same = codes[:, 0] == codes[6, 0]
    assert same[::6].float().mean() > 0.9 and same.float().mean() < 0.4


def test_assignment_within_a_capacity_is_stable():
    draw = torch.Generator().manual_seed(0)
    vectors, centres = torch.randn(60, 3, generator=draw), torch.randn(7, 3, generator=draw)
    found = assign(vectors, centres, 9)
    away = distances(vectors, centres)
    assert torch.bincount(found, minlength=7).max() <= 9
    for item, centre in itertools.product(range(60), range(7)):
        if away[item, centre] < away[item, found[item]]:  # it would rather be there, and all who are there are nearer
            there = found == centre
            assert there.sum() == 9 and bool((away[there, centre] <= away[item, centre]).all())


def test_balancing_leaves_each_centre_as_many_items_with_unknown_dimensions_too():
    value = features(items=100)
    value[::3, :6] = torch.nan
    _, found = balance(value, value[1:100:11].nan_to_num())
    assert torch.bincount(found).max() == 12  # of 100 items over 9 centres


def test_a_new_item_takes_the_nearest_path_and_a_free_place():
    value = features(items=240)
    codes = fit(value[:200], size=6)
    with torch.no_grad():
        made = codes.of(codes.project({"text": value[:200]}))
    assert torch.equal(made[:, :-1], codes.codes[:, :-1])  # an item that is there already is nearest to its own path
    every = torch.cat([codes.codes, made])
    assert len(torch.unique(every, dim=0)) == len(every) and bool((made < torch.tensor(codes.sizes)).all())
    more = codes.of(codes.project({"text": value[200:]}), taken=made)
    assert len(torch.unique(torch.cat([every, more]), dim=0)) == 440
    shared = (more[:, None, 0] == codes.codes[None, :, 0]).float()
    kin = torch.arange(200, 240)[:, None] % 30 == torch.arange(200)[None] % 30
    assert shared[kin].mean() > 0.8 > 0.3 > shared[~kin].mean()


def test_an_item_of_which_only_the_text_is_known_gets_codes_by_it():
    text = features(items=200)
    behaviour = features(items=200, seed=1, width=5)
    codes = fit(text, collaborative=behaviour, size=6)
    cold = codes.project({"text": text, "collaborative": torch.full_like(behaviour, torch.nan)})
    assert (codes.of(cold[:40])[:, 0] == codes.codes[:40, 0]).float().mean() > 0.8


def test_where_the_nearest_paths_are_full_a_new_item_is_refused():
    codes = fit(features(), size=4, places=40)
    every = [[*path, place] for path in torch.unique(codes.codes[:, :-1], dim=0).tolist() for place in range(codes.sizes[-1])]
    with pytest.raises(DataError, match="finds no free code"):
        codes.of(codes.project({"text": features()[:1]}), taken=torch.tensor(every))
    every.remove([*codes.codes[70, :-1].tolist(), codes.sizes[-1] - 1])
    found = codes.of(codes.project({"text": features()[:1]}), taken=torch.tensor(every))
    assert found.tolist() == [[*codes.codes[70, :-1].tolist(), codes.sizes[-1] - 1]]


def test_a_first_level_that_collapses_is_refused():
    draw = torch.Generator().manual_seed(0)
    planted = torch.randn(1000, 4, generator=draw) * 1e-3
    planted[:40] = torch.randn(40, 4, generator=draw) * 100  # centroids go to these few, the other items share one
    with pytest.raises(DataError, match="first level collapses"):
        fit(planted, size=40)
    assert np.bincount(fit(planted, size=40, balanced=True).codes[:, 0].numpy()).max() == 25
    with pytest.raises(DataError, match="first level collapses"):
        fit(torch.zeros(50, 3))


def test_a_single_item_is_refused():
    with pytest.raises(DataError, match="a catalogue of 1 item; expected at least 2 items"):
        fit(features()[:1])


def test_more_collisions_than_places_are_refused():
    value = features()[:40].repeat(5, 1)
    with pytest.raises(DataError, match=r"5 items with the same codes.*at most 4"):
        fit(value, size=40, places=4)
    assert fit(value, size=40, places=5).sizes[-1] == 5


def test_items_of_which_nothing_is_known_are_refused():
    with pytest.raises(DataError, match="nothing is known of the items"):
        fit(torch.full((30, 4), torch.nan))


def test_an_rqvae_learns_codes_that_keep_clusters_together():
    value, behaviour = features(items=200), features(items=200, seed=1, width=5)
    options = {"method": "rqvae", "size": 6, "steps": 60, "collaborative": behaviour}
    codes, again, untrained = fit(value, **options), fit(value, **options), fit(value, **{**options, "steps": 0})
    assert all(torch.equal(own, again.state_dict()[name]) for name, own in codes.state_dict().items())
    assert codes.spec.hidden == (256, 128, 32) and not any(own.requires_grad for own in codes.layers.parameters())
    kin = torch.arange(200)[:, None] % 6 == torch.arange(200) % 6
    shared = {made: (made.codes[:, None, 0] == made.codes[None, :, 0]).float() for made in (codes, untrained)}
    assert shared[codes][kin].mean() > 2 * shared[codes][~kin].mean()
    assert not torch.equal(codes.codes, untrained.codes)
    known = codes.of(codes.project({"text": value, "collaborative": behaviour}))
    assert (known[:, 0] == codes.codes[:, 0]).float().mean() > 0.9
    cold = codes.project({"text": value, "collaborative": torch.full_like(behaviour, torch.nan)})
    assert (codes.of(cold[:40])[:, 0] == codes.codes[:40, 0]).float().mean() > 0.4


def test_tokens_of_all_levels_stand_in_one_table():
    codes = fit(features())
    assert codes.offsets == (0, 8, 16) and codes.vectors.weight.shape == (sum(codes.sizes), WIDTH)
    rms = codes.token_vectors().square().mean(1).sqrt()
    assert rms.allclose(torch.tensor(0.25), atol=1e-4)
    tokens = codes.codes[5] + torch.tensor(codes.offsets)
    assert torch.equal(codes.token_vectors(tokens), codes.token_vectors()[tokens])
    assert all(value.requires_grad for value in (codes.vectors.weight, codes.scale))


def catalogue(titles):
    return Catalogue(pl.DataFrame({"item_id": [f"i{number}" for number in range(len(titles))], "title": titles}))


WORDS = [" ".join(pair) for pair in itertools.product(("red", "blue", "old", "new"), ("shoe", "lamp", "film", "book", "song"))]


@pytest.fixture
def encoder(base):
    spec = EncoderSpec(width=base.hidden_size, text=("title",), learned=0, collaborative=3, dense=(), feedback=0, whiten=True)
    items = catalogue(WORDS)
    draw = torch.Generator().manual_seed(0)
    made = BehaviourEncoder(spec, items.item_ids[:16], scale=0.25, computed={"collaborative": torch.randn(16, 3, generator=draw)})
    made.table(items, base, fit=True)
    found = made.code_features(items, made.standardized(items, base), made.rows_of(items))
    made.hold_codes(fit_codes(CodesConfig(levels=2, size=4), found, width=spec.width, scale=0.25), items.item_ids)
    return made.eval().requires_grad_(False)


def restored(encoder, **changes):
    described = encoder.spec.describe()
    ids = catalogue(WORDS).item_ids
    return BehaviourEncoder.restore({**described, **changes}, encoder.item_ids, encoder.payload(), ids)


@torch.no_grad()
def test_codes_are_stored_with_the_encoder_bit_by_bit(encoder, base):
    back = restored(encoder)
    assert back.spec == encoder.spec and all(
        torch.equal(value, back.payload()[name]) for name, value in encoder.payload().items()
    )
    items = catalogue([*WORDS, "red shoe", "a new thing"])
    one, two = encoder.table(items, base), back.table(items, base)
    assert torch.equal(one.codes, two.codes) and len(torch.unique(one.codes, dim=0)) == 22
    assert torch.equal(one.codes[:20], encoder.codes.codes)  # items without training events have codes of their own too
    named = Catalogue(pl.DataFrame({"item_id": ["x"], "title": ["red shoe"]}))
    inline = back.table(named, base, taken=one.codes)
    assert not bool((one.codes == inline.codes).all(1).any())


def test_an_encoder_without_codes_does_not_mention_them(encoder):
    plain = dataclasses.replace(encoder.spec, codes=None)
    assert "codes" not in plain.describe() and "codes" in encoder.spec.describe()
    bare = BehaviourEncoder(plain, encoder.item_ids, scale=0.25)
    assert not any("codes" in name for name in bare.payload())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [4, 4, 0]}, "encoder.json: codes"),
        ({"sizes": [4]}, "encoder.json: codes"),
        ({"sizes": [4, 3, 8]}, "encoder tensor codes.centroids_1"),
        ({"features": [["text", 7]]}, "encoder.json: codes"),
    ],
)
def test_damaged_descriptions_are_refused(encoder, change, message):
    with pytest.raises(ManifestError, match=message):
        restored(encoder, codes={**encoder.spec.describe()["codes"], **change})


def test_codes_outside_their_level_and_shared_codes_are_refused(encoder):
    encoder.codes.codes[3] = encoder.codes.codes[4]
    with pytest.raises(ManifestError, match="items with the same codes"):
        restored(encoder)
    encoder.codes.codes[3, 0] = 9
    with pytest.raises(ManifestError, match="codes.codes"):
        restored(encoder)
