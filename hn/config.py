"""Every setting, in sections: one for each owner, which receives its section only. Standard library
only.

A field's docstring is its help text on the command line. The names are those that users of the
diffusers training scripts type already, flat on the command line, in sections in a TOML file.
"""

from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model."""

    pretrained_model_name_or_path: str = ""
    """Folder or hub id of a Stable Diffusion 1 or 2 in diffusers' layout; "demo" is the embedded
    one.
    """
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    variant: str | None = None
    """Weight files to take, such as "fp16"."""
    sd_checkpoint_file: str | None = None
    """The single file of this model, if there is one: its short hash is noted in the artifact."""
    prompt_syntax: Literal["plain", "webui"] = "plain"
    """How captions and prompts are read. plain: as text, cut at one chunk of 75 tokens. webui:
    (word:1.2), ((word)), [word] and BREAK as the web UI reads them, in as many chunks as it takes;
    captions with parentheses that mean nothing, as tags of pictures often have, need \\( and \\).
    """
    clip_skip: int = 1
    """The text encoder's layer that is read, from the end: 1 is the last; models for anime often
    want 2."""
    enable_xformers_memory_efficient_attention: bool = False
    """Use xformers' attention instead of torch's."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The hypernetwork."""

    name: str = "hypernetwork"
    """Its name: file stem, folder of the run, and what [name] in a template becomes."""
    hypernetwork_path: str | None = None
    """Go on from this .pt or .safetensors file; its structure is taken, and its step goes on."""
    adopt_optimizer: Literal["matching", "always", "never"] = "matching"
    """The web UI's .pt.optim beside hypernetwork_path: use it if its hash is that of the .pt and
    stop otherwise, use it all the same (its intermediate files never match), or leave it alone.
    """
    dims: tuple[int, ...] = ()
    """Context widths to train; none given: every one the UNet has."""
    layer_structure: tuple[float, ...] = (1, 2, 1)
    """Layer widths as multiples of the context width, from 1 to 1."""
    activation_func: str = "linear"
    """Activation by its web UI name: linear, relu, leakyrelu, elu, swish, tanh, sigmoid, mish, ...
    """
    weight_initialization: str = "identity"
    """identity (starts as the base model), Normal, or Kaiming or Xavier, each Uniform or Normal."""
    is_layer_norm: bool = False
    """LayerNorm after every layer."""
    activate_output: bool = False
    """Activation also after the last layer."""
    dropout_structure: tuple[float, ...] = ()
    """Dropout after each layer, one number for each entry of layer_structure, such as 0 0.3 0;
    also over that of hypernetwork_path. What is shared has none."""


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
    with it, white counts most, black not at all. A picture without one counts evenly. Off: these
    files are not used."""
    random_flip: bool = False
    """Mirror half of the samples."""
    missing_caption: Literal["error", "filename", "empty"] = "error"
    """A picture without a caption: stop, take the file's name as the web UI does, or the empty
    caption."""
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


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss."""

    snr_gamma: float | None = None
    """Min-SNR weighting; 5 is usual."""
    noise_offset: float = 0.0
    """Per-channel constant added to the noise; 0.05 to 0.1 is usual."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, learning rate, clipping."""

    optimizer: str = "AdamW"
    """A class of torch.optim, or any importable package.Class."""
    optimizer_args: tuple[str, ...] = ()
    """Its arguments as name=value, such as weight_decay=0.1 betas=(0.9,0.99)."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit states (bitsandbytes)."""
    learning_rate: str = "1e-5"
    """A number, or the web UI's stages: "5e-5:150, 2e-5:500, 1e-5" (rate:until that step)."""
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    """What the rate is multiplied with over the run."""
    lr_warmup_steps: int = 0
    """Steps over which the rate rises from zero."""
    clip_grad_mode: Literal["none", "norm", "value"] = "norm"
    """Clip the true (unscaled) gradient's norm, each of its values, or nothing."""
    clip_grad_value: str = "1.0"
    """The bound; a number or stages, as learning_rate."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop."""

    max_train_steps: int = 1000
    """Optimizer steps in all, counted over resumes."""
    train_batch_size: int = 1
    """Pictures per process and micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per step."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of the frozen model and of the computation; not given: what accelerate launch says.
    The
    hypernetwork's weights are always float32."""
    gradient_checkpointing: bool = False
    """Less memory for more time: compute activations again in the backward pass."""
    seed: int = 0
    """All randomness follows from it: pictures, noise, timesteps, crops, captions, first weights.
    """
    expect_world_size: int | None = None
    """Refuse to run with another number of processes."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where results go, and when."""

    output_dir: str = "runs"
    """The run's folder is output_dir/name."""
    checkpointing_steps: int = 500
    """Save a checkpoint every so many steps, and always at the end; 0: only at the end."""
    checkpoints_total_limit: int | None = None
    """Keep only the newest so many checkpoints, at least 2."""
    save_optimizer_state: bool = False
    """Write .pt.optim beside each .pt too, to go on in the web UI."""
    resume_from_checkpoint: str | None = None
    """A checkpoint's folder, or "latest"."""
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    """Tracker, beside metrics.jsonl and hypernetwork_loss.csv, which are always written."""
    logging_steps: int = 10
    """Report every so many steps."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Previews and the held-out loss."""

    validation_prompt: tuple[str, ...] = ()
    """Prompts to draw."""
    validation_steps: int = 500
    """Draw and measure every so many steps, and at the end; 0: only at the end."""
    validation_strengths: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Columns of the preview grid."""
    validation_negative_prompt: str = ""
    """What the guidance leads away from."""
    validation_inference_steps: int = 25
    """Denoising steps of a preview."""
    validation_guidance_scale: float = 7.0
    """Classifier-free guidance of a preview."""
    validation_seed: int = 0
    """Seed of the previews' noise: the same in every grid."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a hypernetwork for a Stable Diffusion model."""

    config: str | None = None
    """A recipe's name (demo) or a TOML file, read before the other flags."""
    model: ModelConfig = field(default_factory=ModelConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)


SECTIONS = tuple(f.name for f in fields(Config) if f.name != "config")
