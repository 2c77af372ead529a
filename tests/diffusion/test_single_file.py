"""A base model in a single file is the same model, whatever it is written as."""

from contextlib import contextmanager

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

import hn
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.denoiser import predict
from hn.diffusion.single_file.reading import load_vae
from hn.diffusion.single_file.vocabulary import build_tokenizer
from hn.errors import ModelError
from hn.network.sidecar import short_hash
from tests import runs, single_files

PROMPTS = ["a red star, from above", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return single_files.make_one(tmp_path_factory.mktemp("models") / "folder")


@pytest.fixture(scope="module")
def file(folder):
    """The same as a single file; diffusers reads such files in the tests of families."""
    return single_files.as_file(folder)


def answers(base):
    """What its parts compute: contexts, latents, a prediction."""
    draw = torch.Generator().manual_seed(1)
    contexts = Condition.join(base.encode_prompts(PROMPTS)).context
    latents = base.encode_images(torch.rand(2, 3, 64, 64, generator=draw) * 2 - 1).mean
    with torch.no_grad():
        noisy = torch.randn(2, base.unet.config["in_channels"], 8, 8, generator=draw)
        prediction = predict(base.unet, noisy, torch.tensor([5, 900]), Condition(context=contexts))
    return contexts, latents, prediction


@contextmanager
def refused(words):
    with pytest.raises(ModelError) as caught:
        yield
    assert words in str(caught.value)


def test_it_computes_what_its_folder_computes(folder, file):
    alike = zip(
        answers(BaseModel.load(str(file))), answers(BaseModel.load(str(folder))), strict=True
    )
    assert all(torch.equal(*pair) for pair in alike)
    assert BaseModel.load(str(file)).unet.config["down_block_types"][1] == "DownBlock2D"


def test_it_may_be_an_old_ckpt_with_an_average_beside_the_weights(folder, file, tmp_path):
    """The text encoder by the names that it had before transformers nested it."""
    tensors = {name.replace(".text_model.", "."): it for name, it in load_file(file).items()}
    average = {f"model_ema.{name}": torch.zeros(1) for name in list(tensors)[:3]}
    torch.save({"epoch": 3, "state_dict": tensors | average}, tmp_path / "mine.ckpt")
    base, other = BaseModel.load(str(tmp_path / "mine.ckpt")), BaseModel.load(str(folder))
    assert all(torch.equal(*pair) for pair in zip(answers(base), answers(other), strict=True))


def test_half_precision_and_nine_channels(tmp_path):
    """An inpainting model's file, as they are shared."""
    path = single_files.as_file(single_files.make_one(tmp_path / "inpainting", in_channels=9))
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    base = BaseModel.load(str(path), dtype=torch.float16)
    assert base.unet.config["in_channels"] == 9
    assert base.unet.dtype == base.text_encoder.model.dtype == torch.float16
    assert base.vae.dtype == torch.float32


def test_a_stable_diffusion_2_must_be_told_what_it_predicts(tmp_path):
    folder = single_files.make_two(tmp_path / "two")
    path = single_files.as_file(folder)
    with refused("give prediction_type, v_prediction for those of 768 pixels"):
        BaseModel.load(str(path))
    base = BaseModel.load(str(path), prediction="v_prediction")
    other = BaseModel.load(str(folder), prediction="v_prediction")
    assert base.prediction == other.prediction == "v_prediction"
    for ours, theirs in zip(answers(base), answers(other), strict=True):
        assert torch.equal(ours, theirs)


def test_the_tokenizer_is_that_of_clip():
    """Numbers that every Stable Diffusion was trained with."""
    tokenizer = build_tokenizer()
    ids = tokenizer("a photo of an astronaut riding a horse on mars").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)


def test_what_is_no_base_model_is_named(file, tmp_path):
    tensors = load_file(file)
    key = "model.diffusion_model.middle_block.1.norm.weight"
    shape = tensors | {key: torch.zeros(7)}
    save_file(
        {name: it for name, it in tensors.items() if name != key}, tmp_path / "less.safetensors"
    )
    save_file(shape, tmp_path / "shape.safetensors")
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file(
        {name: it for name, it in tensors.items() if not name.startswith("cond")},
        tmp_path / "mute.safetensors",
    )
    extra = key.replace("norm.weight", "scale_weight")
    save_file(tensors | {extra: torch.ones(1)}, tmp_path / "more.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>")
    for name, words in {
        "less": f"is incomplete: it has no {key}",
        "shape": "where its other tensors lead to (64,)",
        "lora": "no Stable Diffusion in a single file, but a LoRA",
        "mute": "a UNet without the text encoders of its kind",
        "more": f"1 tensors of its UNet have no place in a Stable Diffusion, the first is {extra}",
        "page": "cannot read",
        "gone": "cannot read",
    }.items():
        with refused(words):
            BaseModel.load(str(tmp_path / f"{name}.safetensors"))


def test_another_autoencoder_from_anywhere(folder, file, tmp_path):
    torch.manual_seed(3)
    config = AutoencoderKL.load_config(folder / "vae")
    other = AutoencoderKL.from_config(config)
    other.save_pretrained(tmp_path / "vae")
    own = BaseModel.load(str(folder)).vae_fingerprint
    from_folder = BaseModel.load(str(file), vae=str(tmp_path / "vae"))
    assert from_folder.vae_fingerprint != own
    assert BaseModel.load(str(file), vae=str(file)).vae_fingerprint == own
    prefix = "first_stage_model."
    alone = {k.removeprefix(prefix): v for k, v in load_file(file).items() if k.startswith(prefix)}
    save_file(alone, tmp_path / "alone.safetensors")
    assert torch.equal(
        load_vae(tmp_path / "alone.safetensors", 1.0).encoder.conv_in.weight,
        BaseModel.load(str(folder)).vae.encoder.conv_in.weight,
    )
    with refused("pretrained_vae_model_name_or_path"):
        BaseModel.load(str(file), vae=str(tmp_path / "vae" / "gone"))


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_with_a_single_file_notes_its_hash(file, pictures, tmp_path):
    flags = runs.settings(file, pictures, tmp_path, max_train_steps=2, resolution=64)
    assert runs.train_here(flags) == 0
    net = hn.load(tmp_path / "run/run.pt")
    assert net.provenance.sd_checkpoint == short_hash(file)
    assert net.provenance.sd_checkpoint_name == "folder"
    assert net.dims == (32, 64)
    more = ["--max_train_steps", "3", "--resume_from_checkpoint", "latest"]
    assert runs.train_here([*flags, *more]) == 0
