"""Adapters that generate items exported for vLLM: stock transformers and PEFT on the folder against our engine, by the client."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from lora_server import lora_server

import genre
from builders import LIKE, NEXT, publish_stirred, recipe, stir
from genre import cli
from genre.errors import RegistryError
from genre.jobs.export.generating import export_generating
from genre.jobs.publish import encoder_manifest, write_encoder
from genre.registry.export.check import ask_canaries
from genre.registry.export.client import ClientError
from genre.registry.export.generate_client import Generator, code_text
from genre.registry.manifest import Cost
from genre.training.assembly import assemble

GENERATE = NEXT | {"head": "generate"}
ENCODER = {"codes": {"levels": 2, "size": 4, "places": 30}}
ITEMS = 30


@pytest.fixture(scope="module")
def world(tiny, log, tmp_path_factory):
    """An encoder with codes, adapters that generate, their export."""
    folder = tmp_path_factory.mktemp("generating")
    registry, base = genre.Registry(folder / "registry"), genre.Base.load(str(tiny))
    layouts = {"one": {}, "words": {"item": "text"}, "both": {"item": "both"}, "bare": {"feedback": "none"}}
    for name, sequence in layouts.items():
        first = assemble(recipe(tiny, GENERATE, encoder=ENCODER, sequence=sequence), log, base)
        stir(first)
        with torch.no_grad():
            first.model.soft.codes.vectors.weight.mul_(3)
        write_encoder(folder / f"encoder-{name}", first)
        registry.publish(folder / f"encoder-{name}", encoder_manifest(first, f"encoder-{name}", cost=Cost()))
        first.model.release()
        wanted = recipe(tiny, GENERATE, name=name, encoder=ENCODER, sequence=sequence)
        publish_stirred(registry, wanted, log, base, folder / name, seed=1, encoder=f"encoder-{name}")
    dense = recipe(tiny, NEXT, LIKE, name="dense")
    publish_stirred(registry, dense, log, base, folder / "dense", seed=2, encoder="encoder-one")
    return folder, registry, tiny


@pytest.fixture(scope="module")
def exported(world):
    folder, registry, tiny = world
    assert export_generating(registry, "one", folder / "out", tiny) < 1e-4
    return folder / "out"


def history(user, *, feedback=True, events=8):
    draw = np.random.default_rng(user)
    more = [{"rating": float(draw.integers(1, 6))} if feedback else {} for _ in range(events)]
    return [{"item_id": f"i{item}", **event} for item, event in zip(draw.integers(0, ITEMS, events), more, strict=True)]


def of_engine(world, name, histories):
    """The engine's scores of all items after each history."""
    asked = {"k": ITEMS, "beam": ITEMS, "exclude_seen": False, "user": {"age": 23}}
    with genre.Engine(genre.Base.load(str(world[2])), world[1], lanes=2) as engine:
        answers = engine.score([genre.Request(name, history=each, **asked) for each in histories])
    assert all(answer.error is None for answer in answers)
    return [{each.item_id: each.score for each in answer.results} for answer in answers]


@pytest.mark.parametrize("name", ["one", "words", "both", "bare"])
def test_a_server_answers_as_the_engine_does(world, name, tmp_path):
    asked = history(3, feedback=name != "bare")
    out = tmp_path / "out"
    export_generating(world[1], name, out, world[2])
    with lora_server(out) as (url, served), Generator(url, out) as generator:
        histories = [asked, asked[:1], []]
        for events, wanted in zip(histories, of_engine(world, name, histories), strict=True):
            found = dict(generator.recommend(events, ITEMS, beam=None, user={"age": 23}))
            assert found.keys() == wanted.keys() and len(found) == ITEMS
            scores = np.array([[found[item], wanted[item]] for item in found])
            np.testing.assert_allclose(np.exp(scores[:, 0]), np.exp(scores[:, 1]), atol=1e-5)
            assert np.exp(scores[:, 0]).sum() == pytest.approx(1, abs=1e-4)
    assert max(np.exp(scores[:, 0])) > 2 / ITEMS, "probabilities differ at all"
    assert max(map(len, served.prompts)) < 200


