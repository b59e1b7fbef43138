"""`genre train A.yaml B.yaml`: what is trained first, what is shared, published, resumed, refused."""

import json
from pathlib import Path

import pytest
import torch

import genre
from builders import LIKE, RATING, recipe, write_recipe
from genre import cli
from genre.errors import InputError, InterruptedJobError, RecipeError
from genre.jobs.train_several import train_together
from genre.progress import Reporter
from genre.training import Loop

ONCE = {"epochs": 1}


def ends(process_of, capsys, *words):
    code = cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    assert code == process_of, shown.err
    return shown


def weights(run):
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["best"]


def test_the_encoder_is_fitted_first_and_the_others_train_at_once(place, capsys):
    said = ends(0, capsys, "train", "next_item.yaml", "like.yaml", "rating.yaml", "--json", "out.json")
    assert "next_item fits an encoder, and is trained alone and first" in said.err
    assert said.err.count("using the encoder encoder-planted") == 2 and "like: epoch 1: validation like.auc" in said.err
    assert "tokens were padding" in said.err
    assert [line.split(":")[0] for line in said.out.splitlines() if line.startswith("published")] == [
        "published next_item",
        "published like",
        "published rating",
    ]
    runs = json.loads((place / "out.json").read_text())["runs"]
    assert list(runs) == ["next_item", "like", "rating"] and runs["like"]["run"] == "runs/like/1"
    registry = genre.Registry("registry")
    digests = {registry.resolve(name).manifest.encoder for name in runs}
    assert digests == {registry.resolve("encoder-planted").digest} and runs["like"]["metrics"]["like"]["auc"]["n"] > 50
    assert {path.name for path in (place / "runs" / "like" / "1").iterdir()} >= {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "metrics.json",
        "checkpoints",
        "version",
    }


def test_each_is_what_it_is_when_the_recipes_are_trained_one_after_the_other(place, capsys):
    for name in ("next_item", "like", "rating"):
        ends(0, capsys, "train", f"{name}.yaml", "--registry", "one", "--out", f"one-{name}")
    ends(0, capsys, "train", "next_item.yaml", "like.yaml", "rating.yaml", "--registry", "many", "--out", "many")
    for name in ("next_item", "like", "rating"):
        alone, together = weights(place / f"one-{name}"), weights(place / "many" / name)
        assert alone.keys() == together.keys()
        assert max((alone[key] - together[key]).abs().max().item() for key in alone) < 1e-4


def test_text_recipes_need_no_encoder_and_train_at_once(place, capsys, tiny):
    text = {"sequence": {"item": "text"}, "encoder": {"use": "none"}}
    files = [write_recipe(tiny, LIKE, name="words", **text), write_recipe(tiny, RATING, name="stars", **text)]
    said = ends(0, capsys, "train", *files, "--tokens-at-once", "100000")
    assert "alone and first" not in said.err and "published words" in said.out and "published stars" in said.out


def test_a_group_that_was_interrupted_goes_on(place, tiny, base, log, monkeypatch):
    """Cut while the group trains, after the encoder's recipe has ended; nothing is trained twice."""
    recipes = [genre.Recipe.read(f"{name}.yaml") for name in ("next_item", "like", "rating")]
    through = train_together(recipes, base=base, registry=genre.Registry("one"), folder="through")
    registry, done, steps, count = genre.Registry("two"), [], [], Loop.account

    def cut(self, *given, **named):
        count(self, *given, **named)
        steps.append(self.recipe.name)
        if steps.count("rating") == 3 and not done.count("cut"):
            done.append("cut")
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "account", cut)
    with pytest.raises(InterruptedJobError, match="interrupted: like after step 0, rating after step 0: got Ctrl-C; the same"):
        train_together(recipes, base=base, registry=registry, folder="cut", on_run=lambda run: done.append(run.manifest.name))
    assert done == ["next_item", "cut"] and base.occupied_by is None
    again = train_together(recipes, base=base, registry=registry, folder="cut", resume=True)
    for one, other in zip(through, again, strict=True):
        wanted, got = weights(one.root), weights(other.root)
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)
        assert one.metrics == other.metrics and one.manifest.encoder == other.manifest.encoder
    assert steps.count("next_item") == len((place / "cut" / "next_item" / "log.jsonl").read_text().splitlines()) - 1


def test_a_run_that_fails_does_not_keep_the_others_from_the_registry(place, capsys, monkeypatch):
    ends(0, capsys, "train", "next_item.yaml")
    update = Loop.update

    def poison(self, *given):
        found = update(self, *given)
        if self.recipe.name == "rating":
            with torch.no_grad():
                self.model.heads["rating"].linear.bias[0] = float("nan")
        return found

    monkeypatch.setattr(Loop, "update", poison)
    said = ends(1, capsys, "train", "like.yaml", "rating.yaml", "--json", "out.json")
    last = [line for line in said.err.splitlines() if line.startswith("genre: ")]
    assert len(last) == 1 and last[0].startswith("genre: 1 of 2 recipes failed (rating): got rating: the loss of task 'rating'")
    assert list(json.loads((place / "out.json").read_text())["runs"]) == ["like"] and "published like" in said.out
    assert "rating" not in genre.Registry("registry").names()


