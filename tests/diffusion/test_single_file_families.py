"""Single files of every family: written and read to the bit, inferred as they were published."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import hn
from hn.diffusion.attention import attention_layers
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions.condition import Condition
from hn.diffusion.conditions.views import View
from hn.diffusion.denoiser import predict
from hn.diffusion.loading.outline import Outline
from hn.diffusion.single_file import reading
from hn.diffusion.single_file.architecture import Architecture
from hn.diffusion.single_file.names import UNET, UNetNames
from hn.diffusion.single_file.source import Source
from hn.diffusion.single_file.texts import in_open_clip
from hn.diffusion.surgery.baking import layers_in
from hn.errors import ModelError
from hn.network.sidecar import short_hash
from tests import runs, single_files

PIPELINES = {"xl": StableDiffusionXLPipeline, "refiner": StableDiffusionXLImg2ImgPipeline}
TEXTS = ("text_encoder", "text_encoder_2")


def load(path, prediction=None, dtype=torch.float32):
    return reading.load(path, quantisation="none", dtype=dtype, prediction=prediction)


def same(ours, theirs):
    first, second = ours.state_dict(), theirs.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("kind", single_files.MAKERS)
def test_a_file_holds_what_its_folder_holds_for_us_and_for_diffusers(families, kind):
    folder = families[kind]
    path = single_files.as_file(folder)
    pipeline = PIPELINES.get(kind, StableDiffusionPipeline)
    truth = pipeline.from_pretrained(folder)
    ours = load(path, "epsilon")
    theirs = pipeline.from_single_file(path, config=str(folder), local_files_only=True)
    for part in ("unet", "vae", *TEXTS):
        expected = getattr(truth, part, None)
        for found in (getattr(ours, part), getattr(theirs, part, None)):
            assert (found is None) == (expected is None), part
            assert expected is None or same(found, expected), part
    assert ours.vae.config["scaling_factor"] == truth.vae.config["scaling_factor"]
    for name in ("tokenizer", "tokenizer_2"):
        given, expected = getattr(ours, name), getattr(truth, name, None)
        if expected is not None:
            assert given("a star", padding="max_length").input_ids == (
                expected("a star", padding="max_length").input_ids
            )
    outline = Outline.read(str(path), prediction="epsilon")
    assert outline.unet.config["cross_attention_dim"] == truth.unet.config["cross_attention_dim"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["xl", "refiner"])
def test_a_run_reads_and_is_told_the_same(families, kind):
    answers = []
    for path in (families[kind], single_files.as_file(families[kind])):
        base = BaseModel.load(str(path))
        texts = Condition.join(base.encode_prompts(["a red star", ""]))
        condition = base.tell(texts, [View.whole((64, 64))] * 2)
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        prediction = predict(base.unet, noisy, torch.tensor([5, 900]), condition)
        answers.append((prediction, condition.time_ids, base.negative(texts[1:], "").context))
    assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))


def test_a_stable_diffusion_xl_for_inpainting_in_half_precision(tmp_path):
    path = single_files.as_file(single_files.make_xl(tmp_path / "xl", in_channels=9))
    save_file({name: it.half() for name, it in load_file(path).items()}, path)
    parts = load(path, dtype=torch.float16)
    assert parts.unet.config["in_channels"] == 9
    assert {parts.unet.dtype, parts.text_encoder.dtype, parts.text_encoder_2.dtype} == {
        torch.float16
    }
    assert parts.vae.dtype == torch.float32  # in half precision its activations overflow


def test_a_stable_diffusion_2_may_be_called_as_xl_is(families, tmp_path):
    """As SD Turbo was published."""
    tensors = load_file(single_files.as_file(families["2"]))
    names = {
        name: name.replace("cond_stage_model.", "conditioner.embedders.0.") for name in tensors
    }
    path = tmp_path / "turbo.safetensors"
    save_file({names[name]: it for name, it in tensors.items()}, path)
    truth = CLIPTextModel.from_pretrained(families["2"], subfolder="text_encoder")
    assert same(load(path, "epsilon").text_encoder, truth)
    with pytest.raises(ModelError, match="give prediction_type"):
        load(path)


def test_what_it_predicts_is_in_the_file_where_its_folder_says_so(tmp_path):
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path = single_files.as_file(single_files.make_two(tmp_path / "v", **scheduler))
    assert {"v_pred", "ztsnr"} <= load_file(path).keys()
    found = load(path).scheduler
    assert (found.config["prediction_type"], found.alphas_cumprod[-1]) == ("v_prediction", 0)
    forced = DDIMScheduler(**reading.read_architecture(path, "epsilon").scheduler)
    assert (forced.config["prediction_type"], forced.alphas_cumprod[-1] > 0) == ("epsilon", True)


def test_what_it_predicts_may_be_in_the_header(families, tmp_path):
    tensors = load_file(single_files.as_file(families["2"]))
    path = tmp_path / "said.safetensors"
    for key, said, expected in (
        ("modelspec.prediction_type", "v", "v_prediction"),
        ("modelspec.predict_key", "epsilon", "epsilon"),
    ):
        save_file(tensors, path, {key: said})
        assert reading.read_architecture(path, None).scheduler["prediction_type"] == expected
    save_file(tensors, path, {"modelspec.prediction_type": "rectified flow"})
    with pytest.raises(ModelError, match="says that it predicts 'rectified flow'; known are"):
        reading.read_architecture(path, None)
    save_file(tensors | {"edm_vpred.sigma_max": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="continuous noise levels"):
        reading.read_architecture(path, "v_prediction")


# What the families that were published with these models say.
LINEAR = {"use_linear_projection": True}
FOUR = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768}
FOUR |= {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]}
FOUR |= {"up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "sample_size": 64}
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "sample_size": 128}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
BIG_G |= {"num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP_L |= {"num_attention_heads": 12, "hidden_act": "quick_gelu"}
OPEN_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
OPEN_H |= {"num_attention_heads": 16, "hidden_act": "gelu"}
THREE = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
PUBLISHED = {
    "1.5 inpainting": (
        FOUR | {"attention_head_dim": 8, "in_channels": 9},
        {"text_encoder": ("cond_stage_model.transformer.", CLIP_L)},
    ),
    "2.1": (
        FOUR
        | LINEAR
        | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96}
        | {"upcast_attention": True},
        {"text_encoder": ("cond_stage_model.model.", OPEN_H)},
    ),
    "XL inpainting": (
        THREE | LINEAR | ADDED | {"in_channels": 9},
        {
            "text_encoder": ("conditioner.embedders.0.transformer.", CLIP_L),
            "text_encoder_2": ("conditioner.embedders.1.model.", BIG_G),
        },
    ),
    "XL refiner": (
        REFINER | LINEAR | ADDED,
        {"text_encoder_2": ("conditioner.embedders.0.model.", BIG_G)},
    ),
}


def text_tensors(prefix, config):
    """Those of a file, of full size and without memory."""
    kind = CLIPTextModelWithProjection if "projection_dim" in config else CLIPTextModel
    with torch.device("meta"):
        state = kind(CLIPTextConfig(**config)).state_dict()
    if config["hidden_act"] == "quick_gelu":
        return {f"{prefix}text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
    found = {}
    for name, tensor in state.items():
        place = in_open_clip(name.removeprefix("text_model."))
        if place.third is None:
            found[prefix + place.name] = tensor
        else:
            found[prefix + place.name] = torch.cat([tensor] * 3)
    if "projection_dim" not in config:  # a last layer that nobody reads
        last = f"resblocks.{config['num_hidden_layers'] - 1}."
        after = f"resblocks.{config['num_hidden_layers']}."
        found |= {k.replace(last, after): v for k, v in found.items() if last in k}
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_of_full_size_is_what_was_published(families, name):
    config, texts = PUBLISHED[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    names = UNetNames.of(2, unet.state_dict())
    tensors = {UNET + names(name): it for name, it in unet.state_dict().items()}
    back = convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config))
    assert back.keys() == unet.state_dict().keys()
    places = layers_in(tensors)
    folded = layers_in(unet.state_dict())
    assert all(places[UNET + names(name)] == place for name, place in folded.items())
    for prefix, text in texts.values():
        tensors |= text_tensors(prefix, text)
    vae = load_file(single_files.as_file(families["1"]))
    tensors |= {name: it for name, it in vae.items() if name.startswith("first_stage_model.")}
    given = "v_prediction" if name == "2.1" else None
    found = Architecture.of(Source(Path(name), tensors, {}), given)
    assert {part: found.texts[part] | text for part, (_, text) in texts.items()} == found.texts
    different = {key for key, value in config.items() if found.unet[key] != value}
    assert different <= {"transformer_layers_per_block"}  # of levels without any
    with torch.device("meta"):
        ours = UNet2DConditionModel.from_config(found.unet)
    shapes = {name: it.shape for name, it in ours.state_dict().items()}
    assert shapes == {name: it.shape for name, it in unet.state_dict().items()}
    assert {name: it.heads for name, it in attention_layers(ours).items()} == {
        name: it.heads for name, it in attention_layers(unet).items()
    }


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_with_a_stable_diffusion_xl_in_a_file(families, pictures, tmp_path):
    path = single_files.as_file(families["xl"])
    flags = runs.settings(
        path, pictures, tmp_path, max_train_steps=2, resolution=64, validation_prompt="a star",
        validation_inference_steps=2,
    )  # fmt: skip
    assert runs.train_here(flags) == 0
    net = hn.load(tmp_path / "run/run.pt")
    assert (net.dims, net.provenance.sd_checkpoint_name) == ((64, 192), "xl")
    assert net.provenance.sd_checkpoint == short_hash(path)
    assert (tmp_path / "run/previews/step-00000002.png").is_file()
