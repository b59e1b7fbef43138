"""Vectors out: products are the engine's scores, an exact index gives its top k, a stale one is refused."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import genre
from builders import NEXT, publish_stirred, recipe, stir
from fakes import planted_log
from genre.cli.registry.commands import app
from genre.data.splits import TEST, SplitConfig
from genre.engine import Engine, Request
from genre.engine.vectors import item_matrix, strongest, vector_space
from genre.errors import InputError, RegistryError
from genre.export import StaleIndexError, VectorsError, read_vectors, user_vectors
from genre.jobs.encoders import publish_encoder
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.registry import Registry
from genre.registry.manifest import Cost
from genre.training.neighbours import fit_neighbours
from kinds import run_of_kinds

CLOSE = 1e-4


@pytest.fixture
def exported(trained, base, tmp_path):
    return genre.export.vectors(trained.registry, "next_item", tmp_path / "out", base=base, data=trained.log, users=True)


def answers(engine, users, k=10, ref="next_item"):
    return {user: engine.score([Request(ref, user_id=user, k=k)])[0] for user in users}


def agree(found, response):
    """The same scores place by place, and the same items but for equal scores."""
    assert response.error is None
    scores = [item.score for item in response.results]
    assert [score for _, score in found] == pytest.approx(scores, abs=CLOSE)
    for (item, score), wanted in zip(found, response.results, strict=True):
        assert item == wanted.item_id or abs(score - wanted.score) < CLOSE


def test_products_are_the_engines_scores_and_seen_items_stay_out(trained, base, exported):
    assert exported.items.dtype == exported.users.dtype == np.float32
    assert list(exported.about["blocks"]) == ["query", "bias"]
    assert np.array_equal(exported.users[:, -1], np.ones(len(exported.user_ids)))
    with Engine(base, trained.registry, data=trained.log) as engine:
        for user, response in answers(engine, trained.log.user_ids[:8]).items():
            agree(exported.best(user, 10, exported.exact, digest=exported.digest), response)
    assert exported.about["check"]["largest_difference"] < CLOSE and exported.about["check"]["overlap@10"] > 0.99


def test_the_files_hold_ids_titles_digest_and_metric(trained, exported, tmp_path):
    folder, digest = tmp_path / "out", trained.registry.resolve("next_item").digest
    for name in ("items", "users"):
        frame = pl.read_parquet(folder / f"{name}.parquet")
        about = json.loads(pl.read_parquet_metadata(folder / f"{name}.parquet")["genre"])
        assert (about["digest"], about["metric"], about["dimensions"]) == (digest, "dot", exported.dimensions)
        assert np.array_equal(frame["vector"].to_numpy(), np.load(folder / f"{name}.npy"))
    items = pl.read_parquet(folder / "items.parquet")
    assert (
        items["item_id"].to_list() == trained.log.catalogue.item_ids
        and items["title"].to_list() == trained.log.catalogue.titles()
    )
    assert exported.about["check"]["histories"] == 32


@pytest.fixture(scope="module")
def neighbourly(tiny, tmp_path_factory):
    """A registry with a next-item version that has every term: memory, co-occurrence, item neighbours, text neighbours."""
    folder = tmp_path_factory.mktemp("neighbourly")
    made = run_of_kinds(tiny, encoder={"neighbours": 20, "whiten": True})
    stir(made, size=0.3)
    made.model.eval()
    own = fit_neighbours(made, made.model.soft.index, 20)
    own.blend.copy_(torch.tensor([0.7, 0.4]))
    own.fade.copy_(torch.tensor([0.8, 0.9]))
    made.model.heads["next_item"] = made.model.heads["next_item"].with_neighbours(own)
    registry = Registry(folder / "registry")
    for name in ("encoder", "adapter"):
        (folder / name).mkdir()
    digest, _ = publish_encoder(made, folder / "encoder", registry, Cost())
    write_adapter(folder / "adapter", made)
    registry.publish(folder / "adapter", adapter_manifest(made, encoder=digest, cost=Cost(), metrics={}))
    made.model.release()
    return registry, made.log


def test_item_neighbours_are_exact_dimensions_and_a_rank_says_what_it_loses(neighbourly, base, tmp_path):
    registry, log = neighbourly
    exact = genre.export.vectors(registry, "next_item", tmp_path / "exact", base=base, data=log, users=True)
    assert list(exact.about["blocks"]) == ["query", "bias", "text neighbours", "item neighbours"]
    assert exact.about["blocks"]["item neighbours"] == log.catalogue.size and exact.about["lost"] is None
    with Engine(base, registry, data=log) as engine:
        for user, response in answers(engine, log.user_ids[:8]).items():
            agree(exact.best(user, 10, exact.exact, digest=exact.digest), response)
    found = {}
    for rank in (4, 40):
        out = genre.export.vectors(registry, "next_item", tmp_path / str(rank), base=base, data=log, users=True, rank=rank)
        assert (out.about["rank"], out.about["blocks"]["item neighbours"]) == (rank, rank)
        found[rank] = out.about["lost"], np.abs(out.users @ out.items.T - exact.users @ exact.items.T).max()
    assert 0 < found[40][0] < found[4][0] < 1 and CLOSE < found[40][1] < found[4][1]
    assert f"loses {found[4][0]:.1%}" in (tmp_path / "4" / "README.md").read_text()


def test_the_strongest_directions_are_those_of_the_centred_matrix(neighbourly, base):
    registry, log = neighbourly
    with Engine(base, registry, data=log) as engine, engine.planned(Request("next_item", history=[], k=1)) as job:
        index, neighbours = job.inline.space.index, job.head.neighbours
        matrix = item_matrix(neighbours, index)
        history = torch.arange(log.catalogue.size)[:, None]
        scores = neighbours.together(index, history, torch.ones(len(history), 1)).numpy()
    dense = matrix.toarray().astype(np.float64)
    centred = dense - dense.mean(1, keepdims=True)
    assert scores == pytest.approx(centred / (np.sqrt((centred**2).mean(1, keepdims=True)) + 1e-12), abs=1e-3)
    own, lost = strongest(matrix, 10)
    values = np.linalg.svd(centred, compute_uv=False)
    assert own.T @ own == pytest.approx(np.eye(10), abs=1e-5)
    assert lost == pytest.approx(np.sqrt((values[10:] ** 2).sum() / (values**2).sum()), rel=1e-4)
    assert np.linalg.norm(centred @ own, axis=0) == pytest.approx(values[:10], rel=1e-4)


def test_new_histories_get_vectors_of_the_same_space(neighbourly, base, tmp_path):
    registry, log = neighbourly
    history = [{"item_id": item, "rating": 5.0} for item in log.catalogue.item_ids[:4]]
    asked = Request("anything", history=history)
    for rank in (None, 12):
        out = genre.export.vectors(registry, "next_item", tmp_path / f"r{rank}", base=base, rank=rank)
        assert not len(out.user_ids) and out.about["users"] is None and out.about["check"]["histories"] == 32
        with Engine(base, registry) as engine:
            (query,) = user_vectors(engine, out, [asked])
            (response,) = engine.score([Request("next_item", history=history, k=5, exclude_seen=False)])
            (same,) = vector_space(engine, "next_item", rank=rank).users(engine, [asked])
        assert query == pytest.approx(same, abs=CLOSE)
        if rank is None:
            agree(out.best_for(query, 5, out.exact), response)
    with Engine(base, registry, data=planted_log()) as engine, pytest.raises(InputError, match="another catalogue: got 30 items"):
        user_vectors(engine, out, [asked])


def test_histories_end_before_a_part(trained, base, tmp_path):
    log, version = trained.log, trained.registry.resolve("next_item")
    split = log.split(SplitConfig.model_validate(version.manifest.data.split["split"]))
    out = genre.export.vectors(trained.registry, "next_item", tmp_path / "out", base=base, data=log, users=True, before="test")
    for user, seen in zip(out.user_ids, out.seen, strict=True):
        own = np.flatnonzero(log.user_codes == log.user_code(user))
        first = own[split.part[own] == TEST].min(initial=own.max() + 1)
        assert set(seen) == {log.catalogue.item_ids[log.item_codes[event]] for event in own if event < first}
    with pytest.raises(InputError, match="--before needs the data"):
        genre.export.vectors(trained.registry, "next_item", tmp_path / "no", base=base, data=planted_log(seed=4), before="test")


def test_an_index_of_another_version_is_refused(trained, tiny, base, exported, tmp_path):
    encoder = trained.registry.find(trained.registry.resolve("next_item").manifest.encoder).ref
    wanted = recipe(tiny, NEXT).with_values({"name": "newer"})
    publish_stirred(trained.registry, wanted, trained.log, base, tmp_path / "adapter", encoder=encoder)
    newer = genre.export.vectors(trained.registry, "newer", tmp_path / "newer", base=base, data=trained.log, users=True)
    assert newer.digest != exported.digest
    user = exported.user_ids[0]
    with pytest.raises(StaleIndexError, match=f"got digest {exported.digest}; expected {newer.digest}"):
        newer.best(user, 10, exported.exact, digest=exported.digest)
    with pytest.raises(StaleIndexError, match="build the index again"):
        read_vectors(tmp_path / "out", digest=newer.digest)
    with pytest.raises(VectorsError, match="no vector of this user: got 'nobody'; expected one of 60 users"):
        newer.best("nobody", 10, newer.exact, digest=newer.digest)
    np.save(tmp_path / "newer" / "users.npy", exported.users)
    with pytest.raises(VectorsError, match=r"users\.npy has changed since the export"):
        read_vectors(tmp_path / "newer")
    with pytest.raises(VectorsError, match="is no export of vectors"):
        read_vectors(tmp_path)


def test_the_exported_client_needs_no_genre(exported, tmp_path):
    code = (
        "import sys; sys.modules['genre'] = None; sys.path.insert(0, '.')\n"
        "from client import Vectors\n"
        "found = Vectors.read('.')\n"
        "print(found.best(found.user_ids[0], 3, found.exact, digest=found.digest))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(exported.best(exported.user_ids[0], 3, exported.exact, digest=exported.digest))


def test_exact_indexes_of_faiss_and_qdrant_give_the_engines_top_k(trained, base, exported):
    faiss = pytest.importorskip("faiss", reason="extra vectors")
    qdrant = pytest.importorskip("qdrant_client", reason="extra vectors")
    flat = faiss.IndexFlatIP(exported.dimensions)
    flat.add(exported.items)

    def by_faiss(query, count):
        scores, rows = flat.search(query[None], count)
        return zip(rows[0], scores[0], strict=True)

    store = qdrant.QdrantClient(":memory:")
    about = qdrant.models.VectorParams(size=exported.dimensions, distance=qdrant.models.Distance.DOT)
    store.create_collection("items", vectors_config=about)
    store.upload_collection("items", exported.items, ids=range(len(exported.items)))

    def by_qdrant(query, count):
        return [(point.id, point.score) for point in store.query_points("items", query.tolist(), limit=count).points]

    with Engine(base, trained.registry, data=trained.log) as engine:
        for user, response in answers(engine, trained.log.user_ids).items():
            for search in (by_faiss, by_qdrant):
                agree(exported.best(user, 10, search, digest=exported.digest), response)
    assert exported.recall(by_faiss, 10) == exported.recall(by_qdrant, 10) == 1.0
    few = exported.recall(lambda query, count: list(exported.exact(query, count))[::2], 10)
    assert 0.3 < few < 0.9


@pytest.mark.parametrize(
    ("ref", "options", "message"),
    [
        ("like", {}, "like:.* has no item vectors .* got task 'like' of kind feedback.*expected a next-item task.*--to lists"),
        ("next_item", {"task": "other"}, "has no such task: got other; expected next_item"),
        ("next_item", {"users": True}, "vectors of users need their histories: got no data.*--data"),
        ("next_item", {"rank": 8}, "a rank is of item neighbours, and next_item:.* has none: got rank 8"),
        ("next_item", {"before": "test"}, "leave out --before"),
    ],
)
def test_what_has_no_vectors_is_refused_with_what_works(trained, base, tmp_path, ref, options, message):
    with pytest.raises((RegistryError, InputError), match=message):
        genre.export.vectors(trained.registry, ref, tmp_path / "out", base=base, **options)
    assert not (tmp_path / "out").exists()


def test_neighbours_of_a_large_catalogue_need_a_rank(neighbourly, base, tmp_path, monkeypatch):
    registry, log = neighbourly
    monkeypatch.setattr("genre.engine.vectors.MOST_EXACT", 50)
    with pytest.raises(RegistryError, match="vectors too long: got 90 items; expected at most 50.*--rank 256"):
        genre.export.vectors(registry, "next_item", tmp_path / "out", base=base, data=log)
    with pytest.raises(InputError, match="the rank does not fit: got 90; expected 1 to 89"):
        genre.export.vectors(registry, "next_item", tmp_path / "out", base=base, data=log, rank=90)


def test_the_command(trained, tiny, tmp_path):
    trained.log.write(tmp_path / "log")
    command = ["export", "next_item", "--to", "vectors", "--registry", trained.registry.url, "--base", str(tiny)]
    done = CliRunner().invoke(app, [*command, "--data", str(tmp_path / "log"), "--users", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    out = read_vectors(tmp_path / "out")
    assert f"wrote {tmp_path / 'out'}: 30 items and 60 users, {out.dimensions} dimensions" in done.output.replace("\n", " ")
    for more, message in (
        (["--out", str(tmp_path / "out" / "client.py" / "no")], "no lies in a file: got "),
        (["--tar"], "--tar does not go with --to vectors"),
        (["--temperature", "2"], "--temperature does not go with --to vectors"),
        (["--top", "0"], "--top does not go with --to vectors"),
    ):
        done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "no"), *more])
        assert message in str(done.exception)
