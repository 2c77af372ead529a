"""What a base model must hold, asked of its folder or of the hub before anything large is read."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hn.diffusion.conditions import views
from hn.errors import ModelError
from hn.hub_access import remedy

SINGLE_FILES = (".safetensors", ".ckpt")
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_REFINER = ("unet", "vae", "text_encoder_2", "tokenizer_2", "scheduler")
_XL = (*PARTS, "text_encoder_2", "tokenizer_2")
_WITHOUT_WEIGHTS = ("tokenizer", "tokenizer_2", "scheduler")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+$")


def is_single_file(name: str) -> bool:
    """Whether it is called like a base model in one file, and not a folder."""
    return Path(name).suffix in SINGLE_FILES and not Path(name).is_dir()


@dataclass(frozen=True)
class Layout:
    """Which parts a base model has, each in a folder of its name.

    `zeros_for_empty`: as in `hn.diffusion.loading.parts`, where `model_index.json` says it.
    """

    parts: tuple[str, ...]
    zeros_for_empty: bool | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The text encoders among them, the one that pools last."""
        return tuple(part for part in self.parts if part.startswith("text_encoder"))


def check_layout(name: str, *, revision: str | None = None, variant: str | None = None) -> None:
    """Refuse early what cannot be a base model. Raises `ModelError`.

    A hub that cannot be reached is no fault yet: the model may have been fetched before. A single
    file says what it is when it is read.
    """
    if is_single_file(name):
        return
    folder = Path(name)
    if folder.is_dir():
        files = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    elif folder.exists() or not _HUB_ID.match(name):
        raise ModelError(
            f"pretrained_model_name_or_path '{name}' is neither a folder nor a hub id such as "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5', nor a .safetensors or .ckpt file."
        )
    else:
        files = _files_on_hub(name, revision)
    if files is None:
        return
    config = {}
    if "unet/config.json" in files:
        config = read_config(name, "unet/config.json", revision)
    layout = layout_of(name, revision, config)
    _check_files(name, files, variant, layout.parts)
    if "unet/config.json" not in files:
        raise ModelError(f"pretrained_model_name_or_path '{name}' has no unet/config.json")
    if (kind := config.get("_class_name")) != "UNet2DConditionModel":
        raise ModelError(
            f"unet/config.json of {name} describes a {kind}; only UNet2DConditionModel has "
            "attention of this kind"
        )
    if layout.texts != ("text_encoder",):
        texts = [read_config(name, f"{part}/config.json", revision) for part in layout.texts]
        views.numbers_of(config, texts, name)


def layout_of(name: str, revision: str | None, unet: dict[str, Any] | None = None) -> Layout:
    """That of a folder or hub id, by the configuration of its UNet. Raises `ModelError`.

    A Stable Diffusion XL says in `model_index.json` whether it is the refiner, which lacks the
    first text encoder.
    """
    unet = read_config(name, "unet/config.json", revision) if unet is None else unet
    if unet.get("addition_embed_type") is None:
        return Layout(PARTS)
    index = _read_index(name, revision)
    alone = index.get("text_encoder") == [None, None]
    return Layout(_REFINER if alone else _XL, index.get("force_zeros_for_empty_prompt"))


def read_config(name: str, file: str, revision: str | None) -> dict[str, Any]:
    """A configuration of a folder or hub id. Raises `ModelError`."""
    with _asking(name, revision):
        return parsed(located(name, file, revision))


def located(name: str, file: str, revision: str | None) -> Path:
    """Where a file of a folder or hub id is, once it is fetched. Raises what the hub's library
    raises.
    """
    if Path(name).is_dir():
        return Path(name) / file
    return Path(HfApi().hf_hub_download(name, file, revision=revision))


def parsed(path: Path) -> dict[str, Any]:
    """What a JSON file holds. Raises `ModelError` where it is no configuration."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is no configuration: it holds a {type(found).__name__}")
    return found


def _read_index(name: str, revision: str | None) -> dict[str, Any]:
    """What says which parts there are; nothing where there is none."""
    file = "model_index.json"
    if Path(name).is_dir() and not (Path(name) / file).is_file():
        return {}
    with _asking(name, revision):
        try:
            return parsed(located(name, file, revision))
        except EntryNotFoundError:
            return {}


def reads_canvas(channels: int, latents: int, name: str) -> bool:
    """Whether a UNet that reads so many channels reads a mask and a picture beside the noisy
    latents, which have `latents`: for inpainting. Raises `ModelError` for one that reads any else.
    """
    if channels not in (latents, 1 + 2 * latents):
        raise ModelError(
            f"the UNet of {name} reads {channels} channels, of latents that have {latents}: "
            f"supported are {latents}, and {1 + 2 * latents} of inpainting models. Others are told "
            "what to edit, or how deep it is, which is not trained here"
        )
    return channels != latents


def _files_on_hub(name: str, revision: str | None) -> list[str] | None:
    """The files of a model repository; None where the hub gives no verdict."""
    with _asking(name, revision):
        try:
            return HfApi().list_repo_files(name, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise
        except (HTTPError, OfflineModeIsEnabled):
            pass
    return None


@contextmanager
def _asking(name: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError, HFValidationError) as error:
        at = f" (revision {revision})" if revision else ""
        raise ModelError(
            f"pretrained_model_name_or_path '{name}'{at} cannot be fetched: {remedy(error)}"
        ) from error


def _check_files(name: str, files: list[str], variant: str | None, parts: tuple[str, ...]) -> None:
    missing = [part for part in parts if not any(file.startswith(f"{part}/") for file in files)]
    if missing:
        raise ModelError(
            f"pretrained_model_name_or_path '{name}' has no folder {', '.join(missing)}; a "
            f"diffusers model has {', '.join(parts)}"
        )
    weighted = [part for part in parts if part not in _WITHOUT_WEIGHTS]
    for part in weighted if variant else ():
        of_part = [file for file in files if file.startswith(f"{part}/")]
        if not any(f".{variant}." in file or f".{variant}-" in file for file in of_part):
            raise ModelError(
                f"pretrained_model_name_or_path '{name}' has no variant '{variant}' of its {part}; "
                f"it has {', '.join(sorted(of_part))}"
            )
