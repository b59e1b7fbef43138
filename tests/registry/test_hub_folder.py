"""A folder for a model hub: huggingface_hub's own parsers read its card, and an import gives the version that it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from registry_fakes import draft, lora_config
from safetensors.numpy import save_file

from genre.errors import InputError, IntegrityError, RegistryError
from genre.modules.base.fingerprint import fingerprint
from genre.registry import BaseInfo, DataInfo, MetricValue, Registry, Version

METRICS = {
    "like": {"auc": MetricValue(value=0.75, interval=(0.74, 0.76), n=100)},
    "rating": {"rmse": MetricValue(value=0.92), "mae": MetricValue(value=0.7)},
}
TASKS = [{"name": "like", "kind": "feedback", "head": "binary"}, {"name": "rating", "kind": "feedback", "head": "scalar"}]


@pytest.fixture
def published(registry: Registry, tiny: Path, tmp_path: Path) -> Version:
    """An adapter of one linear of the tiny base, with two tasks on one data set."""
    name, draw = "base_model.model.model.layers.0.self_attn.q_proj", np.random.default_rng(0)
    (tmp_path / "adapter").mkdir()
    update = {"A": (2, 32), "B": (32, 2)}
    weights = {f"{name}.lora_{side}.weight": draw.normal(size=size).astype(np.float32) for side, size in update.items()}
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(lora_config()))
    base = BaseInfo(name="/home/somebody/bases/tiny", fingerprint=fingerprint(tiny))
    data = DataInfo(name="My cinema!", digest="d" * 64, rows=100)
    return registry.publish(tmp_path / "adapter", draft(base=base, data=data, metrics=METRICS, tasks=TASKS))


def test_the_card_is_read_by_the_hubs_own_parsers(registry: Registry, published: Version, tmp_path: Path) -> None:
    out = registry.export(published, tmp_path / "hub", to="hub-folder", licence="cc-by-4.0")
    card = ModelCard.load(out / "README.md", ignore_metadata_errors=False)
    about = card.data
    assert (about.base_model, about.base_model_relation, about.library_name) == ("tiny", "adapter", "peft")
    assert (about.license, about.datasets, about.model_name) == ("cc-by-4.0", ["My-cinema"], "like")
    assert about.tags == ["genre", "lora", "recommendation"] and about.metrics == ["auc", "mae", "rmse"]
    found = {(one.task_name, one.metric_type): one for one in about.eval_results}
    assert {key: one.metric_value for key, one in found.items()} == {
        ("like", "auc"): 0.75,
        ("rating", "rmse"): 0.92,
        ("rating", "mae"): 0.7,
    }
    auc = found["like", "auc"]
    assert isinstance(auc, EvalResult) and auc.metric_args == {"interval": [0.74, 0.76], "n": 100}
    assert (auc.dataset_name, auc.dataset_revision, auc.dataset_split) == ("My cinema!", "d" * 64, "test")
    assert card.text.count("# like\n") == 1 and "## Use" in card.text and "/home" not in card.content.split("---")[1]


def test_without_a_licence_the_card_says_whose_apply(registry: Registry, published: Version, tmp_path: Path) -> None:
    out = registry.export(published, tmp_path / "hub", to="hub-folder")
    about = ModelCard.load(out / "README.md").data
    assert (about.license, about.license_name, about.license_link) == ("other", "of-the-base-and-the-data", "README.md#licence")
    with pytest.raises(InputError, match="no such licence: got 'Apache 2'; expected an identifier of the hub"):
        registry.export(published, tmp_path / "no", to="hub-folder", licence="Apache 2")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_an_import_gives_the_version_that_it_was(
    registry: Registry, published: Version, tiny: Path, tmp_path: Path, form: str
) -> None:
    registry.record_baselines(published, {"like": {"item_mean": {"auc": {"value": 0.7, "interval": None, "n": 100}}}})
    out = registry.export(published, tmp_path / "hub", to="hub-folder", tar=form == "tar")
    readme = (out / "README.md").read_text()
    assert "item mean" in readme
    (out / "README.md").write_text(readme.replace("# like", "# Our favourite"))  # as people do in the hub's editor
    (out / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    elsewhere = Registry(tmp_path / "elsewhere", cache=tmp_path / "cache-elsewhere")
    source = out if form == "folder" else out.with_name("hub.tar")
    taken = elsewhere.import_peft(source, "like", base=published.manifest.base, base_folder=tiny)
    assert taken.digest == published.digest
    assert (elsewhere.fetch(taken) / "README.md").read_bytes() == (registry.fetch(published) / "README.md").read_bytes()
    (out / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"manifest\.json cannot be read: got .*; export it again, --to peft or hub-folder"):
        elsewhere.import_peft(out, "like", base=published.manifest.base, base_folder=tiny)


def test_a_persons_own_card_keeps_its_words_and_metadata(
    registry: Registry, published: Version, tiny: Path, tmp_path: Path
) -> None:
    text = "---\nlicense: mit\nlanguage: en\n---\n# Mine\n\nWritten by hand.\n"
    (tmp_path / "adapter" / "README.md").write_text(text)
    own = registry.publish(tmp_path / "adapter", draft("own", base=published.manifest.base, metrics=METRICS))
    out = registry.export(own, tmp_path / "hub", to="hub-folder")
    card = ModelCard.load(out / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "mit" and card.data.to_dict()["language"] == "en" and len(card.data.eval_results) == 3
    assert "Written by hand." in card.text
    elsewhere = Registry(tmp_path / "elsewhere")
    assert elsewhere.import_peft(out, "own", base=own.manifest.base, base_folder=tiny).digest == own.digest


@pytest.mark.parametrize(("head", "got"), [("license: [mit\n", "line 2: "), ("- mit\n", "a list; expected keys and values")])
def test_a_persons_own_card_with_a_wrong_head_is_refused(
    registry: Registry, published: Version, tmp_path: Path, head: str, got: str
) -> None:
    (tmp_path / "adapter" / "README.md").write_text(f"---\n{head}---\n# Mine\n")
    own = registry.publish(tmp_path / "adapter", draft("own", base=published.manifest.base, metrics=METRICS))
    with pytest.raises(RegistryError, match=rf"^the head of the version's README\.md cannot be read: got {got}"):
        registry.export(own, tmp_path / "hub", to="hub-folder")
    assert not (tmp_path / "hub").exists()


def test_a_version_without_metrics_or_data_has_a_card_too(registry: Registry, published: Version, tmp_path: Path) -> None:
    bare = registry.publish(tmp_path / "adapter", draft("bare", base=published.manifest.base, metrics={}, protocol={}, data=None))
    head = (registry.export(bare, tmp_path / "hub", to="hub-folder") / "README.md").read_text().split("---")[1]
    assert not {"model-index", "datasets", "metrics"} & yaml.safe_load(head).keys()
