"""The processes of a run, as the data know them."""

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hn.config import Config
from hn.data.batches import Layout
from hn.data.cache.workers import Workers


def build_layout(config: Config, accelerator: Accelerator) -> Layout:
    """How the global batch is dealt out to them."""
    return Layout(
        batch_size=config.training.train_batch_size,
        accumulation=config.training.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def build_workers(accelerator: Accelerator) -> Workers:
    """How they share the making of a cache."""
    return Workers(
        accelerator.num_processes,
        accelerator.process_index,
        lambda value: broadcast_object_list([value])[0],
        accelerator.wait_for_everyone,
    )
