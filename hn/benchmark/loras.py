"""The step of a LoRA on the same UNet, for comparison: as this project would train it, and as
diffusers' script does with its stock flags, which encodes pictures and captions anew in every step
and reads the loss twice.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from hn.benchmark.contender import Contender
from hn.benchmark.scene import SEED, Scene
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import predict
from hn.evaluation import lora

RANK = 4
LEVELS = (128, 256, 512, 512)  # channels of SD's autoencoder
HEAD = 64  # width of a head of CLIP's
LAYERS = 12


class Encoders(nn.Module):
    """An autoencoder and text encoders of SD's size, with random weights, in the UNet's precision.

    They have the scene's widths, and as many pictures and captions as it has.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        levels = LEVELS[-(scene.shape.downscaling.bit_length()) :]
        width, tokens = scene.condition.context.shape[-1], scene.shape.tokens
        autoencoder: Any = AutoencoderKL  # its annotations know one level only
        with torch.device(scene.device):
            self.vae = autoencoder(
                block_out_channels=levels,
                down_block_types=("DownEncoderBlock2D",) * len(levels),
                up_block_types=("UpDecoderBlock2D",) * len(levels),
                layers_per_block=2,
            )
            self.texts = nn.ModuleList(
                _text_model(*text, tokens) for text in scene.shape.texts or [(width, LAYERS)]
            )
            size = (scene.batch, 3, scene.resolution, scene.resolution)
            self.pixels = torch.zeros(size, dtype=scene.dtype)
            self.words = torch.zeros((scene.batch, tokens), dtype=torch.long)
        self.to(scene.dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Encode both; the contexts (B, T, D) are used."""
        self.vae.encode(self.pixels).latent_dist.sample()
        return torch.cat([text(self.words).last_hidden_state for text in self.texts], -1)


def _text_model(width: int, layers: int, tokens: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=max(1, width // HEAD),
            num_hidden_layers=layers,
            max_position_embeddings=tokens,
        )
    )


def loras(scene: Scene, rank: int | None = None) -> Contender:
    """Of that rank, or of as many parameters as the hypernetwork."""
    unet = scene.make_unet()
    if rank is None:
        rank = lora.rank_of(unet, sum(p.numel() for p in scene.make_network().parameters()))

    return Contender(scene, partial(predict, unet), _added(scene, unet, rank))


def stock(scene: Scene) -> Contender:
    """Latents are encoded for what that costs; learnt are the problems that all have."""
    unet, encoders = scene.make_unet(), Encoders(scene)

    def forward(noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return predict(unet, noisy, timesteps, replace(condition, context=encoders()))

    frozen = list(encoders.parameters())
    return Contender(scene, forward, _added(scene, unet, RANK), frozen=frozen, loss_reads=2)


def _added(scene: Scene, unet: UNet2DConditionModel, rank: int) -> list[nn.Parameter]:
    """A new LoRA's parameters, in the precision of what is trained."""
    lora.check_installed()
    parameters = lora.add(unet, rank, SEED)
    for parameter in parameters:
        parameter.data = parameter.data.to(scene.device, scene.network_dtype)
    return parameters
