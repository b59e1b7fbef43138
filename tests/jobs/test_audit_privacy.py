"""Audits of privacy on small worlds: overfitted adapters are caught, left-out users are not, the report has its schema."""

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import LIKE, NEXT, private_recipe, publish_stirred, recipe
from fakes import planted_log
from genre.cli import main
from genre.data.interactions import Interactions
from genre.data.sequences.batches import collate
from genre.engine.versions import read_adapter
from genre.errors import DataError, InputError
from genre.jobs.audit.extraction import inapplicable
from genre.jobs.audit.job import PAGE, REPORT, audit
from genre.jobs.audit.options import PRIVACY, AuditOptions
from genre.jobs.audit.report import AuditReport, privacy_lines
from genre.jobs.audit.user_losses import attacked_events, layout_of, mean_losses, trained_users
from genre.modules.base.base import Base
from genre.training.assembly import assemble

TIMED = {"kind": "temporal", "valid": 0.1, "test": 0.1}


def by_chance(users: int = 60, items: int = 60, events: int = 8) -> Interactions:
    """A log in which nothing can be learnt but who had what: random items, random ratings."""
    draw = np.random.default_rng(5)
    log = planted_log(users=users, items=items, events=events)
    frame = log.frame.drop("row").with_columns(rating=pl.Series(draw.integers(1, 6, len(log)).astype(float)))
    return Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="chance")


TRAIN = {"epochs": 10, "batch_tokens": 1024, "learning_rate": 1e-2, "early_stop": None}
TEXT_ONLY = {"learned": 0, "collaborative": 0, "text": True}


@pytest.fixture(scope="module")
def overfitted(tiny, tmp_path_factory):
    """A registry with `like`, trained on purpose until it knows its training events by heart, and `some`, by 30 of 60 users."""
    folder = tmp_path_factory.mktemp("overfitted")
    registry, base, log = genre.Registry(folder / "registry"), Base.load(str(tiny)), by_chance()
    split = {"kind": "temporal", "valid": 0, "test": 0.1}
    for name, drawn in (("like", {}), ("some", {"users": 30})):
        wanted = recipe(
            tiny, LIKE, name=name, encoder=TEXT_ONLY, adapter={"rank": 16}, data={"split": split | drawn}, train=TRAIN
        )
        registry.publish(genre.train(wanted, log=log, base=base, registry=registry, folder=folder / name, baselines="none"))
    return registry, log, base


def test_what_a_loss_is_of(tiny):
    """Each user's mean of their own targets' losses, as the training loss is of all of them together."""
    log, base = planted_log(users=12, items=16, events=6), Base.load(str(tiny))
    for task in (LIKE, NEXT):
        assembly = assemble(recipe(tiny, task, data={"split": TIMED}), log, base)
        try:
            own = assembly.model.tasks[task["name"]]
            found = mean_losses(assembly.model, log, layout_of(assembly), own, assembly.train_mask, max_events=16)
            rows, _ = assembly.builder.training_rows(assembly.train_mask, max_events=16, min_events=1)
            with torch.no_grad():
                _, parts = assembly.model(collate(rows, log.supervise([own])))
        finally:
            assembly.model.release()
        counts = np.bincount(log.user_codes[assembly.train_mask], minlength=12)
        mean, count = float(parts[own.name][0]), parts[own.name][1]
        assert count == counts.sum() and float(np.nansum(found * counts)) / count == pytest.approx(mean, rel=1e-4)
        assert np.isnan(found).sum() == (counts == 0).sum()


def test_users_without_training_events_are_looked_at_by_all_of_theirs():
    log = planted_log(users=4, items=16, events=6)
    train = (log.user_codes != 2) & (np.arange(len(log)) % 6 < 4)
    chosen = attacked_events(log, train)
    assert (chosen[log.user_codes == 2]).all() and np.array_equal(chosen[log.user_codes != 2], train[log.user_codes != 2])
    assert trained_users(log, train, least=4).tolist() == [True, True, False, True]


def test_an_adapter_that_was_overfitted_on_purpose_has_a_bound_above_1(overfitted, tmp_path, capsys):
    registry, log, base = overfitted
    options = AuditOptions(checks=("canaries", "extraction"), canaries=60, delta=1e-5)
    report = audit(registry, "like", log, options, base=base, folder=tmp_path, record=True)
    canaries, extraction = report.checks.canaries, report.checks.extraction
    assert canaries.epsilon > 1 and canaries.right == canaries.guesses and canaries.claimed is None
    assert 50 < len(canaries.scores) == canaries.canaries <= 60 and sum(canaries.inserted) == canaries.included
    assert not extraction.applies and "sequence.item token" in extraction.why_not
    assert report.targets == [] and report.searched == 0
    assert AuditReport.model_validate_json((tmp_path / REPORT).read_text()) == report
    page = (tmp_path / PAGE).read_text()
    assert "a lower bound on epsilon" in page and "Does not apply" in page and "Targets" not in page
    assert page.count("<svg") == 1 and not list(tmp_path.glob(".retraining*"))
    first, second = privacy_lines(report)
    assert first.startswith("epsilon at least") and second.startswith("extraction: does not apply, items are soft tokens")
    found = registry.audit_of("like")
    assert AuditReport.model_validate(found.report) == report and found.page == page and found.lines == (first, second)
    assert registry.verify() == [] and registry.audit_of("some") is None
    asked = ["registry", "show", "like", "--registry", str(registry.url), "--audit-page", str(tmp_path / "page.html")]
    assert main(asked) == 0 and f": {first}" in capsys.readouterr().out and (tmp_path / "page.html").read_text() == page
    assert main([*asked[:2], "some", *asked[3:]]) == 2
    assert "no audit of its privacy is recorded" in capsys.readouterr().err


