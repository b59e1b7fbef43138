"""The behaviour encoder of a run: found in the registry, checked for leakage, published.

Owns: an encoder's name in a registry, whether recipes may share it and the command that lets them. Ignores: how it is fitted.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.sequences.control import recorded_rule
from genre.data.splits import TRAIN, SplitConfig, split
from genre.engine.versions import read_code_spec, read_encoder
from genre.errors import ManifestError, NotFoundError, RecipeError
from genre.files import appearing_folder
from genre.jobs.publish import encoder_manifest, used_splits, write_encoder
from genre.modules.base.base import Base
from genre.modules.codes.item_codes import CodeSpec
from genre.progress import Reporter
from genre.recipe import NO_FEEDBACK, Recipe
from genre.registry import Registry
from genre.registry.manifest import Cost, Manifest, Version
from genre.training.assembly import Assembly, check_feedback, feedback_column, needs_encoder
from genre.training.parts import SharedEncoder
from genre.training.private.table import check_sources


def encoder_name(data: Dataset, recipe: Recipe | None = None) -> str:
    """The name of a data set's behaviour encoder in a registry; those of private recipes know no event, and have their own."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in data.info.name.lower())[:50].strip("-")
    public = recipe is not None and recipe.train.privacy is not None
    return f"encoder-{plain or 'log'}{'-public' if public else ''}"


def find_encoder(
    recipe: Recipe, data: Dataset, base: Base, registry: Registry | None, reporter: Reporter
) -> SharedEncoder | None:
    """Find the published encoder of a recipe and check it; None if the run fits a new one or needs none."""
    if not needs_encoder(recipe) or recipe.encoder.use == "fit":
        return None
    ref = encoder_name(data, recipe) if recipe.encoder.use == "auto" else recipe.encoder.use
    if registry is None:
        if recipe.encoder.use == "auto":
            return None
        raise RecipeError("encoder.use names a version, which needs a registry", got=ref, todo="give --registry DIR")
    try:
        version = registry.resolve(ref)
        shared = read_encoder(registry, version.digest, base)
        _check_public(version.manifest, recipe, shared)
        check_leak(version.manifest, recipe, need_log(data))
        _check_rule(version.manifest, recipe)
        check_feedback(feedback_column(recipe, need_log(data)), shared.feedback_column)
        check_codes(recipe, shared.encoder.spec.codes)
    except (NotFoundError, ManifestError) as error:
        if recipe.encoder.use != "auto":
            raise
        reporter.line(_why_fitted(error, ref))
        return None
    reporter.line(f"using the encoder {version.ref}")
    return shared


def publish_encoder(assembly: Assembly, root: Path, registry: Registry | None, cost: Cost) -> tuple[str, str]:
    """Publish the encoder that a run fitted; return its digest and its reference."""
    folder = root / "encoder"
    shutil.rmtree(folder, ignore_errors=True)
    with appearing_folder(folder) as aside:
        write_encoder(aside, assembly)
    store = registry or Registry(root / "registry")
    name = encoder_name(assembly.data, assembly.recipe)
    manifest = encoder_manifest(assembly, name, cost=cost)
    if assembly.recipe.train.privacy is not None:
        check_sources(folder, manifest.raw())
    published = store.publish(folder, manifest)
    return published.digest, published.ref


def _check_rule(encoder: Manifest, recipe: Recipe) -> None:
    """Refuse an encoder that nobody named and that reads control tokens by another rule than the recipe (ManifestError)."""
    got, expected = recorded_rule(encoder.sequence), recipe.sequence.control_tokens
    if recipe.encoder.use == "auto" and got != expected:
        what, todo = "the encoder reads control tokens in titles otherwise", "name it in encoder.use to share it all the same"
        raise ManifestError(what, got=got, expected=f"sequence.control_tokens {expected}", todo=todo)


