"""From a federated run to a version: its files, its manifest, the encoder that was fitted with it.

Owns: these. Ignores: how the tensors came about.

The manifest's metrics are means of the clients' own, weighted by their targets: no interval belongs to such a mean.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from genre.errors import JobError
from genre.files import appearing_folder, write_json
from genre.jobs.federated.averaging import A, B, linears
from genre.jobs.federated.members import Member
from genre.jobs.federated.options import FederatedOptions
from genre.jobs.federated.packets import State, tensors
from genre.jobs.federated.server import Trained
from genre.modules.heads.spec import HeadSpec
from genre.modules.lora.layer import PEFT_PREFIX
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Manifest, canonical

NOTE = "federated"
"""The key of the manifest's notes with who took part."""
ENCODER = "encoder/"
"""The folder of an encoder that was fitted with the adapter, among the texts of a run."""


@dataclass(frozen=True)
class FederatedRun:
    """A finished federated run, ready to be published.

    Attributes:
        root: Its folder.
        folder: The files of the version.
        manifest: The draft of its manifest.
        encoder: The reference of the encoder that was fitted and published with it; None if there is none.
    """

    root: Path
    folder: Path
    manifest: Manifest
    encoder: str | None

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics of the manifest, as JSON holds them."""
        return {task: {name: each.model_dump() for name, each in own.items()} for task, own in self.manifest.metrics.items()}


def write_run(trained: Trained, recipe: Recipe, options: FederatedOptions, root: Path, registry: Registry) -> FederatedRun:
    """Write the version of a federated run into its folder, and publish the encoder that was fitted with it."""
    draft = json.loads(trained.texts["manifest.json"])
    draft |= {"name": recipe.name, "metrics": mean_metrics(trained.members), "data": _data(draft, trained.members)}
    draft["protocol"] = {task: f"{line}; mean of the clients' own" for task, line in draft["protocol"].items()}
    draft["notes"] = {NOTE: describe(trained, recipe, options)}
    draft["cost"] = _cost(trained)
    reference = None
    if fitted := {name: text for name, text in trained.texts.items() if name.startswith(ENCODER)}:
        draft["encoder"], reference = _publish_encoder(trained, fitted, draft, root, registry)
    with appearing_folder(root / "version") as aside:
        for name, text in trained.texts.items():
            if name not in fitted and name != "manifest.json":
                (aside / _plain(name)).write_text(text, encoding="utf-8")
        (aside / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
        _check_heads(aside)
        save_tensors(trained.state, aside)
    report = {"metrics": draft["metrics"], "rounds": trained.history, "federated": draft["notes"][NOTE]}
    write_json(root / "metrics.json", report)
    return FederatedRun(root, root / "version", Manifest.parse(draft, "the manifest of the federated run"), reference)


def save_tensors(state: State, folder: Path) -> None:
    """Write low-rank factors in PEFT's format, and the heads, each into the file that versions have them in."""
    low = {f"{PEFT_PREFIX}{linear}{part}.weight": state[linear + part] for linear in linears(state) for part in (A, B)}
    heads = {name.removeprefix("heads."): value for name, value in state.items() if name.startswith("heads.")}
    for file, arrays in (("adapter_model.safetensors", low), ("heads.safetensors", heads)):
        if arrays:
            save_file(tensors(arrays), folder / file, metadata={"format": "pt"})


def describe(trained: Trained, recipe: Recipe, options: FederatedOptions) -> dict[str, Any]:
    """Who took part and how, for the manifest."""
    clients = [
        {
            "name": member.name,
            "examples": member.facts["examples"],
            "rank": member.facts["rank"],
            "rounds": len(member.rounds),
        }
        for member in trained.members
    ]
    found = {
        "clients": clients,
        "rounds": len(trained.history),
        "round": trained.best,
        "epochs": options.epochs,
        "factors": "B alone, of one A" if options.freeze_a else "products, by SVD",
        "secure_aggregation": options.secure,
        "encoder": "frozen" if recipe.encoder.use not in ("auto", "fit") else "fitted by the clients",
    }
    return found | ({"privacy": trained.privacy} if trained.privacy else {})


def mean_metrics(members: list[Member]) -> dict[str, dict[str, Any]]:
    """For each task and metric: the mean of the clients' values weighted by their targets, and the targets of all."""
    sums: dict[str, dict[str, tuple[float, int]]] = {}
    for member in members:
        for task, own in member.metrics.items():
            for name, entry in own.items():
                total, count = sums.setdefault(task, {}).get(name, (0.0, 0))
                n = int(entry.get("n") or 0)
                sums[task][name] = (total + n * float(entry["value"]), count + n)
    return {
        task: {name: {"value": total / count, "n": count} for name, (total, count) in own.items() if count}
        for task, own in sums.items()
    }


def _data(draft: dict[str, Any], members: list[Member]) -> dict[str, Any]:
    """The data of all clients: a digest of their digests, the sum of their examples, the span of all their times."""
    told = sorted((member.name, str(member.facts.get("data", ""))) for member in members)
    spans = [member.facts["time_span"] for member in members if member.facts.get("time_span")]
    return {
        "name": f"{len(members)} clients",
        "digest": hashlib.sha256(canonical(told)).hexdigest(),
        "rows": sum(int(member.facts["examples"]) for member in members),
        "time_span": [min(first for first, _ in spans), max(last for _, last in spans)] if spans else None,
        "split": draft["data"]["split"],
    }


def _cost(trained: Trained) -> dict[str, Any]:
    low = sum(value.size for name, value in trained.state.items() if name.endswith((A, B)))
    heads = sum(value.size for name, value in trained.state.items() if name.startswith("heads."))
    return {"seconds": round(trained.seconds, 3), "lora_params": low, "head_params": heads}


def _publish_encoder(
    trained: Trained, texts: dict[str, str], draft: dict[str, Any], root: Path, registry: Registry
) -> tuple[str, str]:
    """Publish the encoder that the clients fitted; its digest and reference."""
    arrays = {name.removeprefix("encoder."): value for name, value in trained.state.items() if name.startswith("encoder.")}
    with appearing_folder(root / "encoder") as aside:
        for name, text in texts.items():
            (aside / _plain(name.removeprefix(ENCODER))).write_text(text, encoding="utf-8")
        save_file(tensors(arrays), aside / "encoder.safetensors", metadata={"format": "pt"})
    kept = {key: draft[key] for key in ("base", "tokenizer", "sequence", "catalogue", "data", "code_version", "notes")}
    manifest = Manifest.parse(kept | {"kind": "encoder", "name": f"encoder-{draft['name']}"[:64]})
    published = registry.publish(root / "encoder", manifest)
    return published.digest, published.ref


def _plain(name: str) -> str:
    """The name of a file that a client sent, which may be in no other folder.

    Raises:
        JobError: It is a path.
    """
    if name != Path(name).name or name.startswith("."):
        raise JobError("a client sent a file of another folder", got=name[:80], expected="a plain name")
    return name


def _check_heads(folder: Path) -> None:
    """Check that the heads' descriptions are ones, before they are published."""
    for described in json.loads((folder / "heads.json").read_text(encoding="utf-8")).values():
        HeadSpec.model_validate(described)
