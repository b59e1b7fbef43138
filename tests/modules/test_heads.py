"""Heads against numpy, where they start, and what a verbalizer reads."""

import dataclasses

import numpy as np
import pytest
import torch

from genre.errors import ManifestError, RecipeError
from genre.modules.heads.gaussian_process import GaussianProcess, View, ridge, to_unit
from genre.modules.heads.heads import (
    BinaryHead,
    CatalogueHead,
    CategoricalHead,
    ScalarHead,
    VerbalizerHead,
    make_head,
)
from genre.modules.heads.spec import HeadSpec
from genre.tasks import Task

ITEMS, WIDTH, CODES = 9, 6, 4
HISTORY = torch.tensor([[3, 1, 7, 1, 0], [2, 8, -1, -1, -1]])
FEEDBACK = torch.tensor([[1, 3, 0, 2, 1], [2, 2, 0, 0, 0]])  # 0: an event without feedback, or padding
ROWS = torch.tensor([0, 0, 0, 1, 1, 1])
SEEN = torch.tensor([0, 3, 5, 0, 1, 2])
TARGETS = torch.tensor([3, 1, 4, 2, 8, 8])


@pytest.fixture
def vectors():
    return torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(0))


def spec(kind, **more):
    return HeadSpec(kind=kind, width=WIDTH, **more)


def stirred(head):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.5)
    return head.eval()


def view(head, vectors, history=HISTORY, feedback=FEEDBACK):
    return View(head.tables(vectors), history, feedback, ROWS, SEEN, TARGETS)


def unit(vectors):
    value = vectors.numpy().astype(np.float64)
    return value / np.sqrt((value**2).mean(-1, keepdims=True) + 1e-6)


def array(value):
    return value.detach().numpy().astype(np.float64)


def process_by_hand(head, vectors, stands=None):
    """b·e_t + α kᵀ (K + I)⁻¹ r, target by target, from the events that it sees."""
    e, b = unit(vectors), array(head.item.weight)[0]
    variance, span, worth = array(head.log_variance.exp()), array(head.log_span.exp()), array(head.worth)

    def kernel(i, j, steps):
        drift = sum(variance[2 + m] * np.exp(-steps / span[m]) for m in range(2))
        return variance[0] + variance[1] * (e[i] @ e[j]) / WIDTH + drift

    found = []
    for place, (row, seen, item) in enumerate(zip(ROWS.tolist(), SEEN.tolist(), TARGETS.tolist(), strict=True)):
        rated = [j for j in range(seen) if int(HISTORY[row, j]) >= 0 and int(FEEDBACK[row, j]) > 0]
        items = [int(HISTORY[row, j]) for j in rated]
        residual = np.array([worth[int(FEEDBACK[row, j])] - b @ e[i] for j, i in zip(rated, items, strict=True)])
        placed = list(zip(items, rated, strict=True))
        own = np.array([[kernel(i, k, abs(s - t)) for k, t in placed] for i, s in placed])
        stand = seen if stands is None else int(stands[place])
        cross = np.array([kernel(item, i, stand - j if j < stand else j - stand + 1) for i, j in placed])
        fit = cross @ np.linalg.solve(own + np.eye(len(rated)), residual) if rated else 0.0
        found.append(b @ e[item] + head.share.item() * fit)
    return np.array(found)


@torch.no_grad()
def test_the_process_is_its_formula(vectors):
    head = stirred(GaussianProcess(WIDTH, CODES))
    assert np.allclose(array(head(view(head, vectors))), process_by_hand(head, vectors), atol=1e-5)


@torch.no_grad()
def test_the_process_of_a_target_between_the_events_that_it_sees(vectors):
    head, stands = stirred(GaussianProcess(WIDTH, CODES)), torch.tensor([0, 1, 5, 0, 0, 2])
    got = head(dataclasses.replace(view(head, vectors), time_index=stands))
    assert np.allclose(array(got), process_by_hand(head, vectors, stands), atol=1e-5)
    assert not torch.allclose(got, head(view(head, vectors)))


