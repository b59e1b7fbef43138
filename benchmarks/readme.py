"""Write measured figures into the documentation, so that none is typed by hand.

    python benchmarks/readme.py build/demo/report.json      # the demo's table in README.md
    python benchmarks/readme.py build/bench/summary.md      # the benchmarks' tables in docs/benchmarks.md

Each of the benchmarks' tables replaces the one under the same mark and leaves the others, so that one benchmark can be
measured again without the rest.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Place:
    """A page, and the two lines between which figures are written."""

    page: Path
    begin: str
    end: str

    def split(self) -> tuple[str, str, str]:
        """Return the page's text up to the first line, between the two lines, and from the second one on."""
        text = self.page.read_text(encoding="utf-8")
        if self.begin not in text or self.end not in text:
            sys.exit(f"{self.page.name} has no place for the figures: put {self.begin.strip()} and {self.end} there")
        before, rest = text.split(self.begin)
        index = rest.index(self.end)
        return before + self.begin, rest[:index], rest[index:]


PLACES = {
    ".json": Place(
        ROOT / "README.md",
        "<!-- demo table: python benchmarks/readme.py build/demo/report.json -->\n",
        "<!-- end of demo table -->",
    ),
    ".md": Place(
        ROOT / "docs" / "benchmarks.md",
        "<!-- bench tables: python benchmarks/readme.py build/bench/summary.md -->\n",
        "<!-- end of bench tables -->",
    ),
}


def mark(key: str) -> str:
    """Return the line that precedes a benchmark's table."""
    return f"<!-- measured: {key} -->"


def parts(text: str) -> dict[str, str]:
    """Split the text into tables by the keys of their marks."""
    found = re.split(r"^<!-- measured: (.+) -->\n", text, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def table(report: dict[str, Any]) -> str:
    """Format the demo's figures as a Markdown table."""
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
    """Replace the figures in the page they belong to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    source = parser.parse_args().file
    if source.suffix not in PLACES or not source.is_file():
        parser.error(f"no report: {source}; expected a file that ends in {' or '.join(PLACES)}")
    place = PLACES[source.suffix]
    before, there, after = place.split()
    measured = source.read_text(encoding="utf-8")
    if source.suffix == ".json":
        shown = table(json.loads(measured))
    else:
        shown = "".join(f"{mark(key)}\n{text}" for key, text in (parts(there) | parts(measured)).items())
    place.page.write_text(before + shown + after, encoding="utf-8")


if __name__ == "__main__":
    main()
