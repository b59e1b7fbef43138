"""Products by oneDNN, against torch's own."""

import pytest
import torch

import genre.modules.base.products as products
from builders import LIKE, recipe
from genre.errors import InputError
from genre.modules.base.base import Base
from genre.modules.base.products import Linear, Product, even, is_plain, library, times
from genre.modules.lora.layer import LoraLinear
from genre.modules.lora.slot_layers import Group, LaneLinear, Place, Routing
from genre.training.assembly import assemble

THERE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
needs_onednn = pytest.mark.skipif(not THERE, reason="this build of torch has no oneDNN")


@pytest.fixture
def forced(monkeypatch):
    """OneDNN for every float32 product, however small and of however many tokens; the sizes of those it did."""
    monkeypatch.setenv(products.SETTING, "onednn")
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(products, "even", lambda tokens: tokens)
    library.cache_clear()
    asked = []
    stock = products.to_onednn

    def large(x, weight, tokens):
        if found := stock(x, weight, tokens):
            asked.append((*x.shape, len(weight)))
        return found

    monkeypatch.setattr(products, "to_onednn", large)
    yield asked
    library.cache_clear()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_products_equal_torchs_whatever_lies_between_their_rows(forced, bias):
    plus = draw(7, seed=2) if bias else None
    for x in (draw(3, 4, 5), draw(6, 5), draw(3, 8, 5)[:, 1:4], draw(5, 6).t()):
        for weight in (draw(7, 5, seed=1), draw(5, 7, seed=1).t(), draw(7, 9, seed=1)[:, :5]):
            wanted = torch.nn.functional.linear(x, weight, plus)
            assert torch.allclose(times(x, weight, plus), wanted, atol=1e-5)
    assert len(forced) == 12


@needs_onednn
@pytest.mark.parametrize("trained", [(), ("weight",), ("weight", "bias")], ids=["frozen", "weight", "both"])
def test_a_linear_has_torchs_gradients_of_what_needs_one(forced, trained):
    stock = torch.nn.Linear(5, 7).requires_grad_(False)
    mine = Linear(stock)
    assert mine.weight is stock.weight and mine.bias is stock.bias and is_plain(mine)
    found = []
    for each in (mine, stock):
        for name in trained:
            getattr(stock, name).requires_grad_(True).grad = None
        x = draw(2, 3, 5, seed=4).requires_grad_()
        y = each(x)
        y.backward(draw(2, 3, 7, seed=5))
        found.append((y.detach(), x.grad, *(getattr(stock, name).grad for name in trained)))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    assert forced and all((getattr(stock, name).grad is not None) == (name in trained) for name in ("weight", "bias"))


def test_gradcheck_in_double_precision_which_stays_with_torch():
    given = [draw(4, 3).double(), draw(2, 3, seed=1).double(), draw(2, seed=2).double()]
    assert torch.autograd.gradcheck(Product.apply, [value.requires_grad_() for value in given])


@needs_onednn
def test_a_low_rank_layer_has_the_gradients_of_its_parts(forced):
    layer = LoraLinear(Linear(torch.nn.Linear(6, 5).requires_grad_(False)), rank=2, scale=0.5)
    torch.nn.init.normal_(layer.lora_B)
    assert layer.fused
    a, b = (value.detach().clone().requires_grad_() for value in (layer.lora_A, layer.lora_B))
    x, other = (draw(3, 4, 6, seed=1).requires_grad_() for _ in range(2))
    y = layer(x)
    plain = torch.nn.functional.linear(other, layer.base.weight, layer.base.bias) + 0.5 * (other @ a.t() @ b.t())
    for each in (y, plain):
        each.backward(draw(3, 4, 5, seed=2))
    assert torch.allclose(y, plain, atol=1e-5)
    for one, two in ((x, other), (layer.lora_A, a), (layer.lora_B, b)):
        assert torch.allclose(one.grad, two.grad, atol=1e-4)
    assert len(forced) == 6  # the product, its gradient, and the four of the update


@needs_onednn
def test_a_resident_adapters_update_is_added_to_the_bases_product_with_its_gradient(forced):
    routing, group = Routing(), Group(6, [5], torch.device("cpu"))
    layer = LaneLinear(Linear(torch.nn.Linear(6, 5, bias=False).requires_grad_(False)), group, 0, routing, torch.float32)
    assert layer.adds_onto
    first, (second,) = group.views(2, draw(3, group.size(2), seed=1))
    group.stacks[2], layer.stacks[2], group.used[2] = first, second, {1, 2}
    routing.set([Place(2, 1), Place(2, 2)])
    x = draw(2, 4, 6, seed=2)
    wanted = torch.stack([row @ layer.base.weight.t() + row @ first[i].t() @ second[i] for i, row in enumerate(x, 1)])
    assert torch.allclose(layer(x), wanted, atol=1e-5) and forced
    group.forget()
    x.requires_grad_()
    layer(x).sum().backward()
    through = [layer.base.weight + second[i].t() @ first[i] for i in (1, 2)]
    assert torch.allclose(x.grad, torch.stack([each.sum(0).expand(4, -1) for each in through]), atol=1e-5)


