"""Everything that needs a GPU, on a machine with one GPU, PyTorch and no network, in ten minutes at most.

    make gpu                                            # writes build/gpu/report.json and report.md
    python benchmarks/gpu.py --device cpu --out DIR     # the same parts on a CPU with a tiny model, to try the script

    tests       the tests marked `gpu`
    training    tokens per second and memory of a step: the adapter, PEFT's layers in the same loop, the full fine-tune (where the
                base is not quantized), and the planned memory beside what was used; in bfloat16 (float32 on a CPU), int8 and nf4
    serving     16 adapters in one batch by slots, gathered and in groups, against PEFT's `adapter_names` and the bare base, which
                is what a full fine-tune serves one task with; a service's planned memory beside what an engine used

The base is random, of the shape of Qwen3-0.6B; `--base FOLDER` takes another. Each part is a process of its own (gpu_parts.py)
with its own time limit, and fails alone; when the time is up the parts that are left are left out, and the report says so. "Used"
is the most that PyTorch's allocator had given out (torch.cuda.max_memory_allocated); on a CPU the tensors that live and what a
profiled step adds. Exits with 1 if a part failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMITS = {"tests": 150} | {f"{what} {kind}": 75 for kind in ("plain", "int8", "nf4") for what in ("training", "serving")}
"""Seconds of each part at the most; all together end at `WHOLE`."""
WHOLE = 580
LEAST = 10
"""With fewer seconds left a part does not begin: it would not get past its imports."""
_PATHS = [str(HERE.parent / "adapters"), *filter(None, [os.environ.get("PYTHONPATH")])]
VARIABLES = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(_PATHS)}
"""Nothing is downloaded, and the code is this checkout's whether it is installed or not."""


