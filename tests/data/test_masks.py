"""Mask files: what of a picture is learnt, and how much."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hn.config import DataConfig, ObjectiveConfig
from hn.data.batches import Batches, Layout
from hn.data.cache.contexts import Contexts
from hn.data.pictures.checks import check_pictures
from hn.data.pictures.decoding import Example
from hn.data.pictures.framing import mask_weights
from hn.data.pictures.images import examples, load_examples
from hn.data.pictures.masks import read_mask
from hn.data.words.prompts import Prompts
from hn.diffusion.base_model import BaseModel
from hn.diffusion.objective import Noised, Objective
from hn.errors import DataError
from tests import caches, runs, tiny

SIZE = (20, 16)


@pytest.fixture(scope="module")
def base(model):
    return BaseModel.load(str(model))


def left_half(size=SIZE) -> Image.Image:
    """White at the left, black at the right."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def rising(size=SIZE) -> Image.Image:
    """From 51 at the left to 255 at the right."""
    row = np.linspace(51, 255, size[0]).round().astype(np.uint8)
    return Image.fromarray(np.tile(row, (size[1], 1)))


def make(folder: Path, count=2, mask=left_half, size=SIZE) -> Path:
    """Pictures that all have this mask."""
    tiny.make_pictures(folder, count, size=size)
    for number in range(count):
        mask(size).save(folder / f"{number}.mask.png")
    return folder


def config(folder, **settings) -> DataConfig:
    return DataConfig(
        train_data_dir=str(folder), resolution=(16,), **{"use_mask_files": True} | settings
    )


def weights_of(base, folder, **settings) -> torch.Tensor:
    data = config(folder, **settings)
    latents = caches.encode(folder.parent / "cache", load_examples(data), base, data)
    weights = caches.all_weights(latents)
    assert weights is not None
    return weights


def levels_of(mask: Image.Image, folder: Path, **settings) -> np.ndarray:
    path = folder / "x.mask.png"
    mask.save(path, **settings)
    read = read_mask(Example("x.jpg", {}, "", mask={"path": str(path), "bytes": None}))
    assert read is not None
    assert (read[0], read[1].mode) == (path.read_bytes(), "L")
    return np.asarray(read[1])


def test_masks_belong_to_the_pictures_beside_them(tmp_path, capsys):
    folder = make(tmp_path / "set")
    (folder / "1.mask.png").rename(folder / "1.MASK.PNG")
    (folder / "0.png").rename(folder / "0.jpg")
    dataset = load_examples(config(folder))
    assert dataset["name"][:] == ["0.jpg", "1.png"]
    assert [example.mask["path"] for example in examples(dataset, "")] == [
        str(folder / "0.mask.png"),
        str(folder / "1.MASK.PNG"),
    ]
    assert not capsys.readouterr().out


def test_without_the_setting_masks_are_no_pictures_and_are_named(tmp_path, capsys):
    dataset = load_examples(config(make(tmp_path / "set"), use_mask_files=False))
    assert (dataset["name"][:], dataset["mask"][:]) == (["0.png", "1.png"], [None, None])
    assert capsys.readouterr().out.rstrip().endswith("2 ('0.mask.png', '1.mask.png')")


def test_a_folder_of_masks_alone_holds_no_picture(tmp_path):
    left_half().save(tmp_path / "a.mask.png")
    for setting in (False, True):
        with pytest.raises(DataError, match="holds no picture"):
            load_examples(config(tmp_path, use_mask_files=setting))


def test_what_lacks_the_other_is_named(tmp_path, capsys):
    folder = make(tmp_path / "set", 3)
    (folder / "1.mask.png").unlink()
    (folder / "2.mask.png").rename(folder / "two.mask.png")
    load_examples(config(folder))
    said = capsys.readouterr().out
    assert f"masks without a picture, of {folder}: 1 ('two.mask.png')\n" in said
    assert f"since they have no mask, of {folder}: 2 ('1.png', '2.png')\n" in said
    assert "not used" not in said


