"""The loop: what trains, resuming bit for bit, divergence, learning a planted preference, early stop, kinds of adapter."""

import json
import re

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import LIKE, NEXT, RATING, recipe, weights, with_values
from genre.errors import DivergedError, InputError, JobError, RecipeError
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import TrainConfig
from genre.training import Loop, fit, loop
from genre.training.assembly import assemble
from genre.training.optimization import learning_rate


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "parts"),
    [
        ({}, {"lora", "heads", "encoder"}),
        ({"kind": "rslora", "dropout": 0.1}, {"lora", "heads", "encoder"}),
        ({"targets": ["q_proj"], "layers": [0]}, {"lora", "heads", "encoder"}),
        ({"kind": "head_only"}, {"heads", "encoder"}),
    ],
    ids=["lora", "rslora", "one linear", "head_only"],
)
def test_exactly_the_adapters_parameters_train(build, base, tmp_path, adapter, parts):
    """Everything of the adapter moves in one epoch, and nothing of the base, bit for bit."""
    frozen = {name: value.clone() for name, value in base.model.state_dict().items()}
    assembly = build(LIKE, adapter=adapter, train={"epochs": 1})
    before = weights(assembly)
    assert {"lora" if "lora_" in name else name.split(".")[0] for name in before} == parts
    fitted = fit(assembly, tmp_path)
    after = weights(assembly)
    assert all(not torch.equal(before[name], after[name]) for name in after)
    assembly.model.release()
    now = base.model.state_dict()
    assert now.keys() == frozen.keys() and all(torch.equal(now[name], frozen[name]) for name in frozen)
    assert not any(value.requires_grad for value in base.model.parameters())
    assert fitted.state.epoch == 1 and fitted.state.tokens > fitted.state.targets > 500 and fitted.peak_memory_bytes > 0


def test_a_shared_encoder_does_not_train(base, tiny, log, trained, tmp_path):
    from genre.engine.versions import read_encoder

    digest = trained.registry.resolve("encoder-planted").digest
    shared = read_encoder(trained.registry, digest, base)
    before = {name: value.clone() for name, value in shared.encoder.state_dict().items()}
    assembly = assemble(recipe(tiny, LIKE, train={"epochs": 1}), log, base, shared)
    try:
        fit(assembly, tmp_path)
    finally:
        assembly.model.release()
    after = shared.encoder.state_dict()
    assert not assembly.fits_encoder and all(torch.equal(before[name], after[name]) for name in before)


def test_a_stray_parameter_is_refused(build, base, tmp_path):
    assembly = build(LIKE)
    base.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(JobError, match="the wrong parameters train: got .*embed_tokens.*; expected those of a lora adapter"):
        fit(assembly, tmp_path)


def test_full_trains_the_whole_base(log, tiny, tmp_path):
    own = Base.load(str(tiny))
    assembly = assemble(recipe(tiny, LIKE, adapter={"kind": "full"}, train={"epochs": 1, "learning_rate": 1e-3}), log, own)
    before = weights(assembly)
    fitted = fit(assembly, tmp_path)
    after = weights(assembly)
    body = [name for name in before if name.startswith("base.")]
    assert len(body) == len(list(own.model.parameters())) and fitted.state.epoch == 1
    assert all(not torch.equal(before[name], after[name]) for name in body if "embed" not in name)
    assembly.model.release()


def test_full_gives_the_base_back_as_it_was_and_is_not_published(log, tiny, tmp_path):
    own = Base.load(str(tiny))
    frozen = {name: value.clone() for name, value in own.model.state_dict().items()}
    wanted = recipe(tiny, LIKE, adapter={"kind": "full"}, train={"epochs": 1, "learning_rate": 1e-3})
    run = genre.train(wanted, log=log, base=own, folder=tmp_path)
    after = own.model.state_dict()
    assert all(torch.equal(after[name], frozen[name]) for name in frozen)
    assert own.occupied_by is None and not any(value.requires_grad for value in own.model.parameters())
    assert run.metrics["like"]["auc"]["n"] > 50
    with pytest.raises(RecipeError, match="a run for comparison is not published: got adapter.kind full"):
        genre.Registry(tmp_path / "registry").publish(run)


