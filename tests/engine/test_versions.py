"""Versions: what a manifest says, what is refused, shared encoders, grown catalogues, and stock PEFT's reading of one."""

import dataclasses
import gc
import sys

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import genre
from builders import LIKE, NEXT, publish_stirred, recipe
from fakes import make_base
from genre.engine import Engine, Request
from genre.engine.versions import read_adapter, read_encoder
from genre.errors import IntegrityError, ManifestError
from genre.jobs.evaluate import evaluate
from genre.modules.base.base import Base
from genre.modules.base.quiet import quiet

CLOSE = 1e-4
VERBAL = LIKE | {"head": "verbalizer", "words": ["N", "Y"]}
TEXT = {"sequence": {"item": "text"}, "encoder": {"use": "none"}}


# --- manifests -------------------------------------------------------------------------------------------------------


def test_a_manifest_says_what_a_version_is_and_cost(trained, base, log):
    version = trained.registry.resolve("next_item@production")
    manifest = version.manifest
    encoder = trained.registry.resolve("encoder-planted")
    assert (manifest.name, manifest.kind, manifest.digest) == ("next_item", "adapter", version.digest)
    assert manifest.version == version.digest[:12] and manifest.created and manifest.code_version == genre.__version__
    assert [task["name"] for task in manifest.tasks] == ["next_item"]
    assert manifest.base.fingerprint == base.fingerprint and manifest.base.depth == 2
    assert (manifest.base.name, manifest.base.quantization) == ("tiny", "none")
    assert manifest.tokenizer == base.tokenizer_digest and manifest.encoder == encoder.digest
    assert manifest.catalogue == log.catalogue.digest
    assert manifest.data.digest == log.digest and 1000 < manifest.data.rows < len(log)
    assert manifest.data.split["split"] == {"kind": "temporal", "valid": 0.1, "test": 0.1, "min_events": 0}
    assert manifest.sequence["instruction"] == "User of age {age}:" and manifest.sequence["values"] == [1.0, 2.0, 4.0, 5.0]
    figure = manifest.metrics["next_item"]["ndcg@10"]
    assert 0 < figure.value < 1 and figure.interval[0] <= figure.value <= figure.interval[1] and figure.n > 50
    assert "prequential" in manifest.protocol["next_item"] and "mid-rank" in manifest.protocol["next_item"]
    cost = manifest.cost
    linears = [module for name, module in base.model.named_modules() if name.endswith("_proj")]
    assert cost.lora_params == sum(8 * (linear.in_features + linear.out_features) for linear in linears)
    loaded = read_adapter(trained.registry, "next_item", base)
    assert cost.head_params == sum(value.numel() for value in loaded.heads["next_item"].parameters())
    assert cost.tokens > 0 and cost.bytes == sum(
        file.stat().st_size for file in trained.registry.fetch(version).iterdir() if file.name != "manifest.json"
    )
    assert encoder.manifest.kind == "encoder" and encoder.manifest.data == manifest.data


def test_a_version_is_small_and_holds_no_item_table(trained):
    names = {file.name for file in trained.registry.fetch(trained.registry.resolve("like")).iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "heads.json",
        "heads.safetensors",
        "manifest.json",
        "README.md",
        "recipe.yaml",
    }


def test_saved_and_loaded_weights_are_bit_equal(trained, base):
    from safetensors.torch import load_file

    loaded = read_adapter(trained.registry, "like", base)
    heads = load_file(trained.runs["like"].folder / "heads.safetensors")
    for name, value in loaded.heads["like"].state_dict().items():
        assert torch.equal(value, heads[f"like.{name}"])
    low = load_file(trained.runs["like"].folder / "adapter_model.safetensors")
    assert len(low) == 2 * len(loaded.low) == 28
    for name, (a, b, scale) in loaded.low.items():
        assert torch.equal(a, low[f"base_model.model.{name}.lora_A.weight"]) and scale == 2.0
        assert torch.equal(b, low[f"base_model.model.{name}.lora_B.weight"])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", ["like", "encoder"])
def test_another_base_is_refused_with_both_values(trained, base, tmp_path, ref):
    other = Base.load(str(make_base(tmp_path / "other", seed=1)))
    with pytest.raises(ManifestError) as error:
        if ref == "like":
            read_adapter(trained.registry, "like", other)
        else:
            read_encoder(trained.registry, trained.registry.resolve("encoder-planted").digest, other)
    text = str(error.value)
    assert "base.fingerprint differs" in text and other.fingerprint in text and base.fingerprint in text


def test_another_depth_is_refused_with_both_values(trained, tiny):
    with pytest.raises(ManifestError, match="does not fit: base.depth differs: got 1; expected 2"):
        read_adapter(trained.registry, "like", Base.load(str(tiny), depth=1))


