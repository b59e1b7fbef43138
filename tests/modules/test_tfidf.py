"""Counting terms in a head: its arithmetic against scikit-learn's, honest in training, the same wherever it is asked."""

import numpy as np
import pytest
import torch

import genre
from builders import GOOD, NUMBER, STARS, text_recipe
from genre.data.sequences.batches import padded
from genre.engine import Request
from genre.engine.versions import read_adapter
from genre.errors import RecipeError
from genre.evaluation.metrics import auc
from genre.jobs.loading import restore
from genre.jobs.merge.gate import MergeOptions
from genre.jobs.merge.job import merge_versions
from genre.modules.heads.tfidf import FOLDS, STRENGTH, UNSEEN, TfidfNgrams
from genre.recipe import Recipe
from genre.training.assembly import assemble_texts
from genre.training.prediction import predict


def brief(base, *tasks, terms=500):
    """A recipe that counts terms and trains for an epoch."""
    return text_recipe(base, *tasks, sequence={"terms": terms}, train={"epochs": 1, "learning_rate": 1e-3})


@pytest.fixture(scope="module")
def rows():
    """Texts of few different tokens, so that every term is in many of them; their labels and groups."""
    draw = np.random.default_rng(0)
    made = [draw.integers(3, 9, size=draw.integers(2, 12)).astype(np.int32) for _ in range(90)]
    return made, np.array([float((row == 5).any()) for row in made]), np.arange(90) // 3


def said(terms, rows):
    terms.eval()
    with torch.no_grad():
        return terms(padded(rows, 0), torch.tensor([len(row) for row in rows])).numpy()


def test_what_terms_say_is_scikit_learns_linear_model(rows):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    made, labels, groups = rows
    terms = TfidfNgrams.fit(made, labels, groups, loss="log_loss", classes=0, most=1000)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\d+")
    features = words.fit_transform([" ".join(map(str, row)) for row in made])
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(features, labels)
    share = labels.mean()
    wanted = model.decision_function(features) - np.log(share / (1 - share))
    assert len(terms.keys) == features.shape[1]
    assert np.allclose(said(terms, made)[:, 0], wanted, atol=1e-3)


