"""What the settings of the hypernetwork may be, alone and together."""

from hn.config import Config


def network_faults(config: Config) -> list[str]:
    """What cannot work in what is trained, one line each; blocks only a base model knows."""
    network, faults = config.network, []
    if network.adopt_optimizer != "matching" and network.hypernetwork_path is None:
        faults.append(
            "adopt_optimizer is for the file that hypernetwork_path names; found "
            f"{network.adopt_optimizer} without one"
        )
    limited = {
        "sides": network.sides != "both",
        "train_blocks": bool(network.train_blocks),
        "per_block": network.per_block,
    }
    if config.output.save_optimizer_state and any(limited.values()):
        faults.append(
            "save_optimizer_state writes what goes on in the web UI, which trains both sides in "
            f"all blocks; found {', '.join(name for name, given in limited.items() if given)}"
        )
    return faults
