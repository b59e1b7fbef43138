"""Adapters that others trained with PEFT: what their files mean, judged by stock PEFT's own forward pass of the original."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from foreign_fakes import CLOSE, TOKENS, exported, merged, ours, save, take, theirs, tune
from registry_fakes import load_stock

from fakes import make_base
from genre.errors import IntegrityError
from genre.registry import Registry, Version

torch = pytest.importorskip("torch")
# PEFT 0.21 asks transformers 5.23 for a property by its former name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore::UserWarning:peft", "ignore::RuntimeWarning:peft"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("foreign") / "llama")


@pytest.fixture(scope="module")
def gpt2(llama: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1)
    return save(GPT2LMHeadModel(config), llama.parent / "gpt2", llama)


@pytest.fixture(scope="module")
def untied(llama: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(llama, tie_word_embeddings=False)
    return save(LlamaForCausalLM(config), llama.parent / "untied", llama)


def check_means_the_same(registry: Registry, version: Version, folder: Path, tuned: Any, out: Path) -> None:
    wanted = theirs(tuned)
    bare = load_stock(folder).base_model(TOKENS)[0]
    assert (wanted - bare).abs().max() > 1e-2, "the adapter does something"
    assert (ours(registry, version, folder) - wanted).abs().max() < CLOSE
    assert (merged(registry, version, folder, out / "merged") - wanted).abs().max() < CLOSE
    assert (exported(registry, version, folder, out / "peft") - wanted).abs().max() < CLOSE


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*\.(self_attn|mlp)\.(q|v|up)_proj", "exclude_modules": r".*layers\.0\..*up_proj"},
        {"target_modules": ["v_proj", "o_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7}, "use_rslora": True},
        {"target_modules": ["q_proj"], "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 3}, "exclude_modules": ["k_proj"]},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "bias": "none", "lora_dropout": 0.2},
    ],
    ids=["list", "all-linear rslora", "regex", "layers", "unequal ranks rslora", "alpha", "gaussian"],
)
def test_an_adapter_without_a_task_type_means_what_it_meant(
    registry: Registry, llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    tuned = tune(load_stock(llama), tmp_path / "theirs", **options)
    assert json.loads((tmp_path / "theirs/adapter_config.json").read_text())["auto_mapping"]["base_model_class"]
    version = take(registry, tmp_path / "theirs", llama)
    config = json.loads((registry.fetch(version) / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and "auto_mapping" not in config
    assert "remarks" not in version.manifest.notes
    check_means_the_same(registry, version, llama, tuned, tmp_path)


def test_a_config_that_names_code_is_not_published_as_it_is(registry: Registry, llama: Path, tmp_path: Path) -> None:
    tune(load_stock(llama), tmp_path / "theirs", target_modules=["q_proj"])
    draft = take(registry, tmp_path / "theirs", llama).manifest
    (tmp_path / "theirs/README.md").unlink()
    with pytest.raises(IntegrityError, match="code to import; genre registry import writes the config anew"):
        registry.publish(tmp_path / "theirs", draft.model_copy(update={"files": {}}))


def test_of_two_patterns_that_match_the_first_in_the_file_counts_and_both_are_named(
    registry: Registry, llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    patterns = {"q_proj": 3, r".*proj": 9}
    live = tune(
        load_stock(llama), tmp_path / "theirs", target_modules=["q_proj", "v_proj"], alpha_pattern=patterns, use_rslora=True
    )
    saved = PeftModel.from_pretrained(load_stock(llama), tmp_path / "theirs").eval()
    assert (theirs(live) - theirs(saved)).abs().max() > 1e-3, "PEFT sorts the keys when it saves, and then takes another"
    version = take(registry, tmp_path / "theirs", llama)
    check_means_the_same(registry, version, llama, saved, tmp_path)
    (remark,) = version.manifest.notes["remarks"]
    assert "alpha_pattern has several keys for model.layers.0.self_attn.q_proj and 1 more" in remark
    assert "'.*proj' gives 9, 'q_proj' gives 3; alpha 9, the first in the file, is imported" in remark
    file = tmp_path / "theirs/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha_pattern": patterns}))
    check_means_the_same(registry, take(registry, tmp_path / "theirs", llama), llama, live, tmp_path / "again")


def test_the_tensors_say_the_rank_where_patterns_disagree(registry: Registry, llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    options = {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2, r".*proj": 5}}
    live = tune(load_stock(llama), tmp_path / "theirs", **options)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(load_stock(llama), tmp_path / "theirs")
    version = take(registry, tmp_path / "theirs", llama)
    check_means_the_same(registry, version, llama, live, tmp_path)
    (remark,) = version.manifest.notes["remarks"]
    assert "'.*proj' gives 5, 'q_proj' gives 2; rank 2 is imported" in remark
    assert "stock PEFT takes 5 and refuses the folder" in remark
    file = tmp_path / "theirs/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rank_pattern": {".*proj": 6}}))
    with pytest.raises(IntegrityError, match="another rank than its config: got 2; expected 6"):
        take(registry, tmp_path / "theirs", llama)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_peft_merged_comes_in_as_strong_as_peft_runs_it(
    registry: Registry, llama: Path, tmp_path: Path, use_rslora: bool
) -> None:
    """Weight 1 of an rsLoRA adapter gives sqrt(rank) times its update in PEFT 0.21, and that is what it saves."""
    tuned = tune(load_stock(llama), tmp_path / "one", target_modules=["q_proj", "up_proj"], use_rslora=use_rslora)
    alone = theirs(tuned)
    tuned.add_weighted_adapter(["default"], [1.0], "mixed", combination_type="linear")
    tuned.set_adapter("mixed")
    tuned.save_pretrained(tmp_path / "mixed", selected_adapters=["mixed"])
    assert ((theirs(tuned) - alone).abs().max() < CLOSE) is not use_rslora
    version = take(registry, tmp_path / "mixed", llama)
    check_means_the_same(registry, version, llama, tuned, tmp_path)


def test_a_merge_of_imported_adapters_is_the_weighted_sum_of_their_updates(
    registry: Registry, llama: Path, tmp_path: Path
) -> None:
    """Ranks, scales and targets differ; the updates are those that PEFT adds to the weights."""
    from genre.engine.versions import read_low
    from genre.jobs.merge.methods import merge
    from genre.modules.base.base import Base

    base = Base.load(str(llama))
    options: list[dict[str, Any]] = [
        {"target_modules": ["q_proj", "up_proj"], "use_rslora": True},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {".*layers.1.*": 9}},
    ]
    weights, lows, deltas = [0.7, -0.3], [], []
    for number, each in enumerate(options):
        tuned = tune(load_stock(llama), tmp_path / str(number), **each)
        lows.append(read_low(registry.fetch(take(registry, tmp_path / str(number), llama)), base))
        layers = {name: module for name, module in tuned.get_base_model().named_modules() if hasattr(module, "get_delta_weight")}
        deltas.append({name: module.get_delta_weight("default").detach() for name, module in layers.items()})
    merged = merge(lows, weights, method="svd", rank=16)
    assert merged.keys() == deltas[1].keys() > deltas[0].keys()
    for name, (a, b, scale) in merged.items():
        wanted = sum(weight * delta[name] for weight, delta in zip(weights, deltas, strict=True) if name in delta)
        assert (scale * b @ a - wanted).abs().max() < CLOSE
    for strength, method in ((1, "svd"), (2, "linear")):  # as the table of methods says
        halves = merge([lows[0], lows[0]], [0.5, 0.5], method=method)
        for name, (a, b, scale) in halves.items():
            assert (scale * b @ a - strength * deltas[0][name]).abs().max() < CLOSE


@pytest.mark.parametrize(
    ("targets", "flag"),
    [(["c_attn", "c_fc"], True), (["c_proj"], False), (["c_attn", "c_proj", "c_fc"], True)],
    ids=["told", "untold", "square"],
)
def test_a_base_that_keeps_its_matrices_the_other_way_round(
    registry: Registry, gpt2: Path, tmp_path: Path, targets: list[str], flag: bool
) -> None:
    tuned = tune(load_stock(gpt2), tmp_path / "theirs", target_modules=targets, fan_in_fan_out=flag)
    file = tmp_path / "theirs/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": flag}))
    version = take(registry, tmp_path / "theirs", gpt2)
    assert json.loads((registry.fetch(version) / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    check_means_the_same(registry, version, gpt2, tuned, tmp_path)


def test_an_adapter_under_another_name_is_found_in_its_folder(registry: Registry, llama: Path, tmp_path: Path) -> None:
    tuned = tune(load_stock(llama), tmp_path / "theirs", "mine", target_modules=["q_proj"])
    assert not (tmp_path / "theirs/adapter_config.json").exists()
    version = take(registry, tmp_path / "theirs", llama)
    assert (ours(registry, version, llama) - theirs(tuned)).abs().max() < CLOSE
    for form in ("tar", "zip"):
        archive = shutil.make_archive(str(tmp_path / "packed"), form, tmp_path, "theirs")
        assert (
            take(registry, Path(archive), llama).manifest.files["adapter_model.safetensors"]
            == (version.manifest.files["adapter_model.safetensors"])
        )
    shutil.copytree(tmp_path / "theirs/mine", tmp_path / "theirs/other")
    with pytest.raises(IntegrityError, match="holds several adapters: got mine, other; expected one; name one of its folders"):
        take(registry, tmp_path / "theirs", llama)
    with pytest.raises(IntegrityError, match=r"several folders with adapter_config.json: got theirs/mine, theirs/other"):
        take(registry, Path(shutil.make_archive(str(tmp_path / "two"), "tar", tmp_path, "theirs")), llama)
    shutil.copytree(tmp_path / "theirs/mine", tmp_path / "theirs", dirs_exist_ok=True)
    version = take(registry, tmp_path / "theirs", llama)
    assert version.manifest.notes["not_imported"] == ["README.md", "mine", "other"]


def test_lora_of_the_head_comes_in_and_says_who_can_use_it(registry: Registry, llama: Path, untied: Path, tmp_path: Path) -> None:
    from genre.errors import RegistryError

    tuned = tune(load_stock(untied), tmp_path / "theirs", target_modules=["q_proj", "lm_head"])
    version = take(registry, tmp_path / "theirs", untied)
    equal, head = version.manifest.notes["remarks"]
    assert equal == "lm_head lies beside the update and equals the base's: it is left out"
    assert "LoRA of lm_head, outside the layers" in head and "--to merged" in head
    out = registry.export(version, tmp_path / "out", to="merged", base=untied)
    with torch.no_grad():
        assert (load_stock(out)(TOKENS).logits - tuned(TOKENS).logits).abs().max() < CLOSE
    tune(load_stock(llama), tmp_path / "tied", target_modules=["q_proj", "lm_head"])
    version = take(registry, tmp_path / "tied", llama)
    with pytest.raises(RegistryError, match="LoRA of lm_head cannot be merged: got tied weights"):
        registry.export(version, tmp_path / "no", to="merged", base=llama)


def resized(model: Any) -> Any:
    model.resize_token_embeddings(264, mean_resizing=False)
    return model


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, r"sets modules_to_save: got \['lm_head'\].*replaces whole modules.*merge_and_unload"),
        ({"modules_to_save": ["embed_tokens"]}, r"sets modules_to_save.*merge_and_unload"),
        ({"trainable_token_indices": [1, 2]}, r"sets trainable_token_indices.*embeddings.*merge_and_unload"),
        ({"use_dora": True}, r"sets use_dora.*DoRA rescales.*train it again without use_dora, or merge it"),
        ({"bias": "lora_only"}, r"trains biases: got 'lora_only'.*train it again with bias none"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"lora_embedding_A.*not embeddings; train it again on linears only"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_slot_cannot_hold_is_refused_with_what_helps(
    registry: Registry, untied: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    tune(load_stock(untied), tmp_path / "theirs", **({"target_modules": ["q_proj"]} | options))
    with pytest.raises(IntegrityError, match=reason):
        take(registry, tmp_path / "theirs", untied)


def test_a_changed_head_beside_the_update_is_refused(registry: Registry, untied: Path, tmp_path: Path) -> None:
    model = load_stock(untied)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    tune(model, tmp_path / "theirs", target_modules=["q_proj", "lm_head"])
    with pytest.raises(IntegrityError, match="carries its own lm_head.*got other values.*merge_and_unload"):
        take(registry, tmp_path / "theirs", untied)
    tune(resized(load_stock(untied)), tmp_path / "larger", target_modules=["q_proj"])
    with pytest.raises(IntegrityError, match=r"carries its own (lm_head|model.embed_tokens).*got another shape"):
        take(registry, tmp_path / "larger", untied)


def test_a_pickled_adapter_is_refused_with_the_way_to_save_it(registry: Registry, llama: Path, tmp_path: Path) -> None:
    tuned = tune(load_stock(llama), tmp_path / "theirs", target_modules=["q_proj"])
    tuned.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(IntegrityError, match=r"got adapter_model.bin.*save_pretrained\(other\) writes it so"):
        take(registry, tmp_path / "pickled", llama)


def test_tensors_of_a_raw_state_dict_are_refused_with_the_way_to_save_them(
    registry: Registry, llama: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    tuned = tune(load_stock(llama), tmp_path / "theirs", target_modules=["q_proj"])
    raw = {name: value.contiguous() for name, value in tuned.state_dict().items() if "lora_" in name}
    save_file(raw, tmp_path / "theirs/adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=r"lora_A.default.weight.*has the adapter's name in it.*save_pretrained"):
        take(registry, tmp_path / "theirs", llama)
