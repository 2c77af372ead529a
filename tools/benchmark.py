"""Measure a training step of this trainer beside the web UI's and that of a LoRA, in one table.

    python tools/benchmark.py tiny
    python tools/benchmark.py sd15 --resolution 256 --dims text --only hn lora
    python tools/benchmark.py sd15 --batch 16 --precision bf16 --device cuda --json gpu.json
    python tools/benchmark.py sdxl --precision bf16 --count --only hn lora

MODEL is the embedded demo or a shape with random weights; narrow has SD 1's layers, so narrow that
the host's work is all. They take turns, round by round; on a CPU the time that the process computed
counts. Bytes and GFLOP are counted. `webui` is what the AUTOMATIC1111 web UI computes, but with a
frozen UNet, `webui-unet-grads` with its gradients, as there. Ratios are to `webui`.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hn import cli
from hn.benchmark.shapes import SHAPES


def main() -> int:
    """Read the flags, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", choices=SHAPES, help="whose step")
    add("--resolution", type=int, help="of the pictures, in pixels; that of the model")
    add("--batch", type=int, help="pictures in a step; tiny 32, demo 16, else 1")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the UNet (fp32)")
    add("--dims", default="all", help="widths trained: all, text, or such as 320,768 (all)")
    add("--only", nargs="+", default=[], metavar="ROW", help="these and webui (all)")
    add("--rounds", type=int, default=5, help="steps of each that count (5)")
    add("--count", action="store_true", help="only what is counted, so that nothing is computed")
    add("--device", help="cpu or cuda (the fastest there is)")
    add("--threads", type=int, default=1, help="of a CPU (1)")
    add("--loop", action="store_true", help="also what the script's loop costs, on the demo")
    add("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    args = parser.parse_args()
    return cli.exit_code_of(lambda: benchmark(args))


def benchmark(args: argparse.Namespace) -> None:
    """Measure, print, write. Raises a `UserError` of any kind."""
    cli.quiet_libraries()

    from hn.benchmark import benchmark, loop, rows
    from hn.benchmark.scene import build_scene
    from hn.storage import write_bytes

    benchmark.prepare(args.rounds, args.threads)
    names = benchmark.choose(args.only)
    what = {name: getattr(args, name) for name in ("resolution", "batch", "precision", "device")}
    scene = build_scene(args.model, **what, widths=args.dims)
    measured = benchmark.measure(scene, names, 0 if args.count else args.rounds)
    print(rows.table(measured.rows))
    about = {"model": args.model, **measured.about}
    if args.loop:
        sys.path.insert(0, str(Path(__file__).parent.parent))
        import train_hypernetwork

        print(found := loop.measure(train_hypernetwork, 40 * args.rounds))
        about["loop"] = {"share": found.share, "added": found.added, **asdict(found)}
    if args.json is not None:
        text = json.dumps(rows.as_json(measured.rows, about), indent=1)
        write_bytes(args.json, f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
