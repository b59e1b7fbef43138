"""Adapters out to vLLM: base, adapter, the line that serves them, a client.

Owns: which versions a vLLM server can answer for, and what an exported folder holds. Ignores: vLLM itself, the registry's files.
An export of an adapter over text items whose answer is read from label words:

    exported/
        README.md                                        # with the `vllm serve` line
        base/config.json, model.safetensors, …           # the base's first layers, as many as the adapter was trained on
        adapter/adapter_config.json, adapter_model.safetensors
        client.py  prompt.json  items.jsonl  manifest.json

vLLM takes token ids and gives log-probabilities of tokens. So soft tokens, heads with weights of their own and labelled texts
are refused.
"""

import json
import shlex
import shutil
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre.errors import IntegrityError, ManifestError, RegistryError
from genre.files import appearing_folder
from genre.registry import vllm_client
from genre.registry.base_files import link_base, truncate_base
from genre.registry.card import render_card
from genre.registry.integrity import ADAPTER, CARD, CONFIG
from genre.registry.interchange import check_base, read_lora
from genre.registry.manifest import Manifest
from genre.registry.names import MANIFEST
from genre.registry.values import Version

if TYPE_CHECKING:
    from genre.registry.core import Registry

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""
_MOST_WORDS = 20
"""vLLM's own bound on the log-probabilities of one answer, unless told otherwise."""
_ITEMS = "catalogue.jsonl"


