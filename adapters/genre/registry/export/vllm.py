"""Adapters out to vLLM: the command that serves them, beside what every server needs (`served`).

Owns: vLLM's command and its limits. Ignores: vLLM itself, the registry's files. An export:

    exported/
        README.md                                        # with the `vllm serve` command
        base/config.json, model.safetensors, …
        adapter/adapter_config.json, adapter_model.safetensors
        client.py  prompt.json  items.jsonl  canaries.json  manifest.json
"""

import shlex
import shutil
from pathlib import Path
from typing import Any

from genre.errors import RegistryError
from genre.registry.export.served import Served, ask_usage, write_served
from genre.registry.manifest import Version
from genre.registry.weights.lora import ADAPTER, CONFIG, Adapter

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""
_MOST_WORDS = 20
"""vLLM's default bound on the log-probabilities of one answer."""


def export_vllm(version: Version, source: Path, out: Path, base: Path | None, *, canaries: bool = True) -> None:
    """Write a version, whose files are in `source`, as a folder that a vLLM server loads, with a client.

    The base's first layers, or hard links to all of it, go along. For the errors see `Registry.export`.
    """

    def fill(export: Served) -> str:
        rank = max_rank(export.adapter)
        (export.folder / "adapter").mkdir()
        for name in (CONFIG, ADAPTER):
            shutil.copyfile(source / name, export.folder / "adapter" / name)
        return _usage(export.prompt, rank)

    write_served(version, source, out, base, fill, server="vllm", label="vLLM", canaries=canaries)


def max_rank(adapter: Adapter) -> int:
    """The smallest --max-lora-rank that takes every linear's rank."""
    most = max([adapter.config["r"], *(adapter.config.get("rank_pattern") or {}).values()])
    if most > _RANKS[-1]:
        raise RegistryError("the rank is too high for vLLM", got=most, expected=f"at most {_RANKS[-1]}")
    return next(rank for rank in _RANKS if rank >= most)


def serve_arguments(prompt: dict[str, Any], rank: int, folder: str = ".") -> list[str]:
    """The arguments of the `vllm` command."""
    most = max([*(len(task["words"]) for task in prompt["tasks"]), *prompt.get("code_sizes", ())])
    arguments = ["serve", f"{folder}/base", "--served-model-name", "base", "--dtype", "float32"]
    arguments += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{prompt['model']}={folder}/adapter"]
    arguments += ["--enable-prefix-caching", "--logprobs-mode", "processed_logprobs"]
    return arguments + (["--max-logprobs", str(most)] if most > _MOST_WORDS else [])


def _usage(prompt: dict[str, Any], rank: int) -> str:
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
{ask_usage(prompt)}"""
