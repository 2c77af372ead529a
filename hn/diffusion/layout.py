"""What a base model must hold, asked of its folder or of the hub before anything large is read."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hn.errors import ModelError
from hn.hub_access import remedy

SINGLE_FILES = (".safetensors", ".ckpt")
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTED = ("unet", "vae", "text_encoder")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+$")


def is_single_file(name: str) -> bool:
    """Whether it is called like a base model in one file, and not a folder."""
    return Path(name).suffix in SINGLE_FILES and not Path(name).is_dir()


def check_layout(name: str, *, revision: str | None = None, variant: str | None = None) -> None:
    """Refuse early what cannot be a base model. Raises `ModelError`.

    A hub that cannot be reached is no fault yet: the model may have been fetched before. A single
    file says what it is when it is read.
    """
    if is_single_file(name):
        return
    folder = Path(name)
    if folder.is_dir():
        found = [path for part in PARTS for path in (folder / part).glob("*")]
        _check_files(name, [path.relative_to(folder).as_posix() for path in found], variant)
        _check_unet(folder / "unet" / "config.json")
        return
    if folder.exists() or not _HUB_ID.match(name):
        raise ModelError(
            f"pretrained_model_name_or_path '{name}' is neither a folder nor a hub id such as "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5', nor a .safetensors or .ckpt file."
        )
    files = _files_on_hub(name, revision)
    if files is None:
        return
    _check_files(name, files, variant)
    if "unet/config.json" not in files:
        raise ModelError(f"pretrained_model_name_or_path '{name}' has no unet/config.json")
    with _asking(name, revision):
        config = HfApi().hf_hub_download(name, "unet/config.json", revision=revision)
    _check_unet(Path(config))


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


def _check_files(name: str, files: list[str], variant: str | None) -> None:
    missing = [part for part in PARTS if not any(file.startswith(f"{part}/") for file in files)]
    if missing:
        raise ModelError(
            f"pretrained_model_name_or_path '{name}' has no folder {', '.join(missing)}; a "
            f"diffusers model has {', '.join(PARTS)}"
        )
    for part in WEIGHTED if variant else ():
        of_part = [file for file in files if file.startswith(f"{part}/")]
        if not any(f".{variant}." in file or f".{variant}-" in file for file in of_part):
            raise ModelError(
                f"pretrained_model_name_or_path '{name}' has no variant '{variant}' of its {part}; "
                f"it has {', '.join(sorted(of_part))}"
            )


def _check_unet(config: Path) -> None:
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"cannot read {config}: {error}") from error
    if kind != "UNet2DConditionModel":
        raise ModelError(
            f"{config} describes a {kind}; only UNet2DConditionModel has attention of this kind"
        )
