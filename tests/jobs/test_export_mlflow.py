"""MLflow: a run with recipe, metrics and files, a registered model under the same aliases, curves while training."""

import os

import pytest
from typer.testing import CliRunner

import genre
from builders import LIKE
from genre.cli.registry.commands import app
from genre.errors import JobError
from genre.jobs.folders import claim_folder
from genre.registry import Registry
from genre.training import fit

mlflow = pytest.importorskip("mlflow", reason="extra mlflow")
pytestmark = [
    pytest.mark.slow,  # MLflow loads for seconds and makes a database for seconds
    pytest.mark.filterwarnings("ignore"),  # SQLAlchemy 2.1 on MLflow's mappers, and MLflow on its own stores
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Artifacts of a database go to ./mlruns."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_version_is_a_run_and_a_registered_model_with_its_aliases(trained, tiny, uri, here):
    registry = trained.registry
    registry.promote("next_item", "champion")
    version = registry.resolve("next_item")
    found = genre.export.mlflow(registry, "next_item", uri)
    assert found.new and found.model == "next_item" and set(found.aliases) == {"champion", "production"}
    client = mlflow.MlflowClient(uri, uri)
    run = client.get_run(found.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["genre.digest"] == version.digest
    metric = version.manifest.metrics["next_item"]["ndcg@10"]
    assert run.data.metrics["next_item.ndcg_at_10"] == pytest.approx(metric.value)
    assert run.data.metrics["next_item.ndcg_at_10.low"] == pytest.approx(metric.interval[0])
    assert run.data.params["train.epochs"] == "2" and run.data.params["tasks.0.name"] == "next_item"
    held = client.get_model_version_by_alias("next_item", "champion")
    assert (str(held.version), held.run_id, held.tags["genre.digest"]) == (found.version, found.run_id, version.digest)
    folder = mlflow.artifacts.download_artifacts(f"runs:/{found.run_id}/version", dst_path=str(here / "down"), tracking_uri=uri)
    elsewhere = Registry(here / "elsewhere")
    taken = elsewhere.import_peft(folder, "next_item", base=version.manifest.base, base_folder=tiny)
    assert taken.digest == version.digest and elsewhere.find(version.manifest.encoder)
    again = genre.export.mlflow(registry, "next_item", uri)
    assert not again.new and (again.run_id, again.version) == (found.run_id, found.version)


def test_the_command_and_a_store_that_refuses(trained, uri, here, monkeypatch):
    command = ["export", "like", "--to", "mlflow", "--registry", trained.registry.url]
    done = CliRunner().invoke(app, [*command, "--out", uri])
    assert done.exit_code == 0 and "of registered model like (production)" in done.output.replace("\n", " "), done.output
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    done = CliRunner().invoke(app, [*command, "--out", str(here / "folder")])
    assert isinstance(done.exception, JobError) and "folder refuses: got The filesystem tracking backend" in str(done.exception)
    done = CliRunner().invoke(app, [*command, "--out", "http://127.0.0.1:9"])
    assert isinstance(done.exception, JobError) and "http://127.0.0.1:9 cannot be reached: got " in str(done.exception)
    done = CliRunner().invoke(app, [*command, "--out", uri, "--users"])
    assert "--users does not go with --to mlflow" in str(done.exception)


def test_curves_go_to_the_tracker_while_training(build, uri, here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before = os.environ.copy()
    folder = claim_folder("like")
    fit(build(LIKE, train={"epochs": 1, "tracker": "mlflow"}), folder)
    experiment = mlflow.get_experiment_by_name("genre").experiment_id
    (run,) = mlflow.MlflowClient(uri).search_runs([experiment], "attributes.run_name = 'like/1'")
    assert run.info.status == "FINISHED" and run.data.params["train.tracker"] == "mlflow"
    assert {"loss", "learning_rate", "valid.like.auc"} <= run.data.metrics.keys()
    assert os.environ.copy() == before


def test_a_store_that_cannot_start_is_one_line(build, here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(here / "folder"))
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(JobError, match="the tracker mlflow cannot start: .*look at MLFLOW_TRACKING_URI"):
        fit(build(LIKE, train={"epochs": 1, "tracker": "mlflow"}), here / "run")