def test_another_tokenizer_is_refused_with_both_values(trained, base):
    other = dataclasses.replace(base, tokenizer_digest="0" * 64)
    with pytest.raises(ManifestError) as error:
        read_adapter(trained.registry, "like", other)
    text = str(error.value)
    assert "tokenizer differs" in text and "0" * 64 in text and base.tokenizer_digest in text


def test_another_quantization_is_taken(trained, base):
    other = dataclasses.replace(base, quantization="int8")
    assert read_adapter(trained.registry, "like", other).digest == trained.registry.resolve("like").digest


def test_an_encoder_is_no_adapter(trained, base):
    with pytest.raises(ManifestError, match="encoder-planted is a behaviour encoder: got encoder; expected an adapter"):
        read_adapter(trained.registry, "encoder-planted", base)


def test_heads_of_another_shape_are_refused_by_task(trained, base, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from genre.engine.versions import read_heads

    loaded = read_adapter(trained.registry, "like", base)
    shutil.copytree(trained.runs["like"].folder, tmp_path / "version")
    file = tmp_path / "version" / "heads.safetensors"
    state = load_file(file)
    save_file(state | {"like.linear.weight": torch.zeros(1, 7)}, file)
    with pytest.raises(ManifestError) as error:
        read_heads(tmp_path / "version", loaded.tasks, base)
    said = (
        "the head of task 'like' was not written by this release of GENRE: got linear.weight (1, 7); expected linear.weight (1, "
    )
    assert str(error.value).startswith(said) and "train it again" in str(error.value)
    assert "(1, 32)" in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "heads.json cannot be read: got Expecting property name"),
        ("[1]", "heads.json cannot be read: got list; expected an object"),
        ("{}", "heads.json: like: expected"),
        (
            '{"like": {"kind": "binary", "width": 32, "feedback_codes": 9}}',
            "like.feedback_codes: got 9; expected 5, as in heads.saf",
        ),
    ],
)
def test_a_damaged_description_is_refused(trained, base, tmp_path, text, said):
    import shutil

    from genre.engine.versions import read_heads

    shutil.copytree(trained.runs["like"].folder, tmp_path / "version")
    (tmp_path / "version" / "heads.json").write_text(text)
    with pytest.raises((IntegrityError, ManifestError), match=said):
        read_heads(tmp_path / "version", read_adapter(trained.registry, "like", base).tasks, base)


# --- sharing and growing ---------------------------------------------------------------------------------------------


def test_adapters_of_one_encoder_hold_one_object(trained, base):
    held = {}
    loaded = [read_adapter(trained.registry, name, base, encoders=held) for name in ("like", "rating", "next_item")]
    assert len(held) == 1 and all(each.shared is loaded[0].shared for each in loaded)


def test_a_version_that_is_read_again_and_again_leaves_nothing_behind(trained, base):
    held = {}
    kept = read_adapter(trained.registry, "like", base, encoders=held)
    assert held and len(kept.low) == 14

    def read():
        for _ in range(20):
            read_adapter(trained.registry, "like", base, encoders=held)
        gc.collect()
        return sys.getallocatedblocks()

    before = read()
    assert read() - before < 20 * len(kept.low)  # an object for every second tensor would be as much


def grown_log(log):
    """The same events; five more items, put first so that every code moves."""
    items = log.catalogue.frame
    more = pl.DataFrame({"item_id": [f"a{i}" for i in range(5)], "title": [f"war {90 + i}" for i in range(5)]})
    return genre.Interactions.from_frame(
        log.frame.drop("row"), items=pl.concat([more, items.select("item_id", "title")]), users=log.users, name="grown"
    )


def test_a_grown_catalogue_loads_and_evaluates(trained, base, log):
    """Feedback scores stay what they were; ranking ranks among more; new items get a score from their title."""
    grown = grown_log(log)
    assert grown.catalogue.size == log.catalogue.size + 5
    old, new = (evaluate(trained.registry, "like", each, base) for each in (log, grown))
    own, more = (found["tasks"]["like"]["adapter"]["auc"] for found in (old, new))
    assert more["value"] == pytest.approx(own["value"], abs=1e-6) and more["n"] == own["n"]
    ranked = evaluate(trained.registry, "next_item", grown, base)["tasks"]["next_item"]["adapter"]
    assert 0 < ranked["ndcg@10"]["value"] < 1
    with Engine(base, trained.registry, data=grown) as engine:
        best, known = engine.score(
            [Request("next_item", user_id="u0", k=100, exclude_seen=False), Request("like", user_id="u0", candidates=["i1"])]
        )
    with Engine(base, trained.registry, data=log) as engine:
        (before,) = engine.score([Request("like", user_id="u0", candidates=["i1"])])
    assert {f"a{i}" for i in range(5)} < {scored.item_id for scored in best.results}
    assert all(np.isfinite(scored.score) for scored in best.results)
    assert known.results[0].score == pytest.approx(before.results[0].score, abs=1e-5)


