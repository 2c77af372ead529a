"""What the tools ask that look at a base model while it draws; standard library only."""

import argparse
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from hn import cli
from hn.errors import OptionError, shown

FEWEST = 4  # prompts: every fourth is kept apart, to measure on


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Which model draws what, and which pictures the loss is measured on.

    No prompts: those of `probing.PROMPTS`, or of the embedded demo. No size: the model's own.
    """

    base: str
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    zero_terminal_snr: bool = False
    prompts: tuple[str, ...] = ()
    steps: int = 20
    guidance_scale: float = 7.0
    size: tuple[int, int] | None = None
    validation_data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.prompts and len(self.prompts) < FEWEST:
            raise OptionError(
                f"prompts must be at least {FEWEST}, since every fourth is kept apart to measure "
                f"on; found {len(self.prompts)}"
            )
        if self.steps < 1 or not (isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise OptionError(
                "steps must be at least 1, guidance_scale not negative; found "
                f"{self.steps} and {self.guidance_scale}"
            )
        if self.size is not None and any(side < 1 or side % 8 for side in self.size):
            raise OptionError(f"size must be multiples of 8; found {shown(self.size)}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add them all."""
    add = parser.add_argument
    add("--base", default="demo", help="folder, hub id or single file of the base model (the demo)")
    cli.add_noising_flags(parser)
    add("--prompts", nargs="+", default=[], help="to draw: texts, or a file with one in each line")
    add("--steps", type=int, default=20, help="of drawing (20)")
    add("--guidance_scale", type=float, default=7.0, help="of drawing (7)")
    add("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="(the model's own)")
    add("--validation_data_dir", type=Path, help="also measure the loss on these pictures")


def options_of(args: argparse.Namespace) -> ProbeOptions:
    """The flags. Raises `OptionError` for any that cannot be."""
    prompts = list(args.prompts)
    if len(prompts) == 1 and Path(prompts[0]).is_file():
        try:
            lines = Path(prompts[0]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"prompts '{prompts[0]}' cannot be read: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
    return ProbeOptions(
        base=args.base,
        prediction_type=args.prediction_type,
        zero_terminal_snr=args.zero_terminal_snr,
        prompts=tuple(prompts),
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        size=tuple(args.size) if args.size else None,
        validation_data_dir=args.validation_data_dir,
    )
