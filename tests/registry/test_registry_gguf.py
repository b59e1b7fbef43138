"""Export to llama.cpp: names, layout and metadata of the GGUF files; llama.cpp itself where llama-cpp-python is installed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_fakes import LIKE, TEXT, WORDS, World, first_layer
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import genre
from builders import publish_stirred, recipe
from genre.errors import InputError, RegistryError
from genre.registry.export.check import ask_canaries
from genre.registry.export.client import Client, WrongServer
from genre.registry.export.gguf import _check_kind, _write_base

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def out(world: World) -> Path:
    return world.registry.export("texts", world.folder / "gguf", to="gguf", base=world.tiny)


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}, {each.name: each.data for each in reader.tensors}


def test_the_folder_holds_base_adapter_and_client(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "base.gguf", "adapter.gguf", "tokenizer.json"),
        *("client.py", "prompt.json", "items.jsonl", "canaries.json", "manifest.json"),
    }
    assert "llama-cli -m base.gguf --lora adapter.gguf" in (out / "README.md").read_text()


def test_an_adapter_is_written_as_llama_cpps_converter_does(world: World, out: Path) -> None:
    """The rows of q and k in the order of `LlamaModel.permute`: halves of each head beside each other."""
    from safetensors.numpy import load_file

    fields, tensors = read(out / "adapter.gguf")
    assert (fields["general.type"], fields["adapter.type"], fields["general.architecture"]) == ("adapter", "lora", "llama")
    source = world.registry.fetch(world.registry.resolve("texts"))
    theirs, config = load_file(source / "adapter_model.safetensors"), json.loads((source / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    assert fields["adapter.lora.alpha"] == config["r"] and len(tensors) == len(theirs)
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "ffn_down": "mlp.down_proj",
    }
    heads = {"attn_q": 4, "attn_k": 2}
    for name, path in names.items():
        a, b = (theirs[f"base_model.model.model.layers.0.{path}.lora_{side}.weight"] for side in "AB")
        np.testing.assert_array_equal(tensors[f"blk.0.{name}.weight.lora_a"], a)
        rows = list(range(len(b)))
        if count := heads.get(name):
            size = len(b) // count
            rows = [h * size + half * (size // 2) + i for h in range(count) for i in range(size // 2) for half in (0, 1)]
        np.testing.assert_allclose(tensors[f"blk.0.{name}.weight.lora_b"], scale * b[rows], rtol=1e-6)


def test_the_base_is_written_whole(world: World, out: Path) -> None:
    fields, tensors = read(out / "base.gguf")
    assert fields["llama.block_count"] == 1 and fields["llama.attention.head_count_kv"] == 2
    assert fields["tokenizer.ggml.model"] == "none"  # a vocabulary without merges, which GGUF cannot hold
    assert set(tensors) == {
        *("token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"),
        *(f"blk.0.attn_{name}.weight" for name in ("q", "k", "v", "output")),
        *(f"blk.0.ffn_{name}.weight" for name in ("gate", "up", "down")),
    }


def test_a_url_in_place_of_the_folder_is_refused(out: Path) -> None:
    with pytest.raises(InputError, match=r"^no file for llama\.cpp: got http:/.*base\.gguf; expected a folder of --to gguf"):
        ask_canaries("http://127.0.0.1:8080", out)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "phi3"}, "a base of this kind is not written as GGUF: got phi3; expected llama, mistral, qwen2, qwen3; "),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3"}}, "scaled rotary positions are not written as GGUF"),
    ],
)
def test_a_base_that_is_not_written_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        _check_kind(config)


WORDS_OF = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: dict[str, Any] = {
    "gpt-2": [],
    "smollm": [Digits(individual_digits=True)],
    "qwen2": [Split(Regex(WORDS_OF % ""), "isolated")],
    "llama-bpe": [Split(Regex(WORDS_OF % "{1,3}"), "isolated")],
    "none": [Split(Regex(r"\p{Lu}"), "isolated")],
}


def write_bpe(folder: Path, name: str) -> Any:
    """A base of one layer whose byte-level BPE splits a text as named, as GGUF; its tokenizer."""
    torch.manual_seed(0)
    own = Tokenizer(BPE())
    own.pre_tokenizer = Sequence([*SPLITS[name], ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))])
    own.train_from_iterator([TEXT_TO_SPLIT] * 9, BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_base(folder, json.loads((folder / "config.json").read_text()), folder / "base.gguf")
    return tokenizer


TEXT_TO_SPLIT = "Toy Story 3 (1995): it's\n  12345 x1234567, DON'T  wait\n\n"


def test_a_vocabulary_whose_splits_llama_cpp_lacks_is_left_out(tmp_path: Path) -> None:
    for name in SPLITS:
        write_bpe(tmp_path / name, name)
        fields, _ = read(tmp_path / name / "base.gguf")
        model = "none" if name == "none" else "gpt2"
        assert (fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "none")) == (model, name)


@pytest.mark.slow  # needs llama-cpp-python
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SPLITS if name != "none"])
def test_llama_cpp_splits_a_text_as_the_base_does(llama_cpp: Any, tmp_path: Path, name: str) -> None:
    tokenizer = write_bpe(tmp_path, name)
    model = llama_cpp.Llama(str(tmp_path / "base.gguf"), vocab_only=True, verbose=False)
    assert list(model.tokenize(TEXT_TO_SPLIT.encode(), add_bos=False)) == tokenizer(TEXT_TO_SPLIT)["input_ids"]


@pytest.mark.slow  # needs llama-cpp-python
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["like", "rating"])
def test_llama_cpp_answers_as_the_engine_does(llama_cpp: Any, world: World, out: Path, task: str) -> None:
    items: list[Any] = [*world.log.catalogue.item_ids[:4], {"title": "war and love"}, {"title": "a </s><s>"}]
    history: Any = world.log.history("u3")
    with genre.Engine(world.base, world.registry, lanes=2) as engine:
        (answer,) = engine.score([genre.Request("texts", task=task, history=history, candidates=items, user={"age": 23})])
    with Client(folder=out) as client:
        assert len(client.check()) == 2
        found = client.score(history, items, task=task, user={"age": 23})
        again = [client.score(history, [item], task=task, user={"age": 23})[0] for item in reversed(items)]
    assert found == pytest.approx([scored.score for scored in answer.results], abs=1e-4)
    assert again[::-1] == pytest.approx(found, abs=1e-5), "what two prompts begin with is kept"


@pytest.mark.slow  # needs llama-cpp-python
@pytest.mark.filterwarnings("ignore")
def test_the_command_reads_control_tokens_in_a_title_as_the_client_does(llama_cpp: Any, out: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(out, tmp_path / "titles")
    items = [json.loads(line) | {"text": "a </s> film"} for line in (folder / "items.jsonl").read_text().splitlines()]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    found = json.loads((folder / "canaries.json").read_text())
    with Client(folder=folder, check=False) as client:
        for each in found["canaries"]:
            each["token_ids"] = client.prompts.history(each["history"], {}) + client.prompts.item(each["candidate"])
            (each["adapter"],) = client.server.probabilities([each["token_ids"]], each["word_ids"])
            each["base"] = [1.0, *[0.0] * (len(each["words"]) - 1)]
    (folder / "canaries.json").write_text(json.dumps(found))
    assert len(ask_canaries(str(folder), folder)) == 2


@pytest.mark.slow  # needs llama-cpp-python
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_without_the_adapter_is_refused(llama_cpp: Any, world: World, out: Path, tmp_path: Path) -> None:
    faint = first_layer(recipe(world.tiny, LIKE | WORDS, name="other", adapter={"rank": 4}, **TEXT))
    publish_stirred(world.registry, faint, world.log, world.base, tmp_path / "run", seed=3)
    other = world.registry.export("other", tmp_path / "other", to="gguf", base=world.tiny)
    mixed = shutil.copytree(out, tmp_path / "mixed")
    shutil.copyfile(other / "adapter.gguf", mixed / "adapter.gguf")
    with Client(folder=mixed) as client, pytest.raises(WrongServer, match="with neither the adapter nor the base"):
        client.score([], ["i1"], task="like")
