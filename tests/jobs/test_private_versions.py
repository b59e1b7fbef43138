"""What a private version holds: nothing but noise is left of it once the mechanisms see no user, and every leak is found.

Two logs have the same users and catalogue and no event in common. With the noise fixed and the sums over users set to zero, all
that a version still tells of them came past the noise.
"""

import json

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import LIKE, NEXT, RATING, private_recipe
from genre.data.interactions import Interactions
from genre.errors import JobError, ManifestError, RecipeError
from genre.jobs import encoders, publish
from genre.jobs import train as jobs_train
from genre.jobs.merge.job import check_mergeable
from genre.jobs.refresh.plan import RefreshOptions, read_recipe
from genre.jobs.train import finish, train
from genre.jobs.tuning.curves import learning_curve
from genre.jobs.tuning.trials import Objective
from genre.modules.base.base import Base
from genre.privacy import public_only
from genre.progress import Reporter
from genre.registry import MetricValue, Registry
from genre.training import assembly as wiring
from genre.training import fit, loop, neighbours, parts
from genre.training.assembly import assemble, fit_vocabulary
from genre.training.private import steps
from genre.training.private.gradients import UserGradients
from genre.training.private.noise import Noise
from genre.training.private.statistics import total_of
from genre.training.private.table import check_sources, entries

pytest.importorskip("opacus", reason="the extra privacy")


def other_log(log: Interactions, *, keep: str | None = None) -> Interactions:
    """Other events of the same users on the same catalogue: other items, ratings, numbers and times; one user's may stay."""
    draw = np.random.default_rng(11)
    rows = []
    for number, user in enumerate(log.user_ids):
        for step, item in enumerate(draw.choice(12, size=12 - number % 3, replace=False)):
            rating = float(draw.choice([3, 4, 5], p=[0.2, 0.3, 0.5]) if item % 3 else draw.choice([1, 2, 3]))
            rows.append((user, log.catalogue.item_ids[item], rating, 5_000_000 + 700 * step + number))
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    if keep is not None:
        own = log.frame.filter(pl.col("user_id") == keep).select(events.columns).cast(events.schema)
        events = pl.concat([events.filter(pl.col("user_id") != keep), own])
    return Interactions.from_frame(events, items=log.catalogue.frame, users=log.users, name=log.info.name)


@pytest.fixture(scope="module")
def two_logs(log):
    return log, other_log(log)


@pytest.fixture
def no_signal(monkeypatch):
    """The mechanisms release noise alone, which a seed fixes."""
    true = Noise.release
    monkeypatch.setattr(
        Noise, "release", lambda self, total, clip, sigma: true(self, torch.zeros_like(total), clip=clip, sigma=sigma)
    )


def version_of(tiny, folder, log, *tasks, **options):
    """Everything that publishing takes: the files of adapter and encoder, and the manifests, as one mapping of values."""
    base = Base.load(str(tiny))
    recipe = private_recipe(
        tiny,
        *(tasks or (NEXT, LIKE, RATING)),
        **{"epochs": 1, "privacy": {"noise_seed": 3}, "train": {"batch_tokens": 4096}, **options},
    )
    assembly = assemble(recipe, log, base)
    try:
        fitted = fit(assembly, folder)
        run = finish(fitted, folder, {}, None, Reporter.silent())
    finally:
        assembly.model.release()
    encoder = next((folder / "registry").glob("encoder-planted-public/*/manifest.json"))
    return {
        **files_of(run.folder),
        **{f"encoder/{name}": value for name, value in files_of(encoder.parent).items() if name != "manifest.json"},
        **{f"manifest.json:{key}": value for key, value in flat(run.manifest.raw()).items()},
        **{f"encoder/manifest.json:{key}": value for key, value in flat(json.loads(encoder.read_text())).items()},
    }


def files_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def flat(raw, path=""):
    children = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else None
    if children is None:
        return {path: raw}
    found = {}
    for key, child in children:
        if path or key not in ("created", "provenance", "checksum"):
            found |= flat(child, f"{path}.{key}" if path else str(key))
    return found


