"""Pictures as CLIP and DINO see them, where a local model of these is given.

CLIP: the mean cosine between a picture and its prompt (https://arxiv.org/abs/2104.08718, without
its factor). DINO: the mean cosine between a picture and each of the training pictures, as
DreamBooth measures likeness (https://arxiv.org/abs/2208.12242).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPModel

from hn.diffusion.base_model import BaseModel
from hn.errors import ModelError
from hn.evaluation.drawing import pixels

AT_ONCE = 16  # pictures
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Clip:
    """How well pictures go with their prompts."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._model = _loaded(CLIPModel, name, "clip_model").to(device).eval()
        self._tokenizer: Any = _loaded(AutoTokenizer, name, "clip_model")
        self._eye = _Eye(self._model.config.vision_config.image_size, name, _CLIP)

    @torch.no_grad()
    def agreement(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> float:
        """Mean cosine of each picture and the prompt of the same number."""
        device = self._model.device
        words = self._tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        texts = _tensor(self._model.get_text_features(**words.to(device)))
        seen = [
            _tensor(self._model.get_image_features(pixel_values=part.to(device)))
            for part in self._eye.batches(pictures, "CLIP")
        ]
        return float(F.cosine_similarity(torch.cat(seen), texts).mean())


class Dino:
    """How much pictures look like the training pictures."""

    def __init__(self, name: str, base: BaseModel, trained: Tensor) -> None:
        self._model = _loaded(AutoModel, name, "dino_model").to(base.device).eval()
        config = self._model.config
        self._eye = _Eye(getattr(config, "image_size", 224), name, _IMAGENET)
        starts = range(0, len(trained), AT_ONCE)
        shown = [it for start in starts for it in base.decode(trained[start : start + AT_ONCE])]
        self._trained = self._features(shown)

    def likeness(self, pictures: Sequence[Image.Image]) -> float:
        """Mean cosine over all pairs of a picture and a training picture."""
        return float((self._features(pictures) @ self._trained.T).mean())

    @torch.no_grad()
    def _features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (N, D)."""
        device = self._model.device
        found = [
            self._model(pixel_values=part.to(device)).last_hidden_state[:, 0]
            for part in self._eye.batches(pictures, "DINO")
        ]
        return F.normalize(torch.cat(found).float(), dim=-1)


class _Eye:
    """Pictures as a model wants them: the short side resized, the centre, normalised."""

    def __init__(self, side: int, name: str, usual: tuple[Sequence[float], ...]) -> None:
        self._side = side
        written = Path(name) / "preprocessor_config.json"
        known = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
        self._mean = torch.tensor(known.get("image_mean", usual[0])).view(3, 1, 1)
        self._std = torch.tensor(known.get("image_std", usual[1])).view(3, 1, 1)

    def batches(self, pictures: Sequence[Image.Image], what: str) -> list[Tensor]:
        starts = tqdm(range(0, len(pictures), AT_ONCE), what, leave=False)
        return [
            torch.stack([self._seen(it) for it in pictures[start : start + AT_ONCE]])
            for start in starts
        ]

    def _seen(self, picture: Image.Image) -> Tensor:
        scale = self._side / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        left, top = ((length - self._side) // 2 for length in size)
        whole = picture.resize(size, Image.Resampling.BICUBIC)
        cut = whole.crop((left, top, left + self._side, top + self._side))
        return ((pixels(cut) + 1) / 2 - self._mean) / self._std


def _loaded(kind: Any, name: str, setting: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{setting} '{name}' cannot be loaded: {reason} It must be a folder or hub id in the "
            "layout of transformers."
        ) from error


def _tensor(features: Any) -> Tensor:
    """Of one version of transformers a tensor, of another what holds it."""
    return (features if isinstance(features, Tensor) else features.pooler_output).float()
