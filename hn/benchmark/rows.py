"""What was found of each contender, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = (
    *("", "ms", "speed-up", "images/s", "GFLOP/image", "MFU %", "HFU %"),
    *("MFU of 790 %", "peak MiB", "saved MiB", "allocated MiB", "ops", "syncs", "gradient off by"),
)
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of a step: `seconds` (median), how many times as fast as the web UI's (`speed_up`, median of
    rounds), operations on numbers per image, the share of the machine's measured rate that the
    model needs (`mfu`; `mfu_nominal`: of the rate that such a machine is known for) and that is
    used with what is computed twice (`hfu`), bytes counted (`peak`, `saved`) and found in CUDA's
    allocator (`allocated`), operations of forward and backward pass (as written: what is compiled
    starts fewer), waits of the host, and how far the gradient is off, relative to its norm. None:
    not known, or there is nothing to compare.
    """

    name: str
    flops_per_image: float
    peak: int
    saved: int
    seconds: float | None = None
    speed_up: float | None = None
    images_per_second: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    mfu_nominal: float | None = None
    allocated: int | None = None
    ops: int | None = None
    syncs: int | None = None
    gradient_difference: float | None = None
    rounds: Sequence[float] = ()
    remark: str = ""

    def cells(self) -> list[str]:
        """As `COLUMNS` has it."""
        return [
            self.name,
            _shown(self.seconds, ".1f", 1000),
            _shown(self.speed_up, ".2f"),
            _shown(self.images_per_second, ".2f"),
            f"{self.flops_per_image / 1e9:.1f}",
            *(_shown(it, ".1f", 100) for it in (self.mfu, self.hfu, self.mfu_nominal)),
            *(_shown(it, ".1f", 1 / MIB) for it in (self.peak, self.saved, self.allocated)),
            *(_shown(it, "d") for it in (self.ops, self.syncs)),
            _shown(self.gradient_difference, ".1e"),
        ]


def table(rows: Sequence[Row]) -> str:
    """Markdown, with what is to be said of single rows below."""
    lines = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:])), *(row.cells() for row in rows)]
    remarks = [f"\n{row.name}: {row.remark}" for row in rows if row.remark]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *remarks])


def as_json(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """For programs; bytes and seconds as they are."""
    return {**about, "rows": [asdict(row) for row in rows]}


def _shown(value: float | None, form: str, factor: float = 1) -> str:
    return "–" if value is None else f"{value * factor:{form}}"
