r"""Encode pictures and prompts into a cache, before training or instead of carrying the pictures.

    accelerate launch tools/cache_latents.py -o cache --config mine.toml
    accelerate launch tools/cache_latents.py -o cache --train_data_dir my_pictures \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

All settings of train_hypernetwork.py are understood. Training with the same ones and
--latent_cache_dir cache finds everything encoded; --cached_data_dir cache needs no pictures.
Several processes share the work. Killed and started again, it goes on where it was; run again after
an edit, it encodes what has changed and says why.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hn import cli
from hn.config import Config
from hn.errors import DataError, OptionError


def main() -> int:
    """Read the flags, cache."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-o", "--output", required=True, help="folder of the cache")
    add("--verify", type=int, default=0, metavar="N", help="encode N of the pictures again")
    add("--push_to_hub", metavar="ID", help="publish it as a dataset, owner/name")
    add("--public", action="store_true", help="for everyone; else only for you")
    args, settings = parser.parse_known_args()
    kept = "what was encoded is kept"
    return cli.exit_code_of(lambda: cache(config_of(args, settings), args), kept)


def config_of(args: argparse.Namespace, settings: Sequence[str]) -> Config:
    """The settings of training that shape latents. Raises `OptionError`."""
    config = cli.parse([*settings, "--latent_cache_dir", args.output])
    if args.verify < 0:
        raise OptionError(f"verify must not be negative; found {args.verify}")
    if config.data.cached_data_dir is not None:
        raise OptionError("cached_data_dir is encoded already: give pictures to encode")
    if config.data.streaming:
        raise OptionError("streaming keeps nothing: leave it out to encode beforehand")
    return config


def cache(config: Config, args: argparse.Namespace) -> None:
    """Encode what is missing, verify, publish. Raises a `UserError` of any kind."""
    cli.quiet_libraries()
    cli.spare_imports(config)

    from hn import hub

    if args.push_to_hub is not None:
        hub.check_destination(args.push_to_hub)  # before an hour of work
    from hn import build, launch

    training = replace(config.training, expect_world_size=None)  # that of a run, not of this
    config = replace(config, training=training)
    accelerator = launch.build_accelerator(config)
    config = launch.resolve(config, accelerator, launch.run_folder(config))
    cached = build.build_cached(config, accelerator)
    if not accelerator.is_main_process:
        return
    print(f"{args.output}: {cached}")
    if args.verify:
        found = cached.verify(args.verify)
        print(found)
        if not found.same:
            raise DataError(f"{args.output} holds something else for {found.name}: remove it")
    if args.push_to_hub is not None:
        print(hub.push_cache(Path(args.output), args.push_to_hub, private=not args.public))


if __name__ == "__main__":
    sys.exit(main())