@torch.no_grad()
def test_the_process_without_events_is_the_items_bias(vectors):
    head = stirred(GaussianProcess(WIDTH, CODES))
    shown = view(head, vectors)
    nothing = torch.zeros(2, 0, dtype=torch.long)
    got = head(dataclasses.replace(shown, history=nothing, feedback=nothing, history_lengths=torch.zeros_like(SEEN)))
    assert torch.equal(got, shown.tables[0][TARGETS])


@torch.no_grad()
def test_the_process_starts_near_the_additive_baseline(vectors):
    """With the users' mean alone it is the item mean plus the smoothed mean residual; vectors as many as dimensions, so exact."""
    square = torch.eye(ITEMS) + 0.1 * torch.randn(ITEMS, ITEMS, generator=torch.Generator().manual_seed(3))
    head = GaussianProcess(ITEMS, CODES)
    means, worth = torch.linspace(-1, 1, ITEMS), torch.tensor([0.0, -1.0, 0.2, 1.5])
    head.start_at(square, means, torch.full((ITEMS,), 10.0), worth)
    assert head.tables(square)[0].numpy() == pytest.approx(means.numpy(), abs=0.2)
    near = head(view(head, square))
    head.log_variance[1:] = -50.0
    got, item = head(view(head, square)), head.tables(square)[0]
    for place, (row, seen, target) in enumerate(zip(ROWS.tolist(), SEEN.tolist(), TARGETS.tolist(), strict=True)):
        known = [k for k in range(seen) if FEEDBACK[row, k] > 0]
        residuals = [float(worth[FEEDBACK[row, k]] - item[HISTORY[row, k]]) for k in known]
        assert got[place].item() == pytest.approx(float(item[target]) + sum(residuals) / (len(known) + 5), abs=1e-5)
        assert near[place].item() == pytest.approx(got[place].item(), abs=0.5)


@torch.no_grad()
def test_a_process_that_has_diverged_says_so_by_nan(vectors):
    head = stirred(GaussianProcess(WIDTH, CODES))
    head.log_variance.fill_(200.0)
    assert head(view(head, vectors)).isnan().any()


def test_every_part_of_the_process_learns(vectors):
    head = stirred(GaussianProcess(WIDTH, CODES))
    head(view(head, vectors)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_the_catalogue_head_is_its_formula(vectors):
    head = stirred(CatalogueHead(spec("catalogue", size=5, fuse=True)))
    hidden = torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(2))
    e, key, memory = unit(vectors), array(head.key.weight), array(head.memory.weight).reshape(3, 5, WIDTH)
    found = []
    for place, (row, seen) in enumerate(zip(ROWS.tolist(), SEEN.tolist(), strict=True)):
        query = array(head.query.weight) @ array(hidden[place]) + array(head.query.bias)
        for decay, matrix in zip((0.5, 0.9, 1.0), memory, strict=True):
            weights = np.array([decay ** (seen - 1 - j) for j in range(seen)])
            for j, weight in enumerate(weights):
                query = query + weight / weights.sum() * (matrix @ e[int(HISTORY[row, j])])
        found.append(e @ key[:5].T @ query / np.sqrt(5) + e @ key[5])
    assert np.allclose(array(head(hidden, view(head, vectors))), np.array(found), atol=1e-5)


@torch.no_grad()
def test_the_cooccurrence_term_is_its_formula_and_in_no_training_step(vectors):
    head = stirred(CatalogueHead(spec("catalogue", size=5, fuse=True)))
    hidden = torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(2))
    plain = array(head(hidden, view(head, vectors)))
    head = head.with_cooccurrence(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(4)), 0.7)
    e = unit(vectors) @ array(head.taste).T
    found = []
    for place, (row, seen) in enumerate(zip(ROWS.tolist(), SEEN.tolist(), strict=True)):
        liked = sum((0.95 ** (seen - 1 - j) * e[int(HISTORY[row, j])] for j in range(seen)), np.zeros(3))
        found.append(plain[place] + 0.7 * e @ liked)
    shown = view(head, vectors)
    assert np.allclose(array(head(hidden, shown)), np.array(found), atol=1e-4)
    query = head.ask(hidden, shown)
    assert np.allclose(array(head.direction(query)) @ unit(vectors).T, np.array(found), atol=1e-4)
    assert np.allclose(array(head.match(query, shown.tables[0][TARGETS])), np.array(found)[np.arange(6), TARGETS], atol=1e-4)
    more = torch.cat([vectors, vectors[:2] + 1])
    assert torch.allclose(head.extend(shown.tables, more)[0], head.tables(more)[0])
    head.train()
    assert np.allclose(array(head(hidden, view(head, vectors))), plain, atol=1e-5)


