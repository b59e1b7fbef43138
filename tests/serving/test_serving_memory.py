"""What a service forgets: cycles that have grown old are collected while it serves, not after hours."""

import gc
import weakref

from genre.serving.server import few_to_collect


class Ring:
    """Something that holds itself, and is slow to go."""

    def __init__(self):
        self.own = self


def old_rings(count=1000):
    """Rings that the collector has looked at and moved to its oldest generation, and that nobody holds."""
    rings = [Ring() for _ in range(count)]
    gc.collect(0)
    gc.collect(1)
    return [weakref.ref(ring) for ring in rings]


def test_old_cycles_are_collected_after_some_thousand_new_objects():
    with few_to_collect():
        assert gc.get_freeze_count() > 100_000  # torch and all that is loaded
        known = old_rings()
        assert all(ref() is not None for ref in known)
        for _ in range(100_000):
            Ring()
        assert not any(ref() is not None for ref in known)
    assert gc.get_freeze_count() == 0
