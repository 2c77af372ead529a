"""From the pictures to batches and to what is learnt from them."""

from dataclasses import replace

from accelerate import Accelerator
from datasets import Dataset

from hn import rng
from hn.config import Config
from hn.data.batches import Batch, Batches, Layout
from hn.data.cache import Contexts
from hn.data.captions import load_template
from hn.data.encoding import Workers, encode_latents
from hn.data.images import check_pictures, load_examples, read_configured_folder
from hn.data.prompts import Prompts, captions_of, check_captions
from hn.diffusion import objective
from hn.diffusion.base_model import BaseModel, check_layout
from hn.evaluation.heldout import Pictures


def build_dataset(config: Config, accelerator: Accelerator) -> tuple[Dataset, str]:
    """The pictures, all of them decoded once, and a digest of their content."""
    # A wrong model should not wait for the pictures.
    check_layout(config.model.pretrained_model_name_or_path)
    template = load_template(config.data.template)
    dataset = load_examples(config.data)
    accelerator.print(check_captions(dataset, template, config.data))
    return dataset, check_pictures(dataset, config.data.size)


def build_held_out_dataset(config: Config) -> Dataset | None:
    """The held-out pictures, if there are any, all of them decoded once."""
    data = config.data
    if data.validation_data_dir is None:
        return None
    dataset = read_configured_folder(data, "validation_data_dir")
    check_captions(dataset, load_template(data.template), data)
    check_pictures(dataset, data.size)
    return dataset


def build_batches(
    config: Config, accelerator: Accelerator, dataset: Dataset, base: BaseModel, contexts: Contexts
) -> Batches:
    """The training pictures encoded, and the stream of batches over them."""
    training, data = config.training, config.data
    layout = Layout(
        batch_size=training.train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    prompts = _build_prompts(config, dataset)
    latents = encode_latents(
        dataset,
        base,
        data,
        training.seed,
        Workers(
            accelerator.num_processes, accelerator.process_index, accelerator.wait_for_everyone
        ),
    )
    every_prompt = prompts.all()
    examples = [prompt for of_picture in prompts.plain() for prompt in of_picture]
    for remark in base.text_encoder.remarks(every_prompt or examples):
        accelerator.print(remark)
    if every_prompt is not None:
        contexts.encode(every_prompt)
        base.free_text_encoder()
    if config.validation.validation_prompt:
        base.park_vae()
    else:
        base.free_vae()
    if layout.global_batch > len(dataset):
        accelerator.print(
            f"{len(dataset)} pictures for a global batch of {layout.global_batch}: steps repeat "
            "pictures"
        )
    return Batches(latents, prompts, contexts, layout, training.seed)


def build_held_out(
    config: Config, dataset: Dataset | None, base: BaseModel, contexts: Contexts
) -> Pictures | None:
    """The held-out pictures encoded, if there are any: the centre of each, or all of it."""
    if dataset is None:
        return None
    plain = replace(config.data, random_crop=False, random_flip=False)
    latents = encode_latents(dataset, base, plain, config.training.seed)
    prompts = [of_picture[0] for of_picture in _build_prompts(config, dataset).plain()]
    rows = list(range(len(latents)))
    weights = latents.weights(rows, [0] * len(rows))
    return Pictures(latents.moments.mean[:, 0], contexts.stack(prompts), weights)


def build_problem(config: Config, base: BaseModel, batch: Batch) -> objective.Noised:
    """Noise, timesteps, target and weights of a micro-batch, on the device."""
    seed = config.training.seed
    return objective.noised(
        batch.latents,
        [rng.generator(seed, "noise", batch.step, slot) for slot in batch.slots],
        base.alphas_cumprod,
        base.prediction,
        snr_gamma=config.objective.snr_gamma,
        noise_offset=config.objective.noise_offset,
        loss_weights=batch.loss_weights,
    ).to(base.device)


def _build_prompts(config: Config, dataset: Dataset) -> Prompts:
    template = load_template(config.data.template)
    return Prompts(
        captions_of(dataset), template, config.network.name, config.data, config.training.seed
    )
