"""An evaluation shows the figures on users whose last event is no tie beside the whole, wherever a tie touches one."""

import json

import numpy as np
import polars as pl
import pytest

from builders import LIKE, NEXT, recipe
from fakes import planted_log
from genre.cli import main
from genre.data.interactions import Interactions
from genre.data.splits import TEST, SplitConfig, split
from genre.evaluation.baselines import ranking_baselines
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import targets
from genre.jobs.evaluate import evaluate
from genre.jobs.train import train
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry

LAST = {"kind": "last_n", "n": 1}
WORDS = "15 of 30 targets are such ties; beside all, the figures on users whose last event is no tie"


@pytest.fixture(scope="module")
def pages():
    """30 users; the last two events of every second one, by number, share their second."""
    log = planted_log(users=30, items=24, events=10)
    last = pl.col("timestamp") == pl.col("timestamp").max().over("user_id")
    second = pl.col("user_id").str.slice(1).cast(pl.Int64) % 2 == 0
    frame = log.frame.with_columns(timestamp=pl.col("timestamp") - pl.when(last & second).then(1000).otherwise(0))
    return Interactions.from_frame(frame, log.catalogue.frame, log.users)


@pytest.fixture(scope="module")
def published(pages, tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("ties")
    registry, base = Registry(place / "registry"), Base.load(str(tiny))
    wanted = recipe(str(tiny), NEXT, LIKE, data={"split": LAST}, train={"epochs": 1})
    told: list[str] = []
    run = train(wanted, log=pages, base=base, registry=registry, folder=place / "run", reporter=Reporter(told.append))
    (line,) = (line for line in told if line.startswith("test, targets that are no tie: "))
    value = run.manifest.notes["untied"]["next_item"]["ndcg@10"]["value"]
    assert f"next_item.ndcg@10 {value:.4f}" in line
    return registry, registry.publish(run), run, place


def test_the_figures_without_ties_stand_beside_the_whole(published, pages, tiny):
    registry, version, _, _ = published
    found = evaluate(registry, version.ref, pages, Base.load(str(tiny)))
    task = found["tasks"]["next_item"]
    assert task["ties"] == {"rule": "equal seconds in hash order", "tied": 15, "targets": 30, "line": WORDS}
    assert found["protocol"] == {name: f"{line}; {WORDS}" for name, line in version.manifest.protocol.items()}
    assert "equal seconds in hash order" in version.manifest.protocol["next_item"]
    assert task["untied"]["targets"] == "users whose last event is no tie"
    made = split(pages, SplitConfig(**LAST))
    wanted = targets(pages, made, TEST)
    apart = np.array([int(pages.user_ids[user][1:]) % 2 == 1 for user in wanted.user])
    ranks = rank_in_blocks(pages, made, wanted, ranking_baselines(pages, made, wanted)["popularity"]()).ranks
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0)
    for entry, mask in ((task, np.ones(30, dtype=bool)), (task["untied"], apart)):
        shown = entry["baselines"]["popularity"]["ndcg@10"]
        assert shown["n"] == mask.sum() and shown["value"] == pytest.approx(gains[mask].mean())
    assert task["untied"]["adapter"]["ndcg@10"]["n"] == 15 and "coverage@10" not in task["untied"]["adapter"]
    assert found["tasks"]["like"]["untied"]["adapter"]["log_loss"]["n"] == 15


def test_a_run_and_its_version_keep_them(published):
    _, version, run, place = published
    report = json.loads((place / "run/metrics.json").read_text(encoding="utf-8"))
    kept = version.manifest.notes["untied"]
    assert kept == report["untied"] and kept.keys() == {"next_item", "like"}
    assert kept["next_item"]["ndcg@10"]["n"] == 15 and run.metrics["next_item"]["ndcg@10"]["n"] == 30
    assert version.manifest.metrics.keys() == {"next_item", "like"}


def test_the_command_prints_both_and_writes_both(published, pages, tiny, tmp_path, capsys):
    registry, version, _, place = published
    folder, report = pages.write(tmp_path / "pages"), tmp_path / "report.json"
    where = ["--registry", str(place / "registry"), "--base", str(tiny), "--json", str(report)]
    assert main(["evaluate", version.ref, "--data", str(folder), *where]) == 0
    said = capsys.readouterr().out
    assert "task next_item, users whose last event is no tie" in said and f"; {WORDS}\n" in said
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["tasks"]["next_item"]["untied"]["adapter"]["ndcg@10"]["n"] == 15
    assert found["protocol"]["next_item"].endswith(WORDS)


def test_an_order_that_is_known_leaves_nothing_to_show(pages, tiny, tmp_path):
    log = Interactions.from_frame(pages.frame, pages.catalogue.frame, pages.users, order="file")
    registry, base = Registry(tmp_path / "registry"), Base.load(str(tiny))
    wanted = recipe(str(tiny), NEXT, data={"split": LAST}, train={"epochs": 1})
    run = train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run")
    found = evaluate(registry, registry.publish(run).ref, log, base)
    task = found["tasks"]["next_item"]
    assert "untied" not in task and task["ties"]["tied"] == 0 and "untied" not in run.manifest.notes
    assert found["protocol"] == run.manifest.protocol and "equal seconds in file order" in found["protocol"]["next_item"]
