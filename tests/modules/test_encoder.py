"""The behaviour encoder: its formula, new items, hidden ids in training, saving and loading bit by bit."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from genre.data.catalogue import Catalogue
from genre.errors import DataError, ManifestError
from genre.modules.base.fingerprint import fingerprint
from genre.modules.encoder import BehaviourEncoder, EncoderSpec
from genre.modules.text_vectors import text_vectors

IDS = ["a", "b", "c", "d"]


def catalogue(ids=IDS, width=3):
    draw = np.random.default_rng(0)
    return Catalogue(
        pl.DataFrame(
            {"item_id": ids, "title": [f"film {item}" for item in ids], "image": draw.normal(size=(len(ids), width)).tolist()},
            schema_overrides={"image": pl.List(pl.Float32)},
        )
    )


@pytest.fixture
def spec(base):
    return EncoderSpec(
        width=base.hidden_size,
        text=("title",),
        learned=4,
        collaborative=5,
        dense=(("image", 3),),
        feedback=6,
        dropout=0.5,
        factors=2,
    )


@pytest.fixture
def encoder(spec):
    torch.manual_seed(0)
    made = BehaviourEncoder(spec, IDS, scale=0.25, computed={"collaborative": torch.randn(4, 5), "factors": torch.randn(4, 2)})
    with torch.no_grad():
        made.gates.copy_(torch.tensor([0.5, 1.5, 2.0, 0.7, -1.0]))
    return made.eval()


def by_hand(encoder, features, row):
    total = sum(
        gate * (encoder.project[name].weight.detach().double() @ value.double())
        for gate, (name, value) in zip(encoder.gates.detach().double(), features(row).items(), strict=True)
    )
    return float(encoder.scale[0]) * total / (total.square().mean() + 1e-6).sqrt()


@torch.no_grad()
def test_an_item_vector_is_the_gated_sum_of_its_features(encoder, base):
    table = encoder.table(catalogue(), base, fit=True)
    titles = [base.tokenizer(f"film {item}", add_special_tokens=False)["input_ids"] for item in IDS]
    text = torch.stack([base.hidden(base.embedding(torch.tensor([ids])))[0].mean(0) for ids in titles])
    image = torch.from_numpy(catalogue().dense("image"))

    def plain(value):
        return (value - value.mean(0)) / (value.std(0, correction=0) + 1e-6)

    def features(row):
        return {
            "text": plain(text)[row],
            "learned": encoder.learned.weight[row],
            "collaborative": encoder.collaborative[row],
            "factors": encoder.factors[row],
            "dense_image": plain(image)[row],
        }

    got = encoder.item_vectors(table)
    for row in range(4):
        assert torch.allclose(got[row].double(), by_hand(encoder, features, row), atol=1e-4)
    assert got.square().mean(-1).sqrt().tolist() == pytest.approx([0.25] * 4, rel=1e-3)
    assert torch.allclose(encoder.item_vectors(table, torch.tensor([2, 0])), got[[2, 0]], atol=1e-6)


@torch.no_grad()
def test_feedback_vectors_have_the_bases_scale(encoder):
    vectors = encoder.feedback_vectors(torch.arange(6))
    weight = encoder.feedback.weight
    wanted = 0.25 * weight / (weight.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(vectors, wanted, atol=1e-6)


@torch.no_grad()
def test_known_items_keep_their_vectors_in_a_grown_catalogue_and_new_ones_get_one(encoder, base):
    before = encoder.item_vectors(encoder.table(catalogue(), base, fit=True))
    small = catalogue().frame
    new = small.head(1).with_columns(pl.lit("new").alias("item_id"))
    table = encoder.table(Catalogue(pl.concat([new, small])), base)
    assert table.rows.tolist() == [-1, 0, 1, 2, 3]
    after = encoder.item_vectors(table)
    assert torch.allclose(after[1:], before, atol=1e-5)
    assert torch.isfinite(after[0]).all() and not torch.allclose(after[0], after[1], atol=1e-2)  # the same title, but no ids


@torch.no_grad()
def test_ids_are_hidden_at_random_in_training_only(encoder, base):
    table = encoder.table(catalogue(), base, fit=True)
    hidden = type(table)(table.features, torch.full_like(table.rows, -1))
    shown, bare = encoder.item_vectors(table), encoder.item_vectors(hidden)
    encoder.train()
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        for row, vector in enumerate(encoder.item_vectors(table)):
            kinds = [torch.allclose(vector, each[row], atol=1e-6) for each in (shown, bare)]
            assert sum(kinds) == 1
            seen.add((row, kinds[0]))
    assert len(seen) == 8


@torch.no_grad()
def test_saved_and_restored_it_is_bit_equal_and_frozen(encoder, spec, base):
    table = encoder.table(catalogue(), base, fit=True)
    again = BehaviourEncoder.restore(dataclasses.asdict(spec), IDS, encoder.payload())
    assert again.spec == spec and not again.training and not any(value.requires_grad for value in again.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(again.item_vectors(again.table(catalogue(), base)), encoder.item_vectors(table))


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_wrong_tensors_are_refused_by_name(encoder, spec, change):
    payload = encoder.payload()
    if change == "missing":
        del payload["learned.weight"]
        text = "encoder tensor learned.weight: expected (4, 4)"
    elif change == "more":
        payload["stray"] = torch.zeros(2)
        text = "encoder tensor stray: got (2,)"
    else:
        payload["project.text.weight"] = torch.zeros(3, 3)
        text = "encoder tensor project.text.weight: got (3, 3); expected (32, 32)"
    with pytest.raises(ManifestError) as error:
        BehaviourEncoder.restore(dataclasses.asdict(spec), IDS, payload)
    assert str(error.value).startswith(text)


def test_a_dense_column_of_another_width_is_refused(encoder, base):
    with pytest.raises(DataError, match="dense column 'image' has another width: got 2; expected 3"):
        encoder.table(catalogue(width=2), base)


def test_an_item_without_text_still_has_a_vector(encoder, base):
    empty = Catalogue(catalogue().frame.with_columns(pl.lit(None, dtype=pl.String).alias("title")))
    with torch.no_grad():
        assert torch.isfinite(encoder.item_vectors(encoder.table(empty, base))).all()


@pytest.mark.parametrize("change", [{"learned": 10**12}, {"width": 10**9}, {"dense": [["x", 3]] * 100_000}, {"feedback": 10**12}])
def test_a_description_allocates_nothing_that_the_tensors_do_not_have(change):
    encoder = BehaviourEncoder(EncoderSpec(8, (), 4, 0, (), 3), ["a", "b"], scale=1.0)
    described = {**dataclasses.asdict(encoder.spec), **change}
    with pytest.raises(ManifestError, match="encoder"):
        BehaviourEncoder.restore(described, encoder.item_ids, encoder.payload())


@pytest.mark.parametrize("name", ["width", "learned", "collaborative", "factors", "feedback"])
@pytest.mark.parametrize("size", [None, -1, 1.5, True, "8"])
def test_sizes_in_a_description_are_whole_numbers(name, size):
    encoder = BehaviourEncoder(EncoderSpec(8, (), 4, 0, (), 3), ["a", "b"], scale=1.0)
    with pytest.raises(ManifestError, match=f"encoder.json: {name}: got .*; expected a whole number"):
        BehaviourEncoder.restore({**dataclasses.asdict(encoder.spec), name: size}, ["a", "b"], encoder.payload())


def test_a_restored_encoder_is_what_was_published():
    encoder = BehaviourEncoder(EncoderSpec(8, (), 4, 0, (("x", 3),), 3, whiten=True), ["a", "b"], scale=1.0)
    found = BehaviourEncoder.restore(dataclasses.asdict(encoder.spec), encoder.item_ids, encoder.payload())
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in found.state_dict().items())
    assert not any(value.requires_grad for value in found.parameters()) and not found.training


def test_kept_text_vectors_are_checked_and_made_again_with_a_line(base, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path))
    texts = [f"a text of {number}" for number in range(80)]
    wanted = text_vectors(texts, base)
    (file,) = (tmp_path / "texts").iterdir()
    assert torch.equal(text_vectors(texts, base), wanted) and not caplog.records
    data = bytearray(file.read_bytes())
    for damaged in (bytes(data[:-7]), bytes([*data[:-9], data[-9] ^ 1, *data[-8:]]), b"", b"{}"):
        file.write_bytes(damaged)
        caplog.clear()
        assert torch.equal(text_vectors(texts, base), wanted)
        assert "is damaged: text vectors are computed again" in caplog.text
        assert torch.equal(text_vectors(texts, base), wanted) and file.read_bytes() == bytes(data)
    caplog.clear()
    text_vectors(texts, base, keep=False)
    assert len(list((tmp_path / "texts").iterdir())) == 1 and not caplog.records


def test_kept_text_vectors_know_the_rule_for_control_tokens(base, monkeypatch, tmp_path):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path))
    texts = ["heat </s>", *(f"a text of {number}" for number in range(80))]
    for _ in ("made", "kept"):
        text, token = (text_vectors(texts, base, rule) for rule in ("text", "token"))
        assert torch.allclose(text[1:], token[1:], atol=1e-6) and not torch.allclose(text[0], token[0], atol=1e-3)
    assert len(list((tmp_path / "texts").iterdir())) == 2


def test_a_kept_fingerprint_is_checked_and_made_again_with_a_line(tiny, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path))
    wanted = fingerprint(tiny)
    (memo,) = (tmp_path / "fingerprints").iterdir()
    kept = memo.read_bytes()
    assert fingerprint(tiny) == wanted and not caplog.records
    for damaged in (b"", b"\xff", wanted.encode(), kept.replace(b"a", b"b"), b"0" * 64 + kept[64:]):
        memo.write_bytes(damaged)
        caplog.clear()
        assert fingerprint(tiny) == wanted and memo.read_bytes() == kept
        assert "is damaged: the base's fingerprint is computed again" in caplog.text
