"""What the settings of loss, optimizer, averages and speed may be, alone and together."""

import math
from dataclasses import fields

from hn.config import Config, ObjectiveConfig, OptimizerConfig, SpeedConfig, TrainingConfig
from hn.errors import OptionError, shown

HIGH_RATE = 1e-3
# Optimizers that treat every number by itself, wherever weights are cut through.
DEALT_OUT = ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD", "lion_pytorch.Lion")
# Settings that only count where another one has one of these values.
_ONLY_WITH = {
    "huber_c": ("loss_type", ("huber", "smooth_l1")),
    "huber_schedule": ("loss_type", ("huber", "smooth_l1")),
    "logit_mean": ("timestep_sampling", ("logit_normal",)),
    "logit_std": ("timestep_sampling", ("logit_normal",)),
    "snr_gamma": ("loss_weighting", (None, "min_snr", "soft_min_snr")),
}


def learning_faults(config: Config) -> list[str]:
    """What cannot work in how is learnt, one line each."""
    return [
        *_objective_faults(config.objective),
        *_timestep_faults(config.objective),
        *_noise_faults(config.objective),
        *_optimizer_faults(config.optimizer),
        *_average_faults(config.training, config.optimizer),
        *_trial_faults(config.training.find_learning_rate),
        *_safety_faults(config.training),
        *_rate_faults(config.optimizer),
        *_speed_faults(config.speed),
    ]


def parse_width_rates(items: tuple[str, ...]) -> dict[int, float]:
    """`768=1 320=0.5` as factors by width. Raises `OptionError`."""
    rates: dict[int, float] = {}
    for item in items:
        width, _, factor = item.partition("=")
        try:
            parsed, value = int(width), float(factor)
        except ValueError:
            parsed, value = 0, 0.0
        if parsed < 1 or not _positive(value) or parsed in rates:
            raise OptionError(
                f"width_learning_rates: {shown(item)} is not width=factor, each width once and the "
                "factor greater than 0, such as 320=0.5"
            )
        rates[parsed] = value
    return rates


def is_schedule_free(optimizer: str) -> bool:
    """Whether the optimizer trains other weights than those that are shown."""
    return "schedulefree" in optimizer.lower()


def finds_its_rate(optimizer: str) -> bool:
    """Whether the optimizer estimates the rate, so that learning_rate is a factor of it."""
    return optimizer.rpartition(".")[2].startswith(("Prodigy", "DAdapt"))


def _trial_faults(rates: int) -> list[str]:
    if rates == 0 or rates >= 10:
        return []
    return [f"find_learning_rate must be at least 10 rates, 100 are usual, or 0; found {rates}"]


def _objective_faults(objective: ObjectiveConfig) -> list[str]:
    faults = []
    defaults = {field.name: field.default for field in fields(ObjectiveConfig)}
    for name, (owner, values) in _ONLY_WITH.items():
        found = getattr(objective, owner)
        if getattr(objective, name) != defaults[name] and found not in values:
            allowed = " or ".join(value for value in values if value is not None)
            faults.append(f"{name} is for {owner} {allowed}; found {found}")
    gamma = objective.snr_gamma
    if gamma is not None and not _positive(gamma):
        faults.append(f"snr_gamma must be greater than 0, 5 is usual; found {gamma}")
    if not 0 < objective.huber_c <= 1:
        faults.append(f"huber_c must be above 0 and at most 1; found {objective.huber_c}")
    faults += _negative("residual_penalty", objective.residual_penalty)
    return faults


def _timestep_faults(objective: ObjectiveConfig) -> list[str]:
    faults = []
    span = objective.timestep_range
    if span and not (len(span) == 2 and 0 <= span[0] < span[1]):
        faults.append(
            "timestep_range must be two numbers, from 0 up and the first below the second, such as "
            f"0 500; found {' '.join(map(str, span))}"
        )
    if not math.isfinite(objective.logit_mean):
        faults.append(f"logit_mean must be a number, 0 is usual; found {objective.logit_mean}")
    if not _positive(objective.logit_std):
        faults.append(f"logit_std must be greater than 0, 1 is usual; found {objective.logit_std}")
    return faults


