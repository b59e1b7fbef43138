"""Export to stock PEFT, import from elsewhere, archives, the cut base. A two-layer Llama stands for the base."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import draft, load_stock, lora_config, write_adapter

from genre.errors import BaseModelError, IntegrityError, ManifestError, RegistryError
from genre.modules.base.fingerprint import fingerprint
from genre.registry import BaseInfo, Registry, truncate_base

torch = pytest.importorskip("torch")
# PEFT 0.21 asks transformers 5.23 for a property by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


def foreign(base: Path, out: Path, **options: Any) -> Any:
    """A PEFT adapter as somebody else would save it, with random weights in B."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_stock(base), LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "target_modules": "all-linear"} | options))
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(out)
    return model.eval()


def info(folder: Path, depth: int | None = None) -> BaseInfo:
    return BaseInfo(name="tiny", fingerprint=fingerprint(folder), depth=depth)


TOKENS = torch.tensor([[1, 5, 9, 2, 31, 7]])


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 3, "lora_alpha": 7, "use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
            "alpha_pattern": {"v_proj": 3, r"layers.0.+k_proj": 9},
        },
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    ],
    ids=["plain", "rslora", "patterns", "one layer"],
)
def test_a_foreign_adapter_comes_in_and_goes_out_unchanged(
    registry: Registry, llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    from peft import PeftModel

    theirs = foreign(llama, tmp_path / "theirs", **options)
    version = registry.import_peft(tmp_path / "theirs", "taken", base=info(llama), base_folder=llama, tasks=["like"])
    out = registry.export(version, tmp_path / "out", tar=True)
    ours = PeftModel.from_pretrained(load_stock(llama), out).eval()
    assert torch.equal(logits(ours), logits(theirs))
    assert (logits(load_stock(llama)) - logits(theirs)).abs().max() > 1e-2
    assert version.manifest.notes["not_imported"] == ["README.md"]
    card = (out / "README.md").read_text()
    assert version.digest in card and "PeftModel.from_pretrained" in card
    again = registry.import_peft(tmp_path / "out.tar", "taken", base=info(llama), base_folder=llama, tasks=["like"])
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert [again.manifest.files[name] for name in names] == [version.manifest.files[name] for name in names]


def test_an_adapter_of_the_bare_body_is_renamed(registry: Registry, llama: Path, tmp_path: Path) -> None:
    theirs = write_adapter(tmp_path / "a", config=lora_config())
    from safetensors.numpy import load_file, save_file

    shapes = {"A": (2, 16), "B": (16, 2)}
    rows = load_file(theirs / "adapter_model.safetensors")
    rng = __import__("numpy").random.default_rng(0)
    renamed = {name.replace("model.model.", "model."): rng.normal(size=shapes[name[-8]]).astype("f4") for name in rows}
    save_file(renamed, theirs / "adapter_model.safetensors")
    version = registry.import_peft(theirs, "taken", base=info(llama), base_folder=llama)
    config = json.loads((registry.fetch(version) / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    assert version.manifest.notes["not_imported"] == ["heads.safetensors", "recipe.yaml"]


def test_depth_exports_the_cut_base(registry: Registry, llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    foreign(llama, tmp_path / "theirs", target_modules=["q_proj", "up_proj"], layers_to_transform=[0, 1])
    version = registry.import_peft(tmp_path / "theirs", "taken", base=info(llama, 2), base_folder=llama)
    with pytest.raises(RegistryError, match=r"for the first 2 layers of tiny.*--base"):
        registry.export(version, tmp_path / "out")
    out = registry.export(version, tmp_path / "out", base=llama)
    cut = load_stock(out / "base")
    assert cut.config.num_hidden_layers == 2 and len(cut.model.layers) == 2
    by_hand = load_stock(llama)
    by_hand.model.layers = by_hand.model.layers[:2]
    assert torch.equal(logits(cut), logits(by_hand))
    merged = PeftModel.from_pretrained(load_stock(out / "base"), out).eval()
    assert torch.equal(logits(merged), logits(PeftModel.from_pretrained(by_hand, tmp_path / "theirs").eval()))
    with pytest.raises(ManifestError, match=r"model.layers.1.* lies beyond the depth: got layer 1; expected below 1"):
        registry.import_peft(tmp_path / "theirs", "taken", base=info(llama, 1), base_folder=llama)


def test_a_gpt2_base_is_cut_and_its_adapter_taken(registry: Registry, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).eval().save_pretrained(tmp_path / "gpt2")
    cut = load_stock(truncate_base(tmp_path / "gpt2", 2, tmp_path / "cut"))
    by_hand = load_stock(tmp_path / "gpt2")
    by_hand.transformer.h = by_hand.transformer.h[:2]
    assert torch.equal(logits(cut), logits(by_hand))
    theirs = foreign(tmp_path / "cut", tmp_path / "theirs", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    base = info(tmp_path / "gpt2", 2)
    version = registry.import_peft(tmp_path / "theirs", "taken", base=base, base_folder=tmp_path / "gpt2")
    out = registry.export(version, tmp_path / "out", base=tmp_path / "gpt2")
    assert torch.equal(logits(PeftModel.from_pretrained(load_stock(out / "base"), out).eval()), logits(theirs))


def test_another_base_is_refused(registry: Registry, llama: Path, tmp_path: Path) -> None:
    other = truncate_base(llama, 2, tmp_path / "other")
    foreign(llama, tmp_path / "theirs", target_modules=["q_proj"])
    with pytest.raises(ManifestError, match=f"holds another base: got fingerprint {info(other).fingerprint}; expected"):
        registry.import_peft(tmp_path / "theirs", "taken", base=info(llama), base_folder=other)
    registry.import_peft(tmp_path / "theirs", "taken", base=info(llama, 3), base_folder=llama)
    with pytest.raises(ManifestError, match="base.fingerprint differs"):
        registry.export("taken", tmp_path / "out", base=other)
    assert not (registry.export("taken", tmp_path / "out", base=llama) / "base").exists(), "nothing is cut"


def test_export_equals_a_merge_by_hand(registry: Registry, llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    foreign(llama, tmp_path / "theirs", r=4, lora_alpha=6)
    version = registry.import_peft(tmp_path / "theirs", "taken", base=info(llama), base_folder=llama)
    out = registry.export(version, tmp_path / "out")
    merged, weights = load_stock(llama), load_file(out / "adapter_model.safetensors")
    with torch.no_grad():
        for name in [name for name in weights if "lora_A" in name]:
            module = merged.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight += 6 / 4 * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        hidden = merged.model(TOKENS).last_hidden_state
        stock = PeftModel.from_pretrained(load_stock(llama), out).eval().base_model.model.model(TOKENS).last_hidden_state
    assert (hidden - stock).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"bias": "all"}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({"trainable_token_indices": [1]}, "embeddings"),
        ({"layer_replication": [[0, 2]]}, "number of layers"),
        ({"lora_bias": True}, "beside B"),
        ({"init_lora_weights": "pissa"}, "changed base weights"),
        ({"r": 3}, "another rank than its config: got 2; expected 3"),
        ({"r": 10**9}, "a rank of 1 to"),
        ({"r": True}, "wrong r"),
        ({"lora_alpha": "4"}, "wrong lora_alpha"),
        ({"rank_pattern": {"(a+)+": 2}}, "wrong rank_pattern"),
        ({"alpha_pattern": {"[": 2}}, "wrong alpha_pattern"),
        ({"rank_pattern": {"q_proj": 4096}}, "a rank of 1 to"),
    ],
)
def test_anything_but_plain_lora_is_refused_with_the_reason(
    registry: Registry, llama: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = write_adapter(tmp_path / "a", config=lora_config(**change))
    with pytest.raises(IntegrityError, match=reason):
        registry.import_peft(folder, "taken", base=info(llama), base_folder=llama)
    with pytest.raises(IntegrityError, match=reason):
        registry.publish(folder, draft())


def test_shapes_and_modules_are_checked_against_the_base(registry: Registry, llama: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    with pytest.raises(ManifestError, match=r"does not fit the base: got \(8, 8\); expected \(16, 16\)"):
        registry.import_peft(folder, "taken", base=info(llama), base_folder=llama)
    with pytest.raises(BaseModelError, match="no safetensors"):
        registry.import_peft(folder, "taken", base=info(llama), base_folder=tmp_path)
    foreign(llama, tmp_path / "b", target_modules=["q_proj"])
    data = (tmp_path / "b" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(data.replace(b"layers.0.self_attn", b"layers.9.self_attn"))
    with pytest.raises(ManifestError, match=r"layers.9.* has no linear in the base"):
        registry.import_peft(tmp_path / "b", "taken", base=info(llama), base_folder=llama)


def test_a_pickle_is_refused_by_content(registry: Registry, llama: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    torch.save({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match="not safetensors: got a zip"):
        registry.import_peft(folder, "taken", base=info(llama), base_folder=llama)
    (folder / "adapter_model.safetensors").write_bytes(__import__("pickle").dumps({"x": 1}, protocol=4))
    with pytest.raises(IntegrityError, match="a pickle, which is never opened"):
        registry.publish(folder, draft())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(IntegrityError, match="a .bin is a pickle"):
        registry.import_peft(folder, "taken", base=info(llama), base_folder=llama)


def _members(kind: str) -> list[tarfile.TarInfo]:
    member = tarfile.TarInfo("a/x.json")
    if kind in ("symlink", "hardlink"):
        member.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
        member.linkname = "/etc/passwd"
    elif kind == "device":
        member.type = tarfile.CHRTYPE
    elif kind == "slip":
        member.name = "../../adapter_config.json"
    elif kind == "absolute":
        member.name = "/genre-slipped.json"
    return [member, member] if kind == "twice" else [member]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("symlink", "not a plain file"),
        ("hardlink", "not a plain file"),
        ("device", "not a plain file"),
        ("slip", "would leave its folder"),
        ("absolute", "would leave its folder"),
        ("twice", "a member twice"),
    ],
)
def test_a_hostile_tar_is_refused(registry: Registry, llama: Path, tmp_path: Path, kind: str, reason: str) -> None:
    folder = write_adapter(tmp_path / "a")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "a")
        for member in _members(kind):
            tar.addfile(member, io.BytesIO())
    with pytest.raises(IntegrityError, match=reason):
        registry.import_peft(tmp_path / "a.tar", "taken", base=info(llama), base_folder=llama)
    assert registry.names() == []


def test_a_hostile_zip_and_a_bomb_are_refused(registry: Registry, llama: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        archive.writestr("../adapter_config.json", "{}")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("adapter_config.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter_config.json", b" " * (8 << 20))
    header = tarfile.TarInfo("PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 34
    (tmp_path / "pax.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\0\0")
    (tmp_path / "no.tar").write_bytes(b"hello")
    reasons = {
        "slip.zip": "would leave its folder",
        "link.zip": "not a plain file",
        "bomb.zip": "adapter_config.json is too large",
        "pax.tar": "a broken archive: got .*header of 17179869184",
        "cut.tar.gz": "a broken archive",
        "no.tar": "is not an archive",
    }
    for name, reason in reasons.items():
        with pytest.raises(IntegrityError, match=reason):
            registry.import_peft(tmp_path / name, "taken", base=info(llama), base_folder=llama)
    assert not (tmp_path.parent / "adapter_config.json").exists()


def test_links_in_a_folder_are_refused(registry: Registry, llama: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    os.rename(folder / "adapter_config.json", tmp_path / "config.json")
    (folder / "adapter_config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(IntegrityError, match="is missing or a link"):
        registry.import_peft(folder, "taken", base=info(llama), base_folder=llama)
    with pytest.raises(IntegrityError, match="is not a plain file"):
        registry.publish(folder, draft())
