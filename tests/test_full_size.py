"""Stable Diffusion XL at its full size, without its weights: a training step, what it takes."""

import re
from pathlib import Path

import pytest
import torch

from hn import cli
from hn.build.estimates import GIB, MIB, estimate, other_stages, step_of
from hn.diffusion.loading.outline import Outline
from hn.diffusion.memory.plan import Plan, blocks_of
from hn.diffusion.memory.rehearsal import Step, inputs, rehearsal
from hn.network.description import HypernetworkConfig
from tests import full_size, runs

ROW = r"#\s+(\d+) GB\s+(--.*?)?\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)$"
ROWS = re.findall(ROW, (cli.RECIPES / "xl.toml").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder."""
    return full_size.write_xl(tmp_path_factory.mktemp("xl"))


def test_a_unet_of_full_size_passes_a_training_step(whole):
    """In tensors without data: 2.57 billion frozen weights, latents of a picture of 1024 pixels."""
    outline = Outline.read(str(whole))
    assert outline.dims == full_size.XL_DIMS
    assert outline.unet.num_parameters() == full_size.XL_PARAMETERS
    network = HypernetworkConfig(dims=outline.dims, activation_func="mish")
    unet = (whole / "unet" / "config.json").read_text()
    step = Step(unet, network, torch.bfloat16, 1, 128, 128, outline.tokens)
    plan = Plan(frozen_aware=True, blocks=blocks_of(outline.unet))
    with rehearsal(step, plan) as denoiser:
        noisy, timesteps, condition = inputs(step, denoiser.unet)
        assert condition.context.shape == (1, 77, 2048)
        assert condition.pooled is not None
        assert condition.pooled.shape == (1, 1280)
        prediction, _ = denoiser(noisy, timesteps, condition)
        assert prediction.shape == (1, 4, 128, 128)
        prediction.float().square().mean().backward()
        trained = list(denoiser.hypernetwork.parameters())
    assert sum(it.numel() for it in trained) == full_size.XL_TRAINED
    assert all(it.grad is not None and it.grad.shape == it.shape for it in trained)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_dry_run_knows_what_it_takes(whole, pictures, tmp_path, capsys):
    """Parts in MiB: the UNet in bfloat16, both text encoders, the autoencoder in float32."""
    changes = {"resolution": 1024, "mixed_precision": "bf16", "gradient_checkpointing": True}
    flags = runs.settings(whole, pictures, tmp_path / "out", train_batch_size=1, **changes)
    assert runs.train_here([*flags, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "from version 1.5 on" in said  # of the web UI
    told = {line.rsplit(maxsplit=2)[0].strip(): line for line in said.splitlines() if "MiB" in line}
    found = {name: int(line.split()[-2]) for name, line in told.items() if line.endswith("MiB")}
    assert found["base model"] == round(2 * full_size.XL_PARAMETERS / MIB)
    assert found["hypernetwork"] == round(4 * full_size.XL_TRAINED / MIB)
    assert found["optimizer"] == 2 * found["hypernetwork"] - 1  # two moments
    assert 600 <= found["activations"] + found["gradients"] <= 900
    text = 123_060_480 + 694_659_840  # parameters of both, as published
    encoding = 2 * (full_size.XL_PARAMETERS + text) + 4 * 83_653_863
    assert 2000 <= found["encoding pictures takes"] - encoding / MIB <= 3000


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} GB")
def test_the_recipe_fits_the_cards_that_it_names(whole, pictures, row):
    """Each stage takes what the recipe says, and leaves a twentieth of the card."""
    card, flags, *said = row
    names = ["--pretrained_model_name_or_path", str(whole), "--train_data_dir", str(pictures)]
    validation = ["--validation_prompt", *"abcd"]  # as many as are drawn at once
    config = cli.parse(["--config", "xl", *names, *validation, *flags.split()])
    outline = Outline.read(str(whole))
    step = step_of(config, outline, torch.bfloat16)
    plan = Plan(frozen_aware=True, blocks=blocks_of(outline.unet))
    stages = other_stages(config, outline, step, device="cuda")
    taken = [
        estimate(config, outline, step, plan, device="cuda").total / GIB,
        stages["encoding pictures"].total / GIB,
        max(stages[name].total for name in ("drawing previews", "decoding previews")) / GIB,
    ]
    assert [f"{it:.1f}" for it in taken] == said
    assert max(taken) <= 0.95 * int(card)
    assert len(ROWS) == 3
