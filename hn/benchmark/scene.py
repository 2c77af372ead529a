"""What every contender is given: a UNet, a hypernetwork, a batch, and the problems of each step."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from hn.benchmark.shapes import SHAPES, Shape
from hn.config import ObjectiveConfig
from hn.diffusion.attention import context_dims
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.views import SIZES, View, time_ids
from hn.diffusion.memory.rehearsal import blank_condition
from hn.diffusion.objective import Objective
from hn.diffusion.objective.problem import Noised
from hn.errors import OptionError, shown
from hn.network.module import Hypernetwork

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The same for all: sizes, precision and device. On the device `meta` nothing is computed.

    `resolution` in pixels; `widths` that are trained: all, text, or numbers with commas between.
    """

    shape: Shape
    resolution: int
    batch: int
    precision: Precision
    device: str
    widths: str = "all"

    @property
    def dtype(self) -> torch.dtype:
        """That of the frozen UNet."""
        return DTYPES[self.precision]

    @property
    def granularity(self) -> int:
        """What pixels must be a multiple of, so that the UNet can halve the latents."""
        return self.shape.downscaling * 2 ** (len(self._structure.config["block_out_channels"]) - 1)

    @property
    def network_dtype(self) -> torch.dtype:
        """That of what is trained. Meta tensors are cast beforehand, for want of an autocast."""
        return self.dtype if self.device == "meta" else torch.float32

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The UNet's, shared by all that `make_unet` makes."""
        if self.device == "meta":
            return {}
        if self.shape.folder is not None:
            unet: Any = UNet2DConditionModel.from_pretrained(
                self.shape.folder, subfolder="unet", torch_dtype=self.dtype
            )
            return unet.to(self.device).state_dict()
        with torch.random.fork_rng(), torch.device(self.device), _default(self.dtype):
            torch.manual_seed(SEED)
            return UNet2DConditionModel(**self.shape.config).state_dict()

    def make_unet(self) -> UNet2DConditionModel:
        """A frozen UNet of its own layers, to be changed at will, over the common weights."""
        unet = copy.deepcopy(self._structure)
        if self.weights:
            unet.load_state_dict(self.weights, assign=True)
        return unet.requires_grad_(False).eval()

    def make_network(self) -> Hypernetwork:
        """A new hypernetwork, always the same: the web UI's default, so that all of it learns."""
        network = Hypernetwork.create(self.dims, weight_initialization="Normal", seed=SEED)
        return network.to(self.device, self.network_dtype).train()

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The context widths that are trained.

        Raises `OptionError` for `widths` that are neither words nor those of the UNet.
        """
        there = context_dims(self._structure)
        named = {"all": there, "text": (self._text_width,)}
        if self.widths in named:
            return named[self.widths]
        wanted = self.widths.split(",")
        if not set(wanted) <= set(map(str, there)):
            raise OptionError(
                f"dims must be all, text, or some of {','.join(map(str, there))}; found "
                f"{shown(self.widths)}"
            )
        return tuple(map(int, wanted))

    def problem(self, step: int) -> Noised:
        """What is learnt from in a step."""
        if self.device == "meta":
            return self._blank_problem()
        return self._objective.draw(self._latents, step, list(range(self.batch)))

    def loss(self, prediction: Tensor, problem: Noised) -> Tensor:
        """The loss () of a prediction (B, 4, h, w)."""
        return self._objective.loss(prediction, problem, prediction.new_zeros(()))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """What the precision means to a forward pass."""
        on = self.precision != "fp32" and self.device != "meta"
        kind = torch.device(self.device).type if on else "cpu"
        with torch.autocast(kind, self.dtype if on else torch.bfloat16, enabled=on):
            yield

    @cached_property
    def condition(self) -> Condition:
        """What the UNet is told of each picture."""
        with torch.device("meta"):
            like = blank_condition(
                self._structure, self.batch, self.shape.tokens, torch.get_default_dtype()
            )
        if self.device == "meta":
            return like
        drawn = Condition(context=self._draw(*like.context.shape[1:]))
        if like.pooled is not None:
            views = [View.whole((self.resolution, self.resolution))] * self.batch
            pooled = self._draw(*like.pooled.shape[1:])
            drawn = replace(drawn, pooled=pooled, time_ids=time_ids(views, SIZES))
        return drawn.to(self.device)

    @cached_property
    def _latents(self) -> Tensor:
        side = self.resolution // self.shape.downscaling
        return self._draw(4, side, side)

    def _draw(self, *size: int) -> Tensor:
        """Random numbers (B, *size) on the CPU, or none on meta."""
        if self.device == "meta":
            return torch.empty(self.batch, *size, device="meta")
        return torch.randn(self.batch, *size, generator=torch.Generator().manual_seed(SEED))

    def _blank_problem(self) -> Noised:
        some = self._latents.new_empty(self.batch)
        return Noised(self._latents, some.long(), self._latents, weights=some)

    @cached_property
    def _structure(self) -> UNet2DConditionModel:
        """The UNet without weights."""
        with torch.device("meta"), _default(self.dtype):
            return UNet2DConditionModel(**self._config)

    @property
    def _text_width(self) -> int:
        return int(self._structure.config["cross_attention_dim"])

    @cached_property
    def _objective(self) -> Objective:
        scheduler: Any = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )
        return Objective(
            ObjectiveConfig(),
            scheduler.alphas_cumprod,
            "epsilon",
            seed=SEED,
            global_batch=self.batch,
            device=self.device,
        )

    @cached_property
    def _config(self) -> dict[str, Any]:
        if self.shape.folder is None:
            return self.shape.config
        config: Any = UNet2DConditionModel.load_config(self.shape.folder, subfolder="unet")
        return config


def build_scene(
    model: str,
    *,
    resolution: int | None,
    batch: int | None,
    precision: Precision,
    widths: str,
    device: str | None,
) -> Scene:
    """The scene of a shape by its name; None is the shape's own, and the fastest device.

    Raises `OptionError` for a resolution that the UNet cannot halve, and a device that is not here.
    """
    shape = SHAPES[model]
    if batch is not None and batch < 1:
        raise OptionError(f"batch must be at least 1; found {batch}")
    scene = Scene(
        shape=shape,
        resolution=shape.resolution if resolution is None else resolution,
        batch=batch or shape.batch,
        precision=precision,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        widths=widths,
    )
    if scene.resolution < 1 or scene.resolution % scene.granularity:
        raise OptionError(
            f"resolution must be a multiple of {scene.granularity} for {model}; found {resolution}"
        )
    devices = ["cpu", *(["cuda"] * torch.cuda.is_available())]
    devices += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if scene.device not in devices:
        raise OptionError(f"device must be one of {' '.join(devices)}; found {shown(device)}")
    return scene


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """New weights are made in this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
