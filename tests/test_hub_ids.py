"""Training from hub ids: the base model and the dataset, from a hub of our own."""

import json
import shutil

import huggingface_hub
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from diffusers import StableDiffusionPipeline
from huggingface_hub import HfApi
from PIL import Image

from hn.diffusion.base_model import BaseModel
from hn.diffusion.loading.outline import Outline
from hn.errors import ModelError
from tests import runs, tiny
from tests.hub_server import STRANGER


def push_model(folder, name="me/tiny", *, private=False, branch=None):
    api = HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    if branch is not None:
        api.create_branch(name, branch=branch)
    api.upload_folder(repo_id=name, folder_path=folder, revision=branch)


def push_pictures(pictures, name="me/pictures", **columns):
    """The captioned pictures of a folder as an HF dataset."""
    paths = sorted(pictures.glob("*.png"))
    rows = {
        "image": [Image.open(path) for path in paths],
        "text": [path.with_suffix(".txt").read_text() for path in paths],
    }
    features = Features({"image": ImageFeature(), "text": Value("string")})
    Dataset.from_dict(rows, features=features).rename_columns(columns).push_to_hub(name)


def _flags(model, output, **changes):
    hub_set = {"train_data_dir": None, "dataset_name": "me/pictures"}
    return runs.settings(model, None, output, **{**hub_set, **changes})


def test_a_model_is_loaded_by_its_id(hub, model, monkeypatch):
    push_model(model)
    hub.requests.clear()
    assert BaseModel.load("me/tiny").dims == tiny.DIMS
    fetched = [path for path in hub.asked("GET", "/resolve/") if path.endswith(".safetensors")]
    assert len(fetched) == 3
    hub.requests.clear()
    BaseModel.load("me/tiny")
    assert not hub.asked("GET", "/resolve/")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert BaseModel.load("me/tiny").dims == tiny.DIMS  # as it was fetched before


@pytest.mark.parametrize(("which", "numbers"), [("xl", 6), ("refiner", 5)])
def test_stable_diffusion_xl_says_which_parts_it_has(hub, monkeypatch, request, which, numbers):
    push_model(request.getfixturevalue(which))
    assert BaseModel.load("me/tiny").numbers_told == numbers
    outline = Outline.read("me/tiny")
    assert len(outline.texts) == numbers - 4
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert BaseModel.load("me/tiny").numbers_told == numbers


def test_a_revision_is_another_model(hub, model, tmp_path):
    push_model(model)
    other = tiny.make_model(tmp_path / "v", prediction_type="v_prediction", seed=1)
    push_model(other, branch="v")
    commit = hub.repositories["models", "me/tiny"].branches["v"]
    for revision in ("v", commit):
        loaded = BaseModel.load("me/tiny", revision=revision)
        assert loaded.prediction == "v_prediction"
        assert loaded.vae_fingerprint == BaseModel.load(str(other)).vae_fingerprint
    assert BaseModel.load("me/tiny").prediction == "epsilon"


def test_a_variant_is_other_files(hub, model, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    push_model(tmp_path / "half")
    assert BaseModel.load("me/tiny", variant="fp16").dims == tiny.DIMS
    fetched = [path for path in hub.asked("GET", "/resolve/") if path.endswith(".safetensors")]
    assert len(fetched) == 3 and all(".fp16." in path for path in fetched)


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("me/nothing", {}, "no such repository, or it is private"),
        ("me/a--b", {}, "Cannot have -- or .."),
        ("me/tiny", {"revision": "v9"}, r"\(revision v9\).*no such revision"),
        ("me/tiny", {"variant": "bf16"}, "no variant 'bf16' of its unet.*it has unet/config.json"),
        ("me/private", {}, r"private and not yours.*hf auth login"),
        ("me/gated", {}, "asks for consent: give it on the repository's page.*hf auth login"),
        ("me/bare", {}, "has no folder vae, text_encoder, tokenizer, scheduler"),
        ("me/video", {}, "UNet3DConditionModel"),
    ],
)
def test_a_model_that_cannot_be_loaded(hub, model, tmp_path, monkeypatch, name, how, words):
    push_model(model)
    push_model(model, "me/private", private=True)
    push_model(model, "me/gated")
    hub.repositories["models", "me/gated"].gated = True
    shutil.copytree(model, tmp_path / "video")
    config = {"_class_name": "UNet3DConditionModel"}
    (tmp_path / "video/unet/config.json").write_text(json.dumps(config))
    push_model(tmp_path / "video", "me/video")
    (tmp_path / "bare/unet").mkdir(parents=True)
    (tmp_path / "bare/unet/config.json").write_text("{}")
    push_model(tmp_path / "bare", "me/bare")
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(ModelError, match=words):
        BaseModel.load(name, **how)


def test_a_variant_that_a_folder_has_not(model):
    with pytest.raises(ModelError, match=r"no variant 'fp16' of its unet.*safetensors"):
        BaseModel.load(str(model), variant="fp16")


def test_a_run_from_hub_ids_is_that_from_a_folder(hub, model, pictures, tmp_path, fresh_accelerate):
    """The same bits; once more from what was fetched, in a process without a connection."""
    push_model(model)
    push_pictures(pictures)
    flags = {"max_train_steps": 3}
    assert runs.train_here(_flags("me/tiny", tmp_path / "hub", **flags)) == 0
    offline = runs.run(
        runs.PYTHON, _flags("me/tiny", tmp_path / "offline", **flags), HF_HUB_OFFLINE="1"
    )
    assert offline.returncode == 0, offline.stderr
    assert runs.train_here(_flags(model, tmp_path / "local", **flags)) == 0
    for other in ("offline", "local"):
        assert runs.same_tensors(tmp_path / "hub/run/run.pt", tmp_path / other / "run/run.pt")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"pretrained_model_name_or_path": "me/nothing"}, 4, ["me/nothing", "no such repository"]),
        ({"dataset_name": "me/nothing"}, 3, ["me/nothing", "doesn't exist", "hf auth login"]),
        ({"dataset_config_name": "large"}, 3, ["'large' not found", "['default']"]),
        ({"dataset_split": "test"}, 3, ["dataset_name 'me/pictures'", '"test"']),
        ({"image_column": "photo"}, 3, ["image_column 'photo'", "['image', 'text']"]),
    ],
)
def test_a_run_from_what_is_not_there(
    hub, model, pictures, tmp_path, capsys, fresh_accelerate, changes, code, words
):
    push_model(model)
    push_pictures(pictures)
    capsys.readouterr()
    assert runs.train_here(_flags("me/tiny", tmp_path, **changes)) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error.partition("error: ")[2]
