"""An evaluation beside the curves of its run, in TensorBoard: its numbers by step, its pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hn.evaluation.report.wording import is_number

SUFFIX = ".evaluation"  # of the event file, so that the next evaluation takes its place
NUMBERS = ("base_loss", "loss", "gain", "drift")


def write(evaluation: Mapping[str, Any], run: Path, pictures: Path) -> None:
    """Add an `evaluation` (as in `report.json`) to the run's TensorBoard, if it has one.

    Its grids lie in the folder `pictures`. An earlier evaluation is replaced. Raises `OSError`
    for a grid that cannot be read.
    """
    folder = run / "tensorboard"
    if not folder.is_dir():
        return
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob(f"*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(folder, filename_suffix=SUFFIX) as writer:
        for checkpoint in evaluation.get("checkpoints", []):
            averaged = "_ema" if checkpoint.get("kind") == "ema" else ""
            for name in NUMBERS:
                value = checkpoint.get(name)
                if is_number(value):
                    writer.add_scalar(f"evaluation{averaged}/{name}", value, checkpoint["step"])
        step = (evaluation.get("sweep") or {}).get("step", 0)
        for grid in evaluation.get("grids", []):
            with Image.open(pictures / grid["file"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image(f"evaluation/{grid['title']}", pixels, step, dataformats="HWC")
