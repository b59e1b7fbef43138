"""Adapters over text out to servers of language models: what every such export holds, whatever the server.

Owns: which versions a server can answer for, the base beside the adapter, prompts, items' texts, canaries, the client. Ignores:
one server's command and formats (`vllm`, `sglang`, `gguf`). An adapter over text items whose answer is read from label words:

    exported/
        base/config.json, model.safetensors, …           # the base's first layers, as many as the adapter was trained on
        client.py  prompt.json  items.jsonl  canaries.json  manifest.json

A server takes token ids and gives log-probabilities of tokens. So soft tokens, heads with weights of their own and labelled texts
are refused.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genre.data.sequences.control import is_control, recorded_rule, refused_ids, token_ids
from genre.data.sequences.instruction import fields_of
from genre.errors import IntegrityError, ManifestError, RegistryError, first_line
from genre.files import appearing_folder
from genre.registry.card import render_card
from genre.registry.export import client
from genre.registry.export.canaries import TOLERANCE, write_canaries
from genre.registry.export.check import untold
from genre.registry.export.peft import check_base
from genre.registry.integrity import CARD
from genre.registry.manifest import Manifest, Version
from genre.registry.names import MANIFEST
from genre.registry.weights.base import link_base, truncate_base
from genre.registry.weights.lora import Adapter, read_adapter

_ITEMS = "catalogue.jsonl"


@dataclass(frozen=True)
class Served:
    """An export under way.

    Attributes:
        folder: With everything that all servers need.
        adapter: The version's.
        prompt: The content of `prompt.json`.
        manifest: The version's.
    """

    folder: Path
    adapter: Adapter
    prompt: dict[str, Any]
    manifest: Manifest


def write_served(
    version: Version,
    source: Path,
    out: Path,
    base: Path | None,
    fill: Callable[[Served], str],
    *,
    server: str,
    label: str,
    tolerance: float = TOLERANCE,
    canaries: bool = True,
) -> None:
    """Write a new folder for a server.

    Args:
        version: The version.
        source: Its files.
        out: The folder.
        base: Of its base.
        fill: Writes what this server alone needs, and returns the card's lines for it; the base runs for canaries after it.
        server: The client's name of the server.
        label: The server's name for people.
        tolerance: How far its answers may be from the adapter's.
        canaries: Write canaries.

    Raises:
        RegistryError, ManifestError, IntegrityError: As of `Registry.export`.
    """
    manifest = version.manifest
    check_servable(manifest, label)
    if base is None:
        expected = f"the folder of {manifest.base.name}"
        todo = "pass base= or --base"
        raise RegistryError(f"{version.ref} needs its base beside it", got="no folder", expected=expected, todo=todo)
    adapter = read_adapter(source)
    if adapter.swapped:
        got = "fan_in_fan_out (GPT-2 kind)"
        raise RegistryError(f"{label} has no LoRA for this kind of base", got=got, expected="plain linears")
    depth = check_base(base, adapter, manifest)
    prompts = read_prompts(manifest, source, base, server)
    with appearing_folder(out) as folder:
        if depth is not None:
            truncate_base(base, depth, folder / "base")
        else:
            link_base(base, folder / "base")
        if recorded_rule(manifest.sequence) == "text":
            read_plainly(folder / "base")
        shutil.copyfile(source / MANIFEST, folder / MANIFEST)
        shutil.copyfile(client.__file__, folder / "client.py")
        _write_json(folder / "prompt.json", prompts.prompt)
        with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
            for item, text in prompts.texts.items():
                file.write(json.dumps({"item_id": item, "text": text}, ensure_ascii=False) + "\n")
        usage = fill(Served(folder, adapter, dict(prompts.prompt), manifest))
        write_canaries(folder, manifest, source, base, prompts, tolerance=tolerance, wanted=canaries)
        card = render_card(manifest, full=True) + usage + _check(folder, prompts.prompt)
        (folder / CARD).write_text(card, encoding="utf-8")


def add_canaries(folder: Path, version: Version, source: Path, base: Path | None, *, wanted: bool) -> None:
    """Write canaries into an export of another form, where a server could answer for the version and its base is known."""
    try:
        check_servable(version.manifest, "a server")
    except RegistryError:
        return
    if base is None:
        return
    try:
        prompts = read_prompts(version.manifest, source, base, "vllm")
    except ManifestError:  # the base's folder has another tokenizer, with which the adapter means nothing
        return
    write_canaries(folder, version.manifest, source, base, prompts, wanted=wanted)


def check_servable(manifest: Manifest, label: str) -> None:
    """Check that token ids in and log-probabilities out are all that a version needs; RegistryError otherwise."""
    sequence = manifest.sequence

    def refused(got: str, expected: str, todo: str | None = None) -> RegistryError:
        return RegistryError(f"{manifest.name} cannot be served by {label}", got=got, expected=expected, todo=todo)

    if manifest.kind == "encoder":
        raise refused("a behaviour encoder", "an adapter")
    if label == "vLLM" and any(task.get("head") == "generate" for task in manifest.tasks):
        todo = "genre registry export --to vllm"
        raise refused("head generate", "an export that computes the items' vectors", todo)
    todo = "serve it with genre serve, or train with sequence.item: text, encoder.use: none and head: verbalizer"
    if "item" not in sequence:
        got = "labelled texts, read by a head" if sequence else "an adapter whose prompts are not known"
        raise refused(got, "sequence.item: text", todo)
    if sequence["item"] != "text" or sequence.get("soft_feedback"):
        expected = f"sequence.item: text and encoder.use: none, since {label} takes token ids only"
        raise refused(f"soft tokens (sequence.item: {sequence['item']})", expected, todo)
    for task in manifest.tasks:
        if task.get("head") != "verbalizer":
            expected = f"head verbalizer, since {label} gives log-probabilities of tokens only"
            raise refused(f"head {task.get('head')} of task {task['name']!r}", expected, todo)


def read_prompts(manifest: Manifest, source: Path, base: Path, server: str) -> client.Prompts:
    """How a version's requests become token ids, by its base's tokenizer.

    Raises:
        ManifestError: The base's tokenizer is another one.
        IntegrityError: The version's catalogue cannot be read.
    """
    from genre.modules.base.source import read_config, tokenizer_digest

    _, tokenizer = read_config(manifest.base.name, base)
    if (found := tokenizer_digest(tokenizer)) != manifest.tokenizer:
        raise ManifestError("tokenizer differs", got=found, expected=manifest.tokenizer)

    layout, rule = dict(manifest.sequence), recorded_rule(manifest.sequence)
    tasks = []
    for task in manifest.tasks:
        words: list[str] = [str(word) for word in task["words"]]  # type: ignore[union-attr]
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        numbers = [float(word) for word in words] if task["loss"] == "mse" else list(range(len(words)))
        tasks.append({"name": task["name"], "loss": task["loss"], "words": words, "word_ids": ids, "numbers": numbers})
    prompt = {
        "server": server,
        "model": manifest.name,
        "version": manifest.version,
        "start": [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)],
        "user_columns": fields_of(str(layout["instruction"])),
        "layout": layout,
        "control": sorted(refused_ids(tokenizer)) if rule == "text" else [],
        "tasks": tasks,
    }
    return client.Prompts(prompt, _texts(source, manifest), lambda text: token_ids(tokenizer, text, rule))


def read_plainly(base: Path) -> None:
    """Have an exported base's tokenizer read control tokens in a text as text, as the adapter was trained.

    transformers splits what is called special alone, so every control token is called so.
    """
    config, vocabulary = base / "tokenizer_config.json", base / "tokenizer.json"
    settings = _read_json(config) if config.exists() else {}
    _call_special(settings.get("added_tokens_decoder", {}).values())
    _write_json(config, settings | {"split_special_tokens": True})
    if vocabulary.exists():
        content = _read_json(vocabulary)
        _call_special(content["added_tokens"])
        _write_json(vocabulary, content)


def _call_special(tokens: Iterable[dict[str, Any]]) -> None:
    for token in tokens:
        token["special"] = is_control(token["content"], special=token.get("special", False))


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))  # of the user's own base, which transformers has read


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _texts(source: Path, manifest: Manifest) -> dict[str, str]:
    """Each item's text as the prompt has it."""
    import polars as pl

    from genre.data.catalogue import Catalogue

    try:
        catalogue = Catalogue(pl.read_ndjson(source / _ITEMS, infer_schema_length=None))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{_ITEMS} cannot be read", got=first_line(error)) from None
    columns: Any = manifest.sequence["text"]
    return dict(zip(catalogue.item_ids, catalogue.texts(list(columns)), strict=True))


