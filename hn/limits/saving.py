"""What the settings of checkpoints may be."""

from hn.config import OutputConfig


def saving_faults(output: OutputConfig) -> list[str]:
    """What cannot work in what is kept and gone on from, one line each."""
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