def test_two_masks_of_one_picture_and_one_of_two_are_refused(tmp_path):
    folder = make(tmp_path / "set")
    left_half().save(folder / "1.MASK.png")
    Image.new("RGB", SIZE).save(folder / "0.bmp")
    (folder / "metadata.csv").write_text('file_name,text\n0.bmp,"a"\n0.png,"b"\n')
    (folder / "0.txt").unlink()
    with pytest.raises(DataError, match="captions or masks that cannot be used") as caught:
        load_examples(config(folder))
    assert str(caught.value).splitlines()[1:] == [
        "  1.MASK.png and 1.mask.png are masks of one picture: remove one",
        "  0.bmp and 0.png share 0.mask.png: rename one",
    ]
    load_examples(config(folder, use_mask_files=False))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_mask_may_be_of_any_mode(tmp_path, mode):
    found = levels_of(left_half().convert("RGB").convert(mode), tmp_path)
    assert np.array_equal(found, np.asarray(left_half()))


def test_a_mask_of_16_bits_keeps_its_levels(tmp_path):
    deep = Image.fromarray(np.asarray(rising()).astype(np.uint16) << 8)
    assert np.array_equal(levels_of(deep, tmp_path), np.asarray(rising()))


def test_what_is_transparent_in_a_mask_counts_as_black(tmp_path):
    mask = Image.new("RGBA", (3, 1), (255, 255, 255, 255))
    mask.putpixel((1, 0), (255, 255, 255, 128))
    mask.putpixel((2, 0), (255, 255, 255, 0))
    assert levels_of(mask, tmp_path).tolist() == [[255, 128, 0]]


def test_a_mask_is_turned_as_its_own_exif_says(base, tmp_path):
    """Both are as a viewer shows them, whichever of the two was turned by a camera."""
    quarter = Image.Exif()
    quarter[0x0112] = 6  # to the right: what is at the left comes to the top
    folder = tmp_path / "set"
    for picture_turned in (False, True):
        for mask_turned in (False, True):
            make(folder, 1, size=(16, 16))
            if picture_turned:
                Image.open(folder / "0.png").save(folder / "0.png", exif=quarter)
            if mask_turned:
                left_half((16, 16)).save(folder / "0.mask.png", exif=quarter)
            dataset = load_examples(config(folder))
            check_pictures(dataset)
            rows = weights_of(base, folder)[0, 0, 0]
            upright = rows.T if mask_turned else rows
            assert (upright[:, 0] > 1.5).all()
            assert (upright[:, -1] == 0).all()
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def fault_of(folder) -> list[str]:
    with pytest.raises(DataError) as caught:
        check_pictures(load_examples(config(folder)))
    return str(caught.value).splitlines()


def test_masks_that_cannot_be_used_are_all_named(tmp_path):
    folder = make(tmp_path / "set", 6)
    Image.new("L", SIZE).save(folder / "0.mask.png")
    left_half((16, 20)).save(folder / "1.mask.png")
    (folder / "2.mask.png").write_bytes(b"<html>")
    (folder / "3.png").write_bytes(b"<html>")
    (folder / "3.mask.png").write_bytes(b"<html>")
    Image.new("LA", SIZE).save(folder / "4.mask.png")
    headline, *lines = fault_of(folder)
    assert headline.startswith("5 of 6 pictures cannot be used; mend or remove them")
    assert [line.split(": ")[0] for line in lines] == [
        "  0.mask.png is all black, so nothing would be learnt",
        "  1.mask.png is of 16 x 20 pixels, 1.png of 20 x 16",
        "  2.mask.png",
        "  3.png",
        "  3.mask.png",
        "  4.mask.png",
    ]
    assert "their proportions must be the same, within 1 %" in lines[1]


