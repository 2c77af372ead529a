"""What it takes to find a substitute for hypernetworks, and to judge it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hn import demo
from hn.build.pictures import build_encoder, latents_of, pictures_of
from hn.build.prompts import build_prompts
from hn.config import Config, DataConfig, ModelConfig
from hn.data.cache.caching import Cache, cache_pictures
from hn.data.cache.contexts import Contexts
from hn.data.pictures.checks import check_pictures
from hn.data.pictures.images import read_configured_folder
from hn.diffusion.attention import attach
from hn.diffusion.base_model import BaseModel
from hn.diffusion.surgery.options import ProbeOptions
from hn.diffusion.surgery.sitting import Sitting
from hn.evaluation.fidelity import Acting, Fidelity, judge
from hn.evaluation.paired import Pictures
from hn.network.module import Hypernetwork


@dataclass(frozen=True)
class Workbench:
    """A base model that can be drawn with, and pictures to measure the loss on, if there are."""

    sitting: Sitting
    held_out: Pictures | None

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return self.sitting.base

    def judge(self, stack: Sequence[tuple[Hypernetwork, float]], substitute: Acting) -> Fidelity:
        """How well a substitute does the work of a stack."""
        return judge(
            self.base,
            self.sitting.draw,
            self.held_out,
            lambda: attach(self.base.unet, stack),
            substitute,
        )


def build_workbench(options: ProbeOptions) -> Workbench:
    """Load the base model, and encode the pictures. Raises `ModelError`, `DataError`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = str(demo.MODEL) if options.base == demo.NAME else options.base
    base = BaseModel.load(
        name,
        prediction=options.prediction_type,
        zero_terminal_snr=options.zero_terminal_snr,
        device=device,
    )
    held_out = None
    if options.validation_data_dir is not None:
        held_out = _pictures(base, options.validation_data_dir, options.size)
    return Workbench(Sitting(base, options), held_out)


def _pictures(base: BaseModel, folder: Path, size: tuple[int, int] | None) -> Pictures:
    """A folder's pictures with their captions, in the model's own size if none is given."""
    with TemporaryDirectory(prefix="hn-") as scratch:
        data = DataConfig(
            train_data_dir=str(folder),
            validation_data_dir=str(folder),
            resolution=size or base.own_size,
            latent_cache_dir=scratch,
        )
        config = Config(model=ModelConfig(pretrained_model_name_or_path=base.name), data=data)
        pictures = read_configured_folder(data, "validation_data_dir")
        cache = Cache(Path(scratch))
        check_pictures(pictures, cache.known("validation"))
        index = cache_pictures(
            pictures, build_encoder(config, base, "validation"), cache, "validation"
        )
        latents = latents_of(config, base, index, cache)
        return pictures_of(latents, build_prompts(config, index), Contexts(base))
