"""Refresh: a published version learns from newer events, and takes its alias over only if it is not worse for it.

Owns: the order of the job, the report, which aliases move. Ignores: which events (`refresh_plan`), the rule (`refresh_judge`).

    done = refresh(Registry("registry"), "like@production", log)
    done.report["decision"], done.report["tasks"]["like"]["difference"]      # ("promoted", 0.0131)

Nothing is written to the registry before the new version is trained and tested. Then it is published, named `candidate`, and
promoted with the old version as the holder that it was compared with, so of two refreshes at once only one can win.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.sequences.text_rows import Builder
from genre.data.splits import TEST
from genre.engine.versions import Loaded, read_adapter
from genre.errors import ConflictError, DataError, InterruptedJobError, JobError
from genre.evaluation.targets import targets
from genre.jobs.encoders import check_leak
from genre.jobs.evaluate import judge, low_layers, stand
from genre.jobs.inputs import claim_folder, environment, load_base, write_text
from genre.jobs.refresh.judge import Verdict, compare, overall, unknown_shares
from genre.jobs.refresh.plan import MIN_TARGETS, MIN_USERS, Plan, plan
from genre.jobs.refresh.recipe import RefreshOptions, read_recipe, resolve_recipe
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
    """What came of it: the report (JSON values), the new version if there is one, and its run."""

    report: dict[str, Any]
    version: Version | None = None
    run: Run | None = None


def refresh(
    registry: Registry,
    ref: str,
    log: Interactions,
    options: RefreshOptions | None = None,
    *,
    base: Base | str | None = None,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> Refreshed:
    """Train a version further on the events that are newer than what it was trained on, and promote it if it is not worse.

    Args:
        registry: Where the version is, and where the new one goes.
        ref: `name@alias` or `name` (its `latest`), which the new version may take over; or `name:version`, which has no
            alias to take over.
        log: All events, old and new.
        options: How.
        base: The version's base, or where it is; by default found by the name that its manifest gives.
        folder: The run folder; by default the next `runs/NAME/N`.
        reporter: Where progress goes.

    Raises:
        ManifestError: The version cannot be refreshed, or does not fit the base.
        DataError: The log does not fit the version.
        JobError: Interrupted, or training diverged; the registry is as it was.
    """
    options, say = options or RefreshOptions(), reporter or Reporter.silent()
    options.check()
    version = registry.resolve(ref)
    recipe = read_recipe(registry, version, options)
    report: dict[str, Any] = {"ref": ref, "alias": parse_ref(ref).alias, "old": {"ref": version.ref, "digest": version.digest}}
    data = version.manifest.data
    assert data is not None and data.time_span is not None
    report["data"] = {"digest": log.digest, "since": data.time_span[1], "new": int((log.timestamps > data.time_span[1]).sum())}
    if data.digest == log.digest or not report["data"]["new"]:
        why = "the data is what it was trained and tested on" if data.digest == log.digest else "no event is later"
        return _stop(report, "nothing new", f"nothing is new to {version.ref}: {why}")
    base = base if isinstance(base, Base) else load_base(version.manifest, base, precision=recipe.base.precision)
    loaded = read_adapter(registry, version.ref, base)
    made = plan(
        log, data.time_span[1], replay=options.replay, valid=options.valid, test=options.test,
        block=recipe.data.max_events, seed=recipe.train.seed, min_events=recipe.data.split.min_events,
    )  # fmt: skip
    if made is None:
        return _stop(report, "too small", f"too few events are new, {report['data']['new']}: wait for more")
    report["data"] |= made.counts | {"replay": options.replay}
    report["encoder"] = unknown_shares(loaded.shared, log, log.timestamps > made.since, options.encoder_due)
    small = _too_small(loaded, log, made)
    if small is not None:
        return _stop(report, "too small", small)
    recipe = resolve_recipe(registry, recipe, loaded, made.chosen.config, options)
    if loaded.shared is not None and loaded.shared.digest is not None:
        check_leak(registry.find(loaded.shared.digest).manifest, recipe, log)
    registry.check_writable(version.name)
    run, verdicts = _train(loaded, recipe, log, base, made, report, folder, options, say)
    return _decide(registry, version, run, verdicts, report)


def _too_small(loaded: Loaded, log: Interactions, made: Plan) -> str | None:
    """Why the test part is too small to decide on, if it is.

    Raises:
        DataError: The new events have a class that the version does not know.
    """
    for name, task in loaded.tasks.items():
        label = log.labels_of(task)
        found = targets(log, made.chosen, TEST, None if task.kind == "next_item" else _labels(label))
        users = len(np.unique(found.user))
        if len(found) < MIN_TARGETS or users < MIN_USERS:
            return (
                f"the test is too small: {len(found)} targets of {users} users for task {name}; "
                f"expected at least {MIN_TARGETS} of {MIN_USERS}: wait for more events"
            )
        head = loaded.heads[name]
        if isinstance(head, CategoricalHead) and int(label.max()) >= head.linear.out_features:
            raise DataError(
                f"task {name!r} has a class that the version does not know", got=int(label.max()),
                expected=f"0 to {head.linear.out_features - 1}", todo="train a new adapter with genre train",
            )  # fmt: skip
    return None


def _labels(label: np.ndarray) -> np.ndarray:
    """Labels as floats, NaN where there is none."""
    return label if label.dtype.kind == "f" else np.where(label >= 0, label, np.nan).astype(np.float64)


def _train(
    loaded: Loaded, recipe: Recipe, log: Interactions, base: Base, made: Plan, report: dict[str, Any],
    folder: Path | None, options: RefreshOptions, say: Reporter,
) -> tuple[Run, dict[str, Verdict]]:  # fmt: skip
    """Test the old version, train it further, test the new one on the same targets."""
    counts = made.counts
    say.line(f"{counts['new']:,} new events: {counts['train']:,} train, with {counts['replayed']:,} replayed old ones; "
             f"{counts['valid']:,} validate, {counts['test']:,} test")  # fmt: skip
    model, builder = stand(loaded, log, base)
    try:
        old = _test(model, builder, made, recipe)
    finally:
        model.release()
    layers = low_layers(base, loaded.low, dropout=recipe.adapter.dropout)
    assembly = assemble_from(Start(loaded.shared, loaded.layout, loaded.heads, layers), recipe, log, base, made.supervised)
    try:
        root = folder or claim_folder(recipe.name)
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / "recipe.yaml", recipe.dump())
        write_text(root / "environment.json", json.dumps(environment(), indent=2) + "\n")
        try:
            fitted = fit(assembly, root, reporter=say)
        except InterruptedJobError as error:
            raise JobError(error.what, got=error.got, todo="the registry is as it was; start the refresh again") from None
        say.line("testing the new version beside the old one")
        new = _test(assembly.model, assembly.builder, made, recipe)
        results = judge(new, assembly.model, assembly.builder, made.chosen)
        verdicts = compare(loaded.tasks, old, new, options.tolerance)
        report["tasks"] = {name: asdict(verdict) for name, verdict in verdicts.items()}
        report["metrics"] = {name: own for name, (own, _) in results.items()}
        notes = {"refresh": {"data": report["data"], "tasks": json.loads(json.dumps(report["tasks"]))}}
        run = finish(fitted, root, results, None, say, parents=(loaded.digest,), notes=notes)
        report["run"] = str(root)
        return run, verdicts
    finally:
        assembly.model.release()


def _test(model: Recommender, builder: Builder, made: Plan, recipe: Recipe) -> Predicted:
    return predict(model, builder, made.chosen, TEST, max_events=recipe.data.max_events, batch_tokens=16384)


def _decide(registry: Registry, old: Version, run: Run, verdicts: dict[str, Verdict], report: dict[str, Any]) -> Refreshed:
    """Publish, name the candidate, and let the old version's alias move if the rule allows it."""
    outcome, alias = overall(verdicts), report["alias"]
    words = report["compared"] = [verdict.words(name) for name, verdict in verdicts.items()]
    held_latest = registry.aliases(old.name).get(LATEST) == old.version
    named = [] if alias == CANDIDATE else [CANDIDATE]  # where `candidate` itself is the alias that has to be earned
    new = registry.publish(run, alias=named, latest=False)
    report["new"] = {"ref": new.ref, "digest": new.digest}
    said = f"published {new.ref}" + "".join(f" as {each}" for each in named)
    if alias is None:
        return _done(report, new, run, "candidate", f"{said}; {old.ref} names no alias to take over; it is {outcome}")
    if outcome != "not worse":
        shown = outcome if outcome == "worse" else "not shown to be no worse (the test is too small to tell)"
        return _done(report, new, run, "kept", f"{said}; {old.name}@{alias} stays {old.ref}: the new version is {shown}")
    try:
        registry.promote(new, alias, instead_of=old.version, checks=words)
        if held_latest and alias != LATEST:
            registry.promote(new, LATEST, instead_of=old.version, checks=words)
    except ConflictError as error:
        moved = registry.aliases(old.name).get(alias)
        if moved != new.version:
            return _done(report, new, run, "overtaken", f"{said}; {old.name}@{alias} is left alone: {error}")
    return _done(report, new, run, "promoted", f"{said} and promoted it to {alias}")


def _stop(report: dict[str, Any], decision: str, why: str) -> Refreshed:
    return Refreshed(report | {"new": None, "decision": decision, "why": why + "; nothing was published"})


def _done(report: dict[str, Any], new: Version, run: Run, decision: str, why: str) -> Refreshed:
    found = Refreshed(report | {"decision": decision, "why": why}, new, run)
    write_text(run.root / "refresh.json", json.dumps(found.report, indent=2, ensure_ascii=False) + "\n")
    return found
