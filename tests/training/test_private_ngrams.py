"""Neighbours by n-grams of public texts in private runs: cosines, weights, new items, the budget table, refused recipes."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import genre
from builders import LIKE, NEXT, private_recipe
from genre.distributed import Processes
from genre.errors import RecipeError
from genre.modules.base.base import Base
from genre.modules.heads.neighbours import ItemIndex
from genre.training.assembly import assemble
from genre.training.neighbours import BESIDE_MAP, NGRAMS, PUBLIC, add_neighbours, public_neighbours
from genre.training.private.ngrams import ngram_neighbours

TITLES = ["Red nail lacquer", "nail lacquer, blue hair", "Hair brush", "Brush for hair and nail", "", "quite alone"]


def cosines(texts: list[str]) -> np.ndarray:
    """By the formula, word by word."""
    words = ["".join(c if c.isalnum() else " " for c in text.lower()).split() for text in texts]
    counts = [Counter([*own, *pairwise(own)]) for own in words]
    frequency = Counter(term for own in counts for term in own)
    weight = {term: 1 + math.log((1 + len(texts)) / (1 + times)) for term, times in frequency.items()}
    terms = sorted(frequency, key=str)
    table = np.array([[(1 + math.log(own[term])) * weight[term] if own[term] else 0.0 for term in terms] for own in counts])
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return table @ table.T


def test_neighbours_are_the_nearest_by_the_formula():
    expected = cosines(TITLES)
    np.fill_diagonal(expected, 0)
    for count in (2, 5):
        items, values = ngram_neighbours(TITLES, count)
        found = np.zeros((len(TITLES), len(TITLES)))
        np.add.at(found, (np.arange(len(TITLES))[:, None], items.numpy()), values.numpy())
        kept = np.where(expected >= -np.sort(-expected, axis=1)[:, [count - 1]], expected, 0)
        np.testing.assert_allclose(found, kept, atol=1e-6)
        assert (values[:, 1:] <= values[:, :-1]).all(), "nearest first"


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["?!", "..."]])
def test_texts_without_words_have_no_neighbours(texts):
    items, values = ngram_neighbours(texts, 2)
    assert items.shape == values.shape == (len(texts), 2) and not values.any()


def test_items_of_the_encoder_are_found_by_their_rows_and_new_ones_by_their_nearest():
    """The encoder knows items 3, 1 and one that the catalogue lacks; item 2's text vector is that of item 1."""
    rows, text = torch.tensor([-1, 1, -1, 0]), torch.eye(4)
    text[2] = text[1]
    made = public_neighbours(ItemIndex.of(rows, 3, text), 5, ["b", "nail lacquer", "c", "lacquer red"])
    assert made.items.tolist() == [[1, 0], [0, 0], [0, 0]] and (made.values[:2, 0] > 0.1).all() and not made.values[2].any()
    scores = made.together(ItemIndex.of(rows, 3, text), torch.tensor([[3]]), torch.ones(1, 1))
    assert scores[0].argmax() in (1, 2) and scores[0, 1] == pytest.approx(scores[0, 2]) and scores[0, 1] > scores[0, 0]


def test_a_private_version_has_them_from_its_catalogue_alone_and_serves(tiny, log, tmp_path):
    registry, base = genre.Registry(tmp_path / "registry"), Base.load(str(tiny))
    sections = {"encoder": {"whiten": True, "neighbours": 4}, "privacy": {"ngrams": 6, "metrics": "public"}}
    wanted = private_recipe(tiny, NEXT, epochs=1, **sections)
    run = genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run", baselines="none")
    sources = run.manifest.notes["privacy"]["sources"]
    name = "heads.safetensors:next_item.neighbours"
    assert sources[f"{name}.items"] == sources[f"{name}.values"] == "catalogue"
    assert sources[f"{name}.blend"] == sources[f"{name}.fade"] == "constants"
    held = load_file(run.folder / "heads.safetensors")
    items, values = ngram_neighbours(log.catalogue.texts(["title"]), 6)
    assert held["next_item.neighbours.blend"].tolist() == [NGRAMS[1], PUBLIC[1]]
    assert torch.equal(held["next_item.neighbours.items"].long(), items) and values.any()
    assert torch.equal(held["next_item.neighbours.values"], values.half())
    registry.publish(run)
    found = genre.evaluate(registry, "next_item", log, base, baselines="none")
    assert {name: both["adapter"] for name, both in found["tasks"].items()} == run.metrics


def test_beside_an_item_map_they_are_alone_and_each_head_has_its_own(tiny, log, base):
    tasks, sections = [NEXT, {**NEXT, "name": "again"}], {"encoder": {"whiten": True}, "privacy": {"item_map": 0.4, "ngrams": 6}}
    made = assemble(private_recipe(tiny, *tasks, **sections), log, base)
    try:
        lines = list(add_neighbours(made, Processes.current()))
        one, two = (made.model.heads[name].neighbours for name in ("next_item", "again"))
    finally:
        made.model.release()
    assert len(lines) == 2 and "n-grams 0.12, text 0" in lines[0]
    assert one.blend.tolist() == pytest.approx([BESIDE_MAP, 0.0]) and one.values.any()
    assert torch.equal(one.values, two.values) and one.values.data_ptr() != two.values.data_ptr()


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([NEXT], {"encoder": {}}, "ngrams reads items' texts; name their columns in sequence.text, and set encoder.whiten"),
        ([LIKE], {"encoder": {"whiten": True}}, "ngrams is of next_item tasks"),
    ],
)
def test_recipes_that_n_grams_do_not_go_with_are_refused(tiny, tasks, options, message):
    with pytest.raises(RecipeError, match=message):
        private_recipe(tiny, *tasks, privacy={"ngrams": 5}, **options)