def test_the_environment_chooses_and_a_wrong_word_is_named(monkeypatch):
    monkeypatch.setenv(products.SETTING, "torch")
    library.cache_clear()
    assert library() == "torch"
    monkeypatch.setenv(products.SETTING, "fast")
    library.cache_clear()
    with pytest.raises(InputError, match="GENRE_PRODUCTS: got fast; expected torch or onednn"):
        library()
    monkeypatch.setenv(products.SETTING, "")
    library.cache_clear()
    assert library() == "torch"
    library.cache_clear()


@needs_onednn
def test_few_tokens_and_other_precisions_stay_with_torch(monkeypatch):
    monkeypatch.setenv(products.SETTING, "onednn")
    library.cache_clear()
    assert products.to_onednn(draw(2048, 64), draw(64, 64), 2048) and not products.to_onednn(draw(16, 64), draw(64, 64), 16)
    assert not products.to_onednn(draw(2047, 64), draw(64, 64), 2047)  # a count that hardly repeats
    assert not products.to_onednn(draw(2048, 64).double(), draw(64, 64).double(), 2048)
    assert not products.to_onednn(draw(2048, 64).to("meta"), draw(64, 64).to("meta"), 2048)
    library.cache_clear()


@needs_onednn
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_base_trains_as_with_torchs_products(tiny, log, kind, forced, monkeypatch, tmp_path):
    from genre.training import fit

    found = []
    for way in ("onednn", "torch"):
        monkeypatch.setenv(products.SETTING, way)
        library.cache_clear()
        forced.clear()
        base = Base.load(str(tiny))
        made = assemble(recipe(tiny, LIKE, adapter={"kind": kind}, train={"epochs": 1, "tracker": "none"}), log, base)
        fit(made, tmp_path / way)
        assert bool(forced) == any(type(module) is Linear for module in base.model.modules()) == (way == "onednn")
        found.append({name: value.detach().clone() for name, value in made.model.trainable().items()})
        made.model.release()
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=2e-3), name


def test_few_counts_repeat_and_little_is_filled_up():
    found = [even(tokens) for tokens in range(1, 4097)]
    assert all(0 <= count - tokens <= max(15, tokens / 16) for tokens, count in enumerate(found, start=1))
    assert len(set(found)) == 80 and all(even(count) == count for count in found)


def counted(base):
    """The numbers of tokens that a base's linears see from now on."""
    seen = set()
    for module in base.body.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, given: seen.add(given[0].shape[:-1].numel()))
    return seen


@pytest.fixture
def ways(tiny, monkeypatch):
    """The tiny base as it is, and as it is laid out evenly: with oneDNN's products, and in bfloat16."""
    stock = Base.load(str(tiny))
    monkeypatch.setenv(products.SETTING, "onednn")
    library.cache_clear()
    yield stock, Base.load(str(tiny)), Base.load(str(tiny), dtype=torch.bfloat16)
    library.cache_clear()


@needs_onednn
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_line_filled_up_gives_what_the_batch_gives(ways, masked, recompute):
    """States and gradients, with and without a mask, of the tokens that are read; the base sees counts that repeat."""
    stock, even_one, half = ways
    assert not stock.evenly and even_one.evenly and half.evenly
    count, width = 3, 7
    positions = mask = None
    if masked:  # the last three tokens are one branch, those before them another
        positions = torch.tensor([[0, 1, 2, 3, 2, 3, 4]]).expand(count, -1)
        mask = torch.ones(width, width, dtype=torch.bool).tril().expand(count, 1, width, width).clone()
        mask[:, :, 4:, 2:4] = False
    places = torch.tensor([1, 6, 8, 13, 20])
    found = []
    for base in (stock, even_one, half):
        seen = counted(base)
        embeds = draw(count, width, base.hidden_size, seed=3).mul_(base.embedding_rms).to(base.dtype).requires_grad_()
        hidden = base.hidden(embeds, positions, mask, places=places, recompute=recompute)
        assert hidden.shape == embeds.shape and hidden.dtype == base.dtype
        read = hidden.flatten(0, 1)[places].float()
        (read * draw(*read.shape, seed=4)).sum().backward()
        assert seen == ({21, 5} if base is stock else {32, 16})
        found.append((read.detach(), embeds.grad.float()))
    for got, exact, rough in zip(*found, strict=True):
        assert (exact - got).norm() < 1e-5 * got.norm() and (rough - got).norm() < 0.03 * got.norm()
