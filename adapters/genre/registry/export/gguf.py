"""Adapters out to llama.cpp: base and adapter as GGUF files, beside what every server needs (`served`).

Owns: GGUF's names, layout and metadata, as llama.cpp's converters write them (`convert_hf_to_gguf.py`, `convert_lora_to_gguf.py`:
no package carries these). Ignores: quantizing, which llama.cpp's tools do. An export:

    exported/
        README.md
        base.gguf  adapter.gguf  tokenizer.json
        client.py  prompt.json  items.jsonl  canaries.json  manifest.json

A Llama's heads are kept with the two halves of a rotary pair beside each other, so rows of q and k are permuted, in the base and
in an adapter's B. One `adapter.lora.alpha` scales all linears by alpha / rank, so scales are in B, and alpha is the rank.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genre.errors import RegistryError
from genre.registry.export.served import Served, ask_usage, write_served
from genre.registry.manifest import Version
from genre.registry.weights.base import read_weights
from genre.registry.weights.lora import ADAPTER
from genre.registry.weights.scaled import largest_rank, uniform_updates
from genre.registry.weights.tensors import read_array

_PERMUTED = ("llama", "mistral")
_KINDS = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""llama.cpp's architecture by the base's `model_type`."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {(): "gpt-2", ("digits",): "smollm", (_WORDS % r"\p{N}",): "qwen2", (_WORDS % r"\p{N}{1,3}",): "llama-bpe"}
"""llama.cpp's pre-tokenizer by what a text is split by before its bytes are read."""


def export_gguf(version: Version, source: Path, out: Path, base: Path | None, *, canaries: bool = True) -> None:
    """Write a version, whose files are in `source`, as GGUF files that llama.cpp loads, with a client.

    Raises:
        RegistryError: As of `Registry.export`, or the base is of another kind than those that are written here.
    """

    def fill(export: Served) -> str:
        base = export.folder / "base"
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        _check_kind(config)
        if not (base / "tokenizer.json").is_file():
            raise RegistryError("the base has no fast tokenizer", got="no tokenizer.json", expected="one, as tokenizers reads it")
        _write_base(base, config, export.folder / "base.gguf")
        _write_adapter(export, config, source / ADAPTER)
        shutil.copyfile(base / "tokenizer.json", export.folder / "tokenizer.json")
        shutil.rmtree(base)
        return _usage(export.prompt)

    write_served(version, source, out, base, fill, server="llama.cpp", label="llama.cpp", canaries=canaries)


def _check_kind(config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    todo = "export --to peft, and convert base/ and adapter with llama.cpp's convert_hf_to_gguf.py and convert_lora_to_gguf.py"
    if kind not in _KINDS:
        raise RegistryError("a base of this kind is not written as GGUF", got=kind, expected=", ".join(_KINDS), todo=todo)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (form := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise RegistryError("scaled rotary positions are not written as GGUF", got=form, expected="plain ones", todo=todo)


class _Names:
    """llama.cpp's tensor names, and the layout of q and k."""

    def __init__(self, config: dict[str, Any]) -> None:
        import gguf

        self.architecture = gguf.MODEL_ARCH[_KINDS[config["model_type"]]]
        self._map = gguf.get_tensor_name_map(self.architecture, config["num_hidden_layers"])
        heads = config["num_attention_heads"]
        halves = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
        self._heads = halves if config["model_type"] in _PERMUTED else {}

    def of(self, name: str) -> str:
        """The name in GGUF of a weight or a bias.

        Raises:
            RegistryError: llama.cpp has no such tensor in this architecture.
        """
        found: str | None = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RegistryError("llama.cpp has no such tensor", got=name, expected=f"a tensor of its {self.architecture.name}")
        return found

    def laid_out(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Rows of q and k in llama.cpp's order; others as they are."""
        heads = self._heads.get(name.split(".")[-2])
        if heads is None:
            return values
        paired = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(values.shape))


def _write_base(folder: Path, config: dict[str, Any], out: Path) -> None:
    """Write a base in float32."""
    import gguf

    names = _Names(config)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[names.architecture])
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or config
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_vocabulary(writer, folder, config["vocab_size"])
    for name, (file, tensor) in read_weights(folder).items():
        writer.add_tensor(names.of(name), names.laid_out(name, read_array(file, tensor).astype(np.float32)))
    _finish(writer)


def _write_adapter(export: Served, config: dict[str, Any], weights: Path) -> None:
    """Write an adapter in float32."""
    import gguf

    names = _Names(config)
    writer = gguf.GGUFWriter(export.folder / "adapter.gguf", gguf.MODEL_ARCH_NAMES[names.architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(largest_rank(export.adapter)))
    writer.add_name(f"{export.manifest.name}:{export.manifest.version}")
    for update in uniform_updates(export.adapter, weights):
        name = f"{update.path}.weight"
        writer.add_tensor(f"{names.of(name)}.lora_a", update.a)
        writer.add_tensor(f"{names.of(name)}.lora_b", names.laid_out(name, update.b))
    _finish(writer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Add a byte-level BPE whose splits llama.cpp has; without it a model takes token ids alone, as the client does."""
    import gguf

    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    before = _pre_tokenizer(content.get("pre_tokenizer") or {})
    if content["model"]["type"] != "BPE" or not content["model"]["merges"] or before is None:
        writer.add_tokenizer_model("none")
        return
    added = {token["id"]: token for token in content["added_tokens"]}
    words = {number: word for word, number in content["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    kinds = []
    for number in range(size):
        control = number in added and added[number]["special"]
        plain = gguf.TokenType.USER_DEFINED if number in added else gguf.TokenType.NORMAL
        kinds.append(gguf.TokenType.UNUSED if number not in words else gguf.TokenType.CONTROL if control else plain)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(before)
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer)


def _pre_tokenizer(found: dict[str, Any]) -> str | None:
    """llama.cpp's name of a pre-tokenizer that ends in bytes; None where it is no such one, or not known here."""
    *splits, last = found.get("pretokenizers") or [found]
    own = last.get("use_regex", True)  # GPT-2's, which comes after the others
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    names = tuple("digits" if each.get("individual_digits") else each.get("pattern", {}).get("Regex") for each in splits)
    name = _SPLITS.get(names)
    return name if own == (name in ("gpt-2", "smollm")) else None


def _usage(prompt: dict[str, Any]) -> str:
    return f"""
## Run

`base.gguf` is the base in float32, with as many layers as the adapter was trained on; `adapter.gguf` is for it alone. They run in
any program of llama.cpp that takes a LoRA (`llama-cli -m base.gguf --lora adapter.gguf`). llama.cpp's `llama-quantize` makes the
base smaller, and moves probabilities.
{ask_usage(prompt)}"""