def differences(one, two):
    """What two versions do not have alike."""
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": {"whiten": True, "neighbours": 3}},
        {"encoder": {"whiten": True}, "privacy": {"noise_seed": 3, "item_map": 0.4, "ngrams": 4}},
    ],
    ids=["neighbours", "item_map"],
)
def test_a_version_tells_nothing_of_any_user_that_did_not_pass_the_noise(tiny, two_logs, tmp_path, no_signal, options):
    one, two = (version_of(tiny, tmp_path / str(number), log, **options) for number, log in enumerate(two_logs))
    assert differences(one, two) == []
    assert len(one) > 150 and {"heads.safetensors", "adapter_model.safetensors", "encoder/encoder.safetensors"} <= one.keys()


def test_with_the_signal_versions_differ_where_the_table_says(tiny, two_logs, tmp_path):
    one, two = (version_of(tiny, tmp_path / str(number), log) for number, log in enumerate(two_logs))
    assert differences(one, two) == ["adapter_model.safetensors", "heads.safetensors"]


# --- leaks that are planted ---------------------------------------------------------------------------------------------


def keeping(**kept):
    """`public_only` with some of what it turns off still on."""

    def leaky(recipe):
        private = public_only(recipe)
        return private.model_copy(update={"encoder": private.encoder.model_copy(update=kept)})

    return lambda patch: patch.setattr(wiring, "public_only", leaky)


def item_starts(patch):
    """Heads start at item counts and item means as without privacy."""
    true = wiring._make_model

    def make(recipe, log, base, heads, soft, train_mask):
        patch.setattr(wiring, "start_from_values", lambda model, builder: parts.start_item_heads(model, builder, train_mask))
        return true(recipe, log, base, heads, soft, train_mask)

    patch.setattr(wiring, "_make_model", make)


def label_moments(patch):
    """Priors and moments of heads are those of the labels."""
    true = parts.make_heads

    def make(recipe, base, builder, train_mask, **more):
        labels = builder.data.labels_of
        patch.setattr(parts, "public_start", lambda task, config: parts.label_statistics(task, labels(task)[train_mask]))
        return true(recipe, base, builder, train_mask, **more)

    patch.setattr(wiring, "make_heads", make)


def occurring_values(patch):
    patch.setattr(
        wiring, "declared_vocabulary", lambda column, log, config: fit_vocabulary(column, log, np.ones(len(log), dtype=bool))
    )


def few_events(patch):
    patch.setattr(parts, "least_events", lambda recipe: 4)


def statistics_without_noise(patch):
    patch.setattr(steps, "release", lambda assembly, chosen, noise, sigma: total_of(assembly, chosen))


def gradients_without_noise(patch):
    """A head's bias moves along the users' own gradient, beside the noisy step."""
    true = steps.PrivateSteps.stepped

    def stepped(self):
        users = [
            [row]
            for row in self.assembly.builder.training_rows(self.assembly.train_mask, None, max_events=16, min_events=1)[0][:4]
        ]
        found = self.gradients.clipped(users, self.assembly.builder.data.supervise(list(self.assembly.recipe.tasks)), 1.0)
        next(iter(self.parameters.values())).data.view(-1)[0] += 1e-3 * float(found.total.sum())
        true(self)

    patch.setattr(steps.PrivateSteps, "stepped", stepped)


def chosen_on_validation(patch):
    """The weights of the epoch that validation likes best are kept."""
    true = loop.Loop.validate

    def validate(self):
        private, self.private = self.private, None
        true(self)
        self.private = private

    patch.setattr(loop.Loop, "validate", validate)


def fitted_neighbours(patch):
    """The neighbours by text of a private run are those by co-occurrence."""
    made = wiring.RowBuilder
    patch.setattr(wiring, "public_only", lambda recipe: with_text_neighbours(public_only(recipe)))
    patch.setattr(wiring, "RowBuilder", lambda log, layout: (seen.clear(), seen.append(log), made(log, layout))[2])
    true, seen = neighbours.public_neighbours, []

    def public(index, *options):
        found = true(index, *options)
        found.values[:, 0] = torch.from_numpy(np.bincount(seen[0].item_codes, minlength=len(found.values)))
        return found

    patch.setattr(neighbours, "public_neighbours", public)


def with_text_neighbours(recipe):
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"whiten": True, "neighbours": 3})})


