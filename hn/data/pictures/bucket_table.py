"""Which pictures are trained at which size, and what is lost of them: as text and as a table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from pyarrow.compute import call_function
from pyarrow.csv import write_csv

from hn.data.pictures.framing import Fit, Framing
from hn.errors import NAMED, named
from hn.storage import write_bytes

SHOWN = 40  # sizes; with no_upscale or native_size there may be thousands
COLUMNS = ("name", "width", "height", "bucket", "scale", "cropped", "padded")


def counted(fit: Fit) -> list[tuple[tuple[int, int], int]]:
    """Every size that pictures are trained at, with their number, the most frequent first."""
    joined = fit.sizes[:, 0] << 32 | fit.sizes[:, 1]  # sorting pairs takes ten times as long
    values, counts = np.unique(joined, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    pairs = np.stack([values >> 32, values & 0xFFFFFFFF, counts], axis=1)[order]
    return [((width, height), count) for width, height, count in pairs.tolist()]


def bucket_table(
    names: Sequence[str], pictures: ArrayLike, framing: Framing, batch_size: int
) -> str:
    """The sizes with the number of their pictures, and the pictures that lose or gain most.

    `pictures` (N, 2): width and height as they are seen. Sizes of fewer than `batch_size` pictures
    are marked: a micro-batch is of one size.
    """
    fit = framing.fit(pictures)
    lines = _size_lines(fit, batch_size)
    for verb, shares in (("cut off", fit.cropped), ("padded", fit.padded)):
        if len(shares) and shares.max() > 0:
            worst = int(shares.argmax())
            width, height = fit.pictures[worst]
            lines.append(
                f"{verb}: {shares.mean():.1%} on average, {shares[worst]:.1%} at most "
                f"({names[worst]!r}, {width} x {height})"
            )
    enlarged = np.flatnonzero(fit.enlarged)
    if len(enlarged):
        first = [str(names[number]) for number in enlarged[:NAMED].tolist()]
        small = framing.no_upscale or framing.native_size
        than = f"one step of {framing.step} pixels" if small else "the size they are trained at"
        lines.append(f"enlarged, since smaller than {than}: {named(first, len(enlarged))}")
    return "\n".join(lines)


def write_pictures(path: Path, names: Sequence[str], pictures: ArrayLike, framing: Framing) -> None:
    """Write a CSV of `COLUMNS`, one row for each picture. Raises `StorageError`."""
    fit = framing.fit(pictures)
    sides = [pa.array(side).cast(pa.string()) for side in fit.sizes.T]
    columns = [
        # A name that is not UTF-8 is escaped as in messages.
        [name.encode(errors="backslashreplace").decode() for name in names],
        *fit.pictures.T,
        call_function("binary_join_element_wise", [*sides, pa.scalar("x")]),
        *(values.round(6) for values in (fit.scale, fit.cropped, fit.padded)),
    ]
    sink = pa.BufferOutputStream()
    write_csv(pa.table(dict(zip(COLUMNS, columns, strict=True))), sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _size_lines(fit: Fit, batch_size: int) -> list[str]:
    """One line for each size, up to `SHOWN`, and a sum of the rest."""
    counts = counted(fit)
    lines = [f"sizes: {len(counts)}, of {len(fit.sizes)} pictures"]
    for (width, height), count in counts[:SHOWN]:
        mark = f"  repeats pictures within a batch of {batch_size}" * (count < batch_size)
        lines.append(f"  {f'{width} x {height}':>13} {count:>9}{mark}")
    rest = counts[SHOWN:]
    if rest:
        lines.append(
            f"  and {len(rest)} more, of {sum(count for _, count in rest)} pictures; "
            f"{sum(count < batch_size for _, count in counts)} of all sizes repeat pictures "
            f"within a batch of {batch_size}"
        )
    return lines
