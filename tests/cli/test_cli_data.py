import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from genre.cli import base as cli_base
from genre.cli import data as cli_data
from genre.data.interactions import Interactions
from genre.data.packaged import sources
from genre.errors import DataError, InputError
from genre.modules.base import packaged

runner = CliRunner()

CSV = "uid,sku,when,stars,title\n1,a,5,4,Thing\n1,b,6,3,Other\n2,a,7,5,Thing\n2,b,soon,5,Other\n"
MAPS = ["--map", "user_id=uid", "--map", "item_id=sku", "--map", "timestamp=when", "--map", "rating=stars"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop.csv").write_text(CSV)
    command = ["import", str(tmp_path / "shop.csv"), *MAPS, "--max-bad", "0.5", "--out", str(tmp_path / "shop")]
    done = runner.invoke(cli_data.app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "skipped: bad timestamp: 1" in done.output and "row 3 (the first is 0): timestamp 'soon'" in done.output
    return tmp_path / "shop"


def test_import_and_describe(folder):
    log = Interactions.read(folder)
    assert len(log) == 3 and log.catalogue.titles() == ["Thing", "Other"]
    shown = runner.invoke(cli_data.app, ["describe", str(folder)], catch_exceptions=False).output
    assert "sparsity" in shown and "title 100.0%" in shown and "skipped: bad timestamp" in shown
    facts = json.loads(runner.invoke(cli_data.app, ["describe", str(folder), "--json"]).stdout)
    assert facts["events"] == 3 and facts["feedback"]["rating"]["values"] == {"3": 1, "4": 1, "5": 1}


def test_spaces_around_names_of_a_map_are_no_part_of_them():
    assert cli_data.parse_mapping(["user_id = uid", " item_id=sku"]) == {"user_id": "uid", "item_id": "sku"}


def test_a_unit_of_times_that_are_dates_is_told(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,a,2020-01-01\n2,a,2020-01-02\n")
    command = ["import", str(tmp_path / "log.csv"), "--dry-run", "--time-unit"]
    assert (
        "--time-unit ms had no effect: it is for times that are numbers" in runner.invoke(cli_data.app, [*command, "ms"]).output
    )
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,a,1577836800000\n2,a,1577923200000\n")
    assert "had no effect" not in runner.invoke(cli_data.app, [*command, "ms"]).output


def test_errors_pass_to_the_main_command(tmp_path):
    with pytest.raises(DataError, match="is not a data set folder"):
        runner.invoke(cli_data.app, ["describe", str(tmp_path)], catch_exceptions=False)
    command = ["import", "x.csv", "--map", "user_id", "--out", str(tmp_path / "o")]
    with pytest.raises(InputError) as caught:
        runner.invoke(cli_data.app, command, catch_exceptions=False)
    assert str(caught.value) == (
        "--map is not usable: got 'user_id'; expected OURS=THEIRS; our name first, such as --map user_id=userId"
    )
    with pytest.raises(InputError, match="unknown data set: got 'x'"):
        runner.invoke(cli_data.app, ["prepare", "x"], catch_exceptions=False)
    with pytest.raises(InputError, match="unknown base: got 'x'"):
        runner.invoke(cli_base.app, ["prepare", "x"], catch_exceptions=False)


def test_prepare_says_steps_and_licence(folder, monkeypatch, tmp_path):
    def prepare(name, out=None, *, on_step):
        on_step("converting")
        return out or folder

    monkeypatch.setattr(sources, "prepare_data", prepare)
    monkeypatch.setattr(packaged, "prepare_base", prepare)
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(cli_data.app, ["prepare", "ml-100k"], catch_exceptions=False)
    assert "preparing ml-100k: converting" in done.stderr
    assert "licence: the package: MIT; the MovieLens data" in done.stdout and "ready: data/ml-100k" in done.stdout
    base = runner.invoke(cli_base.app, ["prepare", "minilm"], catch_exceptions=False)
    assert "licence: the package: MIT; the model: Apache-2.0" in base.stdout


def test_list_names_every_base(monkeypatch, tmp_path):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path))
    shown = runner.invoke(cli_base.app, ["list"], catch_exceptions=False).output
    assert re.search("smollm2-135m", shown) and "minilm" in shown and "Apache-2.0" in shown


def test_commands_import_nothing_heavy():
    code = "import sys, genre.cli.data, genre.cli.base; print({'torch', 'polars', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