def _noise_faults(objective: ObjectiveConfig) -> list[str]:
    faults = []
    for name in ("noise_offset", "input_perturbation", "multires_noise_iterations"):
        faults += _negative(name, getattr(objective, name))
    discount = objective.multires_noise_discount
    if not 0 < discount <= 1:
        faults.append(f"multires_noise_discount must be above 0 and at most 1; found {discount}")
    if objective.multires_noise_iterations == 0:
        if discount != ObjectiveConfig().multires_noise_discount:
            faults.append(
                f"multires_noise_discount {discount} is for multires_noise_iterations; found 0"
            )
    elif objective.noise_offset:
        faults.append(
            "noise_offset and multires_noise_iterations both change how bright the noise is: give "
            "one of the two"
        )
    return faults


def _optimizer_faults(optimizer: OptimizerConfig) -> list[str]:
    faults = []
    name, bound = optimizer.optimizer, optimizer.max_weight_norm
    if bound is not None and not _positive(bound):
        faults.append(f"max_weight_norm must be greater than 0; found {bound}")
    if bound is not None and is_schedule_free(name):
        faults.append(
            f"max_weight_norm would scale weights that {name} averages with others: give one of "
            "the two"
        )
    if is_schedule_free(name) and optimizer.lr_scheduler != "constant":
        faults.append(
            f"{name} takes the place of a decay of the rate: leave lr_scheduler "
            f"{optimizer.lr_scheduler} out"
        )
    found = "use_8bit_adam" if optimizer.use_8bit_adam else name
    if optimizer.shard_optimizer and found not in DEALT_OUT:
        faults.append(
            f"shard_optimizer cuts through weights, which these bear: {', '.join(DEALT_OUT)}; "
            f"found {shown(found)}"
        )
    if optimizer.width_learning_rates and finds_its_rate(name):
        faults.append(f"{name} finds one rate for all weights: leave width_learning_rates out")
    try:
        parse_width_rates(optimizer.width_learning_rates)
    except OptionError as error:
        faults.append(str(error))
    return faults


def is_high(optimizer: OptimizerConfig) -> bool:
    """Whether a rate is so high that an optimizer of Adam's kind rarely learns with it."""
    kind = optimizer.optimizer.rpartition(".")[2].lower()
    finds = finds_its_rate(optimizer.optimizer) or is_schedule_free(optimizer.optimizer)
    if finds or not any(word in kind for word in ("adam", "lion")):
        return False
    rates = [item.partition(":")[0] for item in optimizer.learning_rate.split(",")]
    try:
        factors = parse_width_rates(optimizer.width_learning_rates).values()
        return max(map(float, filter(str.strip, rates))) * max([1, *factors]) >= HIGH_RATE
    except ValueError:
        return False  # what is not a number is refused elsewhere


def _rate_faults(optimizer: OptimizerConfig) -> list[str]:
    if optimizer.allow_high_learning_rate or not is_high(optimizer):
        return []
    return [
        f"learning_rate {optimizer.learning_rate} is high for {optimizer.optimizer}, whose steps "
        f"are as long as the rate: most runs at {HIGH_RATE:g} or more end in noise, 5e-5 is usual. "
        "Take a lower one, or set allow_high_learning_rate if it is meant (small models want more)"
    ]


def _safety_faults(training: TrainingConfig) -> list[str]:
    faults = _negative("loss_bound", training.loss_bound)
    faults += _negative("max_rollbacks", training.max_rollbacks)
    factor = training.rollback_rate_factor
    if not 0 < factor <= 1:
        faults.append(
            f"rollback_rate_factor must be above 0 and at most 1, 0.5 is usual; found {factor}"
        )
    return faults


def _average_faults(training: TrainingConfig, optimizer: OptimizerConfig) -> list[str]:
    faults = []
    if not 0 < training.ema_decay < 1:
        faults.append(
            f"ema_decay must be between 0 and 1, 0.999 is usual; found {training.ema_decay}"
        )
    if not training.use_ema and training.ema_decay != TrainingConfig().ema_decay:
        faults.append(f"ema_decay {training.ema_decay} is for use_ema; found it off")
    if training.use_ema and is_schedule_free(optimizer.optimizer):
        faults.append(
            f"{optimizer.optimizer} averages the weights by itself, use_ema would do so again: "
            "give one of the two"
        )
    return faults


def _negative(name: str, value: float) -> list[str]:
    if value >= 0 and math.isfinite(value):
        return []
    return [f"{name} must not be negative; found {value}"]


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _speed_faults(speed: SpeedConfig) -> list[str]:
    backend, usual = speed.torch_compile_backend, SpeedConfig().torch_compile_backend
    if speed.torch_compile or backend == usual:
        return []
    return [f"torch_compile_backend {shown(backend)} is for torch_compile; found it off"]
