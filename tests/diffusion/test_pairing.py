"""A hypernetwork and a base model that do not belong together are named where they meet.

The UNets have the widths of the real families and no memory.
"""

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch

import hn
from hn.diffusion.attending.places import dims_by_place
from hn.diffusion.attention import attention_layers, context_dims
from hn.diffusion.surgery.folding import maps_of
from hn.errors import ModelError
from hn.network import families
from tests import runs, tiny

WIDE = {"block_out_channels": (320, 640, 1280), "attention_head_dim": 8, "norm_num_groups": 32}
WIDE |= {"down_block_types": ("CrossAttnDownBlock2D",) * 3}
WIDE |= {"up_block_types": ("CrossAttnUpBlock2D",) * 3}
XL = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
XL |= {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
CHANGES = {
    "sd1": {**WIDE, "cross_attention_dim": 768},
    "sd2": {**WIDE, "cross_attention_dim": 1024},
    "xl": {**WIDE, **XL, "cross_attention_dim": 2048},
    "refiner": {
        **{**WIDE, **XL, "cross_attention_dim": 1280},
        "block_out_channels": (384, 768, 1536),
    },
}
NAMES = dict(zip(CHANGES, (family.name for family in families.FAMILIES), strict=True))
OWN = {
    "sd1": (768, 320, 640, 1280),
    "sd2": (1024, 320, 640, 1280),
    "xl": (2048, 640, 1280),
    "refiner": (1280, 768, 1536),
}


@pytest.fixture(scope="module")
def unets():
    with torch.device("meta"):
        return {kind: tiny.make_unet(**changes) for kind, changes in CHANGES.items()}


def net(*dims, name="mine"):
    return hn.Hypernetwork.create(dims, layer_structure=(1, 0.01, 1), name=name)


@pytest.mark.parametrize("kind", CHANGES)
def test_the_families_have_the_widths_of_their_unets(unets, kind):
    family = families.of_base(context_dims(unets[kind]))
    assert family is not None
    assert family.name == NAMES[kind]
    assert families.candidates(OWN[kind]) == [family]


@pytest.mark.parametrize("base", CHANGES)
@pytest.mark.parametrize("made_for", OWN)
def test_each_file_fits_its_own_family_and_no_other(unets, base, made_for):
    stack = [(net(*OWN[made_for]), 1.0)]
    if base == made_for:
        with warnings.catch_warnings(action="error"):
            hn.attach(unets[base], stack).detach()
        return
    with pytest.raises(ModelError) as caught:
        hn.attach(unets[base], stack)
    assert f"so it is for {NAMES[made_for]};" in str(caught.value)
    assert f"which is {NAMES[base]}: take" in str(caught.value)
    with pytest.raises(ModelError, match="so it is for"):  # as baking and exporting ask
        there = dims_by_place(attention_layers(unets[base]))
        maps_of([(net(*OWN[made_for]).eval(), 1.0)], there)


@pytest.mark.parametrize("dims", [(768,), (640, 1280), (1280,), (320, 640, 1280)])
def test_a_file_of_some_widths_is_legal(unets, dims):
    with warnings.catch_warnings(action="error"):
        hn.attach(unets["sd1"], [(net(*dims), 1.0)]).detach()


def test_what_is_for_several_or_only_in_part_of_another_is_warned_about(unets):
    with pytest.warns(UserWarning, match=r"no attention of width \[1024\], so they do nothing"):
        hn.attach(unets["sd1"], [(net(*OWN["sd1"], 1024), 1.0)]).detach()
    with pytest.warns(UserWarning, match=r"for Stable Diffusion 1 or Stable Diffusion 2: .*\[320"):
        hn.attach(unets["xl"], [(net(320, 640, 1280), 1.0)]).detach()


def test_a_pipeline_says_what_the_file_was_trained_on(unets, tmp_path):
    theirs = net(*OWN["sd2"])
    theirs.describe(sd_checkpoint_name="v2-1_768")
    hn.save(theirs, tmp_path / "theirs.pt")
    pipe = SimpleNamespace(unet=unets["sd1"])
    with pytest.raises(ModelError, match=r"Stable Diffusion 2 \(trained on v2-1_768\); this base"):
        hn.load_hypernetwork(pipe, tmp_path / "theirs.pt")
    assert hn.loaded_hypernetworks(pipe) == []


@pytest.mark.usefixtures("fresh_accelerate")
def test_training_refuses_it_before_anything_is_loaded(model, pictures, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "base")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, **CHANGES["sd2"]}))
    hn.save(net(*OWN["sd1"]), tmp_path / "mine.pt")
    flags = runs.settings(folder, pictures, tmp_path, hypernetwork_path=tmp_path / "mine.pt")
    flags += ["--layer_structure", "1", "0.01", "1", "--activation_func", "linear"]
    assert runs.train_here([*flags, "--dry_run"]) == 4
    error = capsys.readouterr().err
    assert "dims [768] of" in error
    assert "(320, 640, 1024, 1280), which is Stable Diffusion 2" in error
    assert "are those of Stable Diffusion 1. Leave [768] out" in error
