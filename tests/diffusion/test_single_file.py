"""A base model in a single file is the same model, whatever it is written as."""

from contextlib import contextmanager

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import hn
from hn.diffusion.base_model import BaseModel
from hn.diffusion.condition import Condition
from hn.diffusion.denoiser import predict
from hn.diffusion.single_file.reading import load_vae
from hn.diffusion.single_file.vocabulary import build_tokenizer
from hn.diffusion.surgery.single_file import TEXT, Names
from hn.diffusion.surgery.tensor_files import TensorFile, write
from hn.errors import ModelError
from hn.network.sidecar import short_hash
from tests import runs

WIDTH = 64  # of the text: one head of CLIP
PROMPTS = ["a red star, from above", ""]


def text_model(activation, layers):
    config = {"hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 1}
    config |= {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    return CLIPTextModel(CLIPTextConfig(**config, num_hidden_layers=layers, hidden_act=activation))


def make_folder(folder, **changes):
    """Small, with what all Stable Diffusions 1 share: 8 heads, groups of 32, their tokenizer."""
    torch.manual_seed(0)
    unet = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 8,
    }
    text = changes.pop("text", None) or text_model("quick_gelu", 2)
    tokenizer = build_tokenizer(changes.pop("padding", "<|endoftext|>"))
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**{**unet, **changes}),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("models") / "folder")


@pytest.fixture(scope="module")
def file(folder):
    """The same as a single file; diffusers reads such files in the tests of baking."""
    path = folder.parent / "mine.safetensors"
    unet = [TensorFile.open(folder / "unet/diffusion_pytorch_model.safetensors")]
    write(path, Names.of(folder).entries(unet, {}), {})
    return path


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


def test_it_may_be_a_ckpt_with_an_average_beside_the_weights(folder, file, tmp_path):
    tensors = load_file(file)
    average = {f"model_ema.{name}": torch.zeros(1) for name in list(tensors)[:3]}
    torch.save({"epoch": 3, "state_dict": tensors | average}, tmp_path / "mine.ckpt")
    base, other = BaseModel.load(str(tmp_path / "mine.ckpt")), BaseModel.load(str(folder))
    assert all(torch.equal(*pair) for pair in zip(answers(base), answers(other), strict=True))


def test_half_precision_and_nine_channels(tmp_path):
    """An inpainting model's file, as they are shared."""
    folder = make_folder(tmp_path / "inpainting", in_channels=9)
    path = tmp_path / "inpainting.safetensors"
    unet = [TensorFile.open(folder / "unet/diffusion_pytorch_model.safetensors")]
    write(path, Names.of(folder).entries(unet, {}), {})
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    base = BaseModel.load(str(path), dtype=torch.float16)
    assert base.unet.config["in_channels"] == 9
    assert base.unet.dtype == base.text_encoder.model.dtype == torch.float16
    assert base.vae.dtype == torch.float32


def open_clip(text):
    """Its tensors, as Stable Diffusion 2 names and joins them, with a last layer nobody reads."""
    state = {name.removeprefix("text_model."): it for name, it in text.state_dict().items()}
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    parts |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for layer in range(3):
        source = f"encoder.layers.{min(layer, 1)}."
        for kind in ("weight", "bias"):
            outer = f"transformer.resblocks.{layer}."
            for ours, theirs in parts.items():
                renamed[f"{outer}{theirs}.{kind}"] = state[f"{source}{ours}.{kind}"]
            joined = [state[f"{source}self_attn.{side}_proj.{kind}"] for side in "qkv"]
            renamed[f"{outer}attn.in_proj_{kind}"] = torch.cat(joined)
    return {f"cond_stage_model.model.{name}": it.clone() for name, it in renamed.items()}


def test_a_stable_diffusion_2_must_be_told_what_it_predicts(tmp_path):
    text = text_model("gelu", 2)
    changes = {"attention_head_dim": (1, 1), "use_linear_projection": True}
    changes |= {"block_out_channels": (64, 64), "padding": "!"}
    folder = make_folder(tmp_path / "two", text=text, **changes)
    names = Names(folder, 1, 4)
    unet = [TensorFile.open(folder / "unet/diffusion_pytorch_model.safetensors")]
    text_config = folder / "text_encoder/config.json"
    kept = text_config.read_text()
    text_config.write_text(kept.replace('"gelu"', '"quick_gelu"'))
    write(tmp_path / "two.safetensors", names.entries(unet, {}), {})
    text_config.write_text(kept)
    tensors = load_file(tmp_path / "two.safetensors")
    tensors = {name: it for name, it in tensors.items() if not name.startswith(TEXT)}
    save_file(tensors | open_clip(text), tmp_path / "two.safetensors")
    with refused("give prediction_type, v_prediction for those of 768 pixels"):
        BaseModel.load(str(tmp_path / "two.safetensors"))
    base = BaseModel.load(str(tmp_path / "two.safetensors"), prediction="v_prediction")
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
    xl = {"conditioner.embedders.0.x": torch.zeros(1)}
    save_file(xl, tmp_path / "xl.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>")
    for name, words in {
        "less": f"is incomplete: it has no {key}",
        "shape": "where its other tensors lead to (64,)",
        "lora": "no Stable Diffusion in a single file, but a LoRA",
        "xl": "Stable Diffusion XL",
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
        load_vae(tmp_path / "alone.safetensors").encoder.conv_in.weight,
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
    assert net.provenance.sd_checkpoint_name == "mine"
    assert net.dims == (32, 64)
    more = ["--max_train_steps", "3", "--resume_from_checkpoint", "latest"]
    assert runs.train_here([*flags, *more]) == 0
