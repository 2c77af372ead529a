"""The settings of `tools/generate.py`; standard library only."""

import argparse
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from hn import cli
from hn.diffusion.generation import infotext
from hn.diffusion.generation.samplers import DEFAULT, SAMPLERS
from hn.errors import OptionError, shown

Precision = Literal["float32", "float16", "bfloat16"]
MOST_PICTURES = 10_000
SIDE_STEP = 8  # pixels


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What is drawn: each prompt with each seed at each strength."""

    prompts: tuple[str, ...]
    output: Path
    base: str
    hypernetwork: tuple[str, ...]
    hypernetwork_dir: Path | None
    strengths: tuple[float, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int] | None
    steps: int
    guidance_scale: float
    negative_prompt: str
    sampler: str
    prompt_syntax: Literal["plain", "webui"]
    clip_skip: int
    prediction_type: Literal["epsilon", "v_prediction"] | None
    zero_terminal_snr: bool
    dtype: Precision
    image: Path | None
    mask: Path | None
    overwrite: bool

    def __post_init__(self) -> None:
        faults = self._faults()
        if faults:
            raise OptionError("\n".join(faults))

    @property
    def pictures(self) -> int:
        """How many are drawn."""
        return len(self.prompts) * len(self.seeds) * len(self.strengths)

    def _faults(self) -> list[str]:
        faults = []
        if not self.prompts:
            faults.append("there is no prompt: give some, or a file of them with --prompts")
        if self.size is not None and any(s < 1 or s % SIDE_STEP for s in self.size):
            faults.append(f"size must be multiples of {SIDE_STEP}; found {shown(self.size)}")
        if not all(isfinite(strength) for strength in self.strengths):
            faults.append(f"strengths must be finite numbers; found {shown(self.strengths)}")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            faults.append(f"seeds must be from 0 to 2^63 - 1; found {shown(self.seeds)}")
        if self.sampler not in SAMPLERS:  # a picture's
            known = ", ".join(SAMPLERS)
            faults.append(f"sampler {shown(self.sampler)} is not known here; give one of {known}")
        if self.steps < 1 or self.clip_skip < 1:
            faults.append("steps and clip_skip must be at least 1")
        if not (isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            faults.append(f"guidance_scale must not be negative; found {self.guidance_scale}")
        for name in ("strengths", "seeds", "hypernetwork"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                faults.append(f"{name} must not repeat one; found {shown(values)}")
        if (self.image is None) != (self.mask is None):
            faults.append("image and mask go together: give both or none")
        if self.pictures > MOST_PICTURES:
            faults.append(f"{self.pictures} pictures are more than {MOST_PICTURES}: ask for fewer")
        return faults


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add them all."""
    add = parser.add_argument
    add("prompt", nargs="*", help="may name <hypernet:my_style:0.8>, with --hypernetwork_dir")
    add("--prompts", type=Path, metavar="FILE", help="more prompts, one in each line")
    add("--like", type=Path, metavar="PNG", help="take what is not given from a picture's text")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER")
    add("--overwrite", action="store_true", help="replace pictures that are there")
    add("--base", default="demo", help="base model: folder, hub id or single file (embedded demo)")
    add("--hypernetwork", nargs="+", default=[], metavar="FILE", help="for all prompts, in order")
    add("--hypernetwork_dir", type=Path, metavar="FOLDER", help="where tags find their files")
    add("--strengths", type=float, nargs="+", default=[1.0], help="columns; they scale tags, too")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="default: the model's own")
    add("--steps", type=int, default=20)
    add("--guidance_scale", type=float, default=7.0)
    add("--negative_prompt", default="")
    add("--image", type=Path, metavar="FILE", help="of an inpainting base: paint into this picture")
    add("--mask", type=Path, metavar="FILE", help="where it is white")
    add("--sampler", choices=SAMPLERS, default=DEFAULT)
    add("--prompt_syntax", choices=("plain", "webui"), default="plain")
    add("--clip_skip", type=int, default=1)
    cli.add_noising_flags(parser)
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")


def read_flags(parser: argparse.ArgumentParser) -> GenerationSettings:
    """The flags, with what a picture and a file of prompts say. Raises `OptionError`."""
    add_flags(parser)
    like = parser.parse_known_args()[0].like
    if like is not None:
        parser.set_defaults(**_described(like))
    return _settings(parser.parse_args())


def _described(path: Path) -> dict[str, Any]:
    """The settings that a picture was made with, where they are some of ours. Raises `OptionError`
    for a picture without text.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            found = infotext.read(picture.info["parameters"])
        values: dict[str, Any] = {
            setting: read(found.parameters[name])
            for name, (setting, read) in _READ.items()
            if name in found.parameters
        }
    except (OSError, KeyError, ValueError) as error:
        raise OptionError(f"like '{path}' is no PNG with the web UI's text: {error}") from error
    return {**values, "prompt": [found.prompt], "negative_prompt": found.negative_prompt}


_READ = {
    "Steps": ("steps", int),
    "Sampler": ("sampler", str),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seeds", lambda value: [int(value)]),
    "Size": ("size", lambda value: [int(side) for side in value.split("x")]),
    "Clip skip": ("clip_skip", int),
}
"""The web UI's names, and what they are here."""


def _settings(args: argparse.Namespace) -> GenerationSettings:
    values = vars(args)
    lists = {name: tuple(values[name]) for name in ("hypernetwork", "strengths", "seeds")}
    size = tuple(args.size) if args.size else None
    prompts = (*args.prompt, *(_read_lines(args.prompts) if args.prompts else ()))
    given = {field.name: values[field.name] for field in fields(GenerationSettings)}
    return GenerationSettings(**{**given, **lists, "size": size, "prompts": prompts})


def _read_lines(path: Path) -> list[str]:
    """The lines that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"prompts '{path}' cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]
