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
from pathlib import Path

from hn import cli
from hn.config import Config
from hn.errors import DataError, OptionError, UserError

PARSER = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)


def main() -> int:
    """Read the flags, cache."""
    PARSER.add_argument("-o", "--output", required=True, help="folder of the cache")
    PARSER.add_argument("--verify", type=int, default=0, help="encode so many pictures again")
    PARSER.add_argument("--push_to_hub", metavar="ID", help="publish it as a dataset, owner/name")
    PARSER.add_argument("--public", action="store_true", help="for everyone; else only for you")
    args, settings = PARSER.parse_known_args()
    try:
        config = cli.parse([*settings, "--latent_cache_dir", args.output])
        if args.verify < 0:
            raise OptionError(f"verify must not be negative; found {args.verify}")
        if config.data.cached_data_dir is not None:
            raise OptionError("cached_data_dir is encoded already: give pictures to encode")
        if args.push_to_hub is not None:
            check_destination(args.push_to_hub)
        cache(config, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def cache(config: Config, args: argparse.Namespace) -> None:
    """Encode what is missing, and verify it. Raises `DataError` if it is not what it should be."""
    cli.quiet_libraries()

    from hn import build, launch
    from hn.data import caching
    from hn.data.contexts import Contexts
    from hn.hub import push_cache

    accelerator = launch.build_accelerator(config)
    config = launch.resolve(config, accelerator, launch.run_folder(config))
    datasets = build.build_datasets(config, accelerator)
    base = build.build_base_model(config, accelerator)
    store = build.build_cache(config)
    contexts = Contexts(base, store.store)
    build.build_held_out(config, accelerator, datasets, base, contexts, store)
    latents = build.build_latents(config, accelerator, datasets.train, base, store, "train")
    build.build_contexts(config, accelerator, latents, contexts, base)
    accelerator.print(f"{args.output}: {len(latents)} pictures, {len(store.store)} entries")
    if not accelerator.is_main_process:
        return
    if args.verify:
        assert datasets.train is not None
        encoder = build.build_encoder(config, base)
        found = caching.verify(datasets.train, encoder, latents.index, store.store, args.verify)
        print(found)
        if not found.same:
            raise DataError(f"{args.output} holds something else for {found.name}: remove it")
    if args.push_to_hub is not None:
        print(push_cache(Path(args.output), args.push_to_hub, private=not args.public))


def check_destination(repo_id: str) -> None:
    """Raises `OptionError` or `HubError` for what cannot be pushed to, before anything is done."""
    from hn.hub_access import check_repo_id, check_token

    check_repo_id(repo_id)
    check_token(None)


if __name__ == "__main__":
    sys.exit(main())