@torch.no_grad()
def test_the_catalogue_head_starts_in_the_order_of_popularity():
    square = torch.eye(ITEMS) + 0.05 * torch.randn(ITEMS, ITEMS, generator=torch.Generator().manual_seed(3))
    head = CatalogueHead(HeadSpec(kind="catalogue", width=ITEMS, size=4))
    counts = torch.tensor([5.0, 80, 1, 40, 10, 320, 2, 20, 160])
    head.start_at(square, (counts / counts.sum()).log())
    head.query.weight.zero_()
    head.query.bias.zero_()
    logits = head(torch.randn(2, ITEMS), View(head.tables(square), HISTORY, FEEDBACK, ROWS[:2], SEEN[:2], TARGETS[:2]))
    assert logits.shape == (2, ITEMS) and head.per_item
    assert logits[0].argsort().tolist() == counts.argsort().tolist()


def test_ridge_is_the_normal_equations():
    draw = np.random.default_rng(0)
    x, y, w = draw.normal(size=(20, 4)), draw.normal(size=20), draw.uniform(1, 5, size=20)
    wanted = np.linalg.solve(x.T @ np.diag(w) @ x + 1e-2 * w.sum() * np.eye(4), x.T @ (w * y))
    assert np.allclose(ridge(torch.tensor(x), torch.tensor(y), torch.tensor(w)).numpy(), wanted, atol=1e-6)
    both = ridge(torch.tensor(x), torch.tensor(np.stack([y, -2 * y], 1)), torch.tensor(w)).numpy()
    assert np.allclose(both, np.stack([wanted, -2 * wanted], 1), atol=1e-6)


def test_unit_vectors_have_a_mean_square_of_one_and_zero_stays_zero(vectors):
    assert np.allclose(array(to_unit(vectors)), unit(vectors), atol=1e-6)
    assert to_unit(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


@torch.no_grad()
def test_binary_scalar_and_categorical_are_their_formulas(vectors):
    hidden = torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(2))
    h = array(hidden)
    binary = stirred(BinaryHead(spec("binary", feedback_codes=CODES), prior=0.8))
    plain = h @ array(binary.linear.weight)[0] + binary.linear.bias.item()
    logit = plain + process_by_hand(binary.affinity, vectors)
    assert np.allclose(array(binary(hidden, view(binary, vectors))), logit, atol=1e-5)
    assert np.allclose(array(binary(hidden)), plain, atol=1e-5)
    assert np.allclose(array(binary.score(torch.tensor(logit))), 1 / (1 + np.exp(-logit)), atol=1e-6)
    scalar = stirred(ScalarHead(spec("scalar", feedback_codes=CODES), mean=3.5, deviation=1.2))
    value = h @ array(scalar.linear.weight)[0] + scalar.linear.bias.item() + process_by_hand(scalar.affinity, vectors)
    assert np.allclose(array(scalar(hidden, view(scalar, vectors))), 3.5 + 1.2 * value, atol=1e-4)
    classes = stirred(CategoricalHead(spec("categorical", classes=3)))
    logits = h @ array(classes.linear.weight).T + array(classes.linear.bias)
    assert np.allclose(array(classes(hidden)), logits, atol=1e-5)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert np.allclose(array(classes.score(classes(hidden))), shares, atol=1e-6)