def test_only_the_commonest_terms_are_kept_and_unknown_ones_say_nothing(rows):
    made, labels, groups = rows
    terms = TfidfNgrams.fit(made, labels, groups, loss="log_loss", classes=0, most=10)
    counts = {}
    for row in made:
        for term in {*row.tolist(), *zip(row.tolist(), row.tolist()[1:], strict=False)}:
            counts[term] = counts.get(term, 0) + 1
    assert len(terms.keys) == 10
    least = min(counts[int(key) if key < 2**32 else (int(key) // 2**32 - 1, int(key) % 2**32)] for key in terms.keys)
    assert least >= sorted(counts.values())[-10]
    strange = said(terms, [np.array([100, 101], dtype=np.int32), np.empty(0, dtype=np.int32)])
    assert np.allclose(strange, terms.constant.numpy())


def test_padding_is_no_term(rows):
    made, labels, groups = rows
    terms = TfidfNgrams.fit(made, labels, groups, loss="log_loss", classes=0, most=1000)
    alone = np.concatenate([said(terms, [row]) for row in made[:8]])
    assert np.allclose(said(terms, made[:8]), alone, atol=1e-6)


def test_in_training_a_text_is_judged_without_its_group(rows):
    made, labels, groups = rows
    first = TfidfNgrams.fit(made, labels, groups, loss="log_loss", classes=0, most=1000)
    changed = labels.copy()
    changed[groups == 4] = 1 - changed[groups == 4]
    second = TfidfNgrams.fit(made, changed, groups, loss="log_loss", classes=0, most=1000)
    own = torch.from_numpy(np.flatnonzero(groups == 4))
    assert torch.equal(first.out_of_fold[own], second.out_of_fold[own]) and not torch.equal(first.out_of_fold, second.out_of_fold)
    rest = TfidfNgrams.fit(made, np.where(groups == 4, np.nan, labels), groups, loss="log_loss", classes=0, most=1000)
    assert rest.out_of_fold[own].isnan().all() and not rest.out_of_fold.isnan().all()
    first.train()
    numbers = torch.tensor([3, 50])
    tokens, lengths = padded([made[3], made[50]], 0), torch.tensor([len(made[3]), len(made[50])])
    assert torch.equal(first(tokens, lengths, numbers), first.out_of_fold[numbers])
    assert not torch.equal(first.eval()(tokens, lengths, numbers), first.out_of_fold[numbers])
    assert FOLDS == 5 and "honest" not in first.state_dict()


@pytest.mark.parametrize(("present", "classes"), [((0, 1, 2), 3), ((0, 2), 4), ((1,), 2)])
def test_classes_that_no_text_has(present, classes, rows):
    made, _, groups = rows
    labels = np.array(present)[np.arange(len(made)) % len(present)]
    terms = TfidfNgrams.fit(made, labels, groups, loss="cross_entropy", classes=classes, most=100)
    found = said(terms, made)
    absent = [code for code in range(classes) if code not in present]
    assert found.shape == (len(made), classes) and np.isfinite(found).all()
    if len(present) > 1:
        assert (found[:, absent] == UNSEEN).all()


@pytest.mark.parametrize("task", [GOOD, STARS, NUMBER], ids=["log_loss", "cross_entropy", "mse"])
def test_training_starts_at_the_linear_model(task, text_bases, texts):
    base = genre.Base.load(str(text_bases / "bert"))
    assembly = assemble_texts(brief(text_bases / "bert", task), texts, base)
    found = predict(assembly.model, assembly.builder, assembly.split, 1, max_events=0, batch_tokens=4096)
    targets, scores, _ = found[task["name"]]
    assembly.model.release()
    if task is GOOD:
        assert auc(targets.label, scores) > 0.85
    elif task is STARS:
        assert (scores.argmax(1) == targets.label).mean() > 0.9
    else:
        assert np.abs(scores - targets.label).mean() < 0.5 * np.abs(targets.label - targets.label.mean()).mean()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_version_and_the_engine_count_as_the_run_did(kind, text_bases, texts, tmp_path):
    registry = genre.Registry(tmp_path / "registry")
    run = genre.train(brief(text_bases / kind, GOOD, STARS), log=texts, registry=registry, folder=tmp_path / "run")
    registry.publish(run)
    base = genre.Base.load(str(text_bases / kind))
    again = genre.evaluate(registry, "good", texts, base)
    assert {name: both["adapter"] for name, both in again["tasks"].items()} == run.metrics
    model, builder, split = restore(read_adapter(registry, "good", base), texts, base)
    assert float(model.heads["good"].terms.share) != 1.0  # it was trained, and read back
    targets, scores, _ = predict(model, builder, split, 2, max_events=0, batch_tokens=512)["good"]
    model.release()
    asked = [{"title": texts.frame["title"][int(i)], "review": texts.frame["review"][int(i)]} for i in targets.event]
    with genre.Engine(base, registry, lanes=2) as engine:
        (answer,) = engine.score([Request("good", task="good", texts=asked)])
    assert np.allclose([row.score for row in answer.results], scores, atol=1e-5)


def test_a_merge_keeps_each_tasks_terms(text_bases, texts, tmp_path):
    registry, base = genre.Registry(tmp_path / "registry"), genre.Base.load(str(text_bases / "bert"))
    for task, terms in ((GOOD, 500), (STARS, 0)):
        wanted = brief(text_bases / "bert", task, terms=terms)
        registry.publish(genre.train(wanted, log=texts, base=base, folder=tmp_path / task["name"]))
    merge_versions(registry, ["good", "stars"], MergeOptions("both", floor=0.0), texts, base=base)
    heads = read_adapter(registry, "both", base).heads
    assert heads["good"].terms is not None and heads["stars"].terms is None
    parent = read_adapter(registry, "good", base).heads["good"].terms
    assert all(torch.equal(value, heads["good"].terms.state_dict()[name]) for name, value in parent.state_dict().items())


def test_terms_are_of_texts():
    like = {"name": "like", "kind": "feedback", "label": "rating > 3"}
    with pytest.raises(RecipeError, match="sequence.terms does not apply to a log"):
        Recipe.parse({"name": "like", "data": {"path": "x"}, "sequence": {"terms": 5}, "tasks": [like]})
