"""What a service forgets: a version that is swapped out is freed at once, not at the next full collection."""

import gc
import weakref

import pytest
from serving_fakes import ADMIN, TOKEN, add_version, copy_of, serving, wait_until

from builders import LIKE
from genre.engine import Engine


@pytest.fixture
def registry(trained, base, tmp_path):
    registry = copy_of(trained.registry, tmp_path / "registry")
    registry.promote(add_version(registry, trained, base, tmp_path / "second", LIKE, seed=1), "candidate")
    return registry


def test_a_version_that_is_swapped_out_is_freed_without_the_garbage_collector(trained, base, registry):
    held = {}
    with Engine(base, registry, lanes=2, host=0, data=trained.log) as engine:
        plain = engine.cache.source.read

        def read(version):
            ready = plain(version)
            parameters = [parameter for head in ready.loaded.heads.values() for parameter in head.parameters()]
            held.setdefault(version.version, []).extend(map(weakref.ref, [ready, ready.loaded, *parameters]))
            return ready

        engine.cache.source.read = read
        with serving(engine, ["like@production"], token=TOKEN, follow_s=0) as (_, client):
            first = registry.resolve("like@production").version
            gc.collect()
            gc.disable()
            try:
                asked = {"adapter": "like", "user_id": "u3"}
                assert "results" in client.post("/v1/recommend", json={"requests": [asked]}).json()["responses"][0]
                for method in ("gradient", "leave_one_out"):
                    row = asked | {"item": "i0", "method": method}
                    assert "events" in client.post("/v1/explain", json={"requests": [row]}).json()["responses"][0]
                moved = client.post("/v1/admin/promote", json={"ref": "like@candidate"}, headers=ADMIN)
                assert moved.status_code == 200 and len(held) == 2 and len(held[first]) > 3
                wait_until(lambda: not any(one() is not None for one in held[first]))
            finally:
                gc.enable()