def test_first_predictions_are_the_labels_share_and_mean():
    with torch.no_grad():
        binary, scalar = BinaryHead(spec("binary"), prior=0.8), ScalarHead(spec("scalar"), mean=3.5, deviation=1.2)
        zeros = torch.zeros(1, WIDTH)
        assert binary.score(binary(zeros)).item() == pytest.approx(0.8)
        assert scalar.score(scalar(zeros)).item() == pytest.approx(3.5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["binary", "scalar", "catalogue"])
def test_what_lies_after_a_target_changes_nothing(vectors, kind):
    """For every target on its own: other items and other feedback from its place on."""
    head = stirred(make_head(spec(kind, feedback_codes=0 if kind == "catalogue" else CODES, fuse=kind == "catalogue"), None))
    hidden = torch.randn(len(ROWS), WIDTH, generator=torch.Generator().manual_seed(2))
    before = head(hidden, view(head, vectors))
    moved = False
    for place, (row, seen) in enumerate(zip(ROWS.tolist(), SEEN.tolist(), strict=True)):
        history, feedback = HISTORY.clone(), FEEDBACK.clone()
        history[row, seen:], feedback[row, seen:] = 5, 3
        after = head(hidden, view(head, vectors, history, feedback))
        assert torch.equal(before[place], after[place])
        moved |= not torch.equal(before, after)
    assert moved


@torch.no_grad()
def test_a_verbalizer_reads_the_bases_own_logits(base):
    ids = torch.tensor([base.tokenizer("a film:", add_special_tokens=False)["input_ids"]])
    logits = base.model(input_ids=ids).logits[0, -1]
    hidden = base.hidden(base.embedding(ids))[:, -1]
    words = ("1", "3", "9")
    own = logits[[base.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]]
    binary = VerbalizerHead(spec("verbalizer", words=words[:2], loss="log_loss"), base)
    assert binary(hidden).item() == pytest.approx((own[1] - own[0]).item(), abs=1e-5)
    assert binary.score(binary(hidden)).item() == pytest.approx(torch.softmax(own[:2], 0)[1].item(), abs=1e-6)
    classes = VerbalizerHead(spec("verbalizer", words=words, loss="cross_entropy"), base)
    assert torch.allclose(classes(hidden)[0], own, atol=1e-5)
    assert torch.allclose(classes.score(classes(hidden))[0], torch.softmax(own, 0), atol=1e-6)
    value = VerbalizerHead(spec("verbalizer", words=words, loss="mse"), base)
    expected = (torch.softmax(own, 0) * torch.tensor([1.0, 3.0, 9.0])).sum()
    assert value.score(value(hidden)).item() == pytest.approx(expected.item(), abs=1e-5)
    assert not list(binary.parameters()) and not binary.state_dict()


def test_label_words_that_cannot_be_told_apart_are_refused(base):
    with pytest.raises(RecipeError, match="two label words begin with the same token: got .* No.* Yes.*; expected words that"):
        VerbalizerHead(spec("verbalizer", words=(" No", " Yes"), loss="log_loss"), base)
    with pytest.raises(RecipeError, match="label word '' has no token"):
        VerbalizerHead(spec("verbalizer", words=("", "Y"), loss="log_loss"), base)
    with pytest.raises(RecipeError, match="a verbalizer with loss mse needs numbers as words: got "):
        VerbalizerHead(spec("verbalizer", words=("N", "Y"), loss="mse"), base)


def test_a_pooled_head_is_what_its_loss_asks_for_and_reads_no_history(base):
    kinds = {"log_loss": BinaryHead, "cross_entropy": CategoricalHead, "mse": ScalarHead}
    for loss, kind in kinds.items():
        task = Task(name="t", kind="text", label="stars", loss=loss)
        head = make_head(HeadSpec.of(task, base.hidden_size, classes=3, feedback_codes=CODES, fuse=True), base)
        assert type(head) is kind and getattr(head, "affinity", None) is None


# --- descriptions ----------------------------------------------------------------------------------------------------

