"""Runs that start from a published version: its weights, what is recorded of it, and what is refused."""

import shutil

import pytest
import torch

import genre
from builders import LIKE, NEXT, PRIVACY, recipe, weights
from fakes import planted_log
from genre.data.forgetting import forget_users
from genre.distributed import Processes
from genre.engine.versions import read_adapter
from genre.errors import GenreError, InputError, InterruptedJobError, ManifestError, NotFoundError, RecipeError
from genre.jobs.dry_run import dry_run
from genre.jobs.federated.options import check_federated
from genre.jobs.loading import open_log
from genre.jobs.memory import plan_run
from genre.jobs.refresh.plan import RefreshOptions, read_recipe
from genre.jobs.refresh.without import refresh_without
from genre.jobs.train import wire
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.simultaneous import check_together

DPO = {**NEXT, "loss": "softmax_dpo", "preference": {"negatives": 4}}


@pytest.fixture
def registry(trained, tmp_path):
    shutil.copytree(trained.registry.url, tmp_path / "registry")
    return genre.Registry(tmp_path / "registry")


@pytest.fixture(scope="module")
def base(tiny):
    return genre.Base.load(str(tiny))


def started(tiny, task=DPO, **sections):
    train = {"epochs": 1, "start": "next_item@production", **sections.pop("train", {})}
    return recipe(tiny, task, **sections, train=train)


def test_a_run_starts_at_the_versions_weights_and_names_it(tiny, trained, registry, base, tmp_path):
    lines = []
    version = registry.resolve("next_item@production")
    run = genre.train(
        started(tiny, name="preferred"),
        log=trained.log,
        base=base,
        registry=registry,
        folder=tmp_path / "run",
        reporter=Reporter(lines.append),
        baselines="none",
    )
    assert run.manifest.parents == (version.digest,) and run.encoder is None
    assert run.manifest.encoder == version.manifest.encoder
    assert f"starting from {version.ref}" in lines and any(
        line.startswith("the start: validation next_item.ndcg@10") for line in lines
    )
    kept = genre.Recipe.read(tmp_path / "run" / "recipe.yaml")
    assert kept.train.start == version.ref
    assert kept.encoder.use == registry.find(version.manifest.encoder).ref
    published = registry.publish(run)
    assert [depth for depth, _, _ in registry.lineage(published)] == [0, 1, 1, 2]
    with genre.Engine(base, registry, data=trained.log) as engine:
        answer = engine.score([genre.Request(adapter="preferred", user_id=trained.log.user_ids[0], k=3)])[0]
        assert len(answer.results) == 3


def test_the_weights_are_the_versions_and_the_reference_is_the_version(tiny, trained, registry, base):
    loaded = read_adapter(registry, "next_item@production", base)
    assembly = wire(started(tiny), trained.log, base, registry, Reporter.silent(), Processes())
    try:
        for name, (a, b, _) in loaded.low.items():
            layer = assembly.model.layers[name]
            assert torch.equal(layer.lora_A, a) and torch.equal(layer.lora_B, b) and b.any()
            assert all(torch.equal(*pair) for pair in zip(assembly.model.reference.low[name], (a, b), strict=True))
        head, own = loaded.heads["next_item"].state_dict(), assembly.model.heads["next_item"].state_dict()
        assert all(torch.equal(own[name], head[name]) for name in own)
        assert "taste" not in own  # what is fitted after training is fitted anew
    finally:
        assembly.model.release()


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tiny, trained, registry, base, tmp_path):
    wanted = started(tiny, train={"epochs": 2, "dropout": 0.2, "batch_tokens": 1024})
    found = []
    for stop in (None, 3):
        folder = tmp_path / str(stop)
        for resume in (False, True) if stop else (False,):
            assembly = wire(wanted, trained.log, base, registry, Reporter.silent(), Processes())
            try:
                fit(assembly, folder, resume=resume, stop_at=None if resume else stop)
                found.append(weights(assembly))
            except InterruptedJobError:
                assert stop and not resume
            finally:
                assembly.model.release()
    assert len(found) == 2 and all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_trial_costs_nothing_that_is_left(tiny, trained, registry, base):
    plan = dry_run([started(tiny)], log=trained.log, base=base, registry=registry)
    assert plan.costs[0].recipes == ("next_item",)
    assert plan_run(started(tiny), data=trained.log, registry=registry, device="cpu").step > 0


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"start": "nobody"}}, "nobody"),
        ({"task": LIKE}, "has no task 'like': got next_item"),
        ({"task": {**LIKE, "name": "next_item"}}, 'tasks.next_item.kind differs: got "feedback"; expected "next_item"'),
        ({"adapter": {"rank": 4}}, "adapter.rank differs: got 4; expected 8"),
        ({"adapter": {"kind": "head_only"}}, "adapter.kind differs"),
        ({"sequence": {"instruction": "Other:"}}, "sequence.instruction differs"),
        ({"encoder": {"use": "fit"}}, "goes with its own encoder, which encoder.use changes: got fit"),
        ({"data": {"split": {"kind": "last_n", "n": 3}}}, "was fitted on events that this recipe is evaluated on"),
    ],
)
def test_versions_that_a_recipe_cannot_start_from(tiny, trained, registry, base, tmp_path, sections, message):
    task = sections.pop("task", DPO) if "task" in sections else DPO
    with pytest.raises(GenreError, match=message) as caught:
        genre.train(started(tiny, task, **sections), log=trained.log, base=base, registry=registry, folder=tmp_path / "run")
    assert isinstance(caught.value, NotFoundError | RecipeError | InputError | ManifestError)
    assert not (tmp_path / "run").exists()
    base.need_bare()