# --- stop and go on --------------------------------------------------------------------------------------------------

DROPOUT = {"train": {"dropout": 0.3, "epochs": 2, "average": 0.9}, "adapter": {"dropout": 0.2}}


@pytest.mark.parametrize("where", ["first epoch", "end of an epoch", "second epoch"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(build, tmp_path, where):
    """With dropout everywhere and averaged weights: weights, validation history and counters."""
    through = fit(build(LIKE, NEXT, **DROPOUT), tmp_path / "through")
    wanted, steps = weights(through.assembly), through.state.step
    stop = {"first epoch": 3, "end of an epoch": steps // 2, "second epoch": steps - 2}[where]
    with pytest.raises(JobError):
        fit(build(LIKE, NEXT, **DROPOUT), tmp_path / "cut", stop_at=stop)
    resumed = fit(build(LIKE, NEXT, **DROPOUT), tmp_path / "cut", resume=True)
    assert same(weights(resumed.assembly), wanted)
    assert resumed.state.history == through.state.history
    for name in ("epoch", "step", "targets", "tokens", "best_value", "best_epoch"):
        assert getattr(resumed.state, name) == getattr(through.state, name), name


def test_the_best_weights_survive_an_interruption(build, tmp_path, monkeypatch):
    """The first epoch was the best; the run is cut in the second and goes on to its end."""
    kept, values = [], iter([0.9, 0.5])

    def record(assembly, processes):
        kept.append(weights(assembly))
        return {"like.auc": next(values)}

    monkeypatch.setattr(loop, "validation_metrics", record)
    with pytest.raises(JobError):
        fit(build(LIKE), tmp_path, stop_at=12)
    assert len(kept) == 1
    resumed = fit(build(LIKE), tmp_path, resume=True)
    assert len(kept) == 2 and not same(kept[0], kept[1])
    assert same(weights(resumed.assembly), kept[0]) and resumed.state.best_value == 0.9


def test_an_interrupted_run_leaves_a_checkpoint_and_says_how_to_go_on(build, tmp_path):
    with pytest.raises(JobError) as error:
        fit(build(LIKE), tmp_path, stop_at=2)
    text = str(error.value)
    assert text.startswith("interrupted after step 2: got Ctrl-C") and "--resume" in text and "\n" not in text
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]
    payload = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert payload["state"]["step"] == 2 and payload["state"]["batch"] == 2
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(line["loss"] > 0 for line in lines)


def test_what_cannot_be_resumed_is_refused(build, tmp_path):
    with pytest.raises(InputError, match="there is nothing to resume: got .*; expected checkpoints/last.pt"):
        fit(build(LIKE), tmp_path, resume=True)
    with pytest.raises(JobError):
        fit(build(LIKE), tmp_path, stop_at=1)
    with pytest.raises(InputError, match="the checkpoint is of another recipe: got .*heads.like"):
        fit(build(RATING), tmp_path, resume=True)


# --- divergence ------------------------------------------------------------------------------------------------------


class Poisoned(Loop):
    """A loop that turns one value bad after some steps."""

    def step(self, rows, share):
        if self.state.step == 3:
            with torch.no_grad():
                self.poison()
        return super().step(rows, share)

    def poison(self):
        self.model.heads["rating"].linear.weight[0, 0] = float("nan")


@pytest.fixture
def poisoned(monkeypatch):
    monkeypatch.setattr("genre.training.fitting.Loop", Poisoned)
    return Poisoned


def test_a_loss_of_nan_names_its_task_and_keeps_the_last_checkpoint(build, tmp_path, poisoned):
    with pytest.raises(DivergedError) as error:
        fit(build(LIKE, RATING, train={"checkpoint_every": 1}), tmp_path)
    assert str(error.value).startswith("the loss of task 'rating' is not finite: got nan; expected a finite loss")
    payload = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert payload["state"]["step"] == 3
    assert all(torch.isfinite(value).all() for value in payload["weights"].values())


def test_a_huge_label_names_its_task_and_its_events(build, tmp_path, poisoned, monkeypatch):
    """1e38 squares to infinity; a log's own ratings are bounded, so it is put behind the reader's back."""

    def poison(self):
        slot, labels = self.labels["rating"]
        self.labels["rating"] = (slot, labels * 0 + 1e38)

    monkeypatch.setattr(poisoned, "poison", poison)
    with pytest.raises(DivergedError) as error:
        fit(build(RATING, train={"checkpoint_every": 1}), tmp_path)
    text = str(error.value)
    assert text.startswith("the loss of task 'rating' is not finite: got inf")
    assert re.search(r"; 140 of 140 targets: row \d+ \(user u\d+, item i\d+\), .* and 137 more; look at them", text)
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["state"]["step"] == 3


def test_a_rating_of_1e38_never_reaches_training(log):
    with pytest.raises(AssertionError):  # the row is skipped and counted, so that events no longer line up
        with_values(log, rating={5: 1e38})


def test_a_gradient_that_is_not_finite_is_named_by_its_step(build, tmp_path, poisoned, monkeypatch):
    def poison(self):
        for layer in self.model.layers.values():
            layer.lora_B.register_hook(lambda gradient: gradient * float("inf"))

    monkeypatch.setattr(poisoned, "poison", poison)
    assembly = build(LIKE, train={"checkpoint_every": 1})
    with pytest.raises(DivergedError, match="a gradient is not finite at step 3: got (nan|inf)"):
        fit(assembly, tmp_path)
    assert all(torch.isfinite(value).all() for value in assembly.model.trainable().values())
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["state"]["step"] == 3


def test_training_that_changes_nothing_is_a_failure(build, tmp_path, monkeypatch):
    monkeypatch.setattr(Loop, "step", lambda self, rows, progress: loop.StepResult(1, {}, {}, torch.zeros(2)))
    with pytest.raises(DivergedError, match="weights did not change in training"):
        fit(build(LIKE, train={"epochs": 1}), tmp_path)


# --- learning --------------------------------------------------------------------------------------------------------


def test_a_planted_preference_is_learnt(build, tmp_path):
    """The best AUC that can be reached is .9."""
    fitted = fit(build(LIKE, train={"epochs": 6}), tmp_path)
    assert fitted.state.best_value > 0.8
    assert fitted.state.history[fitted.state.best_epoch]["like.auc"] == fitted.state.best_value


def test_it_stops_early_and_keeps_the_best_weights(build, tmp_path, monkeypatch):
    values, kept = iter([0.6, 0.7, 0.65, 0.7, 0.9]), []

    def record(assembly, processes):
        kept.append(weights(assembly))
        return {"like.auc": next(values)}

    monkeypatch.setattr(loop, "validation_metrics", record)
    lines = []
    monkeypatch.setattr(Reporter, "line", lambda self, text: lines.append(text))
    fitted = fit(build(LIKE, train={"epochs": 9, "early_stop": 2}), tmp_path)
    assert fitted.state.epoch == 4 and fitted.state.best_epoch == 1 and fitted.state.best_value == 0.7
    assert same(weights(fitted.assembly), kept[1])
    assert lines[-1] == "early stop: no better for 2 epochs" and lines[1] == "epoch 2: validation like.auc 0.7000  (best)"


def test_without_a_validation_part_the_last_weights_are_kept(base, tiny, log, tmp_path):
    wanted = recipe(
        tiny, LIKE, data={"split": {"kind": "temporal", "valid": 0.0, "test": 0.2}}, train={"epochs": 2, "early_stop": 1}
    )
    assembly = assemble(wanted, log, base)
    fitted = fit(assembly, tmp_path)
    assembly.model.release()
    assert fitted.state.epoch == 2 and fitted.state.history == []
    payload = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert same({name: value for name, value in payload["weights"].items()}, weights(fitted.assembly))


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.1, 0.5])
def test_the_learning_rate_warms_up_and_falls_to_a_tenth(warmup):
    def formula(progress):
        if progress < warmup:
            return max(progress / warmup, 0.05)
        return 1 - 0.9 * (progress - warmup) / (1 - warmup)

    train = TrainConfig(learning_rate=1.0, warmup=warmup)
    for progress in np.linspace(0, 1, 201):
        assert learning_rate(train, progress) == pytest.approx(formula(progress), rel=1e-12)


