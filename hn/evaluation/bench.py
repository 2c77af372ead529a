"""What an evaluation works with: the base model, its pictures, and hypernetworks one at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from hn.data.cache.contexts import Contexts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.denoiser import Denoiser
from hn.evaluation import paired
from hn.evaluation.drawing import Studio
from hn.evaluation.paired import Pictures, Predict
from hn.network.module import Hypernetwork

TRAINED = 64  # training pictures whose loss is measured
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is measured.

    `samples` are draws of noise and timestep for each picture, a multiple of `paired.BANDS`.
    `prompts` are those of the sweep; empty: the run's own. `captions`: so many training captions
    are drawn with, and as many held-out ones.
    """

    samples: int = 16
    strengths: Sequence[float] = STRENGTHS
    prompts: Sequence[str] = ()
    captions: int = 8
    seeds: int = 2
    clip_model: str | None = None
    dino_model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The base model and the pictures of a run; either kind of these may be missing."""

    base: BaseModel
    contexts: Contexts
    studio: Studio
    held_out: Pictures | None
    trained: Pictures | None
    seed: int
    options: Options = field(default_factory=Options)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents of drawn pictures."""
        width, height = self.studio.config.data.size
        return height // self.base.downscaling, width // self.base.downscaling

    @contextmanager
    def reading(self, net: Hypernetwork, strength: float = 1.0) -> Iterator[Predict]:
        """The UNet reads through `net` for a while; at strength 0 as the base model."""
        denoiser = Denoiser(self.base.unet, net.to(self.base.device))
        try:
            with denoiser.attachment.at_strength(strength):
                yield denoiser.predict
        finally:
            denoiser.attachment.detach()

    def losses(self, pictures: Pictures, predict: Predict, what: str) -> Tensor:
        """The loss (N, samples) of every draw, as the UNet reads now."""
        samples = self.options.samples
        return paired.losses(pictures, predict, self.base, self.seed, samples, what)
