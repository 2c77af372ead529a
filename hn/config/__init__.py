"""Every setting, in sections: one for each owner, which receives its section only. Standard library
only.

A field's docstring is its help text on the command line. The names are those that users of the
diffusers training scripts type already, flat on the command line, in sections in a TOML file.
"""

from dataclasses import dataclass, field, fields

from hn.config.data import DataConfig
from hn.config.hub import HubConfig
from hn.config.memory import MemoryConfig
from hn.config.sections import (
    ModelConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    TrainingConfig,
    ValidationConfig,
)
from hn.config.speed import SpeedConfig

__all__ = [
    "SECTIONS",
    "Config",
    "DataConfig",
    "HubConfig",
    "MemoryConfig",
    "ModelConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "OutputConfig",
    "SpeedConfig",
    "TrainingConfig",
    "ValidationConfig",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a hypernetwork for a Stable Diffusion model."""

    config: str | None = None
    """A recipe's name (demo) or a TOML file, read before the other flags."""
    model: ModelConfig = field(default_factory=ModelConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    hub: HubConfig = field(default_factory=HubConfig)


SECTIONS = tuple(f.name for f in fields(Config) if f.name != "config")
