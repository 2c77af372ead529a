"""The settings of pictures and captions; standard library only."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Pictures and captions."""

    train_data_dir: str | None = None
    """Folder of pictures with captions in .txt files beside them, or in one metadata.jsonl or
    metadata.csv with the columns file_name and caption_column; "demo" is the embedded set."""
    train_folders: str | None = None
    """Instead of one folder: a TOML file that names several, each in a [[folder]] table with path
    and, where wanted, repeats, loss_weight, regularization, missing_caption, caption_prefix,
    caption_suffix. Pictures for regularization show what was known before: their captions are used
    alone, as many are drawn as of the others, and loss_weight is the weight of their loss."""
    dataset_name: str | None = None
    """Instead of a folder: an HF dataset, as hub id or folder of its data files."""
    dataset_config_name: str | None = None
    """Configuration of the HF dataset."""
    dataset_split: str = "train"
    """Split of the HF dataset."""
    cached_data_dir: str | None = None
    """Instead of either: a cache that tools/cache_latents.py made, as folder or hub id; it needs no
    pictures."""
    streaming: bool = False
    """Read the HF dataset from where it lies while training, instead of downloading it: memory and
    disk do not grow with it, pictures and prompts are encoded on the fly. It should be parquet,
    arrow or webdataset, best in a multiple of as many files as there are processes. What cannot be
    used of it is skipped and counted."""
    shuffle_buffer: int = 1000
    """Of streaming: so many pictures are read at once, as files, and put into a random order; more
    is better mixed and takes more memory."""
    image_column: str = "image"
    """Its column of pictures."""
    caption_column: str = "text"
    """Its column of captions, or that of metadata.jsonl; where it holds lists of texts, one of them
    is drawn for every sample."""
    validation_data_dir: str | None = None
    """Folder of pictures not trained on, for the held-out loss against the base model."""
    validation_split: float = 0.0
    """Hold out some of the training pictures instead: a share such as 0.1, or a number such as 20.
    Which ones follows from their content and the seed; what resembles them is not trained on
    either."""
    resolution: tuple[int, ...] = (512,)
    """Size of the training pictures in pixels: one number for squares, or width and height."""
    resize_mode: Literal["bucket", "crop", "pad", "stretch"] = "crop"
    """How a picture becomes one of this size. crop: fill it, cut off the rest. pad: fit all of it
    in; the rest repeats the edge and is not learnt from. stretch: as the web UI does. bucket: fill
    the size of about the same area whose proportions are nearest to the picture's."""
    bucket_step: int | None = None
    """The sides of buckets are multiples of it; not given: what the model halves so often, 64 for
    Stable Diffusion."""
    max_aspect_ratio: float = 4.0
    """The longest proportions of a bucket; what is longer is cropped to them."""
    no_upscale: bool = False
    """A picture smaller than its bucket is not enlarged, but cut to multiples of bucket_step."""
    native_size: bool = False
    """No picture is resized at all, whatever the resolution; it is cut to multiples of bucket_step.
    """
    random_crop: bool = False
    """Cut at random places instead of the centre."""
    crops_per_image: int = 4
    """How many random crops of each picture are encoded."""
    use_alpha_weights: bool = False
    """Read the alpha channel as what to learn: the loss of each place is weighted with it, from 0
    where it is lowest; the colours are those beneath it. Off: transparency is laid on white."""
    use_mask_files: bool = False
    """Read photo.mask.png beside photo.jpg as what to learn: the loss of each place is weighted
    with it, white counts most, black not at all. A picture without one counts evenly. Off: they
    weigh nothing."""
    inpainting_masks: Literal["random", "files", "both"] | None = None
    """Of an inpainting base model: which places of a picture are to be painted. random: rectangles,
    strokes or everything, drawn by the picture's content. files: what photo.mask.png beside it
    shows white. both: the file where there is one, else random. Not given: random."""
    masks_per_image: int = 4
    """How many random masks of each picture (and each crop and mirror image) are encoded."""
    random_flip: bool = False
    """Mirror half of the samples."""
    on_bad_image: Literal["stop", "drop"] = "stop"
    """A picture that cannot be used: stop and name all of them, or train without them. What is left
    out is counted, and listed in status.json; a stream always goes on without, and counts."""
    min_side: int = 8
    """A picture with a shorter side, in pixels, cannot be used."""
    missing_caption: Literal["stop", "filename", "template", "empty"] = "stop"
    """A picture without a caption, or with a blank one: stop and name all of them, take the file's
    name as the web UI does, what the template says without [filewords], or the empty caption."""
    filename_word_regex: str = ""
    """Regular expression of what counts as a word in a file's name; not given: all of it counts."""
    filename_join_string: str = " "
    """What is put between these words."""
    caption_lines: bool = False
    """Read each line of a caption that is not blank as a caption of its own, one of which is drawn
    for every sample; off: the whole text is the caption, as in the web UI."""
    caption_prefix: str = ""
    """Put before every caption, just as it is written here, such as "sks, "; it is neither shuffled
    nor left out. In a template it stands where [filewords] does."""
    caption_suffix: str = ""
    """The same after every caption."""
    wildcards: bool = False
    """Draw one alternative of {red|green|blue} for every sample, in captions, caption_prefix,
    caption_suffix and template lines; they may nest. Braces as text are written \\{ and \\}. Off:
    braces are text, as in many tags."""
    template: str = "none"
    """Prompt template: none, style, subject, or a text file with [filewords] and [name]."""
    shuffle_tags: bool = False
    """Draw a new order of the tags for every sample."""
    tag_dropout: float = 0.0
    """Chance to leave out each tag."""
    tag_separator: str = ","
    """What stands between tags."""
    keep_tags: int = 0
    """So many tags at the start of a caption are neither shuffled nor left out, of those without
    keep_separator."""
    keep_separator: str = ""
    """Tags before it are neither shuffled nor left out, nor are those after a second one; it is
    removed. Such as |||."""
    caption_dropout: float = 0.0
    """Chance of an empty prompt."""
    prompt_variants: int = 0
    """Draw shuffled tags and wildcards from so many variants of each picture's captions that are
    encoded once, and let the text encoder go; 0: a new one for every sample, and it stays."""
    text_cache_gib: float = 0.5
    """Prompts are encoded once if no more of them can be drawn than fit in this."""
    latent_cache_dir: str | None = None
    """Folder that keeps what is encoded, for other runs, too: pictures and prompts are found by
    their content and by all that their encoding depends on, so nothing in it is ever out of date.
    Not given: the run's own folder."""
    latent_cache_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """How latents are kept; fp16 takes half the space and rounds them by less than 0.05 %."""
    vae_batch_size: int = 1
    """Pictures the autoencoder encodes at once."""
    latent_sampling: Literal["once", "deterministic", "random"] = "once"
    """Latents: one sample per picture, the mean, or a new sample every time."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the training pictures in pixels."""
        return self.resolution[0], self.resolution[-1]
