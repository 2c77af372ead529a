"""Make the demo's tiny Stable Diffusion from nothing, on a CPU, and measure how well it obeys.

    python tools/make_demo_model.py -o hn/demo/model

It took 70 minutes on two cores (the log lies beside the weights). An interrupted run goes on from
`--work`.
"""

import argparse
from pathlib import Path


def main() -> None:
    """Read the flags, build, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the finished pipeline"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/demo-model"), help="folder of the stages"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae_steps", type=int, default=3500)
    parser.add_argument("--unet_steps", type=int, default=8000)
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument(
        "--prompts", type=int, default=200, help="held-out prompts to measure obedience with"
    )
    args = parser.parse_args()

    from hn.demo import build

    build.build(
        args.output,
        args.work,
        seed=args.seed,
        vae_steps=args.vae_steps,
        unet_steps=args.unet_steps,
        pictures=args.pictures,
    )


if __name__ == "__main__":
    main()
