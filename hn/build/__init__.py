"""The objects of a run, each made from its section of the settings by one `build_` function."""

from hn.build.cached import build_cached
from hn.build.models import (
    build_base_model,
    build_denoiser,
    build_objective,
    build_painter,
    prepare,
)
from hn.build.observers import build_observers
from hn.build.pictures import (
    build_batches,
    build_cache,
    build_datasets,
    build_held_out,
)
from hn.build.plan import plan_in_words
from hn.build.preflight import Ready, build_ready
from hn.build.run import (
    build_checkpoints,
    build_guard,
    build_publisher,
    build_recovery,
    build_reporter,
    build_schedules,
    build_state,
)
from hn.build.start import build_hypernetwork, build_optimizer, build_start
from hn.build.trial import find_learning_rate

__all__ = [
    "Ready",
    "build_base_model",
    "build_batches",
    "build_cache",
    "build_cached",
    "build_checkpoints",
    "build_datasets",
    "build_denoiser",
    "build_guard",
    "build_held_out",
    "build_hypernetwork",
    "build_objective",
    "build_observers",
    "build_optimizer",
    "build_painter",
    "build_publisher",
    "build_ready",
    "build_recovery",
    "build_reporter",
    "build_schedules",
    "build_start",
    "build_state",
    "find_learning_rate",
    "plan_in_words",
    "prepare",
]
