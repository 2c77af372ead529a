"""Draws what the settings ask for: one PNG file for each picture, and a grid of all.

Every picture is drawn alone, from a generator of its own: the same seed gives the same bytes,
whatever is drawn beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import hn
from hn import demo
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions import inpainting
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.views import SCORED
from hn.diffusion.generation import infotext
from hn.diffusion.generation.samplers import make_scheduler
from hn.diffusion.generation.settings import GenerationSettings
from hn.diffusion.pipeline import Painter, bare_pipeline, grid, save_picture
from hn.diffusion.tags import ENDINGS, Tags, find_hypernetwork, parse_prompt_tags, write_tag
from hn.errors import ModelError, OptionError, shown
from hn.storage import prove_writable


@dataclass(frozen=True)
class Subject:
    """A prompt without tags, and the hypernetworks that it is drawn with."""

    text: str
    stack: Tags

    def at(self, strength: float) -> Tags:
        """The stack with all strengths scaled."""
        return [(name, own * strength) for name, own in self.stack]

    def as_prompt(self, strength: float) -> str:
        """The prompt that asks for the same."""
        return " ".join([self.text.strip(), *(write_tag(*tag) for tag in self.at(strength))])


class Generator:
    """Knows all that is to be drawn before anything heavy is loaded.

    Raises `OptionError` or `ModelError` for tags and files that cannot be, `StorageError` for a
    folder that cannot be written.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        self._settings = settings
        self._files = _named(settings.hypernetwork)
        self.subjects = [self._subject(prompt) for prompt in settings.prompts]
        if settings.strengths != (1.0,) and not any(subject.stack for subject in self.subjects):
            raise OptionError(
                "strengths are of hypernetworks: give --hypernetwork, or tags in the prompts"
            )
        self._check_output()
        if settings.image is not None and settings.mask is not None:
            inpainting.check_files(settings.image, settings.mask)
        self._base = self._load_base()
        self._canvas = self._load_canvas()
        self._scheduler = make_scheduler(settings.sampler, self._base.scheduler)
        self._pipe = bare_pipeline(self._base, self._scheduler)
        for name, file in self._files.items():
            hn.load_hypernetwork(self._pipe, file, name)

    def run(self) -> Path:
        """Draw and save everything; returns the grid's file."""
        rows, labels, settings = [], [], self._settings
        bar = tqdm(total=settings.pictures, desc="draw", unit="picture")
        for number, subject in enumerate(self.subjects, 1):
            conditions = self._conditions(subject)
            for seed in settings.seeds:
                row = []
                for strength in settings.strengths:
                    row.append(self._draw(subject, conditions, seed, strength))
                    text = self._infotext(subject, seed, strength, row[-1].size)
                    save_picture(row[-1], self._path(number, seed, strength), parameters=text)
                    bar.update()
                rows.append(row)
                labels.append(f"{subject.text.strip()} (seed {seed})")
        bar.close()
        columns = [f"strength {strength:g}" for strength in settings.strengths]
        save_picture(grid(rows, labels, columns), settings.output / "grid.png")
        return settings.output / "grid.png"

    def _subject(self, prompt: str) -> Subject:
        """The prompt's own hypernetworks, then those of all prompts that it does not name."""
        text, tags = parse_prompt_tags(prompt)
        common = list(self._files)[: len(self._settings.hypernetwork)]
        for name, _ in tags:
            if name not in self._files:
                self._files[name] = self._find(name)
        named = {name for name, _ in tags}
        return Subject(text, [*tags, *((name, 1.0) for name in common if name not in named)])

    def _find(self, name: str) -> str:
        if self._settings.hypernetwork_dir is None:
            raise OptionError(
                f"a prompt names the hypernetwork {shown(name)}: give --hypernetwork_dir, where "
                "its file lies, or the file with --hypernetwork"
            )
        return str(find_hypernetwork(name, self._settings.hypernetwork_dir))

    def _paths(self) -> Iterator[Path]:
        settings = self._settings
        for number in range(1, len(settings.prompts) + 1):
            for seed in settings.seeds:
                for strength in settings.strengths:
                    yield self._path(number, seed, strength)
        yield settings.output / "grid.png"

    def _path(self, number: int, seed: int, strength: float) -> Path:
        return self._settings.output / f"{number:04d}-seed-{seed}-strength-{strength:g}.png"

    def _check_output(self) -> None:
        prove_writable(self._settings.output, "output")
        there = [path for path in self._paths() if path.exists()]
        if there and not self._settings.overwrite:
            raise OptionError(
                f"output: {there[0]} is there already: choose another folder, or give --overwrite"
            )

    def _load_base(self) -> BaseModel:
        """Raises `OptionError` for a refiner."""
        settings = self._settings
        base = BaseModel.load(
            str(demo.MODEL) if settings.base == demo.NAME else settings.base,
            prompt_syntax=settings.prompt_syntax,
            clip_skip=settings.clip_skip,
            prediction=settings.prediction_type,
            zero_terminal_snr=settings.zero_terminal_snr,
            dtype=getattr(torch, settings.dtype),
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        if base.numbers_told == SCORED:
            raise OptionError(
                f"base {settings.base} is the refiner of Stable Diffusion XL, which only finishes "
                "pictures that another model began: give that, or read through hypernetworks with "
                "hn.load_hypernetwork in diffusers' StableDiffusionXLImg2ImgPipeline"
            )
        return base

    def _conditions(self, subject: Subject) -> Condition:
        """Of the negative and of the prompt."""
        negative = self._settings.negative_prompt
        both = Condition.join(self._base.encode_prompts([negative, subject.text]))
        return Condition.join([self._base.negative(both[:1], negative), both[1:]])

    def _draw(
        self, subject: Subject, conditions: Condition, seed: int, strength: float
    ) -> Image.Image:
        names, strengths = zip(*subject.at(strength), strict=True) if subject.stack else ((), ())
        hn.set_hypernetworks(self._pipe, names, strengths)
        settings = self._settings
        painter = Painter(
            self._base,
            conditions[1:],
            conditions[:1],
            size=self._size(),
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            seed=seed,
            scheduler=self._scheduler,
            canvas=self._canvas,
        )
        return painter.draw()[0]

    def _load_canvas(self) -> Tensor | None:
        """What an inpainting model paints into; None: nothing, or for it a blank one."""
        image, mask = self._settings.image, self._settings.mask
        inpainting.check_base({"image": image}, inpainting=self._base.inpainting)
        if image is None or mask is None:
            return inpainting.blank(self._base, self._size()) if self._base.inpainting else None
        return inpainting.of_files(self._base, image, mask, self._size())

    def _size(self) -> tuple[int, int]:
        """What is asked for, or the model's own."""
        return self._settings.size or self._base.own_size

    def _infotext(self, subject: Subject, seed: int, strength: float, size: tuple[int, int]) -> str:
        settings = self._settings
        parameters: dict[str, Any] = {
            "Steps": settings.steps,
            "Sampler": settings.sampler,
            "CFG scale": f"{settings.guidance_scale:g}",
            "Seed": seed,
            "Size": f"{size[0]}x{size[1]}",
            "Model": Path(settings.base).resolve().name,
        }
        if settings.clip_skip > 1:
            parameters["Clip skip"] = settings.clip_skip
        if self._base.zero_terminal_snr:
            parameters["Noise Schedule"] = "Zero Terminal SNR"
        parameters["Version"] = f"hn {hn.__version__}"
        return infotext.write(subject.as_prompt(strength), settings.negative_prompt, parameters)


def _named(files: Sequence[str]) -> dict[str, str]:
    """Files by stem, in order. Raises `OptionError` if two have the same, `ModelError` for a file
    that is not there.
    """
    named: dict[str, str] = {}
    for file in files:
        is_file = Path(file).is_file()
        if Path(file).suffix in ENDINGS and not is_file:
            raise ModelError(f"the hypernetwork {shown(file)} is not there")
        name = Path(file).stem if is_file else Path(file).name
        if name in named:
            raise OptionError(
                f"{named[name]} and {file} have the same name, which tells them apart in prompts: "
                "copy one to another name"
            )
        named[name] = file
    return named