LIKE = Task(name="like", kind="feedback", label="rating > 3", head="binary", loss="log_loss")
NEXT = Task(name="next", kind="next_item")
WORDS = Task(name="words", kind="feedback", label="rating > 3", head="verbalizer", loss="log_loss", words=("no", "yes"))
STARS = Task(name="stars", kind="text", label="rating", loss="cross_entropy", classes=(1, 2, 3))
DESCRIBED = [
    (LIKE, HeadSpec.of(LIKE, WIDTH)),
    (LIKE, HeadSpec.of(LIKE, WIDTH, feedback_codes=CODES, fuse=True)),
    (NEXT, HeadSpec.of(NEXT, WIDTH)),
    (NEXT, HeadSpec.of(NEXT, WIDTH, fuse=True)),
    (NEXT, HeadSpec.of(NEXT, WIDTH, fuse=True, cooccurrence=3)),
    (WORDS, HeadSpec.of(WORDS, WIDTH)),
    (STARS, HeadSpec.of(STARS, WIDTH, classes=3)),
    (STARS, HeadSpec.of(STARS, WIDTH, classes=3, ngrams=0)),
    (STARS, HeadSpec.of(STARS, WIDTH, classes=3, ngrams=9)),
]


@pytest.mark.parametrize("task, described", DESCRIBED, ids=lambda each: getattr(each, "kind", ""))
def test_a_description_is_read_back_and_follows_from_the_tensors_of_versions_without_one(task, described, base):
    assert HeadSpec.read(task, described.model_dump(mode="json"), WIDTH) == described
    head = make_head(described, base)
    assert head.spec == described
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert HeadSpec.from_tensors(task, shapes, WIDTH) == described


@pytest.mark.parametrize(
    "change, said",
    [
        ({"width": 7}, "like.width: got 7; expected 6"),
        ({"kind": "scalar"}, "like.kind: got scalar; expected binary"),
        ({"loss": "mse"}, "like.loss: got mse; expected log_loss"),
        ({"classes": -1}, "like.classes: got -1; expected at least 0"),
        ({"classes": 10**12}, "like.classes: got 1000000000000; expected at most"),
        ({"size": "big"}, "like.size: got big; expected a whole number"),
        ({"heads": 2}, "like.heads: got 2; expected no field of this name"),
        (None, "like: expected an object"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_by_field(change, said):
    described = None if change is None else HeadSpec.of(LIKE, WIDTH).model_dump(mode="json") | change
    with pytest.raises(ManifestError, match=f"heads.json: {said}"):
        HeadSpec.read(LIKE, described, WIDTH)


@pytest.mark.parametrize("change", [{"feedback_codes": 5}, {"ngrams": 10}, {"cooccurrence": 2}, {"size": 64}])
def test_sizes_are_compared_with_those_of_the_weights_before_a_head_is_built(change):
    described = HeadSpec.of(LIKE, WIDTH, feedback_codes=CODES, fuse=True)
    shapes = {name: tuple(value.shape) for name, value in make_head(described, None).state_dict().items()}
    described.check_sizes(LIKE, shapes)
    (field, value), had = *change.items(), {"feedback_codes": 4, "ngrams": "None", "cooccurrence": 0, "size": 128}
    with pytest.raises(ManifestError, match=f"heads.json: like.{field}: got {value}; expected {had[field]}, as in heads.safet"):
        described.model_copy(update=change).check_sizes(LIKE, shapes)


@torch.no_grad()
def test_the_cooccurrence_term_is_part_of_the_description(vectors):
    plain = stirred(CatalogueHead(spec("catalogue", size=5, fuse=True)))
    head = plain.with_cooccurrence(torch.ones(3, WIDTH), 0.5)
    assert head.spec.cooccurrence == 3 and plain.spec.cooccurrence == 0 and plain.taste is None
    assert head.key.weight.data_ptr() == plain.key.weight.data_ptr()
    back = head.with_cooccurrence(None)
    assert back.spec == plain.spec and back.state_dict().keys() == plain.state_dict().keys()
