"""Small versions to put into a registry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from genre.registry import BaseInfo, DataInfo, Manifest, MetricValue

BASE = BaseInfo(name="tiny", fingerprint="f" * 64, depth=2)
KEYS = {"key": "test", "secret": "test"}
PATH = "model.layers.0.self_attn.q_proj"


def lora_config(**changes: Any) -> dict[str, Any]:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none"}
    return config | {"target_modules": ["q_proj"], "base_model_name_or_path": "tiny"} | changes


def write_adapter(folder: Path, *, seed: int = 0, zero: bool = False, config: dict[str, Any] | None = None) -> Path:
    """The files of an adapter: LoRA of one linear and a binary head."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    b = np.zeros((8, 2), np.float32) if zero else rng.normal(size=(8, 2)).astype(np.float32)
    a = rng.normal(size=(2, 8)).astype(np.float32)
    save_file(
        {f"base_model.model.{PATH}.lora_A.weight": a, f"base_model.model.{PATH}.lora_B.weight": b},
        folder / "adapter_model.safetensors",
    )
    save_file({"like.weight": rng.normal(size=(1, 8)).astype(np.float32)}, folder / "heads.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config or lora_config()))
    (folder / "recipe.yaml").write_text("name: like\n")
    return folder


def write_encoder(folder: Path, *, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32)
    save_file({"projection.weight": rows}, folder / "encoder.safetensors")
    (folder / "items.json").write_text(json.dumps(["a", "b"]))
    return folder


def draft(name: str = "like", *, auc: float = 0.75, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": name,
        "base": BASE,
        "tokenizer": "t" * 64,
        "sequence": {"item": "token", "feedback": "rating"},
        "data": DataInfo(digest="d" * 64, rows=100, time_span=(1, 2), split={"kind": "temporal"}),
        "tasks": [{"name": "like", "kind": "feedback", "head": "binary"}],
        "metrics": {"like": {"auc": MetricValue(value=auc, interval=(auc - 0.01, auc + 0.01), n=100)}},
        "protocol": {"like": "prequential"},
    }
    return Manifest(**(fields | changes))


def load_stock(folder: Path, kind: str = "AutoModelForCausalLM", **options: Any) -> Any:
    """A folder as transformers itself loads it, by default in float32."""
    import torch
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, **{"dtype": torch.float32} | options).eval()
