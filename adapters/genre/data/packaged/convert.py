"""What comes in a package, made ours.

Owns: MovieLens-100K's atomic files to a data set folder, with or without vectors of its knowledge graph, SmolLM2's GGUF
to a transformers folder, MiniLM's model folder. Ignores how the files were fetched.

    convert_ml_100k(Path("unpacked"), Path("data/ml-100k"), SOURCES["ml-100k"])
"""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.graph import graph_vectors
from genre.data.importers.atomic import read_atomic
from genre.data.interactions import DatasetInfo, Interactions
from genre.data.packaged.fetch import Source
from genre.data.packaged.movie_titles import match_movies, read_titles

PREPARED = "prepared.json"
"""Beside a base's files: what it was made from."""


def convert_ml_100k(unpacked: Path, folder: Path, source: Source) -> None:
    """Write the data set folder: interactions, items (title, year, genres), users."""
    tables = {kind: read_atomic(unpacked / f"ml-100k.{kind}") for kind in ("inter", "item", "user")}
    items, unknown_years = _movies(tables["item"])
    skipped = {"items without a readable year": unknown_years}
    _log(tables, items, source, skipped).write(folder)


def convert_ml_100k_kg(unpacked: Path, folder: Path, source: Source) -> None:
    """Write the same with a dense item column `kg`, and the graph it is made of (item_id, relation, tail).

    The graph's files name movies by MovieLens' own ids, which are not ML-100K's; titles and years tell which is which
    (`sources_titles`).
    """
    tables = {kind: read_atomic(unpacked / f"ml-100k.{kind}") for kind in ("inter", "item", "user", "kg", "link")}
    items, unknown_years = _movies(tables["item"])
    movies = match_movies(items, read_titles(unpacked / "movielens.pkl.compress"))
    graph, apart = _item_graph(tables["kg"], tables["link"], movies)
    vectors = graph_vectors(graph)
    skipped = {
        "items without a readable year": unknown_years,
        "items that are not in the graph": items.height - vectors.height,
        "graph triples that start at no item": apart,
    }
    items = items.join(vectors, on="item_id", how="left", maintain_order="left")
    info_roles = {"kg": {"relation": "relation", "tail": "entity"}}
    _log(tables, items, source, skipped, info_roles).write(folder, extra={"kg": graph})


def _log(
    tables: dict[str, pl.DataFrame],
    items: pl.DataFrame,
    source: Source,
    skipped: dict[str, int],
    roles: dict[str, dict[str, str]] | None = None,
) -> Interactions:
    info = DatasetInfo(
        name=source.name,
        source=source.origin,
        checksum=f"sha256:{source.sha256}",
        licence=source.licence,
        roles=roles or {},
        skipped=skipped,
    )
    users = tables["user"].with_columns(pl.col("age").cast(pl.Int64))
    return Interactions.from_frame(tables["inter"], items, users, info=info, max_bad=0.0)


def _movies(table: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Title without a trailing year, year as a number (from the title where the column has none), genres by comma."""
    in_title = pl.col("movie_title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64)
    items = table.select(
        "item_id",
        pl.col("movie_title").str.replace(r"\s*\(\d{4}\)\s*$", "").alias("title"),
        pl.col("release_year").cast(pl.Int64, strict=False).fill_null(in_title).alias("year"),
        pl.col("class").str.replace_all(" ", ", ", literal=True).alias("genres"),
    )
    return items, items["year"].null_count()


def _item_graph(graph: pl.DataFrame, link: pl.DataFrame, movies: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Triples that start at an item, by our item ids; and how many start elsewhere (most are inverses of these)."""
    entities = link.rename({"item_id": "movie_id"}).join(movies, on="movie_id", maintain_order="left")
    triples = graph.join(entities, left_on="head_id", right_on="entity_id", how="inner", maintain_order="left")
    kept = triples.select("item_id", pl.col("relation_id").alias("relation"), pl.col("tail_id").alias("tail"))
    return kept, graph.height - kept.height


def convert_gguf(unpacked: Path, folder: Path, source: Source) -> None:
    """Dequantize a GGUF file into a transformers folder in float32: config, model.safetensors, tokenizer.

    `save_pretrained` refuses a model that was loaded from GGUF, so the state dict is saved; a tied output layer is left
    out, as transformers does.
    """
    import torch
    from safetensors.torch import save_file

    (gguf,) = unpacked.glob("*.gguf")
    with quiet_transformers() as transformers:
        load: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
        model = transformers.AutoModelForCausalLM.from_pretrained(unpacked, **load)
        tokenizer = transformers.AutoTokenizer.from_pretrained(unpacked, gguf_file=gguf.name)
        config = model.config.to_diff_dict()
        for name in ("quantization_config", "_model_name_or_path"):
            config.pop(name, None)
        config |= {"architectures": [type(model).__name__], "_name_or_path": source.name}
        state = model.state_dict()
        if config.get("tie_word_embeddings"):
            state.pop("lm_head.weight")
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        model.generation_config.save_pretrained(folder)
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(folder)
    write_prepared(folder, source)


def convert_model_folder(unpacked: Path, folder: Path, source: Source) -> None:
    """Take a model folder as it is."""
    for path in sorted(unpacked.iterdir()):
        os.replace(path, folder / path.name)
    write_prepared(folder, source)


def write_prepared(folder: Path, source: Source) -> None:
    """Write beside a base what it was made from."""
    facts = {"name": source.name, "source": source.origin, "sha256": source.sha256, "licence": source.licence}
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes for the owner only
    (folder / PREPARED).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[Any]:
    """Yield transformers with its bars and warnings off, also those written straight to stderr; exceptions pass."""
    import transformers
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        logging.set_verbosity(level)
