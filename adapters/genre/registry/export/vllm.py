"""Adapters out to vLLM: base, adapter, the command that serves them, a client.

Owns: which versions a vLLM server can answer for, and the files of an exported folder. Ignores: vLLM itself, the registry's
files. An export of an adapter over text items whose answer is read from label words:

    exported/
        README.md                                        # with the `vllm serve` command
        base/config.json, model.safetensors, …           # the base's first layers, as many as the adapter was trained on
        adapter/adapter_config.json, adapter_model.safetensors
        client.py  prompt.json  items.jsonl  manifest.json

vLLM takes token ids and gives log-probabilities of tokens. So soft tokens, heads with weights of their own and labelled texts
are refused.
"""

import json
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genre.data.sequences.control import is_control, recorded_rule, refused_ids
from genre.data.sequences.instruction import fields_of
from genre.errors import IntegrityError, ManifestError, RegistryError, first_line
from genre.files import appearing_folder
from genre.registry.card import render_card
from genre.registry.export import vllm_client
from genre.registry.export.peft import check_base
from genre.registry.integrity import CARD
from genre.registry.manifest import Manifest, Version
from genre.registry.names import MANIFEST
from genre.registry.weights.base import link_base, truncate_base
from genre.registry.weights.lora import ADAPTER, CONFIG, Adapter, read_adapter

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""
_MOST_WORDS = 20
"""vLLM's default bound on the log-probabilities of one answer."""
_ITEMS = "catalogue.jsonl"


def export_vllm(version: Version, source: Path, out: Path, base: Path | None) -> None:
    """Write a version, whose files are in `source`, as a folder that a vLLM server loads, with a client.

    The base's first layers, or hard links to all of it, go along. For the errors see `Registry.export`.
    """
    manifest = version.manifest
    check_servable(manifest)
    if base is None:
        expected = f"the folder of {manifest.base.name}"
        todo = "pass base= or --base"
        raise RegistryError(f"{version.ref} needs its base beside it", got="no folder", expected=expected, todo=todo)
    adapter = read_adapter(source)
    depth = check_base(base, adapter, manifest)
    rank = _max_rank(adapter)
    prompt = _prompt(manifest, base)
    with appearing_folder(out) as folder:
        (folder / "adapter").mkdir()
        for name in (CONFIG, ADAPTER):
            shutil.copyfile(source / name, folder / "adapter" / name)
        if depth is not None:
            truncate_base(base, depth, folder / "base")
        else:
            link_base(base, folder / "base")
        if recorded_rule(manifest.sequence) == "text":
            _read_plainly(folder / "base")
        shutil.copyfile(source / MANIFEST, folder / MANIFEST)
        shutil.copyfile(vllm_client.__file__, folder / "client.py")
        _write_json(folder / "prompt.json", prompt)
        _write_items(source, folder / "items.jsonl", manifest)
        (folder / CARD).write_text(render_card(manifest, full=True) + _usage(prompt, rank), encoding="utf-8")


def check_servable(manifest: Manifest) -> None:
    """Check that token ids in and log-probabilities out are all that a version needs; RegistryError otherwise."""
    sequence = manifest.sequence

    def refused(got: str, expected: str, todo: str | None = None) -> RegistryError:
        return RegistryError(f"{manifest.name} cannot be served by vLLM", got=got, expected=expected, todo=todo)

    if manifest.kind == "encoder":
        raise refused("a behaviour encoder", "an adapter")
    todo = "serve it with genre serve, or train a recipe such as recipes/like_text.yaml"
    if "item" not in sequence:
        got = "labelled texts, read by a head" if sequence else "an adapter whose prompts are not known"
        raise refused(got, "sequence.item: text", todo)
    if sequence["item"] != "text" or sequence.get("soft_feedback"):
        expected = "sequence.item: text and encoder.use: none, since vLLM takes token ids only"
        raise refused(f"soft tokens (sequence.item: {sequence['item']})", expected, todo)
    for task in manifest.tasks:
        if task.get("head") != "verbalizer":
            expected = "head verbalizer, since vLLM gives log-probabilities of tokens only"
            raise refused(f"head {task.get('head')} of task {task['name']!r}", expected, todo)


