"""All benchmarks, one after the other, and one report.

    python benchmarks/run.py --profile quick|full [--only training,inference,…] [--fresh]

Each benchmark is a script of its own that writes JSON under build/bench/ and can run alone. One whose JSON is of this commit and
profile is not run again unless `--fresh`; one that fails is named in the report, and the others go on. Then
build/bench/report.html is written; `python benchmarks/readme.py build/bench/summary.md` updates docs/benchmarks.md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench_report import write_report
from suite import ROOT, SUITE, commit

HERE = Path(__file__).parent


def run(name: str, profile: str, out: Path, *, fresh: bool) -> dict[str, Any]:
    """Run one benchmark unless its figures exist; return its outcome."""
    note = out / f"{name}.run.json"
    arguments = SUITE[name][profile]
    wanted = {"commit": commit(), "profile": profile, "command": f"python benchmarks/{name}.py {' '.join(arguments)}".strip()}
    if not fresh and note.exists():
        held = json.loads(note.read_text())
        if all(held.get(key) == value for key, value in wanted.items()) and held["exit_code"] == 0:
            print(f"{name}: measured already", flush=True)
            return held
    print(f"{name}: {wanted['command']}", flush=True)
    begun = time.perf_counter()
    (out / f"{name}.json").unlink(missing_ok=True)
    with (out / f"{name}.log").open("w") as log:
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(out / f"{name}.json"), *arguments]
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    found = wanted | {"exit_code": code, "seconds": round(time.perf_counter() - begun, 1)}
    if code:
        found["error"] = (out / f"{name}.log").read_text().strip().splitlines()[-1:]
    note.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{name}: {'done' if code == 0 else f'failed, see {out / name}.log'} after {found['seconds']:.0f} s", flush=True)
    return found


def main() -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--profile", choices=["quick", "full"], default="quick")
    parser.add_argument("--only", type=lambda text: text.split(","), default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--fresh", action="store_true", help="measure again even if figures exist")
    options = parser.parse_args()
    known = [name for name, profiles in SUITE.items() if options.profile in profiles]
    unknown = sorted(set(options.only or ()) - set(known))
    if unknown:
        parser.error(f"no such benchmark in profile {options.profile}: {', '.join(unknown)}; expected {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    notes = {name: run(name, options.profile, options.out, fresh=options.fresh) for name in options.only or known}
    print(f"report: {write_report(options.out)}")
    sys.exit(any(note["exit_code"] for note in notes.values()))


if __name__ == "__main__":
    main()