@pytest.mark.parametrize(
    ("mask", "fits"), [((500, 400), True), ((505, 400), True), ((506, 400), False), ((5, 4), True)]
)
def test_a_mask_may_be_of_another_size_but_not_of_other_proportions(tmp_path, mask, fits):
    folder = make(tmp_path / "set", 1)
    left_half(mask).save(folder / "0.mask.png")
    if fits:
        check_pictures(load_examples(config(folder)))
    else:
        assert "0.mask.png is of 506 x 400 pixels" in fault_of(folder)[1]


def test_a_mask_in_one_of_several_folders_is_named_with_it(tmp_path):
    for name in "ab":
        make(tmp_path / name, 1)
    Image.new("L", SIZE).save(tmp_path / "b/0.mask.png")
    table = tmp_path / "folders.toml"
    table.write_text('[[folder]]\npath = "a"\n[[folder]]\npath = "b"\n')
    data = DataConfig(train_folders=str(table), use_mask_files=True)
    with pytest.raises(DataError, match=r"\n  b/0\.mask\.png is all black"):
        check_pictures(load_examples(data))


def test_weights_are_levels_over_their_mean():
    levels = torch.tensor([[[[0.0, 100.0]]], [[[100.0, 200.0]]]])
    assert mask_weights(levels, torch.ones_like(levels)).flatten().tolist() == [0, 1, 1, 2]
    grey = torch.tensor([[[[100.0, 200.0]]]])
    found = mask_weights(grey, torch.ones_like(grey)).flatten().tolist()
    assert found == pytest.approx([2 / 3, 4 / 3])


@pytest.mark.parametrize("level", [1, 128, 255])
def test_a_constant_mask_gives_ones(level):
    levels = torch.full((2, 1, 4, 4), float(level))
    assert mask_weights(levels, torch.ones_like(levels)).unique().tolist() == [1.0]