# --- stock PEFT ------------------------------------------------------------------------------------------------------


def peft_model(registry, ref, base_folder, out):
    """A published version, exported and read by nothing but transformers and PEFT."""
    registry.export(ref, out, base=base_folder)
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
        return PeftModel.from_pretrained(plain, str(out)).eval()


def lane_hidden(engine, ref, ids):
    """Last hidden states of the engine's lane of an adapter for rows of token ids."""
    resident = engine.cache.acquire(ref)
    engine.slots.route([resident.slot] * len(ids))
    try:
        return engine.base.hidden(engine.base.embedding(ids))
    finally:
        engine.slots.clear()


@pytest.fixture(scope="module")
def peft_registry(trained, tiny, log, tmp_path_factory):
    """Adapters of other shapes beside the trained ones."""
    folder, base = tmp_path_factory.mktemp("peft"), genre.Base.load(str(tiny))
    shared = {"encoder": "encoder-planted"}
    for number, (task, name, adapter, sections, how) in enumerate(
        [
            (NEXT, "peft-some", {"rank": 3, "targets": ["q_proj", "down_proj"], "layers": [1]}, {}, shared),
            (LIKE, "peft-rslora", {"kind": "rslora", "rank": 4}, {}, shared),
            (VERBAL, "peft-words", {"rank": 4}, TEXT, {}),
        ]
    ):
        wanted = recipe(tiny, task, name=name, adapter=adapter, **sections)
        publish_stirred(trained.registry, wanted, log, base, folder / str(number), seed=number, **how)
    return trained.registry


@torch.no_grad()
@pytest.mark.parametrize("ref", ["like", "next_item@production", "peft-some", "peft-rslora", "peft-words"])
def test_a_published_adapter_in_stock_peft_has_the_hidden_states_of_the_engines_lane(peft_registry, base, tiny, tmp_path, ref):
    """The folder as published, a sequence of token ids, an independent implementation: the same last hidden states."""
    ids = torch.randint(3, 250, (3, 23), generator=torch.Generator().manual_seed(0))
    bare = base.hidden(base.embedding(ids))
    with Engine(base, peft_registry) as engine:
        ours = lane_hidden(engine, ref, ids)
    theirs = peft_model(peft_registry, ref, tiny, tmp_path / "out").base_model.model.model(input_ids=ids).last_hidden_state
    assert (ours - bare).abs().max() > 0.01
    assert (ours - theirs).abs().max() <= CLOSE


@torch.no_grad()
def test_a_text_adapter_with_a_verbalizer_has_the_same_label_log_probabilities_in_stock_peft(
    peft_registry, base, tiny, log, tmp_path
):
    """Prompt in, log-probabilities of the label words out; and the engine's score is their softmax."""
    loaded = read_adapter(peft_registry, "peft-words", base)
    words = [base.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("N", "Y")]
    history, candidates = log.history("u3")[:6], ["i0", "i17", "i8"]
    person = {"age": 23}
    layout, titles = loaded.layout, log.catalogue.texts(list(loaded.layout.text))
    items = log.catalogue.codes([event["item_id"] for event in history])
    feedback = layout.feedback.encode(np.array([event["rating"] for event in history]))
    with Engine(base, peft_registry) as engine:
        (answer,) = engine.score([Request("peft-words", history=history, user=person, candidates=candidates)])
        hidden = []
        prompts = []
        for code in log.catalogue.codes(candidates):
            row = layout.build(layout.prefix(person), np.append(items, code), np.append(feedback, 0), texts=titles)
            assert (row.items < 0).all() and (row.feedback < 0).all()  # tokens only
            prompts.append(torch.from_numpy(row.tokens[: int(row.item_reads[-1]) + 1].astype(np.int64))[None])
            hidden.append(lane_hidden(engine, "peft-words", prompts[-1])[:, -1])
    assert answer.error is None
    model = peft_model(peft_registry, "peft-words", tiny, tmp_path / "out")
    everything = torch.arange(base.model.config.vocab_size)
    for prompt, state, scored in zip(prompts, hidden, answer.results, strict=True):
        theirs = torch.log_softmax(model(input_ids=prompt).logits[0, -1], -1)[words]
        ours = torch.log_softmax(base.word_logits(state, everything)[0], -1)[words]
        assert (ours - theirs).abs().max() <= CLOSE
        assert torch.sigmoid(theirs[1] - theirs[0]).item() == pytest.approx(scored.score, abs=CLOSE)
