"""Adapters and bases of other classes of one model: the body alone, or with a head that holds it under a prefix."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from foreign_fakes import CLOSE, TOKENS, exported, merged, ours, save, take, theirs, tune
from registry_fakes import load_stock

from fakes import make_base, make_encoder_base
from genre.errors import ManifestError
from genre.registry import Registry

torch = pytest.importorskip("torch")
# PEFT 0.21 asks transformers 5.23 for a property by its former name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore::UserWarning:peft", "ignore::RuntimeWarning:peft"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("foreign") / "llama")


@pytest.fixture(scope="module")
def encoders(llama: Path) -> dict[str, Path]:
    """One BERT, saved as the body alone and with its masked-language-model head."""
    from transformers import BertForMaskedLM, BertModel

    body = make_encoder_base(llama.parent / "bert")
    torch.manual_seed(0)
    model = BertForMaskedLM(BertModel.from_pretrained(body).config)
    masked = save(model, llama.parent / "bert-masked", body)
    model.bert.save_pretrained(body)
    return {"body": body, "masked": masked}


@pytest.mark.parametrize("trained", ["AutoModel", "BertForMaskedLM"])
@pytest.mark.parametrize("folder", ["body", "masked"])
def test_an_encoders_adapter_is_of_the_body_whatever_class_it_was_trained_on(
    registry: Registry, encoders: dict[str, Path], tmp_path: Path, trained: str, folder: str
) -> None:
    tuned = tune(load_stock(encoders["masked"], trained), tmp_path / "theirs", target_modules="all-linear")
    base = encoders[folder]
    version = take(registry, tmp_path / "theirs", base)
    config = json.loads((registry.fetch(version) / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"
    assert "encoder.layer.0.attention.self.query" in config["target_modules"]
    (line,) = version.manifest.notes["remarks"]
    module = "pooler.dense" if trained == "AutoModel" else "cls.predictions.transform.dense"
    assert line.startswith(f"LoRA of {module} is left out")
    wanted = theirs(tuned)
    assert (wanted - load_stock(base, "AutoModel")(TOKENS)[0]).abs().max() > 1e-2
    assert (ours(registry, version, base) - wanted).abs().max() < CLOSE
    assert (merged(registry, version, base, tmp_path / "merged", "AutoModel") - wanted).abs().max() < CLOSE
    assert (exported(registry, version, base, tmp_path / "peft", "AutoModel") - wanted).abs().max() < CLOSE


def test_an_adapter_of_the_body_goes_onto_a_causal_base_and_back(registry: Registry, llama: Path, tmp_path: Path) -> None:
    body = _save_body(llama, tmp_path / "body")
    of_body = tune(load_stock(llama, "AutoModel"), tmp_path / "theirs", target_modules=["q_proj"])
    assert (ours(registry, take(registry, tmp_path / "theirs", llama), llama) - theirs(of_body)).abs().max() < CLOSE
    of_head = tune(load_stock(llama), tmp_path / "head", target_modules=["q_proj"])
    assert (ours(registry, take(registry, tmp_path / "head", body), body) - theirs(of_head)).abs().max() < CLOSE


def _save_body(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    load_stock(folder, "AutoModel").save_pretrained(out)
    return out


SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
SMALL["max_position_embeddings"] = 40
MODELS: dict[str, dict[str, Any]] = {
    "Roberta": SMALL | {"pad_token_id": 0},
    "Electra": SMALL | {"embedding_size": 16},
    "ModernBert": SMALL | {"pad_token_id": 0, "attn_implementation": "eager"},
    "MPNet": SMALL,
    "DebertaV2": SMALL,
    "DistilBert": {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("trained", ["masked", "body"])
def test_encoders_of_other_kinds(registry: Registry, tmp_path: Path, kind: str, trained: str) -> None:
    """An adapter of the class with a head on the body's folder, and the other way."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**MODELS[kind])
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    folders = {"masked": save(model, tmp_path / "masked", tmp_path), "body": tmp_path / "body"}
    model.base_model.save_pretrained(folders["body"])
    classes = {"masked": "AutoModelForMaskedLM", "body": "AutoModel"}
    other = {"masked": "body", "body": "masked"}[trained]
    linears = r".*\.\d+\..*(query|value|q|v|q_lin|v_lin|query_proj|value_proj|Wqkv|dense|lin1|Wi)"
    tuned = tune(load_stock(folders["masked"], classes[trained]), tmp_path / "theirs", target_modules=linears)
    version = take(registry, tmp_path / "theirs", folders[other])
    wanted = theirs(tuned)
    assert (wanted - load_stock(folders["body"], "AutoModel")(TOKENS)[0]).abs().max() > 1e-3
    assert (merged(registry, version, folders[other], tmp_path / "merged", "AutoModel") - wanted).abs().max() < CLOSE
    assert (exported(registry, version, folders[other], tmp_path / "peft", "AutoModel") - wanted).abs().max() < CLOSE


CAUSAL: dict[str, dict[str, Any]] = {
    "GPTNeoX": SMALL,
    "Qwen2": SMALL | {"num_key_value_heads": 2},
    "OPT": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48},
    "Bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
CAUSAL["OPT"] |= {"max_position_embeddings": 40, "word_embed_proj_dim": 32}


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_bases_of_other_kinds(registry: Registry, tmp_path: Path, kind: str) -> None:
    """An adapter of the body on the folder of the class with a head; matrices with biases are not taken for GPT-2's kind."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**CAUSAL[kind]))
    folder = save(model, tmp_path / "base", tmp_path)
    tuned = tune(load_stock(folder, "AutoModel"), tmp_path / "theirs", target_modules="all-linear")
    version = take(registry, tmp_path / "theirs", folder)
    config = json.loads((registry.fetch(version) / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is False and config["task_type"] == "CAUSAL_LM"
    wanted = theirs(tuned)
    assert (merged(registry, version, folder, tmp_path / "merged") - wanted).abs().max() < CLOSE
    assert (exported(registry, version, folder, tmp_path / "peft") - wanted).abs().max() < CLOSE


def test_a_module_that_could_be_several_of_the_base_is_refused(tmp_path: Path) -> None:
    from genre.registry.weights.modules import Linears
    from genre.registry.weights.tensors import Tensor

    names = ("model.layers.0.q_proj", "model.language_model.layers.0.q_proj", "vision.layers.0.q_proj", "model.layers.0.k_proj")
    linears = Linears({f"{name}.weight": (tmp_path, Tensor(name, "F32", (2, 2), 0, 16)) for name in names})
    assert linears.find("model.layers.0.q_proj") == "model.layers.0.q_proj"
    assert linears.find("transformer.layers.0.k_proj") == "model.layers.0.k_proj"
    with pytest.raises(ManifestError, match="could be of several linears of the base: got model.layers.0.q_proj, model.lang"):
        linears.find("layers.0.q_proj")
    with pytest.raises(ManifestError, match=r"audio.layers.0.q_proj has no linear in the base"):
        linears.find("audio.layers.0.q_proj")


def test_the_prefixes_are_those_of_transformers_classes() -> None:
    import transformers
    from transformers.models.auto import modeling_auto

    from genre.registry.weights.modules import PREFIXES

    found = set()
    for mapping in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        for name in mapping.values():
            kind = getattr(transformers, name if isinstance(name, str) else name[0])
            found.add(kind.base_model_prefix)
    assert found <= PREFIXES
