"""What comes before the objects of a run: its processes, its folder, the embedded demo."""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from hn import cli, demo
from hn.config import Config
from hn.errors import OptionError
from hn.storage import write_bytes
from hn.training.status import Status


def build_accelerator(config: Config) -> Accelerator:
    """Accelerate, checked against what was asked for."""
    training = config.training
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        cpu=not torch.accelerator.is_available(),
        log_with=None if config.output.report_to == "none" else config.output.report_to,
        project_dir=Path(config.output.output_dir) / config.network.name,
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise OptionError("mixed_precision fp16 needs a GPU; on a CPU use bf16 or no")
    if training.expect_world_size not in (None, accelerator.num_processes):
        raise OptionError(
            f"expect_world_size is {training.expect_world_size}, but {accelerator.num_processes} "
            "processes run. On CPUs launch with torchrun --nproc_per_node, since accelerate "
            "launch --cpu starts one only."
        )
    return accelerator


def build_run_folder(config: Config, accelerator: Accelerator) -> Status:
    """The run's folder, proven to be writable, and its status; the main process decides."""
    folder = Path(config.output.output_dir) / config.network.name
    if accelerator.is_main_process:
        finished = [folder / f"{config.network.name}{ending}" for ending in (".pt", ".safetensors")]
        used = [path for path in (folder / "checkpoints", *finished) if path.exists()]
        if used and config.output.resume_from_checkpoint is None:
            raise OptionError(
                f"{folder} holds a run already ({used[0].name}). Go on with it: "
                "--resume_from_checkpoint latest; or choose another --name or --output_dir; or "
                "remove the folder."
            )
        saved = replace(config, output=replace(config.output, resume_from_checkpoint=None))
        write_bytes(folder / "config.toml", cli.to_toml(saved).encode())
    accelerator.wait_for_everyone()
    return Status(folder, main_process=accelerator.is_main_process)


def resolve_demo(config: Config, accelerator: Accelerator, folder: Path) -> Config:
    """Put the embedded model and pictures where the settings say "demo"."""
    model, data = config.model, config.data
    if model.pretrained_model_name_or_path == demo.NAME:
        model = replace(model, pretrained_model_name_or_path=str(demo.MODEL))
    if data.train_data_dir == demo.NAME:
        if accelerator.is_main_process:
            demo.write_pictures(folder / "pictures")
        accelerator.wait_for_everyone()
        train_dir, held_out_dir = folder / "pictures" / "train", folder / "pictures" / "held-out"
        held_out = (
            str(held_out_dir) if data.validation_data_dir == demo.NAME else data.validation_data_dir
        )
        data = replace(data, train_data_dir=str(train_dir), validation_data_dir=held_out)
    return replace(config, model=model, data=data)
