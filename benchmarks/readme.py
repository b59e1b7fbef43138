"""Writes measured figures into the README, so that none is typed by hand.

The demo's table from build/demo/report.json, or the benchmarks' tables from build/bench/summary.md, of which each takes the place
of the one with its mark and the others stay, so that one benchmark can be measured again without the rest:

    python benchmarks/readme.py FILE
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
MARKS = {
    ".json": ("<!-- demo table: python benchmarks/readme.py build/demo/report.json -->\n", "<!-- end of demo table -->"),
    ".md": ("<!-- bench tables: python benchmarks/readme.py build/bench/summary.md -->\n", "<!-- end of bench tables -->"),
}


def mark(key: str) -> str:
    """The line before a table of the benchmarks."""
    return f"<!-- measured: {key} -->"


def parts(text: str) -> dict[str, str]:
    """Tables by the keys of their marks."""
    found = re.split(r"^<!-- measured: (.+) -->\n", text, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def table(report: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| task | metric | adapter | 95 % interval | n | baselines | LoRA | training |", "|---|---|---|---|---|---|---|---|"]
    for name, task in report["tasks"].items():
        cost, (low, high) = report["cost"][name], task["interval"]
        others = ", ".join(f"{label.replace('_', ' ')} {value:.4f}" for label, value in task["baselines"].items())
        share = 100 * cost["lora_params"] / report["base"]["params"]
        lines.append(
            f"| {name} | {task['metric']} | **{task['adapter']:.4f}** | {low:.4f} – {high:.4f} | {task['n']:,} | {others} "
            f"| {cost['lora_params']:,} ({share:.1f} % of the cut base) | {cost['seconds']:.0f} s |"
        )
    engine, cpu = report["engine"], report["environment"].get("processor", "a processor that was not recorded")
    lines.append(
        f"\nThe whole demo took {report['seconds']:.0f} s; the engine's mixed batch differs from one-adapter runs by at most "
        f"{engine['max_abs_difference']:.0e}. Command: `make demo` (on {cpu})."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Put the table between its marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    source = parser.parse_args().file
    if source.suffix not in MARKS or not source.is_file():
        parser.error(f"no report: {source}; expected a file that ends in {' or '.join(MARKS)}")
    begin, end = MARKS[source.suffix]
    held = source.read_text(encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    if begin not in text:
        sys.exit(f"README.md has no place for it: put {begin.strip()} and {end} there")
    before, rest = text.split(begin)
    there, after = rest[: rest.index(end)], rest[rest.index(end) :]
    if source.suffix == ".json":
        shown = table(json.loads(held))
    else:
        shown = "".join(f"{mark(key)}\n{text}" for key, text in (parts(there) | parts(held)).items())
    README.write_text(before + begin + shown + after, encoding="utf-8")


if __name__ == "__main__":
    main()
