"""The report for people: counts first, then names, the worst first."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from hn.checkup.captions import CaptionStatistics
from hn.checkup.findings import ALIKE, FINDINGS, SAME, UNUSABLE, Finding
from hn.checkup.measures import Measures
from hn.checkup.report import Report
from hn.data.pictures.bucket_table import bucket_table
from hn.errors import NAMED, SHOWN_FAULTS, named

_WIDTH = 18  # of the first column
_CAPTION = 60  # characters
_TEXT = 80  # characters of a line of tags


def as_text(report: Report) -> str:
    """The whole report."""
    refused = sum(UNUSABLE in picture.flags for picture in report.pictures)
    verdict = "training would refuse it:" if report.faults else "training would take them"
    lines = [f"{report.folder}: {len(report.pictures)} pictures, {refused} unusable; {verdict}"]
    lines += [f"  {fault}" for fault in report.faults[:SHOWN_FAULTS]]
    lines += _more(report.faults, SHOWN_FAULTS, "  ")
    if report.measured:
        lines += ["", "pictures", *_on_files(report)]
        lines += ["", "findings", *_on_findings(report)]
        lines += ["", "crop", *_on_frames(report)]
    if report.pictures:
        lines += ["", "captions", *_on_captions(report.captions)]
    # A name that is not UTF-8 must not end the program that reports it.
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def _on_files(report: Report) -> list[str]:
    measured = [measures for _, measures in report.measured]
    by_area = sorted(measured, key=lambda measures: measures.width * measures.height)
    smallest, largest = by_area[0], by_area[-1]
    sizes = f"{smallest.width} x {smallest.height}"
    if (largest.width, largest.height) != (smallest.width, smallest.height):
        sizes += f" to {largest.width} x {largest.height}"
    others = [name for name in report.unused if name not in report.captions.without_picture]
    return [
        _line("sizes", sizes),
        _line("formats", _counts(report.counted("kind"))),
        _line("modes", _counts(report.counted("mode"))),
        *([_line("not used", named(others))] if others else []),
    ]


def _on_findings(report: Report) -> list[str]:
    """Every finding, those of nothing in one line: that was looked for too."""
    lines, none = [], []
    for finding in FINDINGS:
        if finding.flag == UNUSABLE:
            continue  # said above
        if not report.flagged(finding):
            none.append(finding.flag)
            continue
        lines += [_line(finding.flag, f"{len(report.flagged(finding))}: {finding.about}")]
        lines += [_line("", f"  {entry}") for entry in _entries(report, finding)]
    return [*lines, *([_line("none", ", ".join(none))] if none else [])]


def _entries(report: Report, finding: Finding) -> list[str]:
    """The first few pictures or groups, one a line if there is something to say of each."""
    if finding.flag in (SAME, ALIKE):
        groups = report.same if finding.flag == SAME else report.alike
        entries = [" = ".join(map(repr, group)) for group in groups]
        return [*entries[:NAMED], *_more(entries, NAMED)]
    found = report.flagged(finding)
    if not finding.shown:
        return [", ".join(repr(picture.name) for picture in found[:NAMED]), *_more(found, NAMED)]
    entries = [
        f"{picture.name!r} {finding.shown.format(picture.measures)}" for picture in found[:NAMED]
    ]
    return [*entries, *_more(found, NAMED)]


def _on_frames(report: Report) -> list[str]:
    """What the frames leave of the pictures: the table of those of which they leave the least."""
    across, down = report.settings["resolution"]
    table = bucket_table(
        [name for name, _ in report.measured],
        [(measures.width, measures.height) for _, measures in report.measured],
        report.framing,
        report.settings["train_batch_size"],
    )
    measured = sorted(
        report.measured, key=lambda pair: (-pair[1].cropped, -pair[1].padded, -pair[1].distortion)
    )
    columns = ("trained at", "scale", "cut off", "padded", "distorted", "picture")
    lines = [
        _line("resolution", f"{across} x {down}, {report.settings['resize_mode']}"),
        *(f"  {line}" for line in table.splitlines()),
        "  {:>12} {:>7} {:>8} {:>7} {:>10}  {}".format(*columns),
    ]
    return [*lines, *(_row(*pair) for pair in measured[:NAMED]), *_more(measured, NAMED, "  ")]


def _row(name: str, measures: Measures) -> str:
    size = f"{measures.bucket[0]} x {measures.bucket[1]}"
    return (
        f"  {size:>12} {measures.enlargement:>7.3f} {measures.cropped:>8.1%} "
        f"{measures.padded:>7.1%} {measures.distortion:>10.2f}  "
        f"{name!r} ({measures.width} x {measures.height})"
    )


def _on_captions(captions: CaptionStatistics) -> list[str]:
    limit = "" if captions.limit is None else f"; a chunk holds {captions.limit}"
    tags = [f"{entry['captions']} {entry['tag']!r}" for entry in captions.tags]
    lines = [
        _line("usable", f"{captions.count}"),
        _line(
            captions.unit,
            f"{captions.shortest} to {captions.longest}, median {captions.median:g}{limit}",
        ),
        _line("tags", f"{captions.distinct_tags} different; the most frequent:"),
        *(_line("", f"  {line}") for line in wrap(", ".join(tags), _TEXT)),
        _line("in every caption", ", ".join(map(repr, captions.in_every_caption)) or "no tag"),
    ]
    lists = {
        "missing": captions.missing,
        "empty": captions.empty,
        "too long": captions.long,
        "without a picture": captions.without_picture,
    }
    lines += [_line(label, named(names)) for label, names in lists.items() if names]
    if captions.repeated:
        lines += [_line("repeated", f"{len(captions.repeated)} captions of several pictures")]
        lines += [
            _line("", f"  {entry['caption'][:_CAPTION]!r} {named(entry['pictures'])}")
            for entry in captions.repeated[:NAMED]
        ]
        lines += _more(captions.repeated, NAMED, " " * (_WIDTH + 4))
    return lines


def _line(label: str, text: str) -> str:
    return f"  {label:<{_WIDTH}}{text}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} {count}" for value, count in counts.items())


def _more(entries: Sequence[Any], shown: int, indent: str = "") -> list[str]:
    return [f"{indent}... and {len(entries) - shown} more"] if len(entries) > shown else []