def check_codes(recipe: Recipe, codes: CodeSpec | None) -> None:
    """Check that an encoder has the codes by which a recipe generates items; other recipes share any encoder.

    Raises:
        ManifestError: It has none, or others than the recipe asks for.
    """
    if not recipe.generates:
        return
    if codes is None:
        raise ManifestError("the encoder has no codes of items", got="none", expected="codes, for head 'generate'")
    wanted = recipe.encoder.codes
    if wanted is None:
        return
    every = {name: getattr(wanted, name) for name in ("levels", "size", "method", "balanced")}
    asked = {name: value for name, value in every.items() if value is not None}
    held = {"levels": len(codes.sizes) - 1, "size": codes.size, "method": codes.method, "balanced": codes.balanced}
    if other := [name for name, value in asked.items() if held[name] != value]:
        got, expected = (", ".join(f"{name} {each[name]}" for name in other) for each in (held, asked))
        raise ManifestError("the encoder has other codes of items", got=got, expected=expected)


def _check_public(encoder: Manifest, recipe: Recipe, shared: SharedEncoder) -> None:
    """Refuse a private recipe an encoder that knows events, or other feedback values than it declares (ManifestError)."""
    privacy = recipe.train.privacy
    if privacy is None:
        return
    if not knows_no_event(encoder):
        what, todo = "a private recipe needs an encoder that was fitted to no event", "set encoder.use to auto or fit"
        raise ManifestError(what, got=f"{encoder.name} without a budget of zero", expected="notes.privacy.epsilon 0", todo=todo)
    values = shared.vocabulary.values if shared.vocabulary else ()
    if values != privacy.feedback_values:
        what = "the encoder was made for other feedback values"
        raise ManifestError(what, got=list(values), expected=list(privacy.feedback_values), todo="set encoder.use to fit")


def knows_no_event(encoder: Manifest) -> bool:
    """True if an encoder was made of public things alone, as its budget table says."""
    table: Any = encoder.notes.get("privacy")
    return isinstance(table, dict) and table.get("epsilon") == 0 and not table.get("mechanisms")


def _why_fitted(error: Exception, ref: str) -> str:
    if isinstance(error, NotFoundError):
        return f"fitting an encoder, which later recipes of this data set share: the registry has no {ref} yet"
    return f"fitting a new encoder: {error}"


def foresee_encoder(recipe: Recipe, log: Interactions, registry: Registry) -> str:
    """Where a recipe's encoder would come from, in a line: fitted, or found in a registry, and how it could be shared."""
    if not needs_encoder(recipe):
        return "encoder: the recipe needs none"
    if recipe.encoder.use == "fit":
        return "encoder: a new one is fitted, since encoder.use is fit"
    try:
        return f"encoder: shares {sharable(recipe, log, registry).ref}"
    except (NotFoundError, ManifestError) as error:
        if recipe.encoder.use != "auto":
            raise
        return f"encoder: {_why_fitted(error, encoder_name(log, recipe))}"


def sharable(recipe: Recipe, log: Interactions, registry: Registry) -> Version:
    """The published encoder that a recipe would use, by what its manifest says.

    Raises:
        NotFoundError, ManifestError: There is none, or it does not fit.
    """
    version = registry.resolve(encoder_name(log, recipe) if recipe.encoder.use == "auto" else recipe.encoder.use)
    own, theirs = (recipe.base.name, recipe.base.depth), (version.manifest.base.name, version.manifest.base.depth)
    if own != theirs and not Path(recipe.base.name).is_dir():
        raise ManifestError("it was fitted on another base", got=_base(*own), expected=_base(*theirs))
    check_leak(version.manifest, recipe, log)
    _check_rule(version.manifest, recipe)
    fitted: Any = version.manifest.sequence.get("feedback")
    check_feedback(feedback_column(recipe, log), fitted)
    if recipe.generates:
        check_codes(recipe, read_code_spec(registry, version))
    return version


def foresee_sharing(recipes: Sequence[tuple[str, Recipe]], log: Interactions) -> list[str]:
    """Which of some recipes of one log can share an encoder if they are trained in this order, a line for each after the first.

    Args:
        recipes: Files and recipes; those that need no encoder, or name one, are left out.
        log: Their log.
    """
    lines: list[str] = []
    fitted: list[tuple[str, Recipe]] = []
    for file, recipe in recipes:
        if not needs_encoder(recipe) or recipe.encoder.use not in ("auto", "fit"):
            continue
        if recipe.encoder.use == "auto" and fitted:
            first, other = fitted[-1]
            reason = _unshared(other, recipe, log)
            if reason is None:
                lines.append(f"encoder: {file} shares the one that {first} fits: genre train {first} {file}")
                continue
            lines.append(f"encoder: {file} cannot share the one that {first} fits: {reason.replace('FIRST', first)}")
        fitted.append((file, recipe))
    return lines


