"""What `accelerate launch` may be configured to, and which settings that stands for."""

import os
from dataclasses import replace

from hn.config import Config
from hn.errors import OptionError, shown

# What has no effect here, and what has.
REFUSED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is for language models: launch with "
    "accelerate_configs/ddp.yaml",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params: leave it out, and start more processes, which "
    "share the base model",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing: give --gradient_checkpointing "
    "instead",
}
# Of DeepSpeed's: accelerate's name, and what is to be done instead where it is given.
_OFFLOADED = "leave it out, and start more processes, which share what is dealt out"
REFUSED_OF_DEEPSPEED = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("offload_optimizer_device", _OFFLOADED),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("offload_param_device", _OFFLOADED),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": (
        "deepspeed_config_file",
        "leave it out: beside zero_stage, what it says follows from our settings",
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "gradient_accumulation_steps",
        "give --gradient_accumulation_steps instead",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": (
        "gradient_clipping",
        "give --clip_grad_mode norm --clip_grad_value instead",
    ),
}
STAGES = ("2", "3")


def as_launched(config: Config) -> Config:
    """With what the configuration of `accelerate launch` asks for. Raises `OptionError`.

    Its FSDP would deal out what is trained, which is small here; what is large is the base model.
    """
    faults = [why for name, why in REFUSED.items() if os.environ.get(name) == "true"]
    model, optimizer = config.model, config.optimizer
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        model = replace(model, shard_base_model=True)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        faults += _deepspeed_faults(stage)
        model = replace(model, shard_base_model=model.shard_base_model or stage == "3")
        optimizer = replace(optimizer, shard_optimizer=True)
    if faults:
        raise OptionError(f"accelerate's configuration cannot be followed. {faults[0]}")
    return replace(config, model=model, optimizer=optimizer)


def _deepspeed_faults(stage: str) -> list[str]:
    faults = [] if stage in STAGES else [f"zero_stage must be 2 or 3; found {shown(stage)}"]
    given = {name: os.environ.get(name, "none") for name in REFUSED_OF_DEEPSPEED}
    return faults + [
        f"deepspeed_config's {name} is {shown(given[variable])}: {remedy}"
        for variable, (name, remedy) in REFUSED_OF_DEEPSPEED.items()
        if given[variable] != "none"
    ]