def test_a_start_keeps_the_codes_of_its_version(tiny, trained, base, tmp_path):
    registry = genre.Registry(tmp_path / "registry")
    codes, parts = {"levels": 2, "size": 4, "places": 30}, {"base": base, "registry": registry, "baselines": "none"}
    generate = recipe(tiny, {**NEXT, "head": "generate"}, name="coded", encoder={"codes": codes}, train={"epochs": 1})
    parts |= {"log": trained.log, "reporter": Reporter.silent()}
    registry.publish(genre.train(generate, folder=tmp_path / "first", **parts))
    for encoder, fits in (({"codes": {}}, True), ({"codes": codes | {"levels": 3}}, False)):
        wanted = generate.with_values({"train.start": "coded@latest"})
        wanted = wanted.model_copy(update={"encoder": wanted.encoder.model_validate(encoder)})
        if fits:
            wire(wanted, trained.log, base, registry, Reporter.silent(), Processes()).model.release()
        else:
            with pytest.raises(ManifestError, match="other codes of items: got levels 2; expected levels 3"):
                wire(wanted, trained.log, base, registry, Reporter.silent(), Processes())


def test_there_must_be_a_registry(tiny, trained, base, tmp_path):
    with pytest.raises(RecipeError, match="train.start names a version, which needs a registry: got next_item@production"):
        genre.train(started(tiny), log=trained.log, base=base, folder=tmp_path / "run")


def test_jobs_that_start_anew_refuse_it(tiny, trained, registry, base):
    with pytest.raises(RecipeError, match="starts from a version, which genre train alone does"):
        assemble(started(tiny), trained.log, base)
    with pytest.raises(RecipeError, match="federated training starts anew"):
        check_federated(started(tiny, NEXT))
    with pytest.raises(RecipeError, match="cannot train beside others: train.start: got next_item@production"):
        check_together([started(tiny, NEXT), recipe(tiny, NEXT, name="other")])
    with pytest.raises(RecipeError, match=r"train.privacy: train.start goes on from weights"):
        started(tiny, NEXT, data={"split": {"kind": "last_n"}}, train={"privacy": PRIVACY})
    with pytest.raises(RecipeError, match="adapter.kind no_base trains none"):
        started(tiny, NEXT, adapter={"kind": "no_base"})
    with pytest.raises(RecipeError, match="a refresh can only change how a version is trained"):
        RefreshOptions(overrides=("train.start=like",)).check()


def test_users_who_were_forgotten_do_not_come_back_by_a_start(tiny, base, tmp_path, monkeypatch):
    """A version that starts from another is found by the other's users, and is not trained anew from what saw them."""
    monkeypatch.chdir(tmp_path)
    planted_log(users=16, items=16, events=8).write(tmp_path / "shop")
    registry = genre.Registry(tmp_path / "registry")
    for wanted in (
        recipe(tiny, NEXT, data={"path": "shop"}, train={"epochs": 1}),
        started(tiny, data={"path": "shop"}, name="preferred", train={"start": "next_item"}),
    ):
        run = genre.train(wanted, base=base, registry=registry, folder=tmp_path / wanted.name, baselines="none")
        registry.publish(run)
    with pytest.raises(ManifestError, match="the recipe starts from next_item:.*, whose weights .*--set train.start="):
        refresh_without(registry, "preferred", open_log("shop"), ["u3"], base=base)
    forget_users(tmp_path / "shop", ["u3"])
    again = started(tiny, data={"path": "shop"}, train={"start": "next_item"})
    with pytest.raises(ManifestError, match="was trained on users who were forgotten since"):
        genre.train(again, base=base, registry=registry, folder=tmp_path / "again")
    assert read_recipe(registry, registry.resolve("preferred"), RefreshOptions()).train.start is not None
