"""From the pictures to batches and to what is learnt from them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from numpy.typing import NDArray

from hn.build.models import check_inpainting
from hn.build.processes import build_layout, build_workers
from hn.build.prompts import build_prompts, encode_prompts, tell_cut
from hn.build.splitting import divide
from hn.build.streams import build_stream, build_streamed_batches
from hn.config import Config, DataConfig
from hn.data.batches import Batches
from hn.data.cache.caching import Cache, cache_pictures
from hn.data.cache.contexts import Contexts
from hn.data.cache.encoding import Encoder
from hn.data.cache.index import Index
from hn.data.cache.latents import Latents
from hn.data.pictures.bucket_table import bucket_table, write_pictures
from hn.data.pictures.buckets import step_of
from hn.data.pictures.checks import Checked, check_pictures
from hn.data.pictures.framing import Framing
from hn.data.pictures.images import load_examples, read_configured_folder
from hn.data.streaming.batches import StreamedBatches
from hn.data.streaming.stream import Stream
from hn.data.tally import Tally
from hn.data.words.captions import load_template
from hn.data.words.prompts import Prompts, check_captions
from hn.diffusion.base_model import BaseModel
from hn.evaluation.paired import Pictures
from hn.storage import prove_writable


@dataclass(frozen=True)
class Datasets:
    """The pictures to train on and those held out; None: they are in a cache, or there are none."""

    train: Dataset | Stream | None = None
    held_out: Dataset | None = None
    sizes: NDArray[np.int32] | None = None  # (N, 2), upright, of those to train on, where known
    tally: Tally = field(default_factory=Tally)  # what is odd with them


def build_datasets(
    config: Config, accelerator: Accelerator, tally: Tally | None = None
) -> Datasets:
    """The pictures, all of them decoded once; what is odd with them goes into the `tally`."""
    data, tally = config.data, tally or Tally()
    build_framing(config)
    template = load_template(data.template)
    if data.cached_data_dir is not None:
        return Datasets(tally=tally)
    cache = build_cache(config)
    kept = not data.streaming or data.validation_data_dir is not None  # of a stream, nothing is
    if kept and not config.output.dry_run:
        prove_writable(cache.folder, "latent_cache_dir")
    with said_once(accelerator):
        if data.streaming:
            train, sizes = build_stream(config, accelerator), None
        else:
            examples = load_examples(data, tally)
            print(check_captions(examples, template, data))
            checked = _checked(examples, "train", data, cache, tally)
            train, sizes = checked.dataset, checked.sizes
            if data.validation_split:
                division = divide(train, data.validation_split, config.training.seed)
                print(division)
                return Datasets(division.train, division.held_out, tally=tally)
        if data.validation_data_dir is None:
            return Datasets(train, None, sizes, tally)
        held_out = read_configured_folder(data, "validation_data_dir", tally)
        check_captions(held_out, template, data)
        return Datasets(
            train, _checked(held_out, "held_out", data, cache, tally).dataset, sizes, tally
        )


def _checked(dataset: Dataset, about: str, data: DataConfig, cache: Cache, tally: Tally) -> Checked:
    """The pictures that can be used, as the settings say what these are."""
    return check_pictures(
        dataset,
        cache.known("train" if about == "train" else "validation"),
        on_bad_image=data.on_bad_image,
        min_side=data.min_side,
        about=about,
        tally=tally,
    )


def said_once(accelerator: Accelerator) -> AbstractContextManager[object]:
    """What is printed by all processes is printed by the main one only."""
    return nullcontext() if accelerator.is_main_process else redirect_stdout(StringIO())


def build_cache(config: Config) -> Cache:
    """What the settings name to write to, and to read from if it is another one."""
    folder, source = config.data.latent_cache_dir, config.data.cached_data_dir
    assert folder is not None  # `launch.resolve` has put the run's own folder there
    return Cache(Path(folder), None if source is None else Path(source))


def build_latents(
    config: Config,
    accelerator: Accelerator,
    dataset: Dataset | None,
    base: BaseModel,
    cache: Cache,
    split: str,
    tally: Tally | None = None,
) -> Latents:
    """What the cache has of the pictures; what it lacks is encoded into it first."""
    if dataset is None:
        index = Index.open(cache.index_path(split))
        index.check(cache.store, base.vae_fingerprint, corners=base.numbers_told > 0)
        what = "latents" if split == "train" else "held-out latents"
        accelerator.print(f"{what}: {len(index)} pictures, from {config.data.cached_data_dir}")
    else:
        encoder, workers = build_encoder(config, base, split), build_workers(accelerator)
        index = cache_pictures(dataset, encoder, cache, split, workers, tally)
    if split == "train" and accelerator.is_main_process:
        _report_sizes(config, index, None if dataset is None else cache.folder)
    return latents_of(config, base, index, cache)


def latents_of(config: Config, base: BaseModel, index: Index, cache: Cache) -> Latents:
    """What training reads of an index, as the base model wants it."""
    sampling, seed = config.data.latent_sampling, config.training.seed
    return Latents(index, cache.store, sampling, seed, inpainting=base.inpainting)


def build_encoder(config: Config, base: BaseModel, split: str = "train") -> Encoder:
    """What encodes pictures; of held-out ones the centre, or all.

    Raises `OptionError` for settings of inpainting where the base model does none.
    """
    check_inpainting(config, inpainting=base.inpainting)
    data = config.data
    if split == "validation":
        data = replace(data, random_crop=False, random_flip=False)
        if data.inpainting_masks != "files":  # of random ones, the first is measured
            data = replace(data, masks_per_image=1)
    return Encoder(base, data, build_framing(config), config.training.seed)


def build_framing(config: Config) -> Framing:
    """How pictures are fitted. Raises `OptionError` if the resolution has no room for a bucket."""
    model = config.model
    step = step_of(model.pretrained_model_name_or_path, model.revision)
    return Framing.of(config.data, step)


def build_batches(
    config: Config,
    accelerator: Accelerator,
    datasets: Datasets,
    base: BaseModel,
    contexts: Contexts,
    cache: Cache,
) -> Batches | StreamedBatches:
    """The training pictures encoded, and the batches over them; of a stream, encoded later."""
    if isinstance(datasets.train, Stream):
        return build_streamed_batches(
            config, accelerator, datasets.train, base, build_framing(config)
        )
    training, layout = config.training, build_layout(config, accelerator)
    latents = build_latents(
        config, accelerator, datasets.train, base, cache, "train", datasets.tally
    )
    prompts = build_prompts(config, latents.index)
    with said_once(accelerator):
        tell_cut(prompts, latents.index.words["name"], base.text_encoder, datasets.tally)
    encoded = encode_prompts(config, accelerator, prompts, contexts, base, datasets.tally)
    if encoded:
        base.free_text_encoder()
    if config.validation.validation_prompt:
        base.park_vae()
    else:
        base.free_vae()
    if layout.global_batch > len(latents) >= layout.batch_size:  # otherwise it was said of a batch
        few = f"{len(latents)} pictures for a global batch of {layout.global_batch}"
        accelerator.print(f"{few}: steps repeat pictures")
        datasets.tally.keep("train", "repeated", few, [], count=layout.global_batch - len(latents))
    return Batches(latents, prompts, contexts, layout, training.seed)


def build_held_out(
    config: Config,
    accelerator: Accelerator,
    datasets: Datasets,
    base: BaseModel,
    contexts: Contexts,
    cache: Cache,
) -> Pictures | None:
    """The held-out pictures encoded, if there are any: the centre of each, or all of it."""
    cached = config.data.cached_data_dir is not None and cache.index_path("validation").is_file()
    if datasets.held_out is None and not cached:
        if config.data.cached_data_dir is None and accelerator.is_main_process:
            # left by a run that held out what this one trains on
            cache.index_path("validation").unlink(missing_ok=True)
        return None
    latents = build_latents(
        config, accelerator, datasets.held_out, base, cache, "validation", datasets.tally
    )
    pictures = pictures_of(latents, build_prompts(config, latents.index), contexts)
    contexts.cache(pictures.prompts, build_workers(accelerator))
    return pictures


def pictures_of(
    latents: Latents, written: Prompts, contexts: Contexts, rows: Sequence[int] | None = None
) -> Pictures:
    """What is measured of some pictures, or all: their first variants, with plain prompts."""
    rows = range(len(latents)) if rows is None else rows
    weights = [latents.weights([row], [0]) for row in rows]  # their sizes may differ
    return Pictures(
        latents=[latents.moments(row)[0] for row in rows],
        loss_weights=[each[0] for each in weights if each is not None] or None,
        prompts=[written.plain(row)[0] for row in rows],
        names=[latents.index.words[row]["name"] for row in rows],
        contexts=contexts,
        canvases=[latents.first_canvas(row) for row in rows] if latents.inpainting else None,
        views=latents.views(rows, [0] * len(rows)) if contexts.sized else None,
    )


def _report_sizes(config: Config, index: Index, folder: Path | None) -> None:
    """Say what becomes of the pictures, and of each in a table in the folder of a new cache."""
    framing, names = build_framing(config), index.words["name"]
    pictures = np.stack([index.numbers("width"), index.numbers("height")], axis=1)
    print(bucket_table(names, pictures, framing, config.training.train_batch_size))
    if folder is not None:
        write_pictures(folder / "pictures.csv", names[:], pictures, framing)
