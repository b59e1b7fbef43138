"""Folds by user: nothing of a fold is learnt from, every target is tested once, folds that are done are kept."""

import json

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, QUICK, recipe, with_values
from fakes import planted_log
from genre.cli import main
from genre.data.splits import TEST, split
from genre.errors import InputError, InterruptedJobError, JobError, ManifestError, RecipeError
from genre.jobs.encoders import check_leak
from genre.jobs.tuning.crossval import crossval, fold_recipes, summary
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import assemble


@pytest.fixture
def cross(little, base, wanted, tmp_path):
    def cross(of=None, folder="folds", **options):
        return crossval(of or wanted, tmp_path / folder, **{"folds": 2, "log": little, "base": base} | options)

    yield cross
    assert base.occupied_by is None


def learnt(wanted, log, base, folder):
    """Everything that a fold's run has after training: weights, the encoder's vectors and statistics, its feedback values."""
    assembly = assemble(wanted, log, base)
    try:
        history = fit(assembly, folder).state.history
        state = {name: value.detach().clone() for name, value in assembly.model.trainable().items()}
        state |= {f"buffer {name}": value.clone() for name, value in assembly.shared.encoder.named_buffers()}
        return state, assembly.shared.vocabulary.values, history
    finally:
        assembly.model.release()


# --- leaks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"kind": "temporal", "valid": 0.1, "test": 0.2}, {"kind": "last_n", "n": 1}])
def test_nothing_of_a_folds_users_reaches_its_training(tiny, base, little, tmp_path, kind):
    """Other ratings (one that nobody else gives) and other items of theirs: bit for bit the same model and validation."""
    one = fold_recipes(recipe(tiny, LIKE, NEXT, train=QUICK, data={"split": kind}), 3, 0)[1]
    chosen = split(little, one.data.split)
    theirs = np.flatnonzero(chosen.outside)
    assert 0 < len(np.unique(little.user_codes[theirs])) == 8 and (chosen.part[theirs] == TEST).any()
    ratings = {int(event): 3.5 for event in theirs}
    other = little.catalogue.item_ids
    items = {int(event): other[(int(little.item_codes[event]) + 1) % len(other)] for event in theirs}
    changed = with_values(little, rating=ratings, item_id=items)
    first, values, history = learnt(one, little, base, tmp_path / "a")
    second, other_values, other_history = learnt(one, changed, base, tmp_path / "b")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert values == other_values and 3.5 not in values and str(history) == str(other_history)  # NaN equals nothing


def test_an_other_users_training_event_does_reach_it(base, little, tmp_path, wanted):
    """The test above can fail."""
    one = fold_recipes(wanted, 3, 0)[1]
    mine = int(np.flatnonzero(split(little, one.data.split).part == 0)[0])
    changed = with_values(little, rating={mine: 6.0 - little.column("rating")[mine]})
    first, second = (learnt(one, log, base, tmp_path / name)[0] for name, log in (("a", little), ("b", changed)))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_baselines_learn_nothing_from_a_folds_users(cross, little, wanted):
    """Their training events change; an item's mean, which the targets are scored by, does not."""
    chosen = split(little, fold_recipes(wanted, 2, 0)[0].data.split)
    theirs = np.flatnonzero(chosen.outside & (chosen.part != TEST))
    changed = with_values(little, rating={int(event): 6.0 - little.column("rating")[event] for event in theirs})
    first, second = cross(), cross(folder="changed", log=changed)
    one, other = (found["by_fold"][0]["baselines"]["like"] for found in (first, second))
    assert one["item_mean"] == other["item_mean"] and one["running_user_share"] != other["running_user_share"]


def test_an_encoder_of_the_plain_split_is_refused_where_its_users_are_held_out(trained, tiny):
    encoder = trained.registry.resolve("encoder-planted").manifest
    plain = recipe(tiny, LIKE)
    check_leak(encoder, plain, trained.log)
    held = {"split": {"kind": "temporal", "folds": 2, "fold": 1, "fold_seed": 0}}
    with pytest.raises(ManifestError, match="the encoder was fitted on events that this recipe is evaluated on"):
        check_leak(encoder, recipe(tiny, LIKE, data=held), trained.log)


