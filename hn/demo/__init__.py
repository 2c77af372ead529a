"""The embedded default: a tiny Stable Diffusion, trained by us, and pictures in another style.

The base model (`hn/demo/model`) draws one coloured shape on a coloured ground. The style set shows
four of its six shapes as neon signs; stars and hearts are held out, so what they look like
afterwards was learnt, not remembered.
"""

from pathlib import Path

from hn.demo.pictures import write_folder

NAME = "demo"
MODEL = Path(__file__).parent / "model"
TRAINED_SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT_SHAPES = ("star", "heart")
PICTURES = 80
HELD_OUT_PICTURES = 16


def write_pictures(folder: Path, count: int = PICTURES) -> tuple[Path, Path]:
    """Write the style set, or its first `count` pictures, and the held-out pictures, always the
    same; returns their folders.
    """
    trained, held_out = folder / "train", folder / "held-out"
    write_folder(trained, count, seed=1, shapes=TRAINED_SHAPES, style="neon")
    write_folder(held_out, HELD_OUT_PICTURES, seed=2, shapes=HELD_OUT_SHAPES, style="neon")
    return trained, held_out