def test_recipes_of_one_log_share_it_and_those_with_one_encoder_its_vectors(place, base, monkeypatch):
    from genre.jobs import train_several as several

    opened, made, fit = [], [], several.fit_together
    monkeypatch.setattr(several, "open_log", lambda path, **named: opened.append(path) or genre.Interactions.read(path))
    monkeypatch.setattr(several, "fit_together", lambda members, **named: made.extend(members) or fit(members, **named))
    recipes = [genre.Recipe.read(f"{name}.yaml") for name in ("next_item", "like", "rating")]
    train_together(recipes, base=base, registry=genre.Registry("registry"), folder="runs", reporter=Reporter.silent())
    assert opened == ["shop"] and len(made) == 2
    assert made[0].assembly.model.soft is made[1].assembly.model.soft and made[0].assembly.log is made[1].assembly.log


def test_no_run_folder_is_shared_with_another_process(place, base):
    """Another process makes the next folders just after this one has looked for free ones."""

    def begins(*folders):
        left = list(folders)
        return Reporter(lambda text: [Path(left.pop()).mkdir(parents=True) for _ in folders if left])

    registry = genre.Registry("registry")
    recipes = [genre.Recipe.read(f"{name}.yaml") for name in ("next_item", "like", "rating")]
    alone_first = train_together(recipes, base=base, registry=registry, reporter=begins("runs/next_item/1", "runs/like/1"))
    assert [str(run.root) for run in alone_first] == ["runs/next_item/2", "runs/like/2", "runs/rating/1"]
    at_once = train_together(recipes[1:], base=base, registry=registry, reporter=begins("runs/rating/2"))
    assert [str(run.root) for run in at_once] == ["runs/like/3", "runs/rating/3"]
    assert not any(list(Path("runs", taken).iterdir()) for taken in ("next_item/1", "like/1", "rating/2"))


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(place, capsys, *words):
    before = sorted(path for path in place.rglob("*") if path.is_file())
    said = ends(2, capsys, *words).err
    assert sorted(path for path in place.rglob("*") if path.is_file()) == before
    last = [line for line in said.splitlines() if line.startswith("genre: ")]
    assert len(last) == 1
    return last[0].removeprefix("genre: ")


def test_recipes_that_do_not_go_together_are_refused_in_a_line(place, capsys, tiny):
    deep = write_recipe(tiny, LIKE, name="deep")
    (place / deep).write_text((place / deep).read_text().replace("depth: null", "depth: 1"))
    full = write_recipe(tiny, LIKE, name="full", adapter={"kind": "full"})
    cases = {
        ("like.yaml", "like.yaml"): "two recipes have the same name: got like, like",
        (
            "like.yaml",
            deep,
        ): "'deep' differs from 'like' in base.depth: got 1; expected all layers",
        (
            "like.yaml",
            full,
        ): "recipe 'full' cannot train beside others: adapter.kind: got full",
        ("like.yaml", "none.yaml"): "no recipe none.yaml",
        ("like.yaml", "rating.yaml", "--resume"): "there is nothing to resume: got runs/like/1, runs/rating/1",
        ("like.yaml", "--tokens-at-once", "5"): "--tokens-at-once is wrong: got one recipe",
        ("like.yaml", "rating.yaml", "--tokens-at-once", "0"): "--tokens-at-once is wrong: got 0; expected 1 or more",
        ("like.yaml", "rating.yaml", "--out", "like.yaml"): "--out is a file: got like.yaml",
        ("like.yaml", "rating.yaml", "--set", "data.path=nowhere"): "no data set folder: got nowhere",
    }
    for words, message in cases.items():
        assert message in refused(place, capsys, "train", *words), words


def test_an_unusable_recipe_of_a_group_is_refused_before_anything_is_written(place, capsys, tiny):
    ends(0, capsys, "train", "next_item.yaml")
    bad = write_recipe(tiny, LIKE | {"label": "stars > 3"}, name="bad")
    assert "task 'like' needs the feedback column 'stars'" in refused(place, capsys, "train", "like.yaml", bad)


def test_the_python_way_refuses_too(tiny, base, log, tmp_path):
    first = recipe(tiny, LIKE, name="a")
    with pytest.raises(RecipeError, match="two recipes have the same name"):
        train_together([first, first], log=log, base=base, folder=tmp_path)
    with pytest.raises(InputError, match="there is nothing to resume"):
        train_together([first, recipe(tiny, RATING)], log=log, base=base, folder=tmp_path, resume=True)
    assert not list(tmp_path.iterdir())


def test_without_a_registry_each_fits_its_own_encoder_alone(tiny, base, log, tmp_path):
    lines = []
    recipes = [recipe(tiny, LIKE, train=ONCE), recipe(tiny, RATING, train=ONCE)]
    runs = train_together(recipes, log=log, base=base, folder=tmp_path, reporter=Reporter(lines.append))
    assert [run.manifest.name for run in runs] == ["like", "rating"] and all(run.encoder for run in runs)
    assert sum("alone and first" in line for line in lines) == 2 and base.occupied_by is None
