"""The audit job: a version, some users, some targets, and the checks that are asked for, one report.

Owns: the order of the job, the checks by name, the files. Ignores: how a check works.

    report = audit(Registry("registry"), "like@production", log, folder=Path("runs/like/audit"))
    report.checks.text.greedy.exposure      # 0.12

A further check is a class with `foresee` and `run` (`subject.Check`), a field of `report.Checks`, and a template of its name.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from genre._version import __version__
from genre.data.interactions import Interactions
from genre.engine.versions import read_adapter
from genre.files import write_text
from genre.jobs.audit.canaries import CanaryUsers
from genre.jobs.audit.extraction import PrefixExtraction
from genre.jobs.audit.membership import MembershipAttack
from genre.jobs.audit.options import AuditOptions
from genre.jobs.audit.page import write_page
from genre.jobs.audit.profiles import FakeProfiles
from genre.jobs.audit.report import AuditedData, AuditReport, Checks, privacy_lines
from genre.jobs.audit.subject import Check, Subject, draw_targets, draw_users, task_of
from genre.jobs.audit.text import TextAttack
from genre.jobs.folders import working_folder
from genre.jobs.loading import load_base
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry

CHECKS: dict[str, Check] = {
    "text": TextAttack(),
    "profiles": FakeProfiles(),
    "membership": MembershipAttack(),
    "canaries": CanaryUsers(),
    "extraction": PrefixExtraction(),
}
REPORT = "audit.json"
PAGE = "audit.html"


def audit(
    registry: Registry,
    ref: str,
    log: Interactions,
    options: AuditOptions | None = None,
    *,
    base: Base | str | None = None,
    folder: Path,
    command: str = "",
    record: bool = False,
    reporter: Reporter | None = None,
) -> AuditReport:
    """Audit a version, and leave the report as JSON and as a page.

    Args:
        registry: Holds the version; only read, unless the audit is recorded.
        ref: The version.
        log: Gives users, items and, for retrainings, the training events.
        options: See `AuditOptions`.
        base: The version's base, or its folder or hub id; by default found by the name in the manifest.
        folder: Gets `audit.json` and `audit.html`; what an earlier audit left there is replaced.
        command: How it was asked for, for the report.
        record: Write an audit of privacy beside the version too, where its recipe does not withhold figures of its users.
        reporter: Receives progress.

    Raises:
        ManifestError: The version reads labelled texts, or was not trained from a recipe, or does not fit the base.
        InputError, DataError: The options, the log and the version do not go together.
    """
    options, reporter, begun = options or AuditOptions(), reporter or Reporter.here(), time.perf_counter()
    options.check()
    version = registry.resolve(ref)
    if record:
        registry.check_writable(version.name)
    base = base if isinstance(base, Base) else load_base(version.manifest, base)
    loaded = read_adapter(registry, version, base)
    task = task_of(loaded, options.task)
    measured, searched = draw_users(log, options)
    targets = draw_targets(log, options, measured) if options.pushes else ()
    with working_folder(folder, REPORT):
        subject = Subject(registry, version, loaded, log, base, options, task, targets, measured, searched, folder)
        for name in options.checks:
            reporter.line(CHECKS[name].foresee(subject))
        sections: dict[str, BaseModel] = {}
        for name in options.checks:
            sections[name] = CHECKS[name].run(subject, reporter)
            seconds = round(time.perf_counter() - begun, 1)
            report = _report(subject, sections, seconds, command)  # after each check: a later one may be interrupted
            write_text(folder / REPORT, report.model_dump_json(by_alias=True, indent=2) + "\n")
            page = write_page(report, folder / PAGE)
    lines = privacy_lines(report)
    if record and lines and version.manifest.withholds_figures:
        reporter.line("not recorded beside the version: its recipe withholds figures of its users (train.privacy.metrics)")
    elif record and lines:
        registry.record_audit(version, report.model_dump(mode="json", by_alias=True), lines=lines, page=page)
        reporter.line(f"recorded beside {version.ref}: genre registry show {version.ref}")
    return report


def _report(subject: Subject, sections: dict[str, BaseModel], seconds: float, command: str) -> AuditReport:
    return AuditReport(
        ref=subject.version.ref,
        digest=subject.version.digest,
        task=subject.task.name,
        data=_data(subject.log),
        seed=subject.options.seed,
        users=len(subject.measured),
        searched=len(subject.searched),
        targets=subject.sampled_targets,
        sampling=_sampling(subject.options, subject.targets),
        seconds=seconds,
        command=command,
        code_version=__version__,
        checks=Checks.model_validate(sections),
    )


def _data(log: Interactions) -> AuditedData:
    users, items = len(log.user_ids), log.catalogue.size
    return AuditedData(name=log.info.name, digest=log.digest, users=users, items=items, events=len(log))


def _sampling(options: AuditOptions, targets: Sequence[int]) -> str:
    users = f"users drawn at random (seed {options.seed})"
    if not options.pushes:
        return users
    if options.items:
        return f"{users}; targets named by hand"
    rare = "items with events, no more than the median item has, that at most a tenth of the measured users have"
    return f"{users}; {len(targets)} targets drawn among {rare}"
