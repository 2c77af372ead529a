"""What is odd about a picture, and from which value on."""

from collections.abc import Sequence
from dataclasses import dataclass

from hn.checkup.likeness import BITS, LEVELS
from hn.checkup.measures import Measures

UNUSABLE, SAME, ALIKE, UNIFORM = "unusable", "same pixels", "alike", "uniform"
NO_CAPTION, EMPTY_CAPTION, LONG_CAPTION = "no caption", "empty caption", "long caption"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that pictures can have; those of a measure have its bounds."""

    flag: str
    about: str
    measure: str = ""  # a field of Measures
    above: float = float("inf")
    below: float = float("-inf")
    shown: str = ""  # the measure in words, as a format of Measures
    harmless: bool = False  # worth knowing, nothing to mend

    def value(self, measures: Measures) -> float:
        """The measure."""
        return float(getattr(measures, self.measure))

    def holds(self, measures: Measures) -> bool:
        """Whether the measure is out of bounds."""
        return bool(self.measure) and not self.below <= self.value(measures) <= self.above


FINDINGS = (
    Finding(flag=UNUSABLE, about="training would refuse it"),
    Finding(flag=SAME, about="the same pixels as another: it counts twice"),
    Finding(
        flag=ALIKE,
        about=f"almost another: at most {BITS} of 64 bits of dHash and {LEVELS} levels differ",
    ),
    Finding(
        flag="enlarged",
        about="smaller than the training size",
        measure="enlargement",
        above=1,
        shown="{0.width} x {0.height}, {0.enlargement:.2f} times",
    ),
    Finding(
        flag=UNIFORM,
        about="almost one colour: standard deviation below 8 of 255",
        measure="contrast",
        below=8,
        shown="{0.contrast:.1f}",
    ),
    Finding(
        flag="blurry",
        # 100: Rosebrock, "Blur detection with OpenCV" (2015), there over the whole picture
        about="nothing is sharp at the training size: variance of the Laplacian below 100",
        measure="sharpness",
        below=100,
        shown="{0.sharpness:.0f}",
    ),
    Finding(
        flag="transparent",
        about="more than half is transparency, which is laid on white",
        measure="opacity",
        below=0.5,
        shown="{0.opacity:.0%} opaque",
    ),
    Finding(
        flag="elongated",
        about="more than 3 times longer than wide, or wider than high",
        measure="elongation",
        above=3,
        shown="{0.width} x {0.height}",
    ),
    Finding(
        flag="cropped",
        about="more than half is cut off",
        measure="cropped",
        above=0.5,
        shown="{0.cropped:.0%}",
    ),
    Finding(
        flag="padded",
        about="more than half of what is seen is padding",
        measure="padded",
        above=0.5,
        shown="{0.padded:.0%}",
    ),
    Finding(
        flag="distorted",
        about="stretched more than 1.5 times as much along one side as along the other",
        measure="distortion",
        above=1.5,
        shown="{0.distortion:.2f} times",
    ),
    Finding(flag=NO_CAPTION, about="no .txt beside it"),
    Finding(flag=EMPTY_CAPTION, about="its .txt holds nothing"),
    Finding(flag=LONG_CAPTION, about="more tokens than a chunk holds: the rest is cut off"),
    Finding(
        flag="grey",
        about="no colour: its channels differ by less than 10 of 255",
        measure="colour",
        below=10,
        harmless=True,
    ),
    Finding(
        flag="animated",
        about="only the first of its frames is used",
        measure="animated",
        above=0,
        shown="{0.frames} frames",
        harmless=True,
    ),
    Finding(
        flag="16 bits",
        about="reduced to 8 bits for each channel",
        measure="deep",
        above=0,
        shown="{0.mode}",
        harmless=True,
    ),
    Finding(
        flag="misnamed",
        about="of another format than its ending says; read all the same",
        measure="misnamed",
        above=0,
        shown="{0.kind}",
        harmless=True,
    ),
    Finding(
        flag="turned",
        about="turned or mirrored as its EXIF data say",
        measure="turned",
        above=0,
        harmless=True,
    ),
)


def measured_flags(measures: Measures) -> list[str]:
    """The flags of a picture by its measures; one colour cannot be blurred."""
    flags = [finding.flag for finding in FINDINGS if finding.holds(measures)]
    return [flag for flag in flags if flag != "blurry" or UNIFORM not in flags]


def in_order(flags: Sequence[str]) -> list[str]:
    """Each flag once, the worst first."""
    return [finding.flag for finding in FINDINGS if finding.flag in flags]