# --- the job ---------------------------------------------------------------------------------------------------------


def test_every_test_event_is_a_target_in_one_fold(cross, little, tiny, tmp_path):
    both = recipe(tiny, LIKE, NEXT, train=QUICK)
    found = cross(both, folds=3)
    events = split(little, both.data.split).counts["test"]
    for task, metric, baselines in (
        ("like", "auc", {"item_mean", "running_user_share", "prompt_share", "additive"}),
        ("next_item", "ndcg@10", {"popularity", "transitions", "item_neighbours", "ease", "text_neighbours", "ease_text"}),
    ):
        own, others = found["tasks"][task]["adapter"][metric], found["tasks"][task]["baselines"]
        assert own["n"] == events and len(own["folds"]) == 3 and set(others) == baselines
        assert own["mean"] == pytest.approx(np.mean(own["folds"])) and own["deviation"] == pytest.approx(
            np.std(own["folds"], ddof=1)
        )
        assert all(figures[metric]["n"] == events for figures in others.values())
    assert [fold["users"] for fold in found["by_fold"]] == [8, 8, 8]
    stored = json.loads((tmp_path / "folds" / "summary.json").read_text())
    assert stored["tasks"] == found["tasks"] and not list((tmp_path / "folds").rglob("*.pt"))


def test_a_planted_preference_is_found_for_new_users(tiny, log, tmp_path):
    found = crossval(recipe(tiny, LIKE, train={"epochs": 3}), tmp_path, folds=2, log=log)
    auc = found["tasks"]["like"]
    assert auc["adapter"]["auc"]["mean"] > 0.75 > 0.6 > auc["baselines"]["item_mean"]["auc"]["mean"]


def test_a_fold_that_was_cut_goes_on_and_those_that_are_done_are_kept(cross, tiny, tmp_path):
    of = recipe(tiny, LIKE, train={"epochs": 2, "batch_tokens": 512, "dropout": 0.2})
    through = cross(of, folder="through")
    seen = []

    def cut(line):
        seen.append(line)
        if sum("epoch 2: validation" in each for each in seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedJobError, match="interrupted in fold 2: got Ctrl-C; the same command resumes in"):
        cross(of, reporter=Reporter(cut))
    done = tmp_path / "folds" / "fold-1" / "metrics.json"
    first = done.stat().st_mtime_ns
    again = cross(of)
    assert done.stat().st_mtime_ns == first
    for key in ("metrics", "baselines", "validation"):
        assert [fold[key] for fold in again["by_fold"]] == [fold[key] for fold in through["by_fold"]]
    assert again["tasks"] == through["tasks"]


def test_a_fold_that_diverges_is_named(cross, tiny):
    of = recipe(tiny, LIKE, train=QUICK | {"learning_rate": 1e30})
    with pytest.raises((JobError, InputError), match="fold 1 failed: .*finite.*; finished folds are kept"):
        cross(of)


def test_text_items_need_no_encoder(cross, tiny):
    of = recipe(tiny, LIKE, train=QUICK, sequence={"item": "text"}, encoder={"use": "none"})
    assert cross(of)["tasks"]["like"]["adapter"]["auc"]["n"] > 0


