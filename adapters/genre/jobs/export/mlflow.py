"""A version in MLflow: a run with its recipe and metrics, its files as artifacts, a registered model under the same aliases.

Owns: names, tags, what is made once. Ignores: how runs are tracked while they train (`genre.training.reporting`).

    run of experiment genre     params the recipe's keys, metrics next_item.ndcg_at_10 (.low, .high), tags genre.digest, …
      artifacts version/        the version's files, and its encoder's in encoder/: genre registry import takes the folder back
    registered model next_item  a version per digest, which the registry's aliases name; `latest` is MLflow's own
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from genre.errors import InputError, JobError, NotFoundError, first_line
from genre.registry import Registry, Version
from genre.registry.export.peft import ENCODER_FOLDER
from genre.registry.integrity import list_files
from genre.registry.names import LATEST
from genre.training.reporting import flatten_values, mlflow_name

EXPERIMENT = "genre"
ARTIFACTS = "version"
DIGEST = "genre.digest"
_AT_ONCE = 100
"""Parameters of one call, the most that MLflow takes."""
_LONGEST = 500
"""Characters of a parameter, the most that every store of MLflow takes."""


@dataclass(frozen=True)
class Tracked:
    """A version in MLflow.

    Attributes:
        run_id: Its run.
        model: The registered model.
        version: The number of the model's version.
        aliases: Those that name it there.
        new: False where this version had been there already; only aliases were set.
    """

    run_id: str
    model: str
    version: str
    aliases: tuple[str, ...]
    new: bool


def export_mlflow(registry: Registry, ref: str, uri: str, *, experiment: str = EXPERIMENT) -> Tracked:
    """Log a version to MLflow as a run, and register it as a model with the registry's aliases.

    The same version again makes no second run.

    Args:
        registry: Holds the version.
        ref: The version.
        uri: The tracking server or store: `http://…`, `sqlite:///FILE`, or a folder (with MLFLOW_ALLOW_FILE_STORE=true).
        experiment: Its name, made where it is new.

    Raises:
        InputError: MLflow is not installed.
        NotFoundError: The version's encoder is not in the registry.
        JobError: The server or store refuses.
    """
    if find_spec("mlflow") is None:
        expected = "pip install 'genre-adapters[mlflow]'"
        raise InputError("--to mlflow needs a package that is not installed", got="no mlflow", expected=expected)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    version = registry.resolve(ref)
    _check_reached(uri)
    try:
        return _log(MlflowClient(uri, uri), registry, version, experiment)
    except (MlflowException, OSError) as error:
        expected = "a tracking server, or a store such as sqlite:///mlflow.db"
        raise JobError(f"MLflow at {uri} refuses", got=first_line(error), expected=expected) from None


def _check_reached(uri: str) -> None:
    """Refuse a server that does not answer at all, which MLflow's client asks again for minutes.

    Raises:
        JobError: It does not.
    """
    import requests

    if not uri.startswith(("http://", "https://")):
        return
    try:
        requests.get(uri, timeout=30, stream=True).close()
    except requests.exceptions.SSLError:
        return  # MLflow has settings of its own for certificates
    except (requests.ConnectionError, requests.Timeout) as error:
        raise JobError(
            f"MLflow at {uri} cannot be reached", got=first_line(error), expected="a tracking server that runs"
        ) from None
    except requests.RequestException:
        return  # told by the client in its own words


def _log(client: Any, registry: Registry, version: Version, experiment: str) -> Tracked:
    held = [alias for alias, own in registry.aliases(version.name).items() if own == version.version and alias != LATEST]
    found = _known(client, version)
    new = found is None
    if found is None:
        run_id = _make_run(client, registry, version, experiment)
        if not client.search_registered_models(f"name = '{version.name}'"):
            client.create_registered_model(version.name, description="Adapters of GENRE")
        source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACTS}"
        found = client.create_model_version(version.name, source, run_id, tags={DIGEST: version.digest, "genre.ref": version.ref})
    for alias in held:
        client.set_registered_model_alias(version.name, alias, found.version)
    return Tracked(str(found.run_id), version.name, str(found.version), tuple(held), new)


def _known(client: Any, version: Version) -> Any:
    """The model version of this digest, or None."""
    models = client.search_model_versions(f"name = '{version.name}'")
    return next((one for one in models if one.tags.get(DIGEST) == version.digest), None)


def _make_run(client: Any, registry: Registry, version: Version, experiment: str) -> str:
    from mlflow.entities import Metric, Param

    known = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if known is None else known.experiment_id
    manifest = version.manifest
    tags = {DIGEST: version.digest, "genre.ref": version.ref, "genre.kind": manifest.kind, "genre.base": manifest.base.name}
    tags |= {} if manifest.data is None else {"genre.data": manifest.data.digest}
    run_id: str = client.create_run(number, tags=tags, run_name=version.ref).info.run_id
    ended = "FAILED"
    try:
        params = [Param(mlflow_name(key), value) for key, value in _params(registry.fetch(version))]
        for start in range(0, len(params), _AT_ONCE):
            client.log_batch(run_id, params=params[start : start + _AT_ONCE])
        client.log_batch(run_id, metrics=[Metric(mlflow_name(key), value, 0, 0) for key, value in _metrics(version)])
        with tempfile.TemporaryDirectory(prefix="genre-mlflow-") as folder:
            _gather(registry, version, Path(folder))
            client.log_artifacts(run_id, folder, ARTIFACTS)
        ended = "FINISHED"
    finally:
        client.set_terminated(run_id, ended)
    return run_id


def _params(folder: Path) -> Iterator[tuple[str, str]]:
    """The recipe's keys, dotted; none for a version without a recipe."""
    file = folder / "recipe.yaml"
    if file.is_file():
        for key, value in flatten_values(yaml.safe_load(file.read_text(encoding="utf-8"))).items():
            yield key, str(value)[:_LONGEST]


def _metrics(version: Version) -> Iterator[tuple[str, float]]:
    for task, values in version.manifest.metrics.items():
        for name, found in values.items():
            yield f"{task}.{name}", found.value
            if found.interval is not None:
                yield from zip((f"{task}.{name}.low", f"{task}.{name}.high"), found.interval, strict=True)
    for name, cost in version.manifest.cost:
        yield f"cost.{name}", float(cost)


def _gather(registry: Registry, version: Version, target: Path) -> None:
    """Copy a version's files, and its encoder's, into a folder as an export has them."""
    folders = [(registry.fetch(version), target)]
    if version.manifest.encoder is not None:
        try:
            encoder = registry.find(version.manifest.encoder)
        except NotFoundError as error:
            raise NotFoundError(f"the encoder of {version.ref} is not here", got=str(error)) from None
        folders.append((registry.fetch(encoder), target / ENCODER_FOLDER))
    for source, place in folders:
        place.mkdir(exist_ok=True)
        for name in list_files(source):
            shutil.copyfile(source / name, place / name)