def test_the_same_seed_gives_the_same_version(base, tiny, log, trained, tmp_path):
    """Twice the same digest; another seed, another one."""
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        wanted = recipe(tiny, LIKE, name="seeded", train={"epochs": 1, "seed": seed, "dropout": 0.2})
        run = genre.train(wanted, log=log, base=base, registry=trained.registry, folder=tmp_path / str(number))
        digests.append(trained.registry.publish(run).digest)
    assert digests[0] == digests[1] != digests[2]
    assert base.occupied_by is None


def test_the_tracker_gets_what_the_log_gets(build, tmp_path):
    fit(build(LIKE, train={"epochs": 1, "tracker": "tensorboard"}), tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


# --- corners ---------------------------------------------------------------------------------------------------------


def test_a_first_task_without_validation_labels_leaves_the_next_one_to_decide(base, tiny, log, tmp_path):
    """A joint adapter whose first column ends before the validation part begins."""
    known = pl.when(pl.col("timestamp") < 12_000).then(pl.col("rating"))
    frame = log.frame.drop("row").with_columns(known.alias("early"))
    cut = genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="cut")
    early = {"name": "early", "kind": "feedback", "label": "early > 3"}
    assembly = assemble(recipe(tiny, early, LIKE, sequence={"feedback": "rating"}, train={"epochs": 1}), cut, base)
    try:
        fitted = fit(assembly, tmp_path)
    finally:
        assembly.model.release()
    assert fitted.state.history[0]["like.auc"] == fitted.state.best_value


