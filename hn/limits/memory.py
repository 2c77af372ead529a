"""What the settings of memory may be, alone and together."""

from hn.config import Config, MemoryConfig


def memory_faults(config: Config) -> list[str]:
    """What cannot work in how memory is saved, one line each."""
    memory = config.memory
    budget = memory.memory_budget_gib
    if budget is None:
        return []
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
