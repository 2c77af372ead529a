"""What the settings of memory may be, alone and together."""

from hn.config import Config, MemoryConfig


def memory_faults(config: Config) -> list[str]:
    """What cannot work in how memory is saved, one line each."""
    memory = config.memory
    budget = memory.memory_budget_gib
    return [*_sharding_faults(config), *([] if budget is None else _budget_faults(config, budget))]


def _sharding_faults(config: Config) -> list[str]:
    """A UNet that is dealt out gives its weights back between the passes; these would miss them."""
    given = {
        "frozen_aware on": config.memory.frozen_aware == "on",
        "memory_budget_gib": config.memory.memory_budget_gib is not None,
        "quantize_base": config.memory.quantize_base != "none",
        "stack_projections": config.speed.stack_projections,
        "torch_compile": config.speed.torch_compile,
    }
    named = [name for name, on in given.items() if on]
    if not (config.model.shard_base_model and named):
        return []
    return [
        f"shard_base_model does not go with {', '.join(named)}: give one of them; "
        "gradient_checkpointing goes with it"
    ]


def _budget_faults(config: Config, budget: float) -> list[str]:
    memory = config.memory
    if not 0 < budget < float("inf"):
        return [f"memory_budget_gib must be greater than 0; found {budget}"]
    chosen = {
        "gradient_checkpointing": config.training.gradient_checkpointing,
        "frozen_aware": memory.frozen_aware != MemoryConfig().frozen_aware,
    }
    return [
        f"memory_budget_gib chooses {name} by itself: give one of the two"
        for name, given in chosen.items()
        if given
    ]
