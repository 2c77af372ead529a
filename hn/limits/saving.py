"""What the settings of checkpoints may be."""

from dataclasses import fields

from hn.config import Config, DataConfig, ObjectiveConfig, OutputConfig
from hn.errors import meant, shown

_WHERE = ("_dir", "_folders", "_name", "_column")  # ends of settings that say where pictures lie
OF_INPAINTING = ("inpainting_masks", "masks_per_image")
OF_DATA = tuple(
    field.name
    for field in fields(DataConfig)
    if not field.name.endswith(_WHERE)
    # what is left out of the pictures, their digest knows
    # what only inpainting models have is compared where it is given
    if field.name not in ("vae_batch_size", "on_bad_image", "min_side", *OF_INPAINTING)
)
OF_OBJECTIVE = tuple(field.name for field in fields(ObjectiveConfig))
OF_OPTIMIZER = ("optimizer", "optimizer_args", "use_8bit_adam", "width_learning_rates")
CHANGEABLE = (
    *("base_model", "vae", "prediction_type", "zero_terminal_snr", "prompt_syntax", "clip_skip"),
    *("pictures", "global_batch", "seed"),
    *("train_batch_size", *OF_DATA, *OF_INPAINTING, *OF_OBJECTIVE),
)
FIXED = {
    "structure": "the weights are of it",
    **dict.fromkeys(OF_OPTIMIZER, "the optimizer's saved state is of it, and would win"),
    "use_ema": "the average is of all steps",
    "processes": "each has its own place in the stream",
    "streaming": "a place in a stream is none in a folder",
}
_OF_STREAMS = ("pictures", "global_batch", "shuffle_buffer", "train_batch_size")


def saving_faults(config: Config) -> list[str]:
    """What cannot work in what is kept and gone on from, one line each."""
    return [*_retention_faults(config.output), *_change_faults(config)]


def _change_faults(config: Config) -> list[str]:
    faults = []
    fixed = dict(FIXED)
    if config.data.streaming:
        fixed |= dict.fromkeys(_OF_STREAMS, "where a stream goes on depends on it")
    for name in config.output.allow_change:
        if name in fixed:
            faults.append(f"allow_change {name}: it cannot change, since {fixed[name]}")
        elif name not in CHANGEABLE:
            faults.append(
                f"allow_change {shown(name)} is none of what a checkpoint is compared by"
                f"{meant(name, CHANGEABLE)}: {', '.join(sorted(CHANGEABLE))}"
            )
    return faults


def _retention_faults(output: OutputConfig) -> list[str]:
    faults = []
    limit, keep_every = output.checkpoints_total_limit, output.keep_every
    if limit is not None and limit < 2:
        faults.append(f"checkpoints_total_limit must be at least 2; found {limit}")
    if keep_every is not None and limit is None:
        faults.append(
            f"keep_every {keep_every} is for checkpoints_total_limit; without one all are kept"
        )
    every = output.checkpointing_steps
    if keep_every is not None and (keep_every < 1 or not every or keep_every % every):
        faults.append(
            "keep_every must be a multiple of checkpointing_steps, since no others are saved; "
            f"found {keep_every} and {every}"
        )
    return faults
