"""The commands, on a small registry."""

from pathlib import Path

import pytest
from registry_fakes import draft, write_adapter
from typer.testing import CliRunner, Result

from genre.cli.registry import app
from genre.errors import GenreError, InputError, JobError, QualityError, RegistryError
from genre.registry import Registry, Version


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


def test_list_show_diff_history(registry: Registry, two: tuple[Version, Version]) -> None:
    first, second = two
    listed = call(registry, "list").output
    assert f"latest → {second.version}, production → {first.version}" in listed
    assert "like.auc 0.7500" in call(registry, "list", "like").output
    shown = call(registry, "show", "like").output
    for text in (
        second.digest,
        "0.7400 [0.7300, 0.7500], n = 100",
        f"{first.ref} (adapter)",
        "peak_memory_bytes",
        "prequential",
    ):
        assert text in shown
    assert "metrics.like.auc.value" in call(registry, "diff", first.ref, second.ref).output
    assert "publish" in call(registry, "history", "like@latest").output


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
    assert "freed" in call(registry, "gc").output
    (registry.fetch("like") / "heads.safetensors").unlink()
    with pytest.raises(JobError, match="1 problems in 2 versions"):
        call(registry, "verify")


def test_export_needs_the_base_where_depth_is_set(registry: Registry, two: tuple[Version, Version], tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="--base"):
        call(registry, "export", "like", "--out", str(tmp_path / "out"))
    registry.publish(write_adapter(tmp_path / "3", seed=3), draft("deep", base=draft().base.model_copy(update={"depth": None})))
    call(registry, "export", "deep", "--out", str(tmp_path / "out"), "--tar")
    assert (tmp_path / "out" / "adapter_config.json").exists() and (tmp_path / "out.tar").exists()
