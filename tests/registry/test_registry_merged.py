"""An adapter merged into its base on export: equal to stock PEFT's forward pass, in the base's own precision."""

from pathlib import Path
from typing import Any

import pytest
from registry_fakes import load_stock

from genre.errors import IntegrityError, ManifestError, RegistryError
from genre.modules.base.fingerprint import fingerprint
from genre.registry import BaseInfo, Registry

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TOKENS = torch.tensor([[3, 1, 7, 2, 9]])


def make_base(kind: str, folder: Path, dtype: Any) -> Path:
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    torch.manual_seed(0)
    configs = {
        "llama": LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        ),
        "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1),
    }
    AutoModelForCausalLM.from_config(configs[kind]).to(dtype).save_pretrained(folder)
    return folder


def taken(registry: Registry, base: Path, folder: Path, depth: int | None, **options: Any) -> Any:
    """A version with random weights in B, and what stock PEFT computes with it on the cut base, in float64."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 6} | options))
    model = get_peft_model(
        load_stock(base, dtype=torch.float64, **({} if depth is None else {"num_hidden_layers": depth})), config
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    info = BaseInfo(name="tiny", fingerprint=fingerprint(base), depth=depth)
    version = registry.import_peft(folder, "taken", base=info, base_folder=base)
    with torch.no_grad():
        return version, model.eval()(TOKENS).logits


@pytest.mark.parametrize(
    ("kind", "depth", "options"),
    [
        ("llama", None, {"target_modules": "all-linear"}),
        ("llama", 2, {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
        (
            "llama",
            None,
            {"target_modules": ["v_proj", "up_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"up_proj": 3}},
        ),
        ("gpt2", None, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
)
def test_the_merged_base_computes_what_base_and_adapter_do(
    registry: Registry, tmp_path: Path, kind: str, depth: int | None, options: Any
) -> None:
    base = make_base(kind, tmp_path / "base", torch.float32)
    version, wanted = taken(registry, base, tmp_path / "theirs", depth, **options)
    out = registry.export(version, tmp_path / "out", to="merged", base=base)
    model = load_stock(out)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits.double(), wanted, atol=1e-5)
        plain = load_stock(base, **({} if depth is None else {"num_hidden_layers": depth}))(TOKENS).logits.double()
    assert (plain - wanted).abs().max() > 1e-2  # the adapter does something
    assert model.config.num_hidden_layers == (depth or 3)
    assert not (out / "adapter_model.safetensors").exists() and "Use" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(registry: Registry, tmp_path: Path, dtype: Any) -> None:
    """Every weight is the float32 sum rounded to nearest, as torch rounds it."""
    from safetensors.torch import load_file

    base = make_base("llama", tmp_path / "base", dtype)
    version, _ = taken(registry, base, tmp_path / "theirs", None, target_modules="all-linear")
    out = registry.export(version, tmp_path / "out", to="merged", base=base)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    adapter = load_file(registry.fetch(version) / "adapter_model.safetensors")
    changed = {name.removeprefix("base_model.model.").replace("lora_A.", ""): name for name in adapter if "lora_A" in name}
    assert set(before) == set(after) and len(changed) == 21
    for name, value in before.items():
        wanted = value
        if name in changed:
            first, second = adapter[changed[name]].float(), adapter[changed[name].replace("lora_A", "lora_B")].float()
            wanted = (value.float() + 1.5 * second @ first).to(dtype)
        assert after[name].dtype == dtype and torch.allclose(
            after[name].float(), wanted.float(), rtol=2**-7 if name in changed else 0
        )


def test_only_the_full_precision_base_is_merged_into(registry: Registry, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base", torch.float32)
    version, _ = taken(registry, base, tmp_path / "theirs", None, target_modules="all-linear")
    rounded = tmp_path / "rounded"
    load_stock(base).to(torch.bfloat16).save_pretrained(rounded)
    with pytest.raises(ManifestError, match=r"base\.fingerprint differs"):
        registry.export(version, tmp_path / "out", to="merged", base=rounded)
    with pytest.raises(RegistryError, match="needs its base"):
        registry.export(version, tmp_path / "out", to="merged")
    with pytest.raises(RegistryError, match="cannot export to that"):
        registry.export(version, tmp_path / "out", to="onnx", base=base)
    assert not (tmp_path / "out").exists()
    before = (base / "model.safetensors").read_bytes()
    registry.export(version, tmp_path / "out", to="merged", base=base)
    assert (base / "model.safetensors").read_bytes() == before
    (registry.fetch(version) / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError):
        registry.export(version, tmp_path / "again", to="merged", base=base)