def _unshared(first: Recipe, second: Recipe, log: Interactions) -> str | None:
    """Why a recipe cannot use the encoder that another one fits; None if it can."""
    columns = [feedback_column(recipe, log) for recipe in (first, second)]
    if columns[1] is not None and columns[0] != columns[1]:
        return f"it reads feedback {columns[1]}, and that one {columns[0] or NO_FEEDBACK}"
    rules = [recipe.sequence.control_tokens for recipe in (first, second)]
    if rules[0] != rules[1]:
        return f"it reads control tokens as {rules[1]}, and that one as {rules[0]}"
    if second.generates and first.encoder.codes != second.encoder.codes:
        return "it generates items by other codes" if first.generates else "it generates items, and that one has no codes"
    if (first.base.name, first.base.depth) != (second.base.name, second.base.depth):
        return f"its base is {_base(second.base.name, second.base.depth)}, not {_base(first.base.name, first.base.depth)}"
    leaked = count_leak(used_splits(first), second.data.split, log)
    if not leaked:
        return None
    option = hold_out_option([*first.data.hold_out, second.data.split])
    return f"{leaked:,} events train that one which this recipe is evaluated on; genre train FIRST {option} leaves them out"


def _base(name: str, depth: int | None) -> str:
    return f"{name} with {'all' if depth is None else f'{depth}'} layers"


def hold_out_option(splits: Iterable[SplitConfig]) -> str:
    """The option that takes the evaluated events of some splits out of training."""
    shown = {json.dumps(each.model_dump(mode="json", exclude_none=True, exclude_defaults=True)) for each in splits}
    return f"--set 'data.hold_out=[{', '.join(sorted(shown))}]'"


def count_leak(used: Mapping[str, Any], evaluated: SplitConfig, log: Interactions) -> int:
    """Count the events that train under some splits, as manifests hold them, and are evaluated under another one."""
    trained = np.ones(len(log), dtype=bool)
    for config in (used["split"], *(used.get("hold_out") or ())):
        trained &= split(log, SplitConfig.model_validate(config)).part == TRAIN
    return int((trained & split(log, evaluated).held_out).sum())


def check_leak(used: Manifest, recipe: Recipe, log: Interactions, *, subject: str = "the encoder", start: bool = False) -> None:
    """Refuse an encoder, or a version to start from, that was fitted on events that this recipe validates or tests on.

    Args:
        used: The manifest of what the run would use.
        recipe: The recipe.
        log: Its log.
        subject: What it is, for the message.
        start: It is, or is behind, a version to start from.

    Raises:
        ManifestError: It was, or it may have been.
    """
    if knows_no_event(used):
        return
    data = used.data
    anew = "start from another version, or leave train.start out" if start else "use encoder.use: fit"
    if data is not None and data.digest == log.digest and data.split is not None:
        overlap = count_leak(data.split, recipe.data.split, log)
        if overlap:
            option = hold_out_option([recipe.data.split])
            todo = (
                f"train the encoder's recipe with --set encoder.use=fit {option} to share it, or this one with encoder.use: fit"
            )
            if start:
                todo = f"train {subject} with {option}, or evaluate under its own split"
            what = f"{subject} was fitted on events that this recipe is evaluated on"
            raise ManifestError(what, got=f"{overlap} events", expected="none", todo=todo)
        return
    if not log.info.timed:
        what = f"{subject} was fitted on another log, and this one has no times to tell if the two overlap"
        raise ManifestError(what, got=log.tie_rule, expected="the same log", todo=anew)
    held_out = split(log, recipe.data.split).held_out
    first = int(log.timestamps[held_out].min()) if held_out.any() else None
    if data is None or data.time_span is None or (first is not None and data.time_span[1] > first):
        what = f"{subject} was fitted on another log that overlaps in time with this recipe's evaluation"
        got, expected = None if data is None else data.time_span, f"nothing later than {first}"
        raise ManifestError(what, got=got, expected=expected, todo=anew)
