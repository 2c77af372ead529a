r"""Which checkpoint of a run is the best, at which strength, and what it costs.

    python tools/evaluate.py runs/my_style
    python tools/evaluate.py runs/my_style --samples 32 --strengths 0 0.5 0.8 1 --prompts mine.txt

All checkpoints are measured against the base model on the same noise: on held-out pictures, on
training pictures, and on prompts that have nothing to do with either. The best one is drawn at
several strengths. RUN/evaluation gets report.html, report.json and pictures.
"""

import argparse
import math
import sys
from pathlib import Path

from hn import cli
from hn.errors import OptionError


def main() -> int:
    """Read the flags, evaluate, say what is recommended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="folder of a run")
    add("-o", "--output", type=Path, help="folder of the report; RUN/evaluation if not given")
    add("--samples", type=int, default=16, help="draws of noise for each picture (16)")
    add("--strengths", type=float, nargs="+", help="of the sweep (0 0.25 0.5 0.75 1)")
    add("--prompts", nargs="+", help="of the sweep: texts, or a file with one in each line")
    add("--clip_model", help="a CLIP, as folder or hub id: how well pictures go with prompts")
    add("--dino_model", help="a DINO, likewise: how much they look like training pictures")
    add("--base", help="evaluate on this base model instead of the run's own")
    args = parser.parse_args()
    return cli.exit_code_of(lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> None:
    """Check the flags, evaluate, write. Raises a `UserError` of any kind."""
    if args.samples < 4 or args.samples % 4:
        raise OptionError(f"samples must be a multiple of 4, at least 4; found {args.samples}")
    if not all(it >= 0 and math.isfinite(it) for it in args.strengths or ()):
        raise OptionError(f"strengths must not be negative; found {args.strengths}")
    cli.quiet_libraries()

    from hn import launch
    from hn.build.evaluated import build_evaluated
    from hn.evaluation import wording
    from hn.evaluation.bench import STRENGTHS, Options
    from hn.evaluation.candidates import find_candidates
    from hn.evaluation.evaluate import evaluate as measure

    prompts = args.prompts or []
    if len(prompts) == 1 and Path(prompts[0]).is_file():
        prompts = [line for line in Path(prompts[0]).read_text().splitlines() if line.strip()]
    options = Options(
        samples=args.samples,
        strengths=args.strengths or STRENGTHS,
        prompts=prompts,
        clip_model=args.clip_model,
        dino_model=args.dino_model,
    )
    candidates = find_candidates(args.run)
    opened = build_evaluated(*launch.reopen(args.run, args.base), options)
    found = measure(opened.bench, candidates, opened.about, opened.source)
    found.write(folder := args.output or args.run / "evaluation", args.run)
    print(wording.summary(found.report))
    print(f"report         {folder / 'report.html'} (and report.json)")


if __name__ == "__main__":
    sys.exit(main())
