"""The commands, on a small registry."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import draft, write_adapter
from typer.testing import CliRunner, Result

from genre import cli
from genre.cli.registry.commands import app
from genre.errors import GenreError, InputError, JobError, QualityError, RegistryError
from genre.registry import MetricValue, Registry, Version


@pytest.fixture
def two(registry: Registry, tmp_path: Path) -> tuple[Version, Version]:
    first = registry.publish(write_adapter(tmp_path / "0"), draft(auc=0.75), alias="production")
    return first, registry.publish(write_adapter(tmp_path / "1", seed=1), draft(auc=0.74, parents=[first.digest]))


def call(registry: Registry, *arguments: str) -> Result:
    result = CliRunner().invoke(app, [*arguments, "--registry", registry.url])
    if isinstance(result.exception, GenreError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


HOSTILE = "[/x]\x1b[31mred\u202e"


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {HOSTILE: {"auc": MetricValue(value=0.5, n=3)}}},
        {"metrics": {"like": {HOSTILE: MetricValue(value=0.5, n=3)}}},
        {"protocol": {"like": HOSTILE}},
        {"notes": {HOSTILE: HOSTILE}, "tasks": [{"name": HOSTILE, "kind": HOSTILE}], "code_version": HOSTILE},
    ],
    ids=["task", "metric", "protocol", "others"],
)
def test_texts_of_a_manifest_are_neither_markup_nor_controls(registry: Registry, tmp_path: Path, changes: Any) -> None:
    first = registry.publish(write_adapter(tmp_path / "0"), draft())
    registry.publish(write_adapter(tmp_path / "1", seed=1), draft(**changes))
    shown = "".join(call(registry, *words).output for words in (["list"], ["show", "like"], ["diff", first.ref, "like"]))
    assert "\x1b" not in shown and "\u202e" not in shown and r"\x1b[31m" in shown


def test_an_audit_refuses_a_report_in_a_file_before_it_looks_at_the_data(registry: Registry, tmp_path: Path, capsys: Any) -> None:
    registry.publish(write_adapter(tmp_path / "0"), draft())
    (tmp_path / "log.csv").touch()
    report = str(tmp_path / "log.csv")
    assert cli.main(["audit", "like", "--data", "nowhere", "--out", report, "--registry", registry.url]) == 2
    assert "genre: --out lies in a file: got " in capsys.readouterr().err


def test_list_show_diff_history(registry: Registry, two: tuple[Version, Version]) -> None:
    first, second = two
    listed = call(registry, "list").output
    assert "like.auc 0.7500" in listed and first.manifest.created[:10] in listed and "KiB" in listed
    assert f"latest → {second.version}, production → {first.version}" in listed
    assert "like.auc 0.7500" in call(registry, "list", "like").output
    registry.record_baselines("like", {"like": {"item_mean": {"auc": {"value": 0.71, "interval": None, "n": 100}}}})
    shown = call(registry, "show", "like").output
    for text in (
        second.digest,
        "0.7400 [0.730, 0.750]",
        f"{first.ref} (adapter)",
        "peak memory",
        "protocol of like: prequential",
        "item mean",
        "0.7100",
        "1970-01-01 to 1970-01-01",
    ):
        assert text in shown
    assert "metrics.like.auc.value" in call(registry, "diff", first.ref, second.ref).output
    assert "publish" in call(registry, "history", "like@latest").output
    with pytest.raises(RegistryError, match="no alias like@nope: .*expected like@latest, like@production"):
        call(registry, "history", "like@nope")
    for command in ("history", "rollback"):  # of an alias, and not of all or of production
        with pytest.raises(RegistryError, match="the alias is missing"):
            call(registry, command, "like@")


def test_promote_and_roll_back(registry: Registry, two: tuple[Version, Version]) -> None:
    first, second = two
    with pytest.raises(QualityError, match="worse in like.auc"):
        call(registry, "promote", second.ref, "--not-worse")
    with pytest.raises(InputError, match="--floor cannot be read"):
        call(registry, "promote", second.ref, "--floor", "auc")
    output = call(registry, "promote", second.ref, "--floor", "auc=.7").output
    assert "checked like.auc 0.74 >= 0.7" in output and f"like@production: {first.version} → {second.version}" in output
    assert f"{second.version} → {first.version} (rollback, entry 5)" in call(registry, "rollback", "like").output


def test_verify_and_gc(registry: Registry, two: tuple[Version, Version], tmp_path: Path) -> None:
    assert "2 versions, all intact" in call(registry, "verify").output
    lost = registry.publish(write_adapter(tmp_path / "2", seed=2), draft(), alias=())
    assert f"{lost.ref}\nwould free" in call(registry, "gc", "--dry-run").output
    assert f"{lost.ref} (stays for now)\nfreed 0 bytes" in call(registry, "gc", "--grace", "3600").output
    assert "freed" in call(registry, "gc").output
    (registry.fetch("like") / "heads.safetensors").unlink()
    with pytest.raises(JobError, match="1 problem in 2 versions"):
        call(registry, "verify")
    for version in registry.versions("like"):
        shutil.rmtree(Path(registry.url) / "like" / version)
    with pytest.raises(JobError, match="3 problems in 0 versions"):
        call(registry, "verify")


def test_delete(registry: Registry, two: tuple[Version, Version]) -> None:
    first, second = two
    with pytest.raises(RegistryError, match=f"got the alias like@production, a parent of {second.ref}"):
        call(registry, "delete", first.ref)
    call(registry, "promote", first.ref, "latest")
    shown = call(registry, "delete", second.ref).output
    assert f"deleted {second.ref}, " in shown
    assert "like@latest named it once and can no longer be rolled back to it" in shown
    assert second.version not in call(registry, "list").output


def test_export_needs_the_base_where_depth_is_set(registry: Registry, two: tuple[Version, Version], tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="--base"):
        call(registry, "export", "like", "--out", str(tmp_path / "out"))
    registry.publish(write_adapter(tmp_path / "3", seed=3), draft("deep", base=draft().base.model_copy(update={"depth": None})))
    call(registry, "export", "deep", "--out", str(tmp_path / "out"), "--tar")
    assert (tmp_path / "out" / "adapter_config.json").exists() and (tmp_path / "out.tar").exists()


def test_list_and_show_as_json(registry: Registry, two: tuple[Version, Version], tmp_path: Path) -> None:
    first, second = two
    file = tmp_path / "out" / "list.json"
    call(registry, "list", "--json", str(file))
    rows = json.loads(file.read_text())
    assert [row["version"] for row in rows] == [first.version, second.version] and rows[0]["aliases"] == ["production"]
    assert rows[1]["metrics"]["like"]["auc"]["value"] == 0.74 and rows[1]["bytes"] > 0 and rows[1]["damaged"] is False
    assert "no baselines are recorded" in call(registry, "show", "like").output
    registry.record_baselines("like", {"like": {"additive": {"auc": {"value": 0.7, "interval": [0.6, 0.8], "n": 9}}}})
    call(registry, "show", "like", "--json", str(file))
    shown = json.loads(file.read_text())
    assert shown["manifest"]["digest"] == second.digest and shown["aliases"] == ["latest"]
    assert shown["baselines"]["baselines"]["like"]["additive"]["auc"]["interval"] == [0.6, 0.8]


def test_a_damaged_version_hides_no_other_one(registry: Registry, two: tuple[Version, Version]) -> None:
    first, second = two
    (Path(registry.url) / "like" / first.version / "manifest.json").write_text("{}")
    assert "damaged" in call(registry, "list").output
    listed = call(registry, "list", "like").output
    assert "damaged" in listed and "like.auc 0.7400" in listed


def test_an_exported_card_has_the_baselines(registry: Registry, tmp_path: Path) -> None:
    base = draft().base.model_copy(update={"depth": None})
    version = registry.publish(write_adapter(tmp_path / "3"), draft("deep", base=base))
    stored = (registry.fetch("deep") / "README.md").read_text()
    assert "Baselines" not in stored and "- `like`: feedback, head binary" in stored
    registry.record_baselines(
        "deep", {"like": {"item_mean": {"auc": {"value": 0.71, "interval": [0.7, 0.72], "n": 100}}}}, notes=["x"]
    )
    registry.export("deep", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| like | auc | item mean | 0.7100 [0.7000, 0.7200], n = 100 |" in card and card.endswith("\nx\n")
    assert registry.resolve("deep").digest == version.digest
