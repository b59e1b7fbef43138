"""A version trained again without some users, from the start: nothing of the old one's weights goes into it.

Owns: the order of the job. Ignores: how users leave a log (`genre.data.forgetting`), the gate (`refresh.gate`).

    done = refresh_without(Registry("registry"), "like@production", log, ["196"])

Going on from the old weights, as a refresh does, would hand on what they learnt of these users. So the version's recipe is
trained anew on the log without them, and an encoder that saw them, or of which that is not known, is fitted anew too. The new
version's content, digest included, is the same whatever their events were: the old one is named in the journal alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from genre.data.forgetting import check_known, without_users
from genre.data.interactions import Interactions
from genre.data.splits import TEST
from genre.engine.versions import Loaded, read_adapter
from genre.errors import ManifestError, NotFoundError
from genre.jobs.encoders import encoder_name
from genre.jobs.forget.versions import Search
from genre.jobs.loading import build_model, load_base, own_recipe, settle_precision
from genre.jobs.refresh.gate import compare
from genre.jobs.refresh.job import CANDIDATE, Refreshed, decide, stop
from genre.jobs.train import Run, train
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.names import parse_ref
from genre.training.assembly import needs_encoder
from genre.training.prediction import Predicted, predict


def refresh_without(
    registry: Registry,
    ref: str,
    log: Interactions,
    users: Sequence[str],
    *,
    overrides: Iterable[str] = (),
    path: str | None = None,
    tolerance: float = 0.01,
    base: Base | str | None = None,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> Refreshed:
    """Train a version's recipe from the start on a log without some users, and promote the result if it is not worse.

    Args:
        registry: Holds the version, and gets the new one.
        ref: `name@alias` or `name`, which the new version may take over; or `name:version`.
        log: The log; the users may have been forgotten in it before.
        users: Their ids; none trains on the log as it is, as after users were forgotten in it.
        overrides: `train.KEY=VALUE` changes of the version's own recipe.
        path: The log's path for the new version's recipe; the old one's if None.
        tolerance: The loss that still counts as not worse.
        base: The version's base, or its folder or hub id; by default found by the name in the manifest.
        folder: The run folder; by default the next `runs/NAME/N`.
        reporter: Receives progress.

    Raises:
        ManifestError: The version was not trained from a recipe, or does not fit the base.
        DataError: A user is not in the log, was not forgotten, and did not train the version; or nobody else is left.
    """
    reporter, version = reporter or Reporter.silent(), registry.resolve(ref)
    recipe = own_recipe(registry, version, "trained without users", overrides, merged="train its parents again and merge them")
    search, alias = _search(registry, log, users), parse_ref(ref).alias
    known, why, _ = search.of(version)
    if known != "trained":
        check_known(log, users)
    report: dict[str, Any] = {"ref": ref, "alias": alias, "old": {"ref": version.ref, "digest": version.digest}}
    report |= {"without": len(users), "known": known, "known_from": why}
    if known == "not trained" and users:
        return stop(report, "nothing to forget", f"{version.ref} was not trained on them: {why}")
    _check_start(registry, recipe, search)
    rest = without_users(log, users)
    use = _encoder(registry, recipe, rest, search, reporter) if needs_encoder(recipe) else recipe.encoder.use
    update = {"encoder": recipe.encoder.model_copy(update={"use": use})}
    recipe = recipe.model_copy(update=update | {"data": recipe.data.model_copy(update={"path": path or recipe.data.path})})
    recipe = settle_precision(recipe, base if isinstance(base, Base) else None, reporter)
    base = base if isinstance(base, Base) else load_base(version.manifest, base, precision=recipe.base.precision)
    loaded = read_adapter(registry, version.exact, base)
    registry.check_writable(version.name)
    reporter.line(f"training {version.name} from the start on {len(rest):,} events of {len(rest.user_ids):,} users")
    run = train(recipe, log=rest, base=base, registry=registry, folder=folder, reporter=reporter)
    notes: dict[str, Any] = dict(run.manifest.notes) | {"from_start": "users were left out or forgotten"}
    run = replace(run, manifest=run.manifest.model_copy(update={"notes": notes}))
    if recipe.train.privacy is not None or version.manifest.withholds_figures:
        return _unmeasured(registry, run, report)
    own = read_adapter(registry, registry.publish(run, alias=[], latest=False).exact, base)
    before, after = (_tested(each, rest, base, recipe) for each in (loaded, own))
    verdicts = compare(loaded.tasks, before, after, tolerance)
    report |= {
        "tasks": {name: asdict(verdict) for name, verdict in verdicts.items()},
        "run": str(run.root),
        "metrics": run.metrics,
    }
    return decide(registry, version, run, verdicts, report)


def _unmeasured(registry: Registry, run: Run, report: dict[str, Any]) -> Refreshed:
    """Publish a run, it or the old version private, as the candidate: figures on users' events are not for the journal."""
    new = registry.publish(run, alias=CANDIDATE, latest=False)
    why = f"published {new.ref} as {CANDIDATE}; a private version is not compared on its users' events"
    todo = f"to let it take over, genre registry promote {new.ref} ALIAS"
    return Refreshed(
        report | {"new": {"ref": new.ref, "digest": new.digest}, "decision": "kept", "why": f"{why}: {todo}"}, new, run
    )


def _search(registry: Registry, log: Interactions, users: Sequence[str]) -> Search:
    """Look the users up, or where none is named those who were forgotten in the log."""
    key = log.info.users_key
    digests = [] if key is None else [key.digest(user) for user in users] if users else sorted(key.forgotten)
    return Search(registry, digests, key, log, users)


def _check_start(registry: Registry, recipe: Recipe, search: Search) -> None:
    """Refuse to start from a version that saw the users, or of which that is not known (ManifestError)."""
    if recipe.train.start is None:
        return
    start = registry.resolve(recipe.train.start)
    known, why, _ = search.of(start)
    if known != "not trained":
        what = f"the recipe starts from {start.ref}, whose weights would hand on what they learnt of these users"
        todo = f"train that one without them first, and name the result with --set train.start=REF; {why}"
        raise ManifestError(what, got=known, expected="a version that did not see them", todo=todo)


def _encoder(registry: Registry, recipe: Recipe, rest: Interactions, search: Search, reporter: Reporter) -> str:
    """The recipe's encoder by reference if it did not see the users; else `fit`."""
    ref = encoder_name(rest, recipe) if recipe.encoder.use in ("auto", "fit") else recipe.encoder.use
    try:
        version = registry.resolve(ref)
    except NotFoundError:
        return "fit"
    known, why, _ = search.of(version)
    if known == "not trained" and recipe.encoder.use != "fit":
        return version.ref
    if known != "not trained":
        reporter.line(f"fitting a new encoder: {version.ref} may have seen them: {why}")
    return "fit"


def _tested(loaded: Loaded, rest: Interactions, base: Base, recipe: Recipe) -> Predicted:
    """A version's predictions of the test part of the log without the users."""
    model, builder = build_model(loaded, rest, base)
    try:
        return predict(model, builder, rest.split(recipe.data.split), TEST, max_events=recipe.data.max_events)
    finally:
        model.release()
