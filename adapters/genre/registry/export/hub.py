"""Adapters out to a model hub: the folder that `huggingface_hub.upload_folder` takes.

Owns: the card's metadata (base model, licence, data set, tags, metrics in the model-index form), the stored card beside it.
Ignores: the network, the files of the adapter (`peft`). An export is that of `--to peft` with another head of the card:

    exported/
        README.md      # ---, base_model: …, license: …, datasets: […], model-index: […], ---, the card
        genre-card.md  # the card as it was published, so that an import gives the version that it was
        adapter_config.json  adapter_model.safetensors  heads.safetensors  manifest.json  …
"""

import re
from pathlib import Path
from typing import Any

import yaml

from genre.errors import InputError, RegistryError, fault_of_file, kind_of
from genre.registry.card import is_rendered
from genre.registry.integrity import CARD
from genre.registry.manifest import Manifest

STORED_CARD = "genre-card.md"
OTHER = "other"
"""The licence where none is named: the weights derive from the base and the data, whose terms the card points to."""
_HEAD = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)


def check_licence(name: str | None) -> None:
    """Raise InputError unless a licence is of the form of the hub's identifiers, or None."""
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", name):
        raise InputError("no such licence", got=repr(name)[:80], expected="an identifier of the hub, such as apache-2.0")


def write_hub_card(folder: Path, manifest: Manifest, stored: str, licence: str | None) -> None:
    """Give the card of an exported folder the hub's metadata, and put the stored card beside it (mutates the folder).

    A person's own card keeps its text, and the metadata that it has itself.
    """
    (folder / STORED_CARD).write_text(stored, encoding="utf-8")
    text = (folder / CARD).read_text(encoding="utf-8")
    head = _HEAD.match(text)
    metadata = hub_metadata(manifest, licence)
    if head is not None and not is_rendered(stored, manifest):
        metadata |= _read_head(head[1])
    body = text if head is None else text[head.end() :]
    written = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)
    (folder / CARD).write_text(f"---\n{written}---\n{body}", encoding="utf-8")


def _read_head(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text) or {}
        got = None if isinstance(found, dict) else kind_of(found)
    except yaml.YAMLError as error:
        got = fault_of_file(error)
    if got is not None:
        todo = "publish the version with another card"
        raise RegistryError(f"the head of the version's {CARD} cannot be read", got=got, expected="keys and values", todo=todo)
    return dict(found)


def hub_metadata(manifest: Manifest, licence: str | None) -> dict[str, Any]:
    """The metadata of a card as the hub reads them; tasks are told apart by the configuration of their data set."""
    from huggingface_hub import EvalResult, ModelCardData

    data = manifest.data
    name = None if data is None else data.name
    about: dict[str, Any] = {"dataset_name": name or "not recorded", "dataset_type": _slug(name or "not-recorded")}
    if data is not None:
        about["dataset_revision"] = data.digest
    results = [
        EvalResult(
            task_type="recommendation" if manifest.reads == "log" else "text-classification",
            task_name=task,
            metric_type=metric,
            metric_value=value.value,
            metric_args={"interval": None if value.interval is None else list(value.interval), "n": value.n},
            dataset_config=task,
            dataset_split="test",
            **about,
        )
        for task, values in manifest.metrics.items()
        for metric, value in values.items()
    ]
    card = ModelCardData(
        base_model=_base_id(manifest.base.name),
        base_model_relation="adapter",
        library_name="peft",
        license=licence or OTHER,
        license_name=None if licence else "of-the-base-and-the-data",
        license_link=None if licence else f"{CARD}#licence",
        datasets=None if name is None else [_slug(name)],
        tags=["genre", "lora", "recommendation"],
        model_name=manifest.name,
        metrics=sorted({metric for values in manifest.metrics.values() for metric in values}) or None,
        eval_results=results or None,
    )
    found: dict[str, Any] = card.to_dict()
    return found


def _base_id(name: str) -> str:
    """A base's name as the hub has it; of a folder the last part, since a path of this machine says nothing there."""
    parts = Path(name).parts
    return name if len(parts) <= 2 and not Path(name).is_absolute() else parts[-1]


def _slug(name: str) -> str:
    """A name in the letters of the hub's identifiers."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"
