"""A tiny base model that paints into pictures, through everything."""

import json
import shutil
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image

import hn
from hn.config import DataConfig
from hn.data.cache.caching import verify
from hn.data.cache.encoding import Encoder
from hn.data.cache.latents import Latents
from hn.data.pictures.decoding import survey
from hn.data.pictures.framing import Framing
from hn.data.pictures.images import examples_of, load_examples
from hn.diffusion.base_model import BaseModel
from hn.diffusion.conditions import inpainting
from hn.diffusion.pipeline import Painter
from hn.errors import DataError, ModelError
from tests import caches, runs, streamed, tiny
from tests.data import test_streaming
from tests.surgery import nets

SIZE = (16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_inpainting_model(tmp_path_factory.mktemp("inpainting") / "base")


@pytest.fixture(scope="module")
def base(folder):
    return BaseModel.load(str(folder))


@pytest.fixture(scope="module")
def with_masks(tmp_path_factory):
    """Six pictures, of which all but the last have masks: their right halves are to be painted."""
    pictures = tiny.make_pictures(tmp_path_factory.mktemp("masks") / "set")
    mask = Image.new("L", (20, 16))
    mask.paste(255, (10, 0, 20, 16))
    for number in range(5):
        mask.save(pictures / f"{number}.mask.png")
    return pictures


def data(pictures, **changes) -> DataConfig:
    return DataConfig(
        train_data_dir=str(pictures), **{"resolution": (16,), "masks_per_image": 2} | changes
    )


def encoded(base, settings, cache) -> Latents:
    latents = caches.encode(cache, load_examples(settings), base, settings)
    return Latents(latents.index, caches.Store(cache / "tensors"), "once", 0, inpainting=True)


def pipeline(folder) -> Any:
    pipe: Any = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.vae_scale_factor = 2
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("blank", [True, False])
def test_pictures_are_those_of_diffusers(folder, base, blank, guidance):
    """Of all of a grey picture, and of a part of one, with and without guidance."""
    draw = torch.Generator().manual_seed(1)
    pixels, masks = torch.zeros(1, 3, *SIZE), torch.ones(1, 1, *SIZE)
    if not blank:
        pixels, masks = torch.rand(pixels.shape, generator=draw) * 2 - 1, masks.clone()
        masks[..., :6] = 0
    canvas = inpainting.encode(base, pixels, masks)
    prompt, negative = base.encode_prompts(["a star", "blue"])
    painter = Painter(
        base, prompt, negative, size=SIZE, steps=3, guidance_scale=guidance, seed=4,
        canvas=None if blank else canvas,
    )  # fmt: skip
    expected = pipeline(folder)(
        image=pixels,
        mask_image=masks,
        masked_image_latents=canvas[:, 1:],
        prompt_embeds=prompt.context,
        negative_prompt_embeds=negative.context,
        generator=torch.Generator().manual_seed(4),
        guidance_scale=guidance,
        num_inference_steps=3,
        width=16,
        height=16,
        output_type="latent",
    ).images
    assert torch.equal(painter.latents(), expected)


def test_a_canvas_is_what_diffusers_makes_of_picture_and_mask(folder, base):
    """The mask at one pixel for each place, and grey where is to be painted."""
    draw = torch.Generator().manual_seed(2)
    pixels = torch.rand(1, 3, *SIZE, generator=draw) * 2 - 1
    masks = (torch.rand(1, 1, *SIZE, generator=draw) > 0.5).float()
    canvas = inpainting.encode(base, pixels, masks)
    pipe, none = pipeline(folder), torch.Generator()
    mask, latents = pipe.prepare_mask_latents(
        masks, canvas[:, 1:], 1, 16, 16, torch.float32, "cpu", none, False
    )
    assert torch.equal(canvas, torch.cat([mask, latents], 1))
    left = pipe.vae.encode(pixels * (masks < 0.5)).latent_dist.mean * pipe.vae.config.scaling_factor
    torch.testing.assert_close(canvas[:, 1:], left)


def test_random_masks_are_encoded_once_with_what_they_leave(base, pictures, tmp_path):
    settings = data(pictures, random_flip=True)
    latents = encoded(base, settings, tmp_path / "cache")
    encoder = Encoder(base, settings, Framing(size=SIZE), 0)
    for row, example in enumerate(examples_of(load_examples(settings))):
        variants = [it for it in encoder.entries_of(survey(example)) if it.hole is not None]
        assert [it.mirrored for it in variants] == [False, False, True, True]
        holes = [it.hole.mask(example, it.frame) for it in variants]
        assert torch.equal(holes[0], holes[2])
        keys = [key for variant in (0, 1) for key in latents.index.canvases(row, variant)]
        assert keys == [it.key for it in variants]
        found = torch.stack(caches.Store(tmp_path / "cache/tensors").read(keys))
        small = torch.stack([*holes[:2], *(hole.flip(-1) for hole in holes[2:])])[..., ::2, ::2]
        assert torch.equal(found[:, :1], small)
        means = latents.moments(row)[0]
        whole = holes[0].mean() == 1
        assert whole or not torch.equal(found[0, 1:], means)
    store = caches.Store(tmp_path / "cache/tensors")
    verified = verify(load_examples(settings), encoder, latents.index, store, 6)
    assert (verified.pictures, verified.entries, verified.same) == (6, 6 * 2 * 3, True)
    grown = encoded(base, data(pictures, random_flip=True, masks_per_image=3), tmp_path / "cache")
    assert grown.index.canvases(0, 1)[:2] == latents.index.canvases(0, 1)


def test_masks_of_files_are_painted_and_weigh_only_where_asked(base, with_masks, tmp_path, capsys):
    settings = data(with_masks, inpainting_masks="both")
    latents = encoded(base, settings, tmp_path / "cache")
    assert "painted where it is drawn, since they have no mask" in capsys.readouterr().out
    assert [len(latents.index.canvases(row, 0)) for row in range(6)] == [1] * 5 + [2]
    mask = latents.first_canvas(0)[0]
    assert torch.equal(mask, torch.tensor([0.0] * 4 + [1.0] * 4).expand(8, 8))
    assert latents.weights([0], [0]) is None
    weighed = encoded(base, data(with_masks, inpainting_masks="both", use_mask_files=True),
                      tmp_path / "cache")  # fmt: skip
    weights = weighed.weights([0], [0])
    assert weights is not None
    assert (float(weights[..., 0].max()), float(weights[..., -1].min())) == (0, 2)
    assert weighed.index.canvases(0, 0) == latents.index.canvases(0, 0)
    with pytest.raises(DataError, match=r"5\.png has no mask, which inpainting_masks files asks"):
        load_examples(data(with_masks, inpainting_masks="files"))


def test_every_slot_draws_one_of_its_pictures_masks(base, pictures, tmp_path):
    latents = encoded(base, data(pictures), tmp_path / "cache")
    own = [latents.index.canvases(2, 0).index(key) for key in latents.index.canvases(2, 0)]
    read = caches.Store(tmp_path / "cache/tensors").read(latents.index.canvases(2, 0))
    drawn = [latents.canvases([2], [0], step, [5])[0] for step in range(20)]
    which = [own[[torch.equal(it, each) for each in read].index(True)] for it in drawn]
    assert set(which) == {0, 1}
    assert torch.equal(latents.canvases([2], [0], 7, [5])[0], drawn[7])


def test_a_stream_paints_into_every_sample_anew(base, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = streamed.write_parquet(tmp_path / "set", streamed.scenes(6), 1)
    settings = test_streaming.config(source)
    batches = test_streaming.drawn(test_streaming.batches(base, settings), 3)
    canvases = [batch.condition.canvas for batch in batches]
    assert all(canvas is not None and canvas.shape == (2, 5, 8, 8) for canvas in canvases)
    again = test_streaming.drawn(test_streaming.batches(base, settings), 3)
    for batch, canvas in zip(again, canvases, strict=True):
        assert batch.condition.canvas is not None
        assert torch.equal(batch.condition.canvas, canvas)


@pytest.fixture(scope="module")
def trained(folder, with_masks, tmp_path_factory):
    """A run with masks of both kinds, and the same gone on with from its first checkpoint."""
    runs_in = tmp_path_factory.mktemp("trained")
    flags = runs.settings(
        folder, with_masks, runs_in, max_train_steps=4, checkpointing_steps=2, validation_split=2,
        validation_prompt=["a star"], validation_inference_steps=2, inpainting_masks="both",
        gradient_accumulation_steps=2, random_flip=True, activation_func="linear",
    )  # fmt: skip
    return runs.train_and_resume(flags, runs_in)


def test_it_trains_draws_measures_and_resumes_to_the_bit(trained):
    whole, resumed = trained
    assert runs.same_tensors(whole / "run.pt", resumed / "run.pt")
    assert (whole / "previews/step-00000004.png").is_file()
    rows = [row for row in runs.metrics(whole) if "heldout_loss" in row]
    assert rows[-1]["heldout_loss"] != rows[-1]["heldout_base_loss"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_its_checkpoints_are_evaluated(trained, run, tmp_path):
    few = ("--samples", 4, "--strengths", 1, "--prompts", "a star", "-o", tmp_path)
    done = run("evaluate", trained[0], *few)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["step"] for row in report["checkpoints"]] == [2, 4]


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_cache_alone_is_trained_on_where_it_was_made_for_inpainting(
    trained, model, folder, pictures, tmp_path, capsys
):
    flags = runs.settings(
        folder, None, tmp_path, cached_data_dir=trained[0] / "cache", max_train_steps=2
    )
    assert runs.train_here(flags) == 0
    runs.forget_accelerate()
    same = shutil.copytree(folder, tmp_path / "same")
    shutil.rmtree(same / "unet")
    shutil.copytree(model / "unet", same / "unet")
    plain = runs.settings(same, pictures, tmp_path, name="plain", max_train_steps=1)
    assert runs.train_here(plain) == 0
    runs.forget_accelerate()
    refused = ["--cached_data_dir", str(tmp_path / "plain/cache"), "--name", "other"]
    assert runs.train_here([*runs.settings(folder, None, tmp_path), *refused]) == 3
    assert "was not made for an inpainting model" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_plan_counts_its_canvases(folder, model, pictures, tmp_path, capsys):
    flags = runs.settings(folder, pictures, tmp_path, dry_run=True, resolution=128)
    assert runs.train_here(flags) == 0
    six = 6 * 4 * 64 * 64 / 2**20  # MiB of a channel
    assert f"about {six * (2 * 4 + 4 * 5):.1f} MiB of encoded pictures" in capsys.readouterr().out
    runs.forget_accelerate()
    flags = runs.settings(model, pictures, tmp_path, dry_run=True, inpainting_masks="random")
    assert runs.train_here([*flags, "--masks_per_image", "2"]) == 2
    said = capsys.readouterr().err
    assert "inpainting_masks and masks_per_image: for inpainting base models" in said


def test_what_is_painted_into_a_picture_by_tool(folder, model, pictures, run, tmp_path):
    image, mask = pictures / "0.png", tmp_path / "mask.png"
    Image.new("L", (20, 16), 255).save(mask)
    hn.save(nets.make(0), tmp_path / "net.pt")
    few = ("--steps", 2, "--hypernetwork", tmp_path / "net.pt", "--image", image, "--mask", mask)

    def draw(name, *changes):
        done = run("generate", "a star", "-o", tmp_path / name, *few, "--base", folder, *changes)
        return done, tmp_path / name / "0001-seed-0-strength-1.png"

    whole, drawn = draw("whole")
    assert whole.returncode == 0, whole.stderr
    half = Image.new("L", (20, 16))
    half.paste(255, (10, 0, 20, 16))
    half.save(mask)
    other = draw("half")[1]
    assert not np.array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(other)))
    Image.new("L", (20, 16)).save(mask)
    Image.new("RGB", (30, 16)).save(folder.parent / "wide.png")
    for name, changes, code, words in (
        ("black", (), 3, "is white nowhere"),
        ("plain", ("--base", model, "--mask", pictures / "1.png"), 2, "image: for inpainting base"),
        ("none", ("--mask", tmp_path / "gone.png"), 3, "gone.png cannot be read"),
        ("wide", ("--image", folder.parent / "wide.png"), 3, "their proportions must be the same"),
    ):
        done, _ = draw(name, *changes)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_previews_paint_into_a_picture_that_is_given(folder, pictures, tmp_path, capsys):
    runs.forget_accelerate()
    mask = tmp_path / "mask.png"
    Image.new("L", (20, 16)).save(mask)
    flags = runs.settings(
        folder, pictures, tmp_path, max_train_steps=1, validation_prompt=["a star"],
        validation_inference_steps=1, validation_image=pictures / "0.png", validation_mask=mask,
        masks_per_image=1,
    )  # fmt: skip
    assert runs.train_here(flags) == 3
    assert "is white nowhere" in capsys.readouterr().err
    Image.new("L", (20, 16), 255).save(mask)
    runs.forget_accelerate()
    assert runs.train_here(flags) == 0
    assert (tmp_path / "run/previews/step-00000001.png").is_file()
    runs.forget_accelerate()


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A Stable Diffusion XL that paints into pictures."""
    made = tiny.make_xl_model(tmp_path_factory.mktemp("xl") / "base")
    torch.manual_seed(4)
    tiny.make_xl_unet(in_channels=9).save_pretrained(made / "unet")
    return made


def test_those_of_xl_are_those_of_diffusers_too(xl):
    base = BaseModel.load(str(xl))
    prompt, negative = base.encode_prompts(["a star", "blue"])
    painter = Painter(base, prompt, negative, size=SIZE, steps=3, guidance_scale=5, seed=4)
    pipe: Any = StableDiffusionXLInpaintPipeline.from_pretrained(xl, scheduler=base.scheduler)
    pipe.vae_scale_factor = 2
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        image=torch.zeros(1, 3, *SIZE),
        mask_image=torch.ones(1, 1, *SIZE),
        masked_image_latents=inpainting.blank(base, SIZE)[:, 1:],
        prompt_embeds=prompt.context,
        pooled_prompt_embeds=prompt.pooled,
        negative_prompt_embeds=negative.context,
        negative_pooled_prompt_embeds=negative.pooled,
        generator=torch.Generator().manual_seed(4),
        guidance_scale=5,
        num_inference_steps=3,
        strength=1.0,
        width=16,
        height=16,
        output_type="latent",
    ).images
    torch.testing.assert_close(painter.latents(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("fresh_accelerate")
def test_one_of_xl_trains(xl, pictures, tmp_path):
    flags = runs.settings(
        xl, pictures, tmp_path, max_train_steps=2, validation_prompt=["a star"],
        validation_inference_steps=2, validation_split=2, masks_per_image=1,
    )  # fmt: skip
    assert runs.train_here(flags) == 0
    assert "heldout_loss" in runs.metrics(tmp_path / "run")[-1]


def test_a_unet_that_reads_something_else_is_refused(tmp_path):
    """As those that are told what to edit."""
    other = tiny.make_model(tmp_path / "edits", unet={"in_channels": 8})
    with pytest.raises(ModelError, match="reads 8 channels, of latents that have 4: supported are"):
        BaseModel.load(str(other))


def test_diffusers_pipeline_reads_through_a_hypernetwork(folder, tmp_path):
    pipe = pipeline(folder)
    hn.save(nets.make(0), tmp_path / "net.pt")
    image, mask = Image.new("RGB", SIZE, "red"), Image.new("L", SIZE, 255)
    some: dict[str, Any] = {"image": image, "mask_image": mask, "width": 16, "height": 16}
    some |= {"num_inference_steps": 2, "output_type": "np"}

    def draw():
        return pipe("a star", generator=torch.Generator().manual_seed(0), **some).images

    plain = draw()
    hn.load_hypernetwork(pipe, tmp_path / "net.pt")
    assert not np.array_equal(draw(), plain)
    hn.unload_hypernetworks(pipe)
    assert np.array_equal(draw(), plain)
