"""Bases beyond Llama: absolute positions and transposed linears, sliding windows, rows laid end to end, parallel layers."""

import numpy as np
import pytest
import torch

import genre
from builders import LIKE, NEXT, publish_stirred, recipe
from fakes import make_base
from genre.engine import Engine, Request
from genre.errors import BaseModelError
from genre.modules.base.base import Base
from genre.modules.base.fingerprint import fingerprint
from genre.modules.base.quiet import quiet

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 260, "max_position_embeddings": 512}


def configs():
    from transformers import GPT2Config, GPTNeoXConfig, MistralConfig, OPTConfig, Qwen3Config

    wide = SIZES | {"intermediate_size": 64}
    few = wide | {"num_key_value_heads": 2}
    return {
        "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, vocab_size=260, bos_token_id=0, eos_token_id=1),
        "mistral": MistralConfig(**few, sliding_window=16),
        "qwen3": Qwen3Config(**few, head_dim=8),
        "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
        "gpt_neox": GPTNeoXConfig(**wide),
    }


@pytest.fixture(scope="module", params=["gpt2", "mistral", "qwen3", "opt", "gpt_neox"])
def kind(request, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = make_base(tmp_path_factory.mktemp(request.param) / "base")
    with quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(configs()[request.param])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def registry(kind, log, tmp_path_factory):
    """An adapter over soft tokens that was trained, and two over words with random weights."""
    folder = tmp_path_factory.mktemp("registry")
    registry, base = genre.Registry(folder / "registry"), Base.load(str(kind))
    run = genre.train(recipe(kind, NEXT, train={"epochs": 1}), log=log, base=base, registry=registry, folder=folder / "next")
    registry.publish(run)
    for seed, name in enumerate(("one", "two")):
        words = recipe(kind, LIKE, name=name, sequence={"item": "text"}, encoder={"use": "none"})
        publish_stirred(registry, words, log, base, folder / name, seed=seed)
    return registry


def test_branches_and_lanes_score_as_single_rows(kind, registry, log):
    """Every candidate of a mixed batch scores as it does alone, with its adapter alone on the base."""
    base, items = Base.load(str(kind)), ["i1", "i2", "i5", "i9"]
    with Engine(base, registry, lanes=4, data=log) as engine:
        asked = [Request(name, user_id=user, candidates=items) for name in ("one", "two") for user in ("u3", "u8")]
        together = engine.score([*asked, Request("next_item", user_id="u4", k=5)])
    assert all(answer.error is None for answer in together)
    assert len(together[-1].results) == 5
    for request, answer in zip(asked, together, strict=False):
        with Engine(base, registry, lanes=1, data=log) as engine:
            alone = [engine.score([Request(request.adapter, user_id=request.user_id, candidates=[i])])[0] for i in items]
        by_item = {item.item_id: item.score for item in answer.results}
        assert np.allclose([by_item[i] for i in items], [one.results[0].score for one in alone], atol=1e-5)
    spread = [item.score for answer in together[:4] for item in answer.results]
    assert np.ptp(spread) > 1e-3  # the adapters do something


def test_a_fingerprint_is_over_names_dtypes_shapes_and_bytes_however_weights_are_sharded(tmp_path):
    """By torch's own words and bytes; a memo does not stand in for other files."""
    import hashlib

    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]
    made = {str(kind): (torch.randn(3, 5, generator=draw) * 9).abs().to(kind) for kind in kinds}
    made |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "large": torch.randn(5_000_000, generator=draw)}
    wanted = hashlib.sha256()
    for name, value in sorted(made.items()):
        wanted.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        wanted.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    for folder, parts in {"one": [list(made)], "three": [list(made)[part::3] for part in range(3)]}.items():
        (tmp_path / folder).mkdir()
        for number, names in enumerate(parts):
            save_file(
                {name: made[name] for name in names}, tmp_path / folder / f"{number}.safetensors", metadata={"format": "pt"}
            )
        assert fingerprint(tmp_path / folder) == fingerprint(tmp_path / folder) == wanted.hexdigest()
    save_file(made | {"scalar": torch.tensor(2.0)}, tmp_path / "one" / "0.safetensors")
    assert fingerprint(tmp_path / "one") != wanted.hexdigest()


def test_damaged_weights_have_no_fingerprint(tmp_path):
    with pytest.raises(BaseModelError, match="has no safetensors"):
        fingerprint(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(BaseModelError, match=r"a\.safetensors is damaged: got .*; expected a safetensors file"):
        fingerprint(tmp_path)
