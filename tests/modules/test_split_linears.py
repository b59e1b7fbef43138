"""Products by oneDNN: those of torch up to rounding, in pieces whose numbers of rows repeat, in an engine's block only."""

import json

import pytest
import torch
from torch import nn

import genre
from genre.modules.base import precision
from genre.modules.base.precision import ROWS
from genre.modules.lora import split_linears as module
from genre.modules.lora.layer import find_linears
from genre.modules.lora.split_linears import MOST, STEP, SplitLinear, pieces, split_linears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
COUNTS = [8, 9, 37, 64, 65, 100, 613, 2047, 2048, 2049, 5000]


@pytest.fixture
def gain(tmp_path, monkeypatch):
    """Sets what was measured of oneDNN, and lets small weights count."""
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SMALLEST", 1)

    def keep(value):
        file, machine = precision._memo()
        file.parent.mkdir(parents=True, exist_ok=True)
        own = dict.fromkeys(map(str, ROWS), value)
        file.write_text(json.dumps({"machine": machine, "gains": dict.fromkeys(precision._ways(), own)}))

    return keep


@pytest.mark.parametrize("rows", COUNTS)
def test_pieces_are_the_rows_in_few_lengths(rows):
    x = torch.randn(rows, 3)
    found = pieces(x)
    assert torch.equal(torch.cat(found)[:rows], x) and not torch.cat(found)[rows:].any()
    assert {len(piece) for piece in found} <= {*range(8, 65, 8), *(2**power for power in range(7, 12))}
    assert max(map(len, found)) <= MOST
    assert sum(map(len, found)) - rows < STEP


@pytest.mark.parametrize("bias", [False, True])
def test_it_gives_what_torch_gives(bias):
    torch.manual_seed(0)
    stock = nn.Linear(96, 80, bias=bias).requires_grad_(False)
    split = SplitLinear(stock)
    assert split.weight is stock.weight and split.bias is stock.bias
    for rows in (1, 5, 6, *COUNTS):
        x = torch.randn(1, rows, 96)
        found = split(x)
        assert found.shape == (1, rows, 80) and torch.allclose(found, stock(x), atol=1e-5)


def test_gradients_pass_where_they_are_asked_for():
    split = SplitLinear(nn.Linear(16, 8).requires_grad_(False))
    x = torch.randn(20, 16, requires_grad=True)
    split(x).sum().backward()
    assert torch.allclose(x.grad, split.weight.sum(0).expand(20, -1))


@pytest.mark.parametrize("value", [2.0, 0.9])
def test_a_block_changes_a_model_where_that_is_faster(base, gain, value):
    gain(value)
    names = find_linears(base.model, "all-linear")
    before = {name: base.model.get_submodule(name) for name in names}
    with split_linears(base.model, names):
        assert {type(base.model.get_submodule(name)) for name in names} == {SplitLinear if value > 1 else nn.Linear}
    assert all(base.model.get_submodule(name) is linear for name, linear in before.items())


def test_a_base_in_bfloat16_stays_as_it_is(tiny, gain):
    gain(2.0)
    half = genre.Base.load(str(tiny), dtype=torch.bfloat16)
    names = find_linears(half.model, "all-linear")
    with split_linears(half.model, names):
        assert {type(half.model.get_submodule(name)) for name in names} == {nn.Linear}


def test_an_engine_answers_as_with_torchs_own_products(trained, base, gain):
    some = list(trained.log.catalogue.item_ids[:4])
    asked = [genre.Request("next_item@production", user_id=f"u{user}", k=5) for user in range(12)]
    asked += [genre.Request("like@production", user_id=f"u{user}", candidates=some) for user in range(12)]
    found = []
    for value, kind in ((0.9, nn.Linear), (2.0, SplitLinear)):
        gain(value)
        with genre.Engine(base, trained.registry, data=trained.log) as engine:
            assert {type(layer.base) for layer in engine.slots.layers.values()} == {kind}
            found.append(engine.score(asked))
    for one, other in zip(*found, strict=True):
        assert [item.item_id for item in one.results] == [item.item_id for item in other.results]
        assert all(abs(a.score - b.score) < 1e-5 for a, b in zip(one.results, other.results, strict=True))