def counted_catalogue(patch):
    true = publish.write_catalogue

    def write(folder, catalogue, columns):
        true(folder, catalogue, columns)
        file = folder / publish.CATALOGUE
        lines = sorted(file.read_text().splitlines(), key=lambda line: -counts[json.loads(line)["item_id"]])
        file.write_text("\n".join(lines) + "\n")

    made = wiring.RowBuilder

    def builder(log, layout):
        counts.update(
            zip(log.catalogue.item_ids, np.bincount(log.item_codes, minlength=log.catalogue.size).tolist(), strict=True)
        )
        return made(log, layout)

    counts: dict[str, int] = {}
    patch.setattr(wiring, "RowBuilder", builder)
    patch.setattr(publish, "write_catalogue", write)


def told_data(patch):
    true = publish._manifest

    def manifest(assembly, **fields):
        made = true(assembly, **fields)
        told = made.data.model_copy(update={"digest": assembly.data.digest, "rows": int(assembly.train_mask.sum())})
        return made.model_copy(update={"data": told})

    patch.setattr(publish, "_manifest", manifest)


def told_cost(patch):
    true = jobs_train.Cost
    patch.setattr(jobs_train, "Cost", lambda **given: true(**{"tokens": 9_999, **given}))


def told_metrics(patch):
    patch.setattr(steps.PrivateSteps, "publishes_metrics", property(lambda self: True))
    patch.setattr(jobs_train, "untied_metrics", lambda *given: {"like": {"auc": {"value": 0.7}}})


def told_examples(patch):
    true = jobs_train.write_adapter

    def write(folder, assembly):
        true(folder, assembly)
        (folder / "examples.json").write_text(json.dumps({"users": assembly.log.user_ids[:3]}))

    patch.setattr(jobs_train, "write_adapter", write)


def told_thresholds(patch):
    """A buffer of a head that nothing accounts for, such as a threshold or a calibration."""
    make = wiring.make_heads

    def heads(recipe, base, builder, train_mask, **more):
        found = make(recipe, base, builder, train_mask, **more)
        for head in found.values():
            head.register_buffer("threshold", torch.tensor(0.0))
        return found

    patch.setattr(wiring, "make_heads", heads)


LEAKS = {
    "item counts and means": item_starts,
    "priors and moments of labels": label_moments,
    "feedback values that occur": occurring_values,
    "items with few events": few_events,
    "collaborative vectors": keeping(collaborative=4),
    "item factors": keeping(factors=4),
    "co-occurrence term": keeping(taste=4),
    "item neighbours": fitted_neighbours,
    "statistics without noise": statistics_without_noise,
    "gradients without noise": gradients_without_noise,
    "weights chosen on validation": chosen_on_validation,
    "popularity of the catalogue": counted_catalogue,
    "digest and size of the data": told_data,
    "cost": told_cost,
    "metrics": told_metrics,
    "examples": told_examples,
    "thresholds": told_thresholds,
}


QUICK = ("item counts and means", "co-occurrence term", "cost")


@pytest.mark.parametrize("leak", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LEAKS])
def test_a_planted_leak_is_found(tiny, two_logs, tmp_path, no_signal, monkeypatch, leak):
    """Either the run is refused, naming what its budget does not, or two versions differ though no user was seen.

    Most are slow: each trains twice, a minute in all.
    """
    found = []
    try:
        for number, log in enumerate(two_logs):
            with monkeypatch.context() as patch:
                LEAKS[leak](patch)
                options = (
                    {"epochs": 3, "privacy": {"noise_seed": 3, "clip": 20}} if leak == "weights chosen on validation" else {}
                )
                found.append(version_of(tiny, tmp_path / str(number), log, **options))
    except JobError as error:
        assert "a private version holds what its budget does not name" in str(error) or "not as private as accounted for" in str(
            error
        )
        return
    assert differences(*found)


# --- the gradient of a user depends on that user alone ------------------------------------------------------------------


def own_gradient(tiny, log, user, **sections):
    """The gradient of one user in a run over a log, with dropout and draws that a seed fixes."""
    base = Base.load(str(tiny))
    assembly = assemble(private_recipe(tiny, NEXT, LIKE, RATING, **sections), log, base)
    try:
        gradients = UserGradients(assembly.model.train(), assembly.model.trainable(), tokens=10_000)
        rows = assembly.builder.training_rows(assembly.train_mask, None, max_events=16, min_events=1)[0]
        own = [row for row in rows if log.user_codes[row.events[0]] == user]
        torch.manual_seed(5)
        return gradients.clipped([own], assembly.builder.data.supervise(list(assembly.recipe.tasks)), 1e6).total
    finally:
        assembly.model.release()


