"""What the settings of inpainting may be; whether the base model does any, it says itself."""

from hn.config import Config, DataConfig


def inpainting_faults(config: Config) -> list[str]:
    """What cannot work in masks for an inpainting base model, one line each."""
    data, validation, default = config.data, config.validation, DataConfig().masks_per_image
    faults, kind, count = [], data.inpainting_masks, data.masks_per_image
    if count < 1:
        faults.append(f"masks_per_image must be at least 1; found {count}")
    if kind in ("files", "both") and data.dataset_name:
        faults.append(
            f"inpainting_masks {kind} reads files beside the pictures of a folder; found "
            f"dataset_name {data.dataset_name}: give random, or a folder"
        )
    if count != default and kind == "files":
        faults.append(f"masks_per_image {count} is for random masks; found inpainting_masks files")
    if count != default and data.streaming:
        faults.append(
            f"masks_per_image {count} is for pictures that are encoded once; with streaming every "
            "sample has a new mask: leave it out"
        )
    if (validation.validation_image is None) != (validation.validation_mask is None):
        faults.append("validation_image and validation_mask go together: give both or none")
    elif validation.validation_image is not None and not validation.validation_prompt:
        faults.append("validation_image is painted into by validation_prompt: give some")
    return faults