def ask_usage(prompt: dict[str, Any]) -> str:
    """The section of a card on the client."""
    own = prompt["server"] == "llama.cpp"  # runs in the client's process
    needs = "llama-cpp-python and tokenizers" if own else "Python and nothing else"
    shared = "begin with the same tokens, which are read once." if own else "share their history through the prefix cache."
    client = "Client()" if own else 'Client("http://127.0.0.1:8000")'
    tokens = "by tokenizer.json" if own else "through the server"
    column = prompt["layout"]["feedback"]
    feedback = "" if column is None else f', "{column}": VALUE'
    return f"""
## Ask

`client.py` needs {needs}; it takes rows like `genre score`, without `adapter`, and tokenizes {tokens}:

```console
$ echo '{{"id": "1", "history": [{{"item_id": "ID"{feedback}}}], "candidates": ["ID", "ID"]}}' | python client.py
```

```python
from client import Client

scores = {client}.score(history, candidates)
```

Candidates of one call {shared}
"""


def _check(folder: Path, prompt: Mapping[str, Any]) -> str:
    where = "." if prompt["server"] == "llama.cpp" else "http://127.0.0.1:8000"
    if reason := untold(folder):
        return f"\n## Check\n\nNo canary tells the adapter from its base: {reason}.\n"
    return f"""
## Check

`canaries.json` holds prompts that base and adapter answer differently. The client sends them first, and refuses a server that
takes the name `{prompt["model"]}` and answers with the base. By hand, in this folder:

```console
$ genre registry check-server {where}
```
"""
