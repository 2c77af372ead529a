"""The settings of everything but pictures and captions; standard library only."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model."""

    pretrained_model_name_or_path: str = ""
    """A Stable Diffusion 1, 2 or XL: a diffusers folder or hub id, or a single .safetensors or
    .ckpt file; "demo" is the embedded one.
    """
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder than the model's: folder, hub id or single file."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the model predicts; not given: what its scheduler or file says. Most single files of
    Stable Diffusion 2 do not say it: v_prediction are those of 768 pixels."""
    zero_terminal_snr: bool = False
    """The model was trained down to pure noise, which its scheduler does not say: the last timestep
    has no signal then (arXiv 2305.08891), and previews begin there. For v_prediction only."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    variant: str | None = None
    """Weight files to take, such as "fp16"."""
    sd_checkpoint_file: str | None = None
    """The single file of this model, if a folder or hub id is trained with: its short hash is noted
    in the artifact."""
    prompt_syntax: Literal["plain", "webui"] = "plain"
    """How captions and prompts are read. plain: as text, cut at one chunk of 75 tokens. webui:
    (word:1.2), ((word)), [word] and BREAK as the web UI reads them, in as many chunks as it takes;
    captions with parentheses that mean nothing, as tags of pictures often have, need \\( and \\).
    """
    clip_skip: int = 1
    """The text encoder's layer that is read, from the end: 1 is the last; models for anime often
    want 2. Stable Diffusion XL was trained with 2, which 1 means there, too."""
    enable_xformers_memory_efficient_attention: bool = False
    """Use xformers' attention instead of torch's."""
    shard_base_model: bool = False
    """Deal the frozen UNet out to all processes, which gather it block by block (FSDP2; with
    shard_optimizer ZeRO-3): for one larger than a card. accelerate's FSDP means this, too."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The hypernetwork."""

    name: str = "hypernetwork"
    """Its name: file stem, folder of the run, and what [name] in a template becomes."""
    hypernetwork_path: str | None = None
    """Go on from this .pt or .safetensors file, or that of a hub repository, owner/name[@revision];
    its structure is taken, and its step goes on."""
    adopt_optimizer: Literal["matching", "always", "never"] = "matching"
    """The web UI's .pt.optim beside hypernetwork_path: use it if its hash is that of the .pt and
    stop otherwise, use it all the same (its intermediate files never match), or leave it alone.
    """
    dims: tuple[int, ...] = ()
    """Context widths to train; none given: every one the UNet has, or its blocks to train."""
    sides: Literal["both", "k", "v"] = "both"
    """What reads through it: keys and values, or keys (k) or values (v) alone; the other side then
    has no modules, and in the .pt such that add nothing."""
    train_blocks: tuple[str, ...] = ()
    """The blocks of the UNet that read through it, such as down.1 mid up, or single attentions,
    such as up.1.0; none given: all. Other programs know no blocks: unless these are all with
    attention of the widths in dims, there is no .pt."""
    per_block: bool = False
    """Give each of train_blocks (none given: each block of the UNet) modules of its own."""
    layer_structure: tuple[float, ...] = (1, 2, 1)
    """Layer widths as multiples of the context width, from 1 to 1."""
    activation_func: str = "mish"
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
class ObjectiveConfig:
    """The loss."""

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = "l2"
    """Distance of prediction and target: squared, absolute, or squared near and linear far off
    (huber is as l2 near, smooth_l1 as twice l1 far off), so that odd pictures pull less."""
    huber_c: float = 0.1
    """Where huber and smooth_l1 turn linear, in standard deviations of the noise."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """huber_c at every timestep, or falling to it from 1 with the timestep or with the SNR."""
    loss_weighting: Literal["none", "min_snr", "soft_min_snr", "debiased"] | None = None
    """How much each timestep counts; not given: min_snr if snr_gamma is given, else none."""
    snr_gamma: float | None = None
    """Bound of min_snr and soft_min_snr; 5 is usual, and taken if it is not given."""
    timestep_range: tuple[int, ...] = ()
    """Learn the timesteps from the first of these up to the second, which is left out, such as
    0 500; none given: all of them."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """How often each is learnt: the same, or the middle more often."""
    logit_mean: float = 0.0
    """Of logit_normal: below 0 less noise is learnt more often, above 0 more noise."""
    logit_std: float = 1.0
    """Of logit_normal: the smaller, the fewer timesteps of the ends."""
    stratified_timesteps: bool = False
    """Spread the timesteps of a step evenly over its pictures, those of all processes: the loss
    jumps less."""
    noise_offset: float = 0.0
    """Per-channel constant added to the noise; 0.05 to 0.1 is usual."""
    multires_noise_iterations: int = 0
    """Add noise of so many coarser resolutions, for very dark and very bright pictures; 6 to 10 is
    usual, 0 is off."""
    multires_noise_discount: float = 0.3
    """How much each coarser resolution adds of the one before; 0.1 to 0.3 is usual."""
    input_perturbation: float = 0.0
    """Noise on the noise, which is not to be predicted; 0.1 is usual."""
    residual_penalty: float = 0.0
    """Times the mean of (norm(mlp(x)) / norm(x)) squared over all modules, added to the loss: holds
    the change of the contexts down, where pictures burn at strength 1."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, learning rate, clipping."""

    optimizer: str = "AdamW"
    """A class of torch.optim, or any importable package.Class, such as prodigyopt.Prodigy,
    schedulefree.AdamWScheduleFree, lion_pytorch.Lion, bitsandbytes.optim.Lion8bit."""
    optimizer_args: tuple[str, ...] = ()
    """Its arguments as name=value, such as weight_decay=0.1 betas=(0.9,0.99)."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit states (bitsandbytes)."""
    learning_rate: str = "5e-5"
    """A number, or the web UI's stages: "5e-5:150, 2e-5:500, 1e-5" (rate:until that step)."""
    allow_high_learning_rate: bool = False
    """Train at 1e-3 or more with an optimizer of Adam's kind, which often ends in noise."""
    width_learning_rates: tuple[str, ...] = ()
    """Factors of the rate by context width, such as 768=1 320=0.5; a width not named has 1."""
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    """What the rate is multiplied with over the run."""
    lr_warmup_steps: int = 0
    """Steps over which the rate rises from zero."""
    clip_grad_mode: Literal["none", "norm", "value"] = "norm"
    """Clip the true (unscaled) gradient's norm, each of its values, or nothing."""
    clip_grad_value: str = "1.0"
    """The bound; a number or stages, as learning_rate."""
    max_weight_norm: float | None = None
    """After each step, scale every weight matrix whose norm is above this back to it."""
    shard_optimizer: bool = False
    """Deal gradients and the optimizer's state out to all processes (DeepSpeed's ZeRO-2): for large
    hypernetworks. accelerate's DeepSpeed means this, and with ZeRO-3 shard_base_model, too."""


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
    use_ema: bool = False
    """Also keep an average of the weights: saved as <name>-ema, drawn and measured beside them."""
    ema_decay: float = 0.999
    """How slowly the average forgets; it begins lower, and rises to this with the steps."""
    gradient_checkpointing: bool = False
    """Less memory for more time: compute activations again in the backward pass."""
    seed: int = 0
    """All randomness follows from it: pictures, noise, timesteps, crops, captions, first weights.
    """
    find_learning_rate: int = 0
    """Instead of training, try so many rates (100), from 1e-6 to 0.1, one each step, and show the
    loss of fixed pictures on the way: begin where it falls fastest."""
    max_rollbacks: int = 3
    """How often a run that diverges goes back to an earlier checkpoint, to go on with lower rates,
    before it gives up: 3 steps in a row without a finite loss and gradient, or loss_bound."""
    rollback_rate_factor: float = 0.5
    """What its rates are multiplied with each time."""
    loss_bound: float = 10.0
    """It diverges where the median of the newest 25 losses is above that of the 200 before, plus
    this times their median distance from it (which counts as a tenth of it at least); 0: never."""
    expect_world_size: int | None = None
    """Refuse to run with another number of processes."""
    max_train_time: str | None = None
    """Save and leave after so long, such as 2h30m, as after a signal: counted from the start of the
    script, with what is encoded first."""
    process_timeout_s: float = 120.0
    """Seconds without a forward of the UNet after which all processes end and name the one that
    hangs or is lost (ten times as many before the second forward); 0: never."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where results go, and when."""

    output_dir: str = "runs"
    """The run's folder is output_dir/name."""
    checkpointing_steps: int = 500
    """Save a checkpoint every so many steps, and always at the end; 0: only at the end."""
    checkpoints_total_limit: int | None = None
    """Keep only the newest so many checkpoints, at least 2, beside the one where a run stopped."""
    keep_every: int | None = None
    """Never remove the checkpoints of every so many steps."""
    keep_best: bool = False
    """Save a checkpoint whenever the held-out loss is the lowest so far, and never remove the best:
    checkpoints/best leads to it."""
    save_optimizer_state: bool = False
    """Write .pt.optim beside each .pt too, to go on in the web UI."""
    resume_from_checkpoint: str | None = None
    """A checkpoint's folder, or "latest", or "auto" (the latest if there is one, else a new run:
    for jobs that are started again by themselves), or hub:owner/name[@revision] that was pushed
    with hub_strategy all: its newest, or that of /step-00000500 at the end."""
    dry_run: bool = False
    """Check settings, files and pictures, show what a run would be and take, and end before any
    model is loaded."""
    allow_change: tuple[str, ...] = ()
    """Settings that may differ from those of the checkpoint, such as pictures seed snr_gamma."""
    report_to: tuple[Literal["tensorboard", "wandb", "none"], ...] = ("tensorboard",)
    """Trackers, beside metrics.jsonl and hypernetwork_loss.csv, which are always written. wandb
    keeps its files here with WANDB_MODE=offline."""
    logging_steps: int = 10
    """Report every so many steps."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Previews and the held-out loss."""

    validation_prompt: tuple[str, ...] = ()
    """Prompts to draw."""
    validation_steps: int = 500
    """Draw and measure every so many steps, and at the end; 0: only at the end."""
    early_stop_patience: int = 0
    """End the run after so many measurements in a row without a held-out loss that is lower beyond
    doubt (paired, 95 %); 0: never."""
    validation_strengths: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Columns of the preview grid."""
    validation_negative_prompt: str = ""
    """What the guidance leads away from; of most Stable Diffusion XL, zeros if it is empty, as in
    diffusers and the web UI. Empty captions are encoded, as their own training scripts do."""
    validation_inference_steps: int = 25
    """Denoising steps of a preview."""
    validation_guidance_scale: float = 7.0
    """Classifier-free guidance of a preview."""
    validation_image: str | None = None
    """A picture that an inpainting base model paints into, with validation_mask; not given: it
    draws all of a grey one."""
    validation_mask: str | None = None
    """Its mask, white where is to be painted."""
    validation_seed: int = 0
    """Seed of the previews' noise: the same in every grid."""