@pytest.mark.slow  # thirteen private trainings: a minute of a quiet core
@pytest.mark.timeout(900)
def test_no_bound_refutes_the_epsilon_of_a_private_training(tiny, tmp_path):
    pytest.importorskip("opacus", reason="the extra privacy")
    registry, base, log = genre.Registry(tmp_path / "registry"), Base.load(str(tiny)), by_chance()
    split = {"kind": "user_ratio", "valid": 0, "test": 0.2}
    privacy = {"users": 20, "feedback_values": [1, 2, 3, 4, 5], "statistics": 0}
    train = {"batch_tokens": 4096, "learning_rate": 1e-2}
    options = {"encoder": TEXT_ONLY, "adapter": {"rank": 16}, "data": {"split": split}, "train": train, "privacy": privacy}
    wanted = private_recipe(tiny, LIKE, epochs=6, **options)
    registry.publish(genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run", baselines="none"))
    for epsilon in (1, 2, 4, 8):
        for seed in range(3):
            asked = AuditOptions(checks=("canaries",), canaries=60, seed=seed, overrides=(f"train.privacy.epsilon={epsilon}",))
            report = audit(registry, "like", log, asked, base=base, folder=tmp_path / f"{epsilon}-{seed}", record=True)
            found = report.checks.canaries
            assert found.claimed == epsilon and 0 < found.delta < 1 / (10 * 60)
            assert found.epsilon < epsilon, f"epsilon {epsilon}, seed {seed}"
    assert registry.audit_of("like") is None, "the recipe withholds figures of its users"


def test_who_trained_an_overfitted_adapter_is_told_from_who_did_not(overfitted, tmp_path):
    registry, log, base = overfitted
    options = AuditOptions(checks=("membership",), users=60)
    report = audit(registry, "some", log, options, base=base, folder=tmp_path)
    found = report.checks.membership
    assert (found.users, found.shadows) == (60, 4)
    for attack in (found.loss, found.ratio, found.offline):
        assert attack.auc_interval[0] > 0.6 and attack.trials == 240 and (attack.members, attack.others) == (60, 60)
        assert attack.curve[0][0] == 0 and attack.curve[-1] == (1, 1)
    assert found.ratio.tpr > 0.03
    own = found.published["loss"]
    assert (own.members, own.others) == (30, 30) and own.auc_interval[0] > 0.6
    page = (tmp_path / PAGE).read_text()
    assert "Membership: who trained?" in page and "the version itself, offline" in page and page.count("<svg") == 1
    assert len(privacy_lines(report)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shadows": 5}, "--shadows is odd: got 5; expected an even number"),
        ({"shadows": 2}, "--shadows is out of range: got 2; expected 4 to 64"),
        ({"canaries": 3}, "--canaries is out of range: got 3; expected 10 to 5,000"),
        ({"delta": 1.0}, "--delta is out of range: got 1.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AuditOptions(checks=PRIVACY, **options).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--privacy", "--text-only"], "two options exclude each other: got --text-only and --privacy"),
        (["--privacy", "--target", "i5"], "--target has no effect here: got --privacy"),
        (["--shadows", "6"], "--shadows has no effect here: got no --privacy"),
        (["--text-only", "--delta", "0"], "--delta has no effect here: got --text-only"),
    ],
)
def test_an_option_without_effect_is_refused(options, message, capsys):
    assert main(["audit", "next_item", "--data", "shop", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genre: {message}")


def test_too_few_users_for_a_membership_attack_are_refused(tiny, tmp_path):
    registry, base, log = genre.Registry(tmp_path / "registry"), Base.load(str(tiny)), planted_log(users=18, items=16, events=6)
    wanted = recipe(tiny, LIKE, sequence={"item": "text"}, encoder={"use": "none"}, train={"epochs": 1})
    publish_stirred(registry, wanted, log, base, tmp_path / "like")
    options = AuditOptions(checks=("membership",))
    with pytest.raises(DataError, match="too few users for a membership attack: got 18 users; expected at least 20"):
        audit(registry, "like", log, options, base=base, folder=tmp_path / "audit")


def test_histories_of_a_text_adapter_are_continued(tiny, tmp_path):
    registry, base, log = genre.Registry(tmp_path / "registry"), Base.load(str(tiny)), planted_log(users=30, items=16, events=6)
    wanted = recipe(tiny, LIKE, sequence={"item": "text"}, encoder={"use": "none"}, train={"epochs": 1, "batch_tokens": 4096})
    publish_stirred(registry, wanted, log, base, tmp_path / "like")
    assert not inapplicable(read_adapter(registry, "like", base).layout, log)
    options = AuditOptions(checks=("extraction",), users=3)
    report = audit(registry, "like", log, options, base=base, folder=tmp_path / "audit")
    found = report.checks.extraction
    assert found.applies and found.users == 3 and found.new_tokens == 64
    assert {found.base.bits, found.version.bits, found.without.bits} == {found.base.bits, found.version.bits, found.without.bits}
    assert found.base.bits != found.version.bits != found.without.bits
    low, high = found.difference[1:]
    assert low <= found.difference[0] <= high and found.difference[0] == pytest.approx(found.version.bits - found.without.bits)
    assert "Extraction: histories continued" in (tmp_path / "audit" / PAGE).read_text()
    assert base.occupied_by is None
