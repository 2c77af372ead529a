"""How much of the demo's style a hypernetwork brings, on subjects that it was not trained on.

    python tools/measure_demo.py runs/demo/demo.safetensors

The statistic is the share of dark pixels (`hn.demo.measure.dark_share`): near 0 in the base model's
pictures, about 0.9 in the style set's. The subjects are the held-out shapes.
"""

import argparse
from pathlib import Path
from statistics import mean

STRENGTHS = (0.0, 0.5, 1.0)


def main() -> None:
    """Read the flags, draw, measure, print one line for each strength."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("hypernetwork", type=Path)
    add("-o", "--output", type=Path, help="also save a grid of the pictures")
    add("--pictures", type=int, default=20, help="how many for each strength")
    args = parser.parse_args()

    from diffusers import StableDiffusionPipeline

    import hn
    from hn import demo
    from hn.demo import measure
    from hn.demo.pictures import caption, render
    from hn.diffusion.pipeline import grid

    pipeline = StableDiffusionPipeline.from_pretrained(demo.MODEL)
    pipeline.set_progress_bar_config(disable=True)
    net = hn.load(args.hypernetwork)
    scenes = measure.held_out_scenes(args.pictures, seed=0, shapes=demo.HELD_OUT_SHAPES)
    style = [render(scene, "neon") for scene in scenes]
    columns = []
    for strength in STRENGTHS:
        with hn.attach(pipeline.unet, [(net, strength)]):
            columns.append(measure.draw(pipeline, scenes))
    shares = [mean(map(measure.dark_share, column)) for column in [*columns, style]]
    for strength, share in zip([*STRENGTHS, "style set"], shares, strict=True):
        way = (share - shares[0]) / (shares[-1] - shares[0])
        print(f"strength {strength!s:<10} dark share {share:.3f}  {way:7.1%} of the way")
    if args.output is not None:
        rows = list(zip(*columns, style, strict=True))[:6]
        labels = [*(f"strength {strength:g}" for strength in STRENGTHS), "style set"]
        grid(rows, [caption(scene) for scene in scenes[:6]], labels).save(args.output)


if __name__ == "__main__":
    main()
