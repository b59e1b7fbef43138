"""The refresh job: train a published version on newer events; the new one takes over its alias only if it is not worse.

Owns: the order of the job, the report, which aliases move. Ignores: which events (`refresh.plan`), the rule (`refresh.gate`).

    done = refresh(Registry("registry"), "like@production", log)
    done.report["decision"], done.report["tasks"]["like"]["difference"]      # ("promoted", 0.0131)

Nothing is written to the registry before the new version is trained and tested. Then it is published as `candidate` and promoted
on condition that the alias still names the version that it was compared with, so of two refreshes at once only one can win.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.sequences.text_rows import Builder
from genre.data.splits import TEST
from genre.engine.versions import Loaded, read_adapter
from genre.errors import ConflictError, DataError, InterruptedJobError, JobError, RegistryError
from genre.evaluation.targets import targets
from genre.files import write_json
from genre.jobs.encoders import check_leak
from genre.jobs.evaluate import task_results, with_baselines
from genre.jobs.folders import claim_folder, describe_run, removed_if_refused
from genre.jobs.forget.versions import refuse_forgotten
from genre.jobs.loading import build_model, load_base, lora_layers, settle_precision
from genre.jobs.refresh.feedback import NOTE, Feedback
from genre.jobs.refresh.gate import Verdict, compare, overall, unknown_shares
from genre.jobs.refresh.plan import MIN_TARGETS, MIN_USERS, Plan, RefreshOptions, plan, read_recipe, resolve_recipe
from genre.jobs.refresh.policy_gate import PolicyVerdict
from genre.jobs.train import Run, finish
from genre.modules.base.base import Base
from genre.modules.heads.heads import CategoricalHead
from genre.modules.recommender import Recommender
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Version
from genre.registry.names import LATEST, parse_ref
from genre.training import fit
from genre.training.assembly import Start, assemble_from
from genre.training.prediction import Predicted, predict

CANDIDATE = "candidate"


@dataclass(frozen=True)
class Refreshed:
    """The outcome: a report (JSON values), the new version if there is one, and its run."""

    report: dict[str, Any]
    version: Version | None = None
    run: Run | None = None


def refresh(
    registry: Registry,
    ref: str,
    log: Interactions | Feedback,
    options: RefreshOptions | None = None,
    *,
    base: Base | str | None = None,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> Refreshed:
    """Train a version further on events newer than its training data, and promote the result if it is not worse.

    Args:
        registry: Holds the version, and gets the new one.
        ref: `name@alias` or `name` (its `latest`), which the new version may take over; or `name:version`, which has no
            alias to take over.
        log: All events, old and new; or a served log joined with them, which may bring a gate of its own.
        options: See `RefreshOptions`.
        base: The version's base, or its folder or hub id; by default found by the name in the manifest.
        folder: The run folder; by default the next `runs/NAME/N`.
        reporter: Receives progress.

    Raises:
        ManifestError: The version cannot be refreshed, does not fit the base, or was trained on users who were forgotten since.
        DataError: The log does not fit the version.
        JobError: Interrupted, or training diverged; the registry is as it was.
    """
    options, reporter = options or RefreshOptions(), reporter or Reporter.silent()
    options.check()
    feedback = log if isinstance(log, Feedback) else None
    if feedback is not None:
        log, options = feedback.log, replace(options, path=str(feedback.folder))
    assert isinstance(log, Interactions)
    if not log.info.timed:
        what, todo = "a refresh tells new events from old ones by their times", "train again with genre train"
        raise DataError(what, got=log.tie_rule, expected="a log with times", todo=todo)
    version = registry.resolve(ref)
    recipe = read_recipe(registry, version, options)
    refuse_forgotten(registry, version, log)
    report: dict[str, Any] = {"ref": ref, "alias": parse_ref(ref).alias, "old": {"ref": version.ref, "digest": version.digest}}
    data = version.manifest.data
    assert data is not None and data.time_span is not None
    report["data"] = {"digest": log.digest, "since": data.time_span[1], "new": int((log.timestamps > data.time_span[1]).sum())}
    if feedback is not None:
        report["data"][NOTE] = feedback.facts | {"asked": feedback.asked(options)}
    if (why := _nothing_new(registry, version, log, options, feedback)) is not None:
        return stop(report, "nothing new", f"there is nothing new for {version.ref}: {why}")
    recipe = settle_precision(recipe, base if isinstance(base, Base) else None, reporter)
    base = base if isinstance(base, Base) else load_base(version.manifest, base, precision=recipe.base.precision)
    loaded = read_adapter(registry, version.ref, base)
    shares: Any = {"replay": options.replay, "valid": options.valid, "test": options.test}
    drawn: Any = {"block": recipe.data.max_events, "seed": recipe.train.seed, "min_events": recipe.data.split.min_events}
    made = plan(log, data.time_span[1], **shares, **drawn)
    if made is None:
        return stop(report, "too small", f"there are too few new events, {report['data']['new']}: wait for more")
    report["data"] |= made.counts | {"replay": options.replay}
    report["encoder"] = unknown_shares(loaded.shared, log, log.timestamps > made.since, options.encoder_due)
    small = _too_small(loaded, log, made) or (feedback and feedback.too_small(version.name, made))
    if small:
        return stop(report, "too small", small)
    recipe = resolve_recipe(registry, recipe, loaded, made.split.config, options)
    if loaded.shared is not None and loaded.shared.digest is not None:
        check_leak(registry.find(loaded.shared.digest).manifest, recipe, log)
    registry.check_writable(version.name)
    if feedback is not None:
        feedback.keep(reporter)
    run, verdicts = _train(loaded, recipe, log, base, made, report, folder, options, reporter)
    verdict = None
    if feedback is not None and feedback.options.gate is not None:
        new = registry.publish(run, alias=[], latest=False)  # what answers requests is a version
        try:
            verdict = feedback.judge(registry, version, new, made, options.tolerance, base, reporter)
        except BaseException:
            with suppress(RegistryError):
                registry.delete(new)  # nothing was decided on it, and the next refresh is to make it again
            raise
    return decide(registry, version, run, verdicts, report, verdict)


def _nothing_new(
    registry: Registry, version: Version, log: Interactions, options: RefreshOptions, feedback: Feedback | None
) -> str | None:
    """The reason why there is nothing to learn, if there is none."""
    data = version.manifest.data
    assert data is not None and data.time_span is not None
    why = None
    if data.digest == log.digest:
        why = "the data set is the one that it was trained on"
    elif not (log.timestamps > data.time_span[1]).any():
        why = "no event is later"
    elif feedback is not None and (made := feedback.made_before(registry, version, options)) is not None:
        return f"{made} was trained on the same log and did not take over"
    return why if why is None or feedback is None else f"{why}; {feedback.about()}"


def _too_small(loaded: Loaded, log: Interactions, made: Plan) -> str | None:
    """The reason why the test part is too small to decide on, if it is.

    Raises:
        DataError: The new events have a class that the version does not know.
    """
    for name, task in loaded.tasks.items():
        label = log.labels_of(task)
        found = targets(log, made.split, TEST, None if task.kind == "next_item" else _labels(label))
        users = len(np.unique(found.user))
        if len(found) < MIN_TARGETS or users < MIN_USERS:
            return (
                f"the test is too small: {len(found)} targets of {users} users for task {name}; "
                f"expected at least {MIN_TARGETS} of {MIN_USERS}: wait for more events"
            )
        head = loaded.heads[name]
        if isinstance(head, CategoricalHead) and int(label.max()) >= head.linear.out_features:
            what, expected = f"task {name!r} has a class that the version does not know", f"0 to {head.linear.out_features - 1}"
            raise DataError(what, got=int(label.max()), expected=expected, todo="train a new adapter with genre train")
    return None


def _labels(label: np.ndarray) -> np.ndarray:
    """Labels as floats, NaN where there is none."""
    return label if label.dtype.kind == "f" else np.where(label >= 0, label, np.nan).astype(np.float64)


def _train(
    loaded: Loaded,
    recipe: Recipe,
    log: Interactions,
    base: Base,
    made: Plan,
    report: dict[str, Any],
    folder: Path | None,
    options: RefreshOptions,
    reporter: Reporter,
) -> tuple[Run, dict[str, Verdict]]:
    """Test the old version, train it further, test the new one on the same targets."""
    counts = {name: f"{count:,}" for name, count in made.counts.items()}
    trained = f"{counts['train']} for training, with {counts['replayed']} replayed old ones"
    reporter.line(f"{counts['new']} new events: {trained}; {counts['valid']} for validation, {counts['test']} for the test")
    model, builder = build_model(loaded, log, base)
    try:
        old = _test(model, builder, made, recipe)
    finally:
        model.release()
    layers = lora_layers(base, loaded.low, dropout=recipe.adapter.dropout)
    assembly = assemble_from(Start(loaded.shared, loaded.layout, loaded.heads, layers), recipe, log, base, made.supervised)
    try:
        made_here = folder is None or not folder.exists()
        root = folder or claim_folder(recipe.name)
        try:
            with removed_if_refused([root] if made_here else []):
                describe_run(root, recipe)
                fitted = fit(assembly, root, reporter=reporter)
        except InterruptedJobError as error:
            raise JobError(error.what, got=error.got, todo="the registry is unchanged; start the refresh again") from None
        reporter.line("testing the new version beside the old one")
        new = _test(assembly.model, assembly.builder, made, recipe)
        own = task_results(new, assembly.model, assembly.builder, made.split)
        results = with_baselines(own, assembly.builder, made.split, "all", reporter)
        verdicts = compare(loaded.tasks, old, new, options.tolerance)
        report["tasks"] = {name: asdict(verdict) for name, verdict in verdicts.items()}
        notes = {"refresh": {"data": report["data"], "tasks": json.loads(json.dumps(report["tasks"]))}}
        run = finish(fitted, root, results, None, reporter, parents=(loaded.digest,), notes=notes)
        report["metrics"] = run.metrics
        report["run"] = str(root)
        return run, verdicts
    finally:
        assembly.model.release()


def _test(model: Recommender, builder: Builder, made: Plan, recipe: Recipe) -> Predicted:
    return predict(model, builder, made.split, TEST, max_events=recipe.data.max_events)


def decide(
    registry: Registry,
    old: Version,
    run: Run,
    verdicts: dict[str, Verdict],
    report: dict[str, Any],
    policy: PolicyVerdict | None = None,
) -> Refreshed:
    """Publish a run as the candidate, and move the old version's alias to it if the rule allows.

    Args:
        registry: Gets the new version.
        old: The version it was compared with.
        run: The run.
        verdicts: The comparison.
        report: So far, with the `alias` to take over or None; it goes into the outcome.
        policy: The comparison by off-policy value, which decides in the place of the others.
    """
    outcome, alias = overall(verdicts) if policy is None else policy.outcome, report["alias"]
    lines = report["compared"] = [verdict.line(name) for name, verdict in verdicts.items()]
    if policy is not None:
        lines.append(policy.line())
        report["policy"] = asdict(policy)
    held_latest = registry.aliases(old.name).get(LATEST) == old.version
    named = [] if alias == CANDIDATE else [CANDIDATE]  # where `candidate` itself is the alias that has to be earned
    new = registry.publish(run, alias=named, latest=False)
    registry.record_baselines(new, run.baselines)
    report["new"] = {"ref": new.ref, "digest": new.digest}
    published = f"published {new.ref}" + "".join(f" as {each}" for each in named)
    if alias is None:
        return _done(
            report, new, run, "candidate", f"{published}; {old.ref} is not an alias to take over; the new version is {outcome}"
        )
    if outcome != "not worse":
        why = "the test is too small to tell" if policy is None else policy.reason
        shown = outcome if outcome == "worse" else f"not proven to be no worse ({why})"
        return _done(report, new, run, "kept", f"{published}; {old.name}@{alias} stays {old.ref}: the new version is {shown}")
    try:
        registry.promote(new, alias, instead_of=old.digest, checks=lines)
        if held_latest and alias != LATEST:
            registry.promote(new, LATEST, instead_of=old.digest, checks=lines)
    except ConflictError as error:
        moved = registry.aliases(old.name).get(alias)
        if moved != new.version:
            return _done(report, new, run, "overtaken", f"{published}; {old.name}@{alias} is unchanged: {error}")
    return _done(report, new, run, "promoted", f"{published} and promoted it to {alias}")


def stop(report: dict[str, Any], decision: str, why: str) -> Refreshed:
    """The outcome of a refresh that publishes nothing."""
    return Refreshed(report | {"new": None, "decision": decision, "why": why + "; nothing was published"})


def _done(report: dict[str, Any], new: Version, run: Run, decision: str, why: str) -> Refreshed:
    found = Refreshed(report | {"decision": decision, "why": why}, new, run)
    write_json(run.root / "refresh.json", found.report)
    return found