@pytest.mark.parametrize("mask_size", [SIZE, (60, 48), (10, 8)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crops", [1, 3])
def test_every_variant_has_the_weights_of_what_it_shows(base, tmp_path, crops, flip, mask_size):
    folder = make(tmp_path / "set", mask=lambda _: rising(mask_size))
    settings = {"random_crop": crops > 1, "crops_per_image": crops, "random_flip": flip}
    found = weights_of(base, folder, **settings)
    assert found.shape == (2, crops * (1 + flip), 1, 8, 8)
    for picture in found:
        assert picture.mean().item() == pytest.approx(1)
        assert picture.min() > 0.2  # the lowest level is not taken away
    assert (found[:, :crops].diff(dim=-1) > -1e-6).all()
    if flip:
        assert torch.equal(found[:, crops:], found[:, :crops].flip(-1))
    if crops > 1:
        assert not torch.equal(found[0, 0], found[0, 1])


def test_a_picture_without_a_mask_counts_evenly(base, tmp_path, capsys):
    folder = make(tmp_path / "set", 3)
    (folder / "1.mask.png").unlink()
    Image.new("L", SIZE, 7).save(folder / "2.mask.png")
    found = weights_of(base, folder, random_crop=True)
    assert found[0].min() == 0
    assert found[1:].unique().tolist() == [1.0]
    said = capsys.readouterr().out
    assert "since they have no mask, of " in said
    assert "weighted evenly, since their mask is constant: 1 ('2.png')\n" in said


def test_a_crop_that_shows_nothing_to_learn_is_refused_by_name(base, tmp_path):
    def edge(size):
        mask = Image.new("L", size)
        mask.paste(255, (size[0] - 1, 0, *size))
        return mask

    folder = make(tmp_path / "set", mask=edge, size=(60, 16))
    with pytest.raises(
        DataError, match=r"(?s)2 pictures .*0\.png: .* is black in its mask.*1\.png"
    ):
        weights_of(base, folder)
    assert weights_of(base, folder, resize_mode="stretch").max() > 1


def test_transparency_stays_laid_on_white_with_a_mask_file(base, tmp_path):
    folder = make(tmp_path / "set", 1)
    Image.new("RGBA", SIZE, (255, 0, 0, 128)).save(folder / "0.png")
    plain, masked = (
        caches.means(caches.encode(tmp_path / "cache", load_examples(data), base, data))
        for data in (config(folder, use_mask_files=False), config(folder))
    )
    assert torch.equal(plain, masked)


NONE = torch.zeros(())  # no residual


def learnt_from(base, folder) -> tuple[Objective, Noised, torch.Tensor]:
    """A problem of the folder's pictures as in a run, and which of its places count."""
    data = config(folder)
    dataset = load_examples(data)
    prompts = Prompts.of(dataset, ["[filewords]"], "x", data, 0)
    latents = caches.encode(folder.parent / "cache", dataset, base, data)
    layout = Layout(batch_size=len(dataset), accumulation=1)
    (batch,) = Batches(latents, prompts, Contexts(base), layout, 0).at(0)
    objective = Objective(ObjectiveConfig(), base.alphas_cumprod, base.prediction)
    problem = objective.draw(batch.latents, batch.step, batch.slots, batch.loss_weights)
    assert problem.loss_weights is not None
    return objective, problem, (problem.loss_weights > 0).expand_as(problem.target)


def test_what_is_masked_out_is_not_learnt_from(base, tmp_path):
    """Of the prediction no gradient, whatever the noise, and whatever stands there."""
    objective, problem, counts = learnt_from(base, make(tmp_path / "set"))
    assert 0.2 < counts.float().mean() < 0.8
    prediction = torch.randn_like(problem.target, requires_grad=True)
    loss = objective.loss(prediction, problem, NONE)
    loss.backward()
    assert prediction.grad is not None
    assert (prediction.grad[~counts] == 0).all()
    assert (prediction.grad[counts] != 0).all()

    corrupted = problem.target + 100 * torch.randn_like(problem.target) * ~counts
    elsewhere = prediction.detach() + 100 * ~counts
    problem.target.copy_(corrupted)
    assert objective.loss(elsewhere, problem, NONE) == loss
    problem.target.add_(counts)
    assert objective.loss(elsewhere, problem, NONE) != loss


@pytest.mark.usefixtures("fresh_accelerate")
def test_masks_of_one_level_change_nothing_to_the_bit(model, tmp_path):
    folder = make(tmp_path / "set", 4, mask=lambda size: Image.new("L", size, 200))
    for name, changes in (("with", {"use_mask_files": True}), ("without", {})):
        flags = runs.settings(
            model, folder, tmp_path, name=name, validation_data_dir=folder, **changes
        )
        assert runs.train_here(flags) == 0
    runs.assert_same(tmp_path / "with", tmp_path / "without")


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_with_masks_goes_on_with_the_same_masks_only(model, tmp_path, capsys):
    folder = make(tmp_path / "set", 4)
    flags = runs.settings(model, folder, tmp_path, use_mask_files=True, validation_data_dir=folder)
    assert runs.train_here(flags) == 0
    plain = runs.settings(model, folder, tmp_path, name="plain", validation_data_dir=folder)
    assert runs.train_here(plain) == 0
    first = [runs.losses(tmp_path / name)[0] for name in ("run", "plain")]
    base = [runs.metrics(tmp_path / name)[-1]["heldout_base_loss"] for name in ("run", "plain")]
    assert first[0] != pytest.approx(first[1], rel=1e-3)
    assert base[0] != pytest.approx(base[1], rel=1e-3)
    rising().save(folder / "0.mask.png")
    again = [*flags, "--resume_from_checkpoint", "latest", "--max_train_steps", "8"]
    assert runs.train_here(again) == 2
    assert "pictures: " in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_mask_that_cannot_be_used_stops_before_the_model(model, tmp_path, capsys):
    folder = make(tmp_path / "set", 2)
    (folder / "1.mask.png").write_bytes(b"")
    assert runs.train_here(runs.settings(model, folder, tmp_path, use_mask_files=True)) == 3
    assert "1.mask.png: cannot be read" in capsys.readouterr().err