def many_negatives(patch):
    """Negatives drawn by popularity: a user's gradient would tell how often others saw an item."""
    true = wiring.Negatives

    def negatives(counts, size, cold=None):
        return true(np.bincount(seen[0].item_codes, minlength=len(counts)), size, cold)

    seen = []
    made = wiring.RowBuilder
    patch.setattr(wiring, "RowBuilder", lambda log, layout: (seen.clear(), seen.append(log), made(log, layout))[2])
    patch.setattr(wiring, "Negatives", negatives)


def common_cut(patch):
    """A split at a time that all events decide."""
    from genre.data.split_config import SplitConfig
    from genre.data.splits import TRAIN, split

    def chosen(recipe, log):
        found = split(log, SplitConfig(kind="temporal"))
        return found, found.part == TRAIN

    patch.setattr(wiring, "training_split", chosen)


NONE = {"sampled": {"above": 5, "negatives": 6}, "dropout": 0.2}


@pytest.mark.parametrize("leak", [None, many_negatives, common_cut, item_starts, label_moments])
def test_the_gradient_of_a_user_is_a_function_of_that_users_events(tiny, log, monkeypatch, leak):
    """All other users have other events: the user's gradient stays the same, to the bit; planted leaks move it."""
    user = 7
    other = other_log(log, keep=log.user_ids[user])
    found = []
    for each in (log, other):
        with monkeypatch.context() as patch:
            if leak is not None:
                leak(patch)
            found.append(own_gradient(tiny, each, each.user_ids.index(log.user_ids[user]), train=NONE))
    assert torch.equal(*found) == (leak is None)


# --- tables and refusals --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tiny, log, tmp_path_factory):
    """A private joint version, trained and published as anybody would."""
    folder = tmp_path_factory.mktemp("private")
    registry = Registry(folder / "registry")
    run = train(private_recipe(tiny, NEXT, LIKE, RATING), log=log, registry=registry, folder=folder / "run", baselines="none")
    return registry, run, registry.publish(run)


def test_a_published_version_carries_its_budget_and_no_figure_of_its_users(published, log):
    registry, run, version = published
    manifest = version.manifest
    found = manifest.notes["privacy"]
    assert (found["unit"], found["epsilon"], found["private"]) == ("user", 8, True) and 7.9 < found["spent"] <= 8
    assert [each["name"] for each in found["mechanisms"]] == ["statistics", "steps"]
    assert found["mechanisms"][1] | {"sigma": 0, "epsilon": 0} == {
        **{"name": "steps", "sigma": 0, "clip": 1.0, "sample_rate": pytest.approx(1 / 3), "steps": 9, "epsilon": 0}
    }
    assert manifest.metrics == {} and (manifest.data.digest, manifest.data.rows, manifest.data.time_span) == ("withheld", 0, None)
    assert (manifest.cost.tokens, manifest.cost.seconds) == (0, 0) and run.metrics["like"]["auc"]["value"] > 0
    assert log.digest not in json.dumps(manifest.raw()) and str(len(log)) not in json.dumps(manifest.raw()["data"])
    assert found["sources"]["heads.safetensors:like.linear.weight"] == "steps"
    assert found["sources"]["heads.safetensors:rating.moments"] == "statistics"
    encoder = registry.resolve("encoder-planted-public").manifest
    assert encoder.notes["privacy"]["mechanisms"] == [] and encoder.data.digest == "withheld"


def test_an_item_map_is_in_the_budget_and_serves(tiny, log, tmp_path):
    registry, base = genre.Registry(tmp_path / "registry"), Base.load(str(tiny))
    wanted = private_recipe(tiny, NEXT, epochs=1, privacy={"item_map": 0.4}, encoder={"whiten": True})
    run = genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run", baselines="none")
    table = run.manifest.notes["privacy"]
    share = {each["name"]: each for each in table["mechanisms"]}["item_map"]
    assert share["steps"] == 10 and share["epsilon"] <= 0.4 * table["epsilon"] and table["spent"] <= table["epsilon"]
    assert table["sources"]["heads.safetensors:next_item.memory.weight"] == "item_map"
    assert table["sources"]["heads.safetensors:next_item.key.weight"] == "statistics"
    registry.publish(run)
    found = genre.evaluate(registry, "next_item", log, base, baselines="none")
    assert {name: both["adapter"] for name, both in found["tasks"].items()} == run.metrics