def main() -> None:
    """Run all parts, or some, and write the report after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--base", type=Path, help="a transformers folder; by default a random model is made")
    parser.add_argument("--only", nargs="*", choices=LIMITS, help="some of the parts")
    parser.add_argument("--seconds", type=float, help=f"for everything; {WHOLE} by default, four times that on a CPU")
    asked = parser.parse_args()
    check_device(asked.device)
    slack = 4 if asked.device == "cpu" else 1  # nobody waits for a machine that is lent
    ends = time.monotonic() + (slack * WHOLE if asked.seconds is None else asked.seconds)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        base = (asked.base or scratch / "base").resolve()
        about = run_part("machine", slack * 90, base, asked.device, scratch)
        if about["state"] != "done":
            sys.exit(about["state"].removeprefix("failed: "))
        asked.out.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {"device": about["result"], "parts": {}}
        if asked.base is None:
            made = run_part("base", slack * 90, base, asked.device, scratch)
            if made["state"] != "done":
                sys.exit(f"the random base cannot be made: {made['state']}; name a folder with --base")
        for name in asked.only or LIMITS:
            limit = min(slack * LIMITS[name], ends - time.monotonic())
            report["parts"][name] = run_part(name, limit, base, asked.device, scratch)
            (asked.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
            (asked.out / "report.md").write_text(markdown(report))
            print(f"{name}: {report['parts'][name]['state']}, {report['parts'][name]['seconds']:.0f} s", flush=True)
    print(f"{asked.out / 'report.json'}, {asked.out / 'report.md'}")
    sys.exit(any(part["state"].startswith("failed") for part in report["parts"].values()))


def check_device(device: str) -> None:
    """Exit with one line where there is no such device; before anything slow is imported."""
    try:
        import torch
    except ImportError as error:
        sys.exit(f"PyTorch cannot be imported by {sys.executable}: got {error}; make gpu PYTHON=… takes another interpreter")
    if device == "cuda" and not torch.cuda.is_available():
        why = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}, which finds no GPU"
        sys.exit(f"no CUDA device: got torch {torch.__version__}, {why}; expected a GPU; --device cpu tries the script")


def run_part(name: str, limit: float, base: Path, device: str, scratch: Path) -> dict[str, Any]:
    """One part in a process of its own: its state, its seconds, what it has found, the end of its output if it failed."""
    if limit < LEAST:
        return {"state": "left out: the time was up", "seconds": 0.0}
    out = scratch / f"{name}.json"
    command = [sys.executable, str(HERE / "gpu_parts.py"), name, "--device", device, "--base", str(base), "--out", str(out)]
    begun = time.monotonic()
    with (scratch / f"{name}.log").open("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=os.environ | VARIABLES)
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # and what it has started itself
                child.wait()
        log.seek(0)
        lines = log.read().strip().splitlines()
    part: dict[str, Any] = {"state": "done", "seconds": time.monotonic() - begun}
    if out.exists():
        part["result"] = json.loads(out.read_text())
    if code is None:
        part["state"] = f"stopped after {limit:.0f} s"
    elif code != 0:
        part["state"] = f"failed: {lines[-1] if lines else f'exit code {code}'}"
        if any(line.startswith("Traceback") for line in lines):
            part["error"] = lines[-15:]
    elif part["result"].get("exit_code"):
        part["state"] = f"failed: {part['result']['summary']}"
        part["error"] = part["result"]["tail"]
    return part


def markdown(report: dict[str, Any]) -> str:
    """The report as people read it."""
    device, parts = report["device"], report["parts"]
    about = [f"{name} {_size(value) + ' MiB' if name == 'memory_bytes' else value}" for name, value in device.items()]
    lines = [f"# On {device['name']}", "", ", ".join(about[1:]).replace("memory_bytes", "memory"), ""]
    lines += ["| part | state | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {part['state']} | {part['seconds']:.0f} |" for name, part in parts.items()]
    if summary := parts.get("tests", {}).get("result", {}).get("summary"):
        lines += ["", f"Tests: {summary}"]
    training = _results(parts, "training")
    if training:
        head = "| training | tokens per second | against PEFT's | memory used, MiB | planned, MiB | planned / used |"
        lines += ["", head, "|---|---|---|---|---|---|"]
    for kind, ways in training.items():
        peft = ways.get("peft", {}).get("tokens_per_second")
        for way, own in ways.items():
            cells = [f"{own['tokens_per_second']:,.0f}", _ratio(own["tokens_per_second"], peft)] if "loss" in own else None
            lines.append(_row(f"{kind}, {way}", cells and [*cells, *_memory(own)], own, 5))
    served = _results(parts, "serving")
    if served:
        lines += ["", "| 16 adapters in a batch | seconds | against PEFT's speed | difference to PEFT |", "|---|---|---|---|"]
    for kind, found in served.items():
        products = found["products"] if "why_not" not in found["products"] else {"products": found["products"]}
        peft = products.get("peft", {}).get("seconds")
        for way, own in products.items():
            differ = own.get("relative_difference_to_peft")
            cells = [f"{own['seconds']:.4f}", _ratio(peft, own["seconds"])] if "seconds" in own else None
            lines.append(_row(f"{kind}, {way}", cells and [*cells, "–" if differ is None else f"{differ:.1e}"], own, 3))
    services = {kind: found["service"] for kind, found in served.items() if "service" in found}
    if services:
        lines += ["", "| service | rows per second | memory used, MiB | planned, MiB | planned / used |", "|---|---|---|---|---|"]
    for kind, own in services.items():
        cells = [f"{own['rows_per_second']:,.1f}", *_memory(own)] if "rows_per_second" in own else None
        lines.append(_row(kind, cells, own, 4))
    for name, part in parts.items():
        if "error" in part:
            lines += ["", f"## {name} failed", "", "```", *part["error"], "```"]
    return "\n".join(lines) + "\n"


def _results(parts: dict[str, Any], what: str) -> dict[str, Any]:
    """What the parts of a kind have found, by precision; some of it where they were stopped."""
    names = [name for name in parts if name.startswith(what)]
    return {name.removeprefix(f"{what} "): parts[name]["result"] for name in names if parts[name].get("result")}


def _row(name: str, cells: list[str] | None, own: dict[str, Any], width: int) -> str:
    """A line of a table, or the reason why there is none."""
    shown = cells or [f"not measured: {own.get('why_not', 'no reason was given')}", *[""] * (width - 1)]
    return f"| {name} | {' | '.join(shown)} |"


def _memory(own: dict[str, Any]) -> list[str]:
    used, planned = own["used_bytes"], own["planned_bytes"]
    return [_size(used), _size(planned), _ratio(planned, used)]


def _ratio(one: float | None, other: float | None) -> str:
    return "–" if one is None or not other else f"{one / other:.2f}"


def _size(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:,.1f}"


if __name__ == "__main__":
    main()
