"""What was found in a folder, as data."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from hn.checkup.captions import CaptionStatistics
from hn.checkup.findings import FINDINGS, Finding
from hn.checkup.measures import Measures
from hn.data.pictures.bucket_table import counted
from hn.data.pictures.framing import Fit, Framing


@dataclass(frozen=True)
class Checked:
    """One picture."""

    name: str
    caption: str | None  # None: cannot be used
    fault: str | None  # why training would refuse it
    measures: Measures | None  # None: cannot be read
    flags: list[str]  # of FINDINGS, in their order


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a folder."""

    folder: str
    settings: dict[str, Any]
    faults: list[str]  # why training would refuse the folder
    pictures: list[Checked]
    same: list[list[str]]  # groups of pictures, by name
    alike: list[list[str]]
    framing: Framing
    captions: CaptionStatistics
    unused: list[str]

    @property
    def usable(self) -> bool:
        """Whether training would take the folder."""
        return not self.faults

    @property
    def measured(self) -> list[tuple[str, Measures]]:
        """Name and measures of every picture that can be read."""
        return [(each.name, each.measures) for each in self.pictures if each.measures is not None]

    @property
    def fit(self) -> Fit:
        """How the pictures that can be read are fitted, in the order of `measured`."""
        return self.framing.fit([(each.width, each.height) for _, each in self.measured])

    def flagged(self, finding: Finding) -> list[Checked]:
        """The pictures with a finding; if it has a measure, the worst first."""
        found = [picture for picture in self.pictures if finding.flag in picture.flags]
        return sorted(found, key=lambda picture: _badness(finding, picture.measures), reverse=True)

    def counted(self, measure: str) -> dict[str, int]:
        """How many pictures have each value of a measure, the most frequent first."""
        return dict(Counter(str(getattr(each, measure)) for _, each in self.measured).most_common())

    def as_dict(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "folder": self.folder,
            "usable": self.usable,
            "faults": self.faults,
            "settings": self.settings,
            "formats": self.counted("kind"),
            "modes": self.counted("mode"),
            "buckets": [
                {"size": list(size), "pictures": count} for size, count in counted(self.fit)
            ],
            "findings": {
                finding.flag: {
                    "about": finding.about,
                    "pictures": [picture.name for picture in self.flagged(finding)],
                }
                for finding in FINDINGS
            },
            "duplicates": {"same": self.same, "alike": self.alike},
            "captions": asdict(self.captions),
            "unused": self.unused,
            "pictures": [asdict(picture) for picture in self.pictures],
        }


def _badness(finding: Finding, measures: Measures | None) -> float:
    if measures is None or not finding.measure:
        return 0.0
    return finding.value(measures) * (1 if finding.above < float("inf") else -1)
