"""From a picture to what training reads of it: keys, moments of its variants, the canvases of these
for an inpainting model, and loss weights.

The key of an entry is the hash of all that it depends on, and of nothing else: the file's content,
what is seen of it, the autoencoder. So one edited picture changes its own entries only, and another
`caption_dropout` none at all.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hn import rng
from hn.config import DataConfig
from hn.data.cache.store import key_of
from hn.data.cache.tensor_files import DTYPES
from hn.data.cache.variants import Encoded, Job, Pixels, Variant, canvas_key, canvas_of
from hn.data.parallel import in_order, thread_count
from hn.data.pictures.decoding import Example, Survey, open_picture, open_with_alpha
from hn.data.pictures.framing import (
    CENTRE,
    Frame,
    Framing,
    loss_weights,
    mask_weights,
    picture_shares,
    to_levels,
    to_tensor,
)
from hn.data.pictures.holes import Hole
from hn.data.pictures.masks import check_mask, read_mask
from hn.diffusion.base_model import BaseModel
from hn.errors import DataError, NumericsError

FORMAT = 2  # of what is in the cache: another one is encoded anew
# The settings that shape latents; all others change nothing in a cache.
SHAPING = (
    "resolution",
    "resize_mode",
    "bucket_step",
    "max_aspect_ratio",
    "no_upscale",
    "native_size",
    "random_crop",
    "crops_per_image",
    "random_flip",
    "use_alpha_weights",
    "use_mask_files",
    "latent_cache_dtype",
)
INPAINTING = ("inpainting_masks", "masks_per_image")  # and those of an inpainting model's


class Encoder:
    """Encodes pictures as the settings say; `framing` says what is seen of them.

    `autoencoder` is its fingerprint, part of every key.
    """

    def __init__(self, base: BaseModel, config: DataConfig, framing: Framing, seed: int) -> None:
        self._base = base
        self._config = config
        self._framing = framing
        self._seed = seed
        self._dtype = DTYPES[config.latent_cache_dtype]
        self.autoencoder = base.vae_fingerprint

    @property
    def variants(self) -> int:
        """How many there are of each picture."""
        crops = self._config.crops_per_image if self._config.random_crop else 1
        return crops * (2 if self._config.random_flip else 1)

    @property
    def weighing(self) -> str | None:
        """What of a picture says how much each place counts, in words."""
        if self._config.use_mask_files:
            return "mask"
        return "alpha" if self._config.use_alpha_weights else None

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes the latents, by the settings' names, as JSON values."""
        names = (*SHAPING, *INPAINTING) if self._base.inpainting else SHAPING
        return json.loads(json.dumps({name: getattr(self._config, name) for name in names}))

    def size_for(self, found: Survey) -> tuple[int, int]:
        """Width and height of what is trained on of a picture."""
        return self._framing.size_for(found.size)

    def variants_of(self, found: Survey) -> list[Variant]:
        """The variants of a picture, the crops first, then their mirror images."""
        frames = self._frames(found)
        mirrored = (False, True) if self._config.random_flip else (False,)
        return [
            Variant(self._key(found, frame, mirror), frame, mirror)
            for mirror in mirrored
            for frame in frames
        ]

    def entries_of(self, found: Survey) -> list[Variant]:
        """All that is encoded of a picture: its variants, then their canvases."""
        variants = self.variants_of(found)
        return variants + self._canvases(found, variants)

    def _canvases(self, found: Survey, variants: Sequence[Variant]) -> list[Variant]:
        """What an inpainting model reads beside each of the variants: as many for all of these,
        those of the first one first. Of other models none.
        """
        if not self._base.inpainting:
            return []
        own, kind = int.from_bytes(found.content[:8], "little"), self._config.inpainting_masks
        holes = [Hole(own, number) for number in range(self._config.masks_per_image)]
        if found.mask is not None and kind in ("files", "both"):
            holes = [Hole(own)]
        return [
            replace(variant, key=canvas_key(variant.key, hole, found.mask), hole=hole)
            for variant in variants
            for hole in holes
        ]

    def encode(self, jobs: Iterable[Job]) -> Iterator[Encoded]:
        """Encode, picture after picture; what cannot be decoded is a fault.

        What is encoded at once is always `vae_batch_size` of one size, padded if need be, so that
        no picture's latents depend on which others are there. Raises `NumericsError` naming a
        picture whose latents are not finite.
        """
        waiting: dict[torch.Size, list[Pixels]] = {}
        for crops in in_order(self._crops, jobs, thread_count()):
            if isinstance(crops, DataError):
                yield Encoded({}, 1, str(crops))
                continue
            done: dict[bytes, Tensor] = {}
            for crop in crops:
                queue = waiting.setdefault(crop.values.shape, [])
                queue.append(crop)
                if len(queue) == self._config.vae_batch_size:
                    done |= self._moments(waiting.pop(crop.values.shape))
            yield Encoded(done, 1)
        for queue in waiting.values():
            yield Encoded(self._moments(queue))

    def weights_key(self, found: Survey) -> bytes | None:
        """The key of a picture's loss weights; None where all places count the same anyway."""
        alpha, mask = self._config.use_alpha_weights, self._mask(found)
        if not alpha and mask is None and self._config.resize_mode != "pad":
            return None
        described = {
            "format": FORMAT,
            "frames": [_described(frame) for frame in self._frames(found)],
            "downscaling": self._base.downscaling,
        }
        read = found.content if alpha else mask or b""
        return key_of("weights", self.weighing or "padding", json.dumps(described), read)

    def weights(self, example: Example, found: Survey) -> Tensor | str:
        """Loss weights (crops, 1, h, w) from what is padding and from a picture's alpha channel or
        its mask; or what is wrong with these: nothing that is seen counts.
        """
        frames = self._frames(found)
        shares = torch.stack([picture_shares(frame, self._cells(frame)) for frame in frames])
        try:
            counts = self._counts(example, found)
        except DataError as error:
            return str(error)
        if counts is None:
            return mask_weights(torch.ones_like(shares), shares)
        levels = torch.stack([to_levels(counts, frame, self._cells(frame)) for frame in frames])
        if levels[shares > 0].any():
            return (mask_weights if self._mask(found) else loss_weights)(levels, shares)
        lowest = "black in its mask" if self._mask(found) else "transparent"
        return (
            f"all that the crop shows is {lowest}. Crop it yourself, set resize_mode to pad or "
            "stretch, or remove it"
        )

    def _counts(self, example: Example, found: Survey) -> Image.Image | None:
        """How much each place of a picture counts, as levels of any size. Raises `DataError`."""
        if self._config.use_alpha_weights:
            return open_with_alpha(example)[1]
        mask = read_mask(example) if self._config.use_mask_files else None
        if mask is None:
            return None
        check_mask(example, mask[1], found.size)
        return mask[1]

    def _mask(self, found: Survey) -> bytes | None:
        """SHA-256 of a picture's mask, if that weighs the loss."""
        return found.mask if self._config.use_mask_files else None

    def _cells(self, frame: Frame) -> tuple[int, int]:
        """Height and width of a frame's latents."""
        width, height = frame.size
        return height // self._base.downscaling, width // self._base.downscaling

    def _frames(self, found: Survey) -> list[Frame]:
        """What is seen of a picture in each of its crops: the centre, or random places.

        The places follow from the picture itself: those of others do not move when one is added.
        """
        places = [CENTRE]
        if self._config.random_crop:
            own = int.from_bytes(found.content[:8], "little")
            draw = rng.python_random(self._seed, "crop", own)
            places = [(draw.random(), draw.random()) for _ in range(self._config.crops_per_image)]
        return [self._framing.frame(found.size, place) for place in places]

    def _key(self, found: Survey, frame: Frame, mirrored: bool) -> bytes:
        described = {
            "format": FORMAT,
            "autoencoder": self.autoencoder,
            "frame": _described(frame),
            "mirrored": mirrored,
            "own_colours": self._config.use_alpha_weights,
            "dtype": self._config.latent_cache_dtype,
        }
        return key_of("moments", json.dumps(described), found.content)

    def _crops(self, job: Job) -> list[Pixels] | DataError:
        """The pixels of each variant; this much runs in threads."""
        own_colours = self._config.use_alpha_weights
        try:
            picture = open_with_alpha(job.example)[0] if own_colours else open_picture(job.example)
            shown = {it.frame: to_tensor(picture, it.frame) for it in job.variants}
            return [self._pixels(job.example, it, shown[it.frame]) for it in job.variants]
        except DataError as error:
            return error

    def _pixels(self, example: Example, variant: Variant, values: Tensor) -> Pixels:
        """What the autoencoder reads for a variant, from what its frame shows (3, H, W)."""
        hole = None if variant.hole is None else variant.hole.mask(example, variant.frame)
        if variant.mirrored:
            values, hole = values.flip(-1), None if hole is None else hole.flip(-1)
        return Pixels(variant.key, example.name, values, hole)

    def _moments(self, queue: Sequence[Pixels]) -> dict[bytes, Tensor]:
        pixels = [it.seen for it in queue]
        padding = pixels[-1:] * (self._config.vae_batch_size - len(pixels))
        moments = self._base.encode_images(torch.stack(pixels + padding))
        both = torch.stack([moments.mean, moments.std], dim=1).to(self._dtype)  # (B, 2, C, h, w)
        done: dict[bytes, Tensor] = {}
        for it, entry in zip(queue, both, strict=False):
            if not entry.isfinite().all():
                raise NumericsError(
                    f"{it.name}: the autoencoder's latents are not finite numbers in "
                    f"{self._config.latent_cache_dtype}"
                )
            done[it.key] = entry.clone() if it.hole is None else canvas_of(it.hole, entry[0])
        return done


def _described(frame: Frame) -> list[Any]:
    return [frame.size, frame.resized, frame.corner, int(frame.resample)]
