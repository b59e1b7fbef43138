"""Adapters out to SGLang: the command that serves them, beside what every server needs (`served`).

Owns: SGLang's command, and an update that means to it what it means to PEFT. Ignores: SGLang itself. An export:

    exported/
        README.md                                        # with the `sglang.launch_server` command
        base/config.json, model.safetensors, …
        adapter/adapter_config.json, adapter_model.safetensors
        client.py  prompt.json  items.jsonl  canaries.json  manifest.json

SGLang 0.5.23 scales every linear by `lora_alpha / r`: rank_pattern, alpha_pattern and use_rslora are not read. An adapter that
has them is written anew, with one rank for all linears and the scales in B.
"""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from genre.registry.export.canaries import LOW_PRECISION
from genre.registry.export.served import Served, ask_usage, write_served
from genre.registry.manifest import Version
from genre.registry.weights.lora import ADAPTER, CONFIG, PREFIX
from genre.registry.weights.scaled import is_uniform, largest_rank, uniform_updates


def export_sglang(version: Version, source: Path, out: Path, base: Path | None, *, canaries: bool = True) -> None:
    """Write a version, whose files are in `source`, as a folder that an SGLang server loads, with a client.

    The base's first layers, or hard links to all of it, go along. For the errors see `Registry.export`.
    """

    def fill(export: Served) -> str:
        (export.folder / "adapter").mkdir()
        if is_uniform(export.adapter):
            for name in (CONFIG, ADAPTER):
                shutil.copyfile(source / name, export.folder / "adapter" / name)
        else:
            _write_uniform(export, source / ADAPTER)
        return _usage(export.prompt, largest_rank(export.adapter))

    write_served(version, source, out, base, fill, server="sglang", label="SGLang", tolerance=LOW_PRECISION, canaries=canaries)


def _write_uniform(export: Served, weights: Path) -> None:
    """Write the same update with one rank, whose alpha is that rank: a scale of 1."""
    from safetensors.numpy import save_file

    tensors = {}
    for update in uniform_updates(export.adapter, weights):
        tensors[f"{PREFIX}{update.path}.lora_A.weight"] = update.a
        tensors[f"{PREFIX}{update.path}.lora_B.weight"] = update.b
    save_file(tensors, export.folder / "adapter" / ADAPTER, {"format": "pt"})
    rank = largest_rank(export.adapter)
    changed = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    config = export.adapter.config | changed
    (export.folder / "adapter" / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _usage(prompt: dict[str, Any], rank: int) -> str:
    arguments = ["--model-path", "./base", "--served-model-name", "base", "--port", "8000", "--enable-lora"]
    arguments += ["--max-lora-rank", str(rank), "--lora-paths", f"{prompt['model']}=./adapter"]
    return f"""
## Serve

In this folder, with SGLang installed:

```console
$ python -m sglang.launch_server {shlex.join(arguments)}
```

`base/` has as many layers as the adapter was trained on; on another depth the adapter loads, and is wrong. The client asks
`/generate`, which takes the adapter's name. `/v1/score` takes none: it answers with the base (SGLang 0.5.23).
{ask_usage(prompt)}"""
