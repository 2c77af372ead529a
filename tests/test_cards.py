"""The card of a hypernetwork says which family of base models it is for, and how it is used."""

import pytest

import hn
from hn.config import Config, ModelConfig
from hn.hub.run_card import Subject, write_run_card


@pytest.mark.parametrize(
    ("dims", "family", "kind"),
    [
        ((640, 1280, 2048), "Stable Diffusion XL", "StableDiffusionXLPipeline"),
        ((768, 1536), "the refiner of Stable Diffusion XL", "StableDiffusionXLImg2ImgPipeline"),
        ((1024,), "Stable Diffusion 2", "StableDiffusionPipeline"),
        ((320,), "Stable Diffusion 1 or Stable Diffusion 2", "StableDiffusionPipeline"),
        ((1280,), " or ", "DiffusionPipeline"),  # a width of each
        ((40, 48), "another base model", "DiffusionPipeline"),
    ],
    ids=str,
)
def test_the_card_names_the_family_and_the_pipeline_of_the_base_model(tmp_path, dims, family, kind):
    file = tmp_path / "style.safetensors"
    hn.save(hn.Hypernetwork.create(dims, layer_structure=(1, 0.05, 1)), file)
    model = ModelConfig(pretrained_model_name_or_path="someone/base")
    subject = Subject(
        folder=tmp_path, config=Config(model=model), repo_id="me/style", artifact=file.name,
        file=file, steps=(), preview=False,
    )  # fmt: skip
    card = write_run_card(subject)
    assert family in next(line for line in card.splitlines() if line.startswith("| family |"))
    code = card.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert f'pipeline = {kind}.from_pretrained("someone/base")' in code
    assert ("stable-diffusion-xl" in card) == (max(dims) in (1536, 2048))
