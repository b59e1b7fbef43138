"""Encoders with codes in a registry: which recipes share them, and what is said of the others."""

import pytest
from typer.testing import CliRunner

import genre
from builders import LIKE, NEXT, recipe
from genre.cli import data as cli_data
from genre.errors import InputError, ManifestError
from genre.jobs.codes import describe_codes
from genre.jobs.encoders import find_encoder, foresee_encoder, foresee_sharing, publish_encoder
from genre.progress import Reporter
from genre.registry.manifest import Cost
from genre.training.assembly import assemble

GENERATE = NEXT | {"head": "generate"}
CODES = {"levels": 2, "size": 4, "places": 30}


def lines_of(registry, wanted, log, base):
    lines: list[str] = []
    reporter = Reporter.silent()
    reporter.line = lines.append
    found = find_encoder(wanted, log, base, registry, reporter)
    return found, lines[-1]


def published(registry, wanted, log, base, folder):
    made = assemble(wanted, log, base)
    publish_encoder(made, folder, registry, Cost())
    made.model.release()


def test_a_recipe_that_generates_shares_the_same_codes_alone(tiny, log, base, tmp_path):
    registry = genre.Registry(tmp_path / "registry")
    generate = recipe(tiny, GENERATE, encoder={"codes": CODES})
    published(registry, recipe(tiny, LIKE), log, base, tmp_path / "plain")
    found, line = lines_of(registry, generate, log, base)
    assert found is None and "fitting a new encoder: the encoder has no codes of items" in line
    assert foresee_encoder(generate, log, registry) == f"encoder: {line}"
    with pytest.raises(ManifestError, match="no codes of items"):
        find_encoder(recipe(tiny, GENERATE, encoder={"use": "encoder-planted"}), log, base, registry, Reporter.silent())

    published(registry, generate, log, base, tmp_path / "coded")
    found, line = lines_of(registry, generate, log, base)
    assert line.startswith("using the encoder encoder-planted:")
    assert found is not None and found.encoder.codes is not None
    assert not any(value.requires_grad for value in found.encoder.codes.parameters())
    assert foresee_encoder(generate, log, registry).startswith("encoder: shares encoder-planted")
    for wanted in (recipe(tiny, LIKE), recipe(tiny, GENERATE, encoder={"use": "encoder-planted"})):
        assert lines_of(registry, wanted, log, base)[0] is not None
    other = recipe(tiny, GENERATE, encoder={"codes": CODES | {"size": 8, "balanced": False}})
    found, line = lines_of(registry, other, log, base)
    assert found is None
    assert "other codes of items: got size 4, balanced True; expected size 8, balanced False" in line
    assert foresee_encoder(other, log, registry) == f"encoder: {line}"


def test_the_codes_of_a_log_are_described(tiny, log, base, tmp_path):
    registry = genre.Registry(tmp_path / "registry")
    published(registry, recipe(tiny, GENERATE, encoder={"codes": CODES}), log, base, tmp_path / "coded")
    found = describe_codes(registry, "encoder-planted", log, base)
    assert (found["method"], found["items"], found["new"]) == ("kmeans, balanced", log.catalogue.size, 0)
    assert [each["size"] for each in found["levels"][:2]] == [4, 4] and found["levels"][0]["used"] == 4
    assert found["collisions"]["most"] <= found["levels"][-1]["size"] and len(found["prefixes"]) == 2
    log.write(tmp_path / "shop")
    where = ["--registry", str(tmp_path / "registry"), "--base", str(tiny)]
    shown = CliRunner().invoke(cli_data.app, ["describe", str(tmp_path / "shop"), "--encoder", "encoder-planted", *where])
    assert "codes of level 2" in shown.stdout and "share all codes but the last" in shown.stdout, shown.output
    published(registry, recipe(tiny, LIKE), log, base, tmp_path / "plain")
    with pytest.raises(InputError, match="has no codes of items"):
        describe_codes(registry, "encoder-planted", log, base)


def test_recipes_that_are_trained_together_share_codes_or_it_is_said_why(tiny, log):
    plain, coded = recipe(tiny, LIKE), recipe(tiny, GENERATE, encoder={"codes": CODES})
    other = recipe(tiny, GENERATE, encoder={"codes": CODES | {"size": 8}})
    assert "shares the one that b fits" in foresee_sharing([("b", coded), ("a", plain)], log)[0]
    assert "it generates items, and that one has no codes" in foresee_sharing([("a", plain), ("b", coded)], log)[0]
    assert "it generates items by other codes" in foresee_sharing([("b", coded), ("c", other)], log)[0]