def test_means_and_deviations_by_hand():
    def fold(auc, mean):
        own = {"auc": {"value": auc, "n": 10}} if auc is not None else {}
        return {"metrics": {"like": own}, "baselines": {"like": {"item_mean": {"auc": {"value": mean, "n": 10}}}}}

    found = summary([fold(0.5, 0.25), fold(1.0, 0.25), fold(None, 0.25)])["like"]
    assert found["adapter"]["auc"] == {"mean": 0.75, "deviation": pytest.approx(0.125**0.5), "folds": [0.5, 1.0, None], "n": 20}
    assert found["baselines"]["item_mean"]["auc"] == {"mean": 0.25, "deviation": 0.0, "folds": [0.25] * 3, "n": 30}
    assert summary([fold(0.5, 0.25)])["like"]["adapter"]["auc"]["deviation"] is None


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds: got 1; expected 2 to 1,000"),
        ({"folds": 10**9}, "folds: got 1000000000; expected 2 to 1,000"),
        ({"folds": 25}, "there are more folds than users with test events: got 25 folds, .*; expected 2 to"),
        ({"seed": -1}, "seed: got -1; expected 0 or more"),
    ],
)
def test_folds_that_cannot_be_drawn_are_refused(cross, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        cross(**options)
    assert not (tmp_path / "folds").exists()


def test_recipes_that_cannot_be_folded_are_refused(cross, tiny, tmp_path):
    folded = {"split": {"kind": "temporal", "folds": 2, "fold": 1, "fold_seed": 0}}
    given = {"split": {"kind": "given", "test_rows": "0-30"}}
    for sections, message in (
        ({"data": given}, "folds by user need histories without training events: got data.split.kind given"),
        ({"data": folded}, "the recipe's split has folds of its own: got folds 2"),
        ({"encoder": {"use": "encoder-planted"}}, "every fold fits an encoder of its own.*; add --set encoder.use=fit"),
    ):
        with pytest.raises(RecipeError, match=message):
            cross(recipe(tiny, LIKE, train=QUICK, **sections))
    assert not (tmp_path / "folds").exists()


def test_a_folder_of_another_run_is_refused_with_both_values(cross, tiny, little, tmp_path):
    cross()
    other = planted_log(users=24, items=16, events=12, seed=1)
    for options, message in (
        ({"folds": 3}, "the cross-validation is of another run: folds differs: got 3; expected 2"),
        ({"seed": 1}, "seed differs: got 1; expected 0"),
        ({"of": recipe(tiny, LIKE, train=QUICK, adapter={"rank": 3})}, "recipe.adapter.rank differs: got 3; expected 8"),
        ({"log": other}, f'data differs: got "{other.digest}"; expected "{little.digest}"'),
    ):
        with pytest.raises(InputError, match=message):
            cross(**options)
    (tmp_path / "folds" / "crossval.json").write_text("{")
    with pytest.raises(InputError, match="crossval.json is damaged"):
        cross()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_means_and_writes_json(little, wanted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    little.write("data")
    raw = wanted.model_copy(update={"data": wanted.data.model_copy(update={"path": "data"})})
    (tmp_path / "like.yaml").write_text(raw.dump())
    assert main(["crossval", "like.yaml", "--folds", "2", "--json", "out/cv.json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "out" / "cv.json").read_text())
    auc = found["tasks"]["like"]["adapter"]["auc"]
    assert f"{auc['mean']:.4f} ± {auc['deviation']:.4f}" in out and "item mean" in out and "over 2 folds of users" in out
    assert "fold 2 of 2: like.auc" in err and (tmp_path / "runs/like/crossval-2/fold-1/metrics.json").is_file()
    for arguments, message in (
        (["like.yaml"], "genre: missing option '--folds'"),
        (["like.yaml", "--folds", "1"], "genre: folds: got 1"),
        (["like.yaml", "--folds", "two"], "genre: invalid value for '--folds'"),
        (["like.yaml", "--folds", "2", "--seed", "5"], "genre: the cross-validation is of another run: seed differs"),
        (["nope.yaml", "--folds", "2"], "genre: no recipe nope.yaml"),
        (["like.yaml", "--folds", "2", "--out", "like.yaml"], "genre: the folder to work in is a file"),
        (["like.yaml", "--folds", "2", "--out", "data"], "genre: data holds other files: got no crossval.json"),
    ):
        assert main(["crossval", *arguments]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(message), arguments
