"""The base of a version: whoever published it has named it, and is not believed."""

import huggingface_hub
import pytest

from genre.errors import BaseModelError, ManifestError
from genre.jobs.loading import load_base
from genre.modules.base.base import Base


def named(trained, name, **changes):
    """A published manifest with another base."""
    manifest = trained.registry.resolve("like@production").manifest
    return manifest.model_copy(update={"base": manifest.base.model_copy(update={"name": name, **changes})})


def test_a_hub_name_in_a_manifest_is_looked_up_here_only(trained, monkeypatch):
    asked = []

    def absent(name, *, local_files_only=False, **_):
        asked.append((name, local_files_only))
        raise FileNotFoundError("it is not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    manifest = named(trained, "some/model")
    with pytest.raises(BaseModelError, match="base 'some/model' is not on this machine.*--base some/model fetches it"):
        load_base(manifest)
    assert asked == [("some/model", True)]
    with pytest.raises(BaseModelError, match="the hub does not provide it"):
        load_base(manifest, "some/model")
    assert asked[1:] == [("some/model", True), ("some/model", False)]


def test_a_hub_base_that_is_here_is_loaded(trained, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(trained.base))
    assert load_base(named(trained, "some/model")).fingerprint == named(trained, "x").base.fingerprint


def test_weights_are_compared_before_anything_of_a_base_is_loaded(trained, monkeypatch):
    monkeypatch.setattr(Base, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ManifestError, match="base.fingerprint: got .*; expected ffff"):
        load_base(named(trained, str(trained.base), fingerprint="f" * 64))
    with pytest.raises(BaseModelError, match="no base is called 'nothing'.*name its folder with --base"):
        load_base(named(trained, "nothing"))