def _max_rank(adapter: Adapter) -> int:
    """The smallest --max-lora-rank that takes every linear's rank."""
    if adapter.swapped:
        raise RegistryError("vLLM has no LoRA for this kind of base", got="fan_in_fan_out (GPT-2 kind)", expected="plain linears")
    most = max([adapter.config["r"], *(adapter.config.get("rank_pattern") or {}).values()])
    if most > _RANKS[-1]:
        raise RegistryError("the rank is too high for vLLM", got=most, expected=f"at most {_RANKS[-1]}")
    return next(rank for rank in _RANKS if rank >= most)


def _prompt(manifest: Manifest, base: Path) -> dict[str, Any]:
    """The token ids that the client needs, and the manifest's layout."""
    from genre.modules.base.source import read_config, tokenizer_digest

    _, tokenizer = read_config(manifest.base.name, base)
    if (found := tokenizer_digest(tokenizer)) != manifest.tokenizer:
        raise ManifestError("tokenizer differs", got=found, expected=manifest.tokenizer)
    layout = dict(manifest.sequence)
    tasks = []
    for task in manifest.tasks:
        words: list[str] = [str(word) for word in task["words"]]  # type: ignore[union-attr]
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        numbers = [float(word) for word in words] if task["loss"] == "mse" else list(range(len(words)))
        tasks.append({"name": task["name"], "loss": task["loss"], "words": words, "word_ids": ids, "numbers": numbers})
    return {
        "model": manifest.name,
        "version": manifest.version,
        "start": [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)],
        "user_columns": fields_of(str(layout["instruction"])),
        "layout": layout,
        "control": sorted(refused_ids(tokenizer)) if recorded_rule(manifest.sequence) == "text" else [],
        "tasks": tasks,
    }


def _read_plainly(base: Path) -> None:
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


def _write_items(source: Path, out: Path, manifest: Manifest) -> None:
    """Write each item's text as the prompt has it."""
    import polars as pl

    from genre.data.catalogue import Catalogue

    try:
        catalogue = Catalogue(pl.read_ndjson(source / _ITEMS, infer_schema_length=None))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{_ITEMS} cannot be read", got=first_line(error)) from None
    columns: Any = manifest.sequence["text"]
    with out.open("w", encoding="utf-8") as file:
        for item, text in zip(catalogue.item_ids, catalogue.texts(list(columns)), strict=True):
            file.write(json.dumps({"item_id": item, "text": text}, ensure_ascii=False) + "\n")


def serve_arguments(prompt: dict[str, Any], rank: int, folder: str = ".") -> list[str]:
    """The arguments of the `vllm` command."""
    most = max(len(task["words"]) for task in prompt["tasks"])
    arguments = ["serve", f"{folder}/base", "--served-model-name", "base", "--dtype", "float32"]
    arguments += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{prompt['model']}={folder}/adapter"]
    arguments += ["--enable-prefix-caching", "--logprobs-mode", "processed_logprobs"]
    return arguments + (["--max-logprobs", str(most)] if most > _MOST_WORDS else [])


def _usage(prompt: dict[str, Any], rank: int) -> str:
    column = prompt["layout"]["feedback"]
    feedback = "" if column is None else f', "{column}": VALUE'
    plain = "Its tokenizer reads control tokens in a text as text,\nso it is not for chats. " if prompt["control"] else ""
    return f"""
## Serve

In this folder, with vLLM installed:

```console
$ vllm {shlex.join(serve_arguments(prompt, rank))}
```

`processed_logprobs` is needed: the client allows label words only, and reads their log-probabilities after that. `base/` has
as many layers as the adapter was trained on; on another depth the adapter loads, and is wrong. {plain}On a GPU
`--dtype bfloat16` is faster and moves probabilities in the third digit or so.

## Ask

`client.py` needs Python and nothing else; it takes rows like `genre score`, without `adapter`, and tokenizes through the server:

```console
$ echo '{{"id": "1", "history": [{{"item_id": "ID"{feedback}}}], "candidates": ["ID", "ID"]}}' | python client.py
```

```python
from client import Client

scores = Client("http://127.0.0.1:8000").score(history, candidates)
```

Candidates of one call share their history through the prefix cache.
"""