def test_more_classes_than_label_words_are_refused(build, tmp_path):
    words = {"head": "verbalizer", "loss": "cross_entropy", "words": ["1", "2"], "label": "rating"}
    with pytest.raises(RecipeError) as error:
        fit(build(LIKE | words), tmp_path)
    assert str(error.value) == (
        "task 'like' has more classes than label words: got classes 0 to 5; expected classes below 2; name one word per class "
        "in the task's words"
    )


def test_resuming_a_run_that_stopped_early_trains_no_further(build, tmp_path):
    """A run that is cut after its last epoch, while it is evaluated, goes on with evaluating."""
    early = {"train": {"epochs": 12, "early_stop": 1, "learning_rate": 3e-2}}
    stopped = fit(build(LIKE, **early), tmp_path)
    wanted = weights(stopped.assembly)
    assert stopped.state.epoch < 12
    again = fit(build(LIKE, **early), tmp_path, resume=True)
    assert again.state.epoch == stopped.state.epoch and same(weights(again.assembly), wanted)


def test_a_finished_run_leaves_a_curve(tiny, log, tmp_path):
    import genre

    wanted = recipe(tiny, LIKE, train={"epochs": 2, "tracker": "none"})
    genre.train(wanted, log=log, base=genre.Base.load(str(tiny)), folder=tmp_path)
    drawn = (tmp_path / "curve.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn and "line2d" in drawn


@pytest.mark.slow
def test_wandb_keeps_its_files_in_the_run_folder_offline(tiny, log, tmp_path, monkeypatch):
    """Slow: wandb starts a process of its own."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    import genre

    wanted = recipe(tiny, LIKE, train={"epochs": 1, "tracker": "wandb"})
    genre.train(wanted, log=log, base=genre.Base.load(str(tiny)), folder=tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_metric_that_cannot_be_computed_decides_nothing(tiny, base, log, tmp_path):
    """Validation labels are all alike, so there is no AUC: log loss decides, and nothing that is not a number is written."""
    from genre.data.splits import VALID, split

    wanted = recipe(tiny, LIKE, train={"epochs": 2})
    there = (split(log, wanted.data.split).part == VALID).nonzero()[0]
    alike = with_values(log, rating=dict.fromkeys(there.tolist(), 5.0))
    said = []
    assembly = assemble(wanted, alike, base)
    try:
        fitted = fit(assembly, tmp_path, reporter=Reporter(said.append))
    finally:
        assembly.model.release()
    rows = fitted.state.history
    assert len(rows) == 2 and not any("like.auc" in row for row in rows)
    assert fitted.state.best_value == min(row["like.log_loss"] for row in rows)
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    assert sum("like.auc" in line and "cannot be computed" in line and "like.log_loss decides" in line for line in said) == 1
