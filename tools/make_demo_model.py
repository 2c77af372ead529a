"""Make the demo's tiny Stable Diffusion from nothing, on a CPU, and measure how well it obeys.

    python tools/make_demo_model.py -o hn/demo/model

It took an hour on two cores; the log lies beside the weights. An interrupted run goes on from
`--work`.
"""

import argparse
from pathlib import Path


def main() -> None:
    """Read the flags, build, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help="folder of the finished pipeline")
    add("--work", type=Path, default=Path("runs/demo-model"), help="folder of the stages")
    add("--seed", type=int, default=0)
    add("--vae_steps", type=int, default=3500)
    add("--unet_steps", type=int, default=5000)
    add("--pictures", type=int, default=24000)
    add("--prompts", type=int, default=200, help="held-out prompts to measure obedience with")
    args = parser.parse_args()

    from diffusers import StableDiffusionPipeline

    from hn.demo import build, measure

    build.build(
        args.output,
        args.work,
        seed=args.seed,
        vae_steps=args.vae_steps,
        unet_steps=args.unet_steps,
        pictures=args.pictures,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(args.output)
    pipeline.set_progress_bar_config(disable=True)
    scenes = measure.held_out_scenes(args.prompts, seed=args.seed)
    print(f"held-out prompts: {measure.obedience(measure.draw(pipeline, scenes), scenes)}")


if __name__ == "__main__":
    main()