def test_a_beam_finds_the_best_and_filters_change_no_score(exported):
    with lora_server(exported) as (url, _), Generator(url, exported) as generator:
        asked = history(5)
        whole = generator.recommend(asked, ITEMS, beam=None)
        best = generator.recommend(asked, 3, beam=12)
        assert [item for item, _ in best] == [item for item, _ in whole[:3]]
        assert [score for _, score in best] == pytest.approx([score for _, score in whole[:3]], abs=1e-5)
        some = [item for item, _ in whole[4:9]]
        found = generator.recommend(asked, 10, candidates=some, exclude=some[:1])
        assert [item for item, _ in found] == some[1:]
        assert [score for _, score in found] == pytest.approx([score for _, score in whole[5:9]], abs=1e-5)
        assert generator.recommend(asked, candidates=[]) == []
        for wrong, message in (
            ({"candidates": ["nobody"]}, "unknown candidate: got 'nobody'"),
            ({"user": 7}, "a user cannot be read"),
        ):
            with pytest.raises(ClientError, match=message):
                generator.recommend(asked, **wrong)
        with pytest.raises(ClientError, match=r"unknown item: got 'new'.*only those have a vector here"):
            generator.recommend([{"item_id": "new", "rating": 1}])


def test_a_server_that_answers_with_the_base_is_refused(exported):
    refused = pytest.raises(ClientError, match="with its base")
    with lora_server(exported, base_only=True) as (url, _), Generator(url, exported) as generator, refused:
        generator.recommend(history(1))
    with lora_server(exported) as (url, _):
        assert len(ask_canaries(url, exported)) == 2


def test_the_base_has_tokens_for_codes_and_the_grammar_spells_items_alone(exported, world):
    from transformers import AutoTokenizer

    prompt = json.loads((exported / "prompt.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(exported / "base")
    items = [json.loads(line) for line in (exported / "items.jsonl").read_text().splitlines()]
    first = prompt["first_code"]
    offsets = [first, first + prompt["code_sizes"][0], first + sum(prompt["code_sizes"][:2])]
    texts = {}
    for item in items:
        text = "".join(code_text(level, code) for level, code in enumerate(item["codes"]))
        wanted = [offset + code for offset, code in zip(offsets, item["codes"], strict=True)]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == wanted
        assert tokenizer.decode(wanted, skip_special_tokens=True) == text
        texts[text] = item["item_id"]
    assert spelt((exported / "grammar.ebnf").read_text()) == set(texts)
    some = {"i1", "i7"}
    generator = Generator("http://127.0.0.1:9", exported)
    assert {texts[text] for text in spelt(generator.trie.grammar(some))} == some
    config = json.loads((exported / "base/config.json").read_text())
    assert (
        config["vocab_size"] == prompt["first_feedback"] + len(prompt["layout"]["values"]) + 1
        and config["tie_word_embeddings"] is False
    )
    card = (exported / "README.md").read_text()
    assert "$ vllm serve ./base" in card
    assert str(world[2]) not in card


def spelt(grammar):
    """All texts of a grammar whose rules are alternatives of a text and perhaps a rule."""
    rules = dict(line.split(" ::= ") for line in grammar.splitlines())

    def of(rule):
        found = set()
        for way in rules[rule].split(" | "):
            text, _, rest = way.partition(" ")
            found |= {json.loads(text) + more for more in (of(rest) if rest else {""})}
        return found

    return of("root")


def test_from_the_command_line_and_a_client_without_genre(world, tmp_path, capsys):
    folder, registry, tiny = world
    asked = ["registry", "export", "one", "--registry", str(registry.url), "--base", str(tiny), "--to", "vllm", "--tar"]
    assert cli.main([*asked, "--out", str(tmp_path / "out")]) == 0
    assert "out.tar; probabilities of stock PEFT and of genre differ by at most" in capsys.readouterr().out
    assert (tmp_path / "out.tar").is_file()
    code = (
        "import sys; sys.path.insert(0, '.'); import generate; sys.argv = ['generate.py', '--url', sys.argv[1]]; generate.main()"
    )
    with lora_server(tmp_path / "out") as (url, _):
        rows = [{"id": "1", "history": history(1), "k": 2}, {"id": "2"}, {"id": "3", "history": [], "kk": 1}]
        lines = "\n".join(map(json.dumps, rows))
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, url], cwd=tmp_path / "out", input=lines, capture_output=True, text=True, check=True
        )
    one, two, three = map(json.loads, done.stdout.splitlines())
    assert len(one["results"]) == 2 and one["results"][0]["score"] >= one["results"][1]["score"]
    assert two["error"].startswith("a request needs a history") and "unknown field: got 'kk'" in three["error"]


def test_what_generates_nothing_is_refused(world, tmp_path):
    _, registry, tiny = world
    with pytest.raises(
        RegistryError, match=r"no task to export: got dense:\w+ with next_item, like; expected one task with head"
    ):
        export_generating(registry, "dense", tmp_path / "out", tiny)
    with pytest.raises(RegistryError, match=r"got head generate; .*; genre registry export --to vllm$"):
        registry.export("one", tmp_path / "out", to="vllm", base=tiny)
    assert not (tmp_path / "out").exists()
