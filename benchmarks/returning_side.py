"""One side of returning.py: an engine in a process of its own, asked line by line.

    python benchmarks/returning_side.py '{"registry": …, "base": "smollm2-135m", "depth": 4, "cache": 0, "names": {…}}'

    {"rows": […], "swaps": [["a0", "a0:3f…"]]}
    ->  {"seconds": .31, "cpu": .6, "scores": [[…], …], "counters": {…}, "rss": 812646400}

`names` are references to load at the start under the name that rows use. The code is that of the path: another
checkout's with its PYTHONPATH, which need not know of a cache where there is to be none.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("job", type=json.loads, help="what is opened, in JSON")
    job = parser.parse_args().job
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(**values: Any) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    try:
        import genre
        from genre.engine import Engine

        base = genre.Base.load(job["base"], depth=job["depth"])
        options: dict[str, Any] = {}
        if job["cache"]:
            from genre.engine.history_store import HistoryStore

            options["history_cache"] = HistoryStore(job["cache"], storage=job["storage"])
        engine = Engine(base, genre.Registry(job["registry"]), lanes=16, **options)
        for name, ref in job["names"].items():
            engine.swap(name, ref)
        config = base.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        send(token_bytes=2 * heads * head * base.dtype.itemsize * base.depth, commit=genre.__version__)
        for line in sys.stdin:
            asked = json.loads(line)
            for name, ref in asked["swaps"]:
                engine.swap(name, ref)
            begun, used = time.perf_counter(), time.process_time()
            answers = engine.score(asked["rows"]) if asked["rows"] else []
            seconds, cpu = time.perf_counter() - begun, time.process_time() - used
            if wrong := [answer.error for answer in answers if answer.error]:
                raise RuntimeError(wrong[0])
            store = getattr(engine, "history_store", None)
            counters = None if store is None else dataclasses.asdict(store.counters)
            scores = [[scored.score for scored in answer.results] for answer in answers]
            send(seconds=seconds, cpu=cpu, scores=scores, counters=counters, rss=resident())
    except Exception as error:
        send(error=f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
