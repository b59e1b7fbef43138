"""Under a policy that requires signatures nothing else is loaded, wherever a job loads it; promotions can measure again."""

import shutil

import pytest

import genre
from genre.cli import main
from genre.engine import Engine, Request
from genre.errors import InputError, QualityError, TrustError
from genre.jobs.loading import load_base
from genre.jobs.merge.gate import MergeOptions
from genre.jobs.merge.job import merge_versions
from genre.jobs.recheck import measure_again
from genre.jobs.refresh.job import refresh
from genre.registry import MetricValue, Registry
from genre.serving.deployments import served_by_default

pytest.importorskip("cryptography", reason="signatures need the extra sign")


@pytest.fixture
def place(trained, tmp_path):
    """A copy of the registry, a key, and a policy that trusts it."""
    shutil.copytree(trained.registry.url, tmp_path / "registry")
    assert main(["registry", "keygen", str(tmp_path / "release.key")]) == 0
    (tmp_path / "trust.yaml").write_text("registry: {trust: {keys: [release.key.pub]}}\n")
    trained.log.write(tmp_path / "log")
    return tmp_path


def sign(place, *refs):
    url, key = str(place / "registry"), str(place / "release.key")
    assert main(["registry", "sign", *refs, "--registry", url, "--key", key]) == 0


def trusting(place, **options):
    return Registry(place / "registry", trust=place / "trust.yaml", **options)


def test_an_engine_serves_what_is_signed_with_its_encoder(trained, place):
    registry, request = trusting(place), Request("next_item@production", history=trained.log.history("u5"), k=3)
    base = genre.Base.load(str(trained.base))
    version = trained.registry.resolve("next_item@production")
    with Engine(base, registry) as engine:
        (answer,) = engine.score([request])
        assert "next_item@production was moved without a trusted signature" in str(answer.error)
        sign(place, "next_item@production")
        encoder = registry.find(version.manifest.encoder)
        signatures = place / "registry" / encoder.name / "signatures"
        signatures.rename(place / "aside")
        (answer,) = engine.score([request])
        assert f"{encoder.ref} has no trusted signature and is not loaded" in str(answer.error)
        (place / "aside").rename(signatures)
        (answer,) = engine.score([request])
        assert answer.error is None and answer.digest == version.digest
        changed = version.manifest.model_copy(update={"notes": {"unsigned": True}})
        Registry(place / "registry").publish(registry.fetch(version), changed, alias="production")
        with pytest.raises(TrustError, match="was moved without a trusted signature"):
            engine.swap("next_item@production")
        (answer,) = engine.score([request])
        assert answer.digest == version.digest


def test_no_job_loads_what_is_not_signed(trained, place, capsys):
    registry, base = trusting(place), genre.Base.load(str(trained.base))
    exact, other = (trained.registry.resolve(name).ref for name in ("like", "rating"))
    for act in (
        lambda: genre.evaluate(registry, exact, trained.log, base),
        lambda: merge_versions(registry, [exact, other], MergeOptions("two"), trained.log, base=base),
        lambda: refresh(registry, exact, trained.log, base=base),
        lambda: registry.export(exact, place / "out", base=trained.base),
        lambda: registry.promote(exact, "staging"),
    ):
        with pytest.raises(TrustError, match="has no trusted signature|moves need a trusted key"):
            act()
    with pytest.raises(InputError, match="there is no adapter to serve: got .* was moved without a trusted signature"):
        served_by_default(registry)
    sign(place, "like@production")
    refs, others = served_by_default(trusting(place))
    assert refs == ["like@production"] and {"next_item", "rating"} <= {ref.partition("@")[0] for ref in others}
    given = ["--registry", str(place / "registry"), "--trust", str(place / "trust.yaml")]
    capsys.readouterr()
    assert main(["registry", "show", "rating", *given]) == 2
    assert "rating@latest was moved without a trusted signature" in capsys.readouterr().err
    assert main(["registry", "show", "like@production", *given]) == 0
    assert "signature by" in capsys.readouterr().out
    assert main(["registry", "verify", "like", *given]) == 1
    assert "like@latest was moved without" in capsys.readouterr().out
    sign(place, "like")
    sign(place, "like@latest")
    assert main(["registry", "verify", "like", *given]) == 0


def test_a_version_is_measured_as_it_was_when_it_was_trained(trained):
    version = trained.registry.resolve("like")
    measured = measure_again(trained.registry, version, trained.log, load_base(version.manifest, str(trained.base)))
    for name, found in measured.metrics["like"].items():
        claimed = version.manifest.metrics["like"][name]
        assert found.value == pytest.approx(claimed.value, abs=1e-6) and found.n == claimed.n
    assert measured.data == version.manifest.data and measured.digest == version.digest


def test_a_promotion_measures_again_instead_of_believing(trained, place, capsys):
    registry = Registry(place / "registry")
    honest = registry.resolve("like")
    claims = {"like": {**honest.manifest.metrics["like"], "auc": MetricValue(value=0.999, n=10)}}
    lie = registry.publish(registry.fetch(honest), replace_metrics(honest.manifest, claims), alias=())
    given = ["--registry", registry.url, "--floor", "auc=0.99"]
    more = ["--recheck", "--data", str(place / "log"), "--base", str(trained.base)]
    assert main(["registry", "promote", lie.ref, "believed", *given]) == 0
    capsys.readouterr()
    assert main(["registry", "promote", lie.ref, "measured", *given, *more]) == 2
    shown = capsys.readouterr()
    assert "misses the floor in like.auc" in shown.err and "; the manifest says 0.9990" in shown.out
    assert "measured" not in registry.aliases("like")
    given[-1] = "auc=0.1"
    assert main(["registry", "promote", lie.ref, "production", *given, "--not-worse", *more]) == 0
    checks = registry.history("like", "production")[-1].checks
    assert checks[0] == f"measured again on data {trained.log.digest}" and any(" >= " in check for check in checks[1:])
    with pytest.raises(QualityError, match="misses the floor"):
        registry.promote(lie, "other", floor={"auc": 0.9}, measured={lie.digest: honest.manifest})
    assert main(["registry", "promote", lie.ref, "--recheck", "--registry", registry.url]) == 2
    assert main(["registry", "promote", lie.ref, "--recheck", "--not-worse", "--registry", registry.url]) == 2
    told = capsys.readouterr().err
    assert "nothing to hold the figures against" in told and "--recheck needs data to measure on" in told


def replace_metrics(manifest, metrics):
    return manifest.model_copy(update={"metrics": metrics, "version": "", "digest": "", "files": {}})
