"""The page of an audit: what each attack gained, targets by name, what the warnings of describe name.

Owns: plots and words of the page. Ignores: how figures come about. Each check has a template of its name.

    write_page(report, Path("runs/like/audit/audit.html"))
"""

from pathlib import Path
from typing import Any

import numpy as np

from genre.files import write_text
from genre.jobs.audit.report import AuditReport, CanariesSection, MembershipSection, ProfilesSection, TextSection
from genre.jobs.audit.text import best
from genre.jobs.report.figures import ACCENT, INK, REST, figure_of, render, svg_of

TEMPLATES = Path(__file__).parent
_STYLES = {"random": ("o", "-"), "average": ("s", "--"), "bandwagon": ("^", ":")}


def write_page(report: AuditReport, out: Path) -> str:
    """Write the page of a report, and return it; DiskError if the disk is full or not writable."""
    sections: dict[str, Any] = {}
    if (text := report.checks.text) is not None:
        sections["text"] = {"found": text, "plot": _text_plot(text) if text.targets else None, "best": best}
    if (profiles := report.checks.profiles) is not None:
        sections["profiles"] = {"found": profiles, "plot": _profiles_plot(profiles)}
    if (membership := report.checks.membership) is not None:
        sections["membership"] = {"found": membership, "plot": _membership_plot(membership)}
    if (canaries := report.checks.canaries) is not None:
        sections["canaries"] = {"found": canaries, "plot": _canaries_plot(canaries)}
    if (extraction := report.checks.extraction) is not None:
        sections["extraction"] = {"found": extraction}
    page = render("audit.html", TEMPLATES, report=report, sections=sections)
    write_text(out, page)
    return page


def _text_plot(found: TextSection) -> Any:
    """Exposure of each target before (a ring) and after the words that a greedy choice found (a dot)."""
    figure, axes = figure_of(5.2, 0.34 * len(found.targets) + 0.8)
    for place, target in enumerate(reversed(found.targets)):
        before, after = target.before.exposure, target.greedy.standing.exposure
        axes.plot([before, after], [place, place], color=REST, linewidth=2)
        axes.plot(before, place, "o", color=INK, markersize=6, markerfacecolor="none")
        axes.plot(after, place, "o", color=ACCENT, markersize=6)
    axes.set_yticks(range(len(found.targets)), [target.title[:32] or target.item_id for target in reversed(found.targets)])
    axes.set_ylim(-0.6, len(found.targets) - 0.4)
    axes.set_xlim(left=-0.01)
    axes.grid(axis="x", color=REST, alpha=0.25)
    axes.set_xlabel("exposure@10", fontsize=8, color=INK)
    return svg_of(figure)


def _profiles_plot(found: ProfilesSection) -> Any:
    """Mean exposure of the targets by the share of injected users, a line for each attack."""
    figure, axes = figure_of(5.2, 2.6)
    for attack in dict.fromkeys(each.attack for each in found.attacks):
        own = sorted((each.share, each.standing.exposure) for each in found.attacks if each.attack == attack)
        shares, exposures = zip((0.0, found.clean.exposure), *own, strict=True)
        marker, line = _STYLES.get(attack, ("o", "-"))
        axes.plot(
            [100 * share for share in shares], exposures, marker=marker, linestyle=line, color=ACCENT, label=attack, markersize=5
        )
    axes.axhline(found.published.exposure, color=INK, linewidth=1, alpha=0.6, label="the version as published")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=REST, alpha=0.25)
    axes.set_xlabel("injected users, % of the real ones", fontsize=8, color=INK)
    axes.set_ylabel("exposure@10", fontsize=8, color=INK)
    axes.legend(loc="best", fontsize=8, frameon=False, labelcolor=INK)
    return svg_of(figure)


def _membership_plot(found: MembershipSection) -> Any:
    """True against false positives of the attacks, both on a log scale: what counts is the left end."""
    figure, axes = figure_of(5.2, 3.0)
    lines = {"likelihood ratio": (found.ratio, "-"), "loss": (found.loss, "--")}
    if found.published is not None:
        lines["loss, the version itself"] = (found.published["loss"], ":")
    least = 1 / max(attack.others for attack, _ in lines.values())
    for name, (attack, line) in lines.items():
        false, true = zip(*[(max(x, least / 2), max(y, least / 2)) for x, y in attack.curve], strict=True)
        axes.plot(false, true, linestyle=line, color=ACCENT, label=name, linewidth=1.6)
    axes.plot([least / 2, 1], [least / 2, 1], color=INK, linewidth=1, alpha=0.6, label="chance")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axvline(0.01, color=REST, linewidth=1)
    axes.set_xlabel("false positives", fontsize=8, color=INK)
    axes.set_ylabel("true positives", fontsize=8, color=INK)
    axes.legend(loc="best", fontsize=8, frameon=False, labelcolor=INK)
    return svg_of(figure)


def _canaries_plot(found: CanariesSection) -> Any:
    """Scores of canaries that were inserted, and of those that were not."""
    figure, axes = figure_of(5.2, 1.9)
    edges = np.histogram_bin_edges(found.scores, bins=30)
    for inside, colour, name in ((False, REST, "left out"), (True, ACCENT, "inserted")):
        own = [score for score, kept in zip(found.scores, found.inserted, strict=True) if kept == inside]
        axes.hist(own, bins=edges, color=colour, alpha=0.6, label=name)
    axes.set_xlabel("score: how much better the model fits the canary than the version does", fontsize=8, color=INK)
    axes.legend(loc="best", fontsize=8, frameon=False, labelcolor=INK)
    return svg_of(figure)