def export_vllm(registry: "Registry", ref: "str | Version", out: Path, base: Path | None) -> Path:
    """Write a version as a folder that a vLLM server loads, with a client.

    Args:
        registry: Where the version is.
        ref: Which.
        out: A new folder.
        base: The base's transformers folder; its first layers, or hard links to all of it, go along.

    Raises:
        RegistryError: vLLM cannot answer for this version, or the base is missing.
        IntegrityError: The version is damaged, or its shapes do not fit the base.
    """
    version = registry.resolve(ref)
    manifest = version.manifest
    check_servable(manifest)
    if base is None:
        raise RegistryError(
            f"{version.ref} needs its base beside it", got="no folder", expected=f"the folder of {manifest.base.name}",
            todo="pass base= or --base",
        )  # fmt: skip
    source = registry.fetch(version)
    cut = check_base(base, source, manifest)
    rank = _check_config(read_lora(source)[0])
    prompt = _prompt(manifest, base)
    with appearing_folder(out) as folder:
        (folder / "adapter").mkdir()
        for name in (CONFIG, ADAPTER):
            shutil.copyfile(source / name, folder / "adapter" / name)
        if cut and manifest.base.depth is not None:
            truncate_base(base, manifest.base.depth, folder / "base")
        else:
            link_base(base, folder / "base")
        shutil.copyfile(source / MANIFEST, folder / MANIFEST)
        shutil.copyfile(vllm_client.__file__, folder / "client.py")
        (folder / "prompt.json").write_text(json.dumps(prompt, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _write_items(source, folder / "items.jsonl", manifest)
        (folder / CARD).write_text(render_card(manifest, full=True) + _usage(prompt, rank), encoding="utf-8")
    return Path(out)


def check_servable(manifest: Manifest) -> None:
    """Check that token ids in and log-probabilities out are all that a version needs.

    Raises:
        RegistryError: They are not.
    """
    name, sequence = manifest.name, manifest.sequence
    todo = "serve it with genre serve, or train a recipe such as recipes/like_text.yaml"
    if manifest.kind == "encoder":
        raise RegistryError(f"{name} cannot be served by vLLM", got="a behaviour encoder", expected="an adapter")
    if "item" not in sequence:
        got = "labelled texts, read by a head" if sequence else "an adapter whose prompts are not known"
        raise RegistryError(f"{name} cannot be served by vLLM", got=got, expected="sequence.item: text", todo=todo)
    if sequence["item"] != "text" or sequence.get("soft_feedback"):
        raise RegistryError(
            f"{name} cannot be served by vLLM", got=f"soft tokens (sequence.item: {sequence['item']})",
            expected="sequence.item: text and encoder.use: none, since vLLM takes token ids only", todo=todo,
        )  # fmt: skip
    for task in manifest.tasks:
        if task.get("head") != "verbalizer":
            raise RegistryError(
                f"{name} cannot be served by vLLM", got=f"head {task.get('head')} of task {task['name']!r}",
                expected="head verbalizer, since vLLM gives log-probabilities of tokens only", todo=todo,
            )  # fmt: skip


def _check_config(config: dict[str, Any]) -> int:
    """The smallest --max-lora-rank that takes every linear's rank."""
    if config.get("fan_in_fan_out"):
        raise RegistryError("vLLM has no LoRA for this kind of base", got="fan_in_fan_out (GPT-2 kind)", expected="plain linears")
    most = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if most > _RANKS[-1]:
        raise RegistryError("the rank is too high for vLLM", got=most, expected=f"at most {_RANKS[-1]}")
    return next(rank for rank in _RANKS if rank >= most)


def _prompt(manifest: Manifest, base: Path) -> dict[str, Any]:
    """What the client needs to know of tokens; the layout is the manifest's."""
    from transformers import AutoTokenizer

    from genre.modules.base.quiet import quiet
    from genre.modules.base.source import tokenizer_digest

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(base)
    if (found := tokenizer_digest(tokenizer)) != manifest.tokenizer:
        raise ManifestError("tokenizer differs", got=found, expected=manifest.tokenizer)
    layout = dict(manifest.sequence)
    fields = [name for _, name, _, _ in string.Formatter().parse(str(layout["instruction"])) if name]
    tasks = []
    for task in manifest.tasks:
        words: list[str] = [str(word) for word in task["words"]]  # type: ignore[union-attr]
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        numbers = [float(word) for word in words] if task["loss"] == "mse" else list(range(len(words)))
        tasks.append({"name": task["name"], "loss": task["loss"], "words": words, "word_ids": ids, "numbers": numbers})
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return {
        "model": manifest.name, "version": manifest.version, "start": start, "user_columns": fields, "layout": layout,
        "tasks": tasks,
    }  # fmt: skip


def _write_items(source: Path, out: Path, manifest: Manifest) -> None:
    """Each item's text as its slot has it."""
    import polars as pl

    from genre.data.catalogue import Catalogue

    try:
        catalogue = Catalogue(pl.read_ndjson(source / _ITEMS, infer_schema_length=None))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{_ITEMS} cannot be read", got=str(error).splitlines()[0]) from None
    columns: Any = manifest.sequence["text"]
    with out.open("w", encoding="utf-8") as file:
        for item, text in zip(catalogue.item_ids, catalogue.texts(list(columns)), strict=True):
            file.write(json.dumps({"item_id": item, "text": text}, ensure_ascii=False) + "\n")


def serve_arguments(prompt: dict[str, Any], rank: int, folder: str = ".") -> list[str]:
    """What follows `vllm` on the command line."""
    most = max(len(task["words"]) for task in prompt["tasks"])
    return [
        "serve", f"{folder}/base", "--served-model-name", "base", "--dtype", "float32",
        "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{prompt['model']}={folder}/adapter",
        "--enable-prefix-caching", "--logprobs-mode", "processed_logprobs",
        *(["--max-logprobs", str(most)] if most > _MOST_WORDS else []),
    ]  # fmt: skip


def _usage(prompt: dict[str, Any], rank: int) -> str:
    feedback = prompt["layout"]["feedback"]
    return f"""
## Serve

In this folder, with vLLM installed:

```console
$ vllm {shlex.join(serve_arguments(prompt, rank))}
```

`processed_logprobs` is needed: the client allows label words only, and reads their log-probabilities after that. `base/` has
as many layers as the adapter was trained on; on another depth the adapter loads, and is wrong. On a GPU `--dtype bfloat16`
is faster and moves probabilities in the third digit or so.

## Ask

`client.py` needs Python and nothing else; it takes rows like `genre score`, without `adapter`, and tokenizes through the server:

```console
$ echo '{{"id": "1", "history": [{{"item_id": "ID", "{feedback}": VALUE}}], "candidates": ["ID", "ID"]}}' | python client.py
```

```python
from client import Client

scores = Client("http://127.0.0.1:8000").score(history, candidates)
```

Candidates of one call share their history through the prefix cache.
"""