def test_every_entry_of_a_version_has_a_source_and_an_unknown_one_is_refused(published, tmp_path):
    _, run, version = published
    raw = version.manifest.raw()
    assert sum(1 for _ in entries(run.folder, raw)) > 100
    check_sources(run.folder, raw)
    for change, name in (
        ({"metrics": {"like": {"auc": {"value": 0.7, "interval": None, "n": 4}}}}, "manifest.json:metrics.like.auc.value"),
        ({"cost": raw["cost"] | {"tokens": 17}}, "manifest.json:cost.tokens"),
        ({"data": raw["data"] | {"rows": 17}}, "manifest.json:data.rows"),
        ({"data": raw["data"] | {"time_span": [1, 2]}}, "manifest.json:data.time_span.0"),
        ({"notes": raw["notes"] | {"untied": {"like": 1}}}, "manifest.json:notes.untied.like"),
    ):
        with pytest.raises(JobError, match=f"what its budget does not name: got {name}"):
            check_sources(run.folder, raw | change)


def test_figures_of_baselines_are_recorded_beside_public_versions_alone(published, trained):
    registry, run, version = published
    found = {"like": {"popularity": {"auc": {"value": 0.6, "interval": None, "n": 3}}}}
    registry.record_baselines(version, found)
    assert version.manifest.withholds_figures and registry.baselines(version) is None
    assert not trained.registry.resolve("like").manifest.withholds_figures


def test_a_precision_that_the_recipe_names_is_published(tiny, log, tmp_path):
    recipe = private_recipe(tiny, RATING, NEXT, epochs=1, encoder={"fuse": False}).with_values({"base.precision": "bfloat16"})
    notes = train(recipe, log=log, folder=tmp_path / "run", baselines="none").manifest.notes
    sources = notes["privacy"]["sources"]
    assert notes["precision"] == "bfloat16" and sources["manifest.json:notes.precision"] == "recipe"
    assert sources["heads.safetensors:rating.moments"] == "recipe"  # statistics start next_item alone


def test_metrics_are_published_where_the_recipe_declares_them_public(tiny, log, tmp_path):
    recipe = private_recipe(tiny, LIKE, epochs=1, privacy={"metrics": "public"})
    run = train(recipe, log=log, folder=tmp_path / "run", baselines="none")
    assert run.manifest.metrics["like"]["auc"].value > 0 and "metrics" in run.manifest.notes["privacy"]["public"]


def test_an_encoder_that_knows_events_is_refused_and_a_public_one_shared(tiny, log, trained, published, tmp_path):
    registry, _, version = published
    shared = train(private_recipe(tiny, LIKE, epochs=1), log=log, registry=registry, folder=tmp_path / "a", baselines="none")
    assert shared.encoder is None and shared.manifest.encoder == version.manifest.encoder
    named = private_recipe(tiny, LIKE, epochs=1, encoder={"use": "encoder-planted"})
    with pytest.raises(ManifestError, match="a private recipe needs an encoder that was fitted to no event"):
        encoders.find_encoder(named, log, Base.load(str(tiny)), trained.registry, Reporter.silent())


def test_what_would_read_the_events_again_is_refused(tiny, log, published, tmp_path):
    registry, _, version = published
    with pytest.raises(ManifestError, match="is private: the gate of a merge reads its users' events without noise"):
        check_mergeable([version, version])
    with pytest.raises(RecipeError, match="each would spend the budget of train.privacy anew"):
        Objective(private_recipe(tiny, LIKE), log)
    with pytest.raises(RecipeError, match="each would spend the budget of train.privacy anew"):
        learning_curve(private_recipe(tiny, NEXT), tmp_path / "curve")
    with pytest.raises(
        ManifestError, match="would spend its budget again: .*; train it from the start: genre refresh .* --from-start"
    ):
        read_recipe(registry, version, RefreshOptions())


def test_a_promotion_tells_no_figure_of_a_private_version(published):
    registry, run, version = published
    figures = {"like": {"auc": MetricValue(value=0.7123)}}
    measured = {version.digest: version.manifest.model_copy(update={"metrics": figures})}
    move = registry.promote(version, "checked", floor={"auc": 0.5}, checks=["read by Ann"], measured=measured)
    assert move.checks == ("read by Ann", "compared; the figures are withheld (train.privacy.metrics)")
