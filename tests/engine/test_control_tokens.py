"""Control tokens in titles, from training to scores: two versions with the same weights, one of each rule."""

import numpy as np
import pytest

import genre
from builders import LIKE, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.engine.versions import read_adapter
from genre.jobs.encoders import find_encoder, foresee_encoder
from genre.jobs.publish import encoder_manifest, write_encoder
from genre.jobs.refresh.plan import RefreshOptions, read_recipe
from genre.progress import Reporter
from genre.registry.manifest import Cost
from genre.training.assembly import assemble

BOTH = {"item": "both", "instruction": "Of {age}:"}


@pytest.fixture
def registry(tiny, base, log, tmp_path):
    """`text` and `token`, each over an encoder of its own rule with the same numbers in it."""
    registry = genre.Registry(tmp_path / "registry")
    for rule in ("text", "token"):
        wanted = recipe(tiny, LIKE, name=rule, sequence=BOTH | {"control_tokens": rule}, encoder={"use": "fit"})
        assembly = assemble(wanted, log, base)
        write_encoder(tmp_path / f"encoder-{rule}", assembly)
        manifest = encoder_manifest(assembly, f"encoder-{rule}", cost=Cost())
        assembly.model.release()
        encoder = registry.publish(tmp_path / f"encoder-{rule}", manifest).ref
        publish_stirred(registry, wanted, log, base, tmp_path / rule, encoder=encoder)
    return registry


def scores(engine, ref, *titles, **fields):
    request = Request(ref, history=[{"item_id": "i1", "rating": 5}], candidates=[{"title": title} for title in titles], **fields)
    (response,) = engine.score([request])
    assert response.error is None
    return np.array([scored.score for scored in response.results])


def test_a_control_token_moves_the_scores_of_a_version_of_the_old_rule_only(base, registry):
    with Engine(base, registry, lanes=4) as engine:
        for title, same in (("war 7", True), ("war </s>", False), ("<s>", False)):
            text, token = (scores(engine, ref, title, user={"age": 30}) for ref in ("text", "token"))
            assert np.allclose(text, token, atol=1e-6) == same
        in_user = [scores(engine, ref, "war 7", user={"age": "</s>"}) for ref in ("text", "token")]
        assert not np.allclose(*in_user, atol=1e-6)


def test_versions_record_their_rule_and_those_without_one_are_of_the_old(base, registry):
    assert registry.resolve("text").manifest.sequence["control_tokens"] == "text"
    assert "control_tokens" not in registry.resolve("token").manifest.sequence
    for rule in ("text", "token"):
        loaded = read_adapter(registry, rule, base)
        assert loaded.reading.control_tokens == loaded.shared.encoder.spec.control_tokens == rule
        assert read_recipe(registry, registry.resolve(rule), RefreshOptions()).sequence.control_tokens == rule


def test_a_recipe_of_before_there_was_a_rule_is_refreshed_under_the_old_one(registry, tmp_path):
    version, before = registry.resolve("token"), tmp_path / "before"
    before.mkdir()
    for file in registry.fetch(version).iterdir():
        text = file.read_bytes()
        (before / file.name).write_bytes(text.replace(b"  control_tokens: token\n", b"") if file.name == "recipe.yaml" else text)
    assert b"control_tokens" not in (before / "recipe.yaml").read_bytes()
    older = registry.publish(before, version.manifest)
    assert read_recipe(registry, older, RefreshOptions()).sequence.control_tokens == "token"


def test_an_encoder_of_the_other_rule_is_shared_only_if_it_is_named(tiny, base, log, registry, tmp_path):
    encoder = registry.resolve("encoder-token")
    registry.publish(registry.fetch(encoder), encoder.manifest.model_copy(update={"name": "encoder-planted"}))
    new = recipe(tiny, LIKE, sequence=BOTH)
    assert find_encoder(new, log, base, registry, Reporter.silent()) is None
    assert "fitting a new encoder: the encoder reads control tokens in titles otherwise" in foresee_encoder(new, log, registry)
    old = recipe(tiny, LIKE, sequence=BOTH | {"control_tokens": "token"})
    named = recipe(tiny, LIKE, sequence=BOTH, encoder={"use": "encoder-planted"})
    assert find_encoder(old, log, base, registry, Reporter.silent()) and find_encoder(
        named, log, base, registry, Reporter.silent()
    )
