"""From the command line and a TOML file to a `Config`, and back to TOML. Loads no torch.

Defaults < TOML file (`--config`) < flags.
"""

import argparse
import logging
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hn.config import SECTIONS, Config
from hn.errors import INTERRUPTED, OptionError, UserError, meant
from hn.limits import check
from hn.limits.launching import as_launched

RECIPES = Path(__file__).parent / "recipes"
SPARED = ("bitsandbytes", "peft", "xformers")  # packages that most runs do not use
_TOKEN = re.compile(r"\bhf_\w{10,}")


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Read flags and the file they name. `--help` ends the process; raises `OptionError`."""
    import tyro  # only here: it can be replaced

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for argument in arguments:
        _refuse_token(argument, "the command line")
    named = _config_argument(arguments)
    config = Config() if named is None else replace(read_toml(find_recipe(named)), config=named)
    config = tyro.cli(
        tyro.conf.OmitArgPrefixes[Config],
        args=arguments,
        default=config,
        use_underscores=True,
        prog="train_hypernetwork.py",
    )
    config = as_launched(config)
    check(config)
    return config


def parse_or_exit() -> Config:
    """As `parse`, but a mistake ends the process with its message and exit code."""
    try:
        return parse()
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def numbers(text: str) -> tuple[float, ...]:
    """Read "1, 2, 1" as the web UI's field does; whole numbers stay whole."""
    return tuple(int(part) if part.strip().isdigit() else float(part) for part in text.split(","))


def exit_code_of(act: Callable[[], None], kept: str = "nothing was written") -> int:
    """Do what a tool does; of what a user can mend, say it and return its exit code.

    `kept`: what is left if the user interrupts it.
    """
    try:
        act()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; {kept}")
        return INTERRUPTED
    return 0


def add_noising_flags(parser: argparse.ArgumentParser) -> None:
    """Those of tools that load a base model: what it may not say of itself."""
    add, kinds = parser.add_argument, ("epsilon", "v_prediction")
    add("--prediction_type", choices=kinds, help="what the base predicts, if it does not say so")
    add("--zero_terminal_snr", action="store_true", help="the base was trained down to pure noise")


def quiet_libraries() -> None:
    """Keep libraries from warning, at their import, of what does not concern us; errors stay."""
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        os.environ.setdefault("TQDM_DISABLE", "1")


def spare_imports(config: Config) -> None:
    """Let libraries take for absent what this run does not use: they would import all there is,
    which is a third of a start. What an optimizer of another package needs, nobody knows.
    """
    model, optimizer = config.model, config.optimizer
    in_use = optimizer.use_8bit_adam or "." in optimizer.optimizer
    in_use = in_use or config.memory.quantize_base in ("int8", "nf4")
    if not (in_use or model.enable_xformers_memory_efficient_attention):
        for name in SPARED:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's word for absent


def regain_imports() -> None:
    """Let what was spared be imported after all, by what asks what it would bring."""
    for name in SPARED:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]


def find_recipe(name: str) -> Path:
    """The TOML file meant by a recipe's name or a path. Raises `OptionError`."""
    path = (
        RECIPES / f"{name}.toml" if "/" not in name and not name.endswith(".toml") else Path(name)
    )
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise OptionError(
            f"config '{name}' is neither a TOML file nor a recipe; the recipes are: {known}"
        )
    return path


def read_toml(path: Path) -> Config:
    """Read a TOML file of sections. Raises `OptionError` for what is not a setting."""
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_token(text, str(path))
        return from_toml(text, path)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path}: {error}") from error


def from_toml(text: str, source: Path) -> Config:
    """The same of the text of a file; messages name its `source`."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"cannot read {source}: {error}") from error
    config = Config()
    for section, values in content.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise OptionError(
                f"{source}: unknown section [{section}]{meant(section, SECTIONS)}; there are "
                f"{SECTIONS}"
            )
        config = replace(
            config,
            **{section: _read_section(getattr(config, section), values, f"{source}: {section}")},
        )
    return config


def to_toml(config: Config, without: Config | None = None) -> str:
    """The configuration as TOML that `read_toml` reads back.

    Settings that are unset are left out, and those that are as in `without`.
    """
    lines: list[str] = []
    for section in SECTIONS:
        values = getattr(config, section)
        given = [
            f"{f.name} = {_toml_value(value)}"
            for f in fields(values)
            if (value := getattr(values, f.name)) is not None
            and (without is None or value != getattr(getattr(without, section), f.name))
        ]
        lines += [f"[{section}]", *given, ""] if given else []
    return "\n".join(lines)


def _refuse_token(text: str, where: str) -> None:
    """Settings are written down and shown, and command lines are seen by everybody on a machine.

    Raises `OptionError`.
    """
    if _TOKEN.search(text):
        raise OptionError(
            f"{where} holds what looks like a token of the Hugging Face Hub: leave it out. Log in "
            "with `hf auth login`, or set HF_TOKEN."
        )


def _config_argument(arguments: list[str]) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == "--config":
            if position + 1 == len(arguments):
                raise OptionError("--config needs a recipe's name or a TOML file")
            return arguments[position + 1]
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def _read_section(section: Any, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(type(section))
    for key in values:
        if key not in hints:
            raise OptionError(f"{where}: unknown setting '{key}'{meant(key, hints)}")
    return replace(
        section,
        **{key: _converted(value, hints[key], f"{where}.{key}") for key, value in values.items()},
    )


def _converted(value: Any, hint: Any, where: str) -> Any:
    """`value` as the setting's type, or an `OptionError` that names both."""
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [argument for argument in get_args(hint) if argument is not type(None)]
        return _converted(value, inner[0], where)
    if origin is Literal and value in get_args(hint):
        return value
    if (hint == tuple[int, ...] and isinstance(value, int)) or _are_choices(hint, value):
        value = [value]  # as on the command line: resolution = 512, report_to = "wandb"
    if origin is tuple and isinstance(value, list):
        return tuple(_converted(item, get_args(hint)[0], where) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return value  # an int stays an int: a layer_structure of 1, 2, 1 is stored as such
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # learning_rate = 1e-5
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    allowed = (
        " or ".join(map(repr, get_args(hint)))
        if origin is Literal
        else getattr(hint, "__name__", str(hint))
    )
    raise OptionError(f"{where} must be {allowed}; found {value!r}")


def _are_choices(hint: Any, value: Any) -> bool:
    """Whether `value` is one of the choices of which a setting takes several."""
    inner = get_args(hint)[0] if get_origin(hint) is tuple else None
    return get_origin(inner) is Literal and isinstance(value, str)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)


def _toml_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
