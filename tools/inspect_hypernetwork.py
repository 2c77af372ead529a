"""What hypernetwork files are, and which host runs them.

    python tools/inspect_hypernetwork.py my_style.pt other.safetensors
    python tools/inspect_hypernetwork.py --json my_style.pt someone/a_style

`change` is the size of what a module adds to a context, relative to the context; `rank` in how many
directions; dead units answer every context alike. Measured on random contexts.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hn.errors import UserError, shown

ROW = "  {dim:>5}    {side}  {weight_norm:>12.4g}  {change:>8.2%}  {rank:>8.1f}  {dead} of {units}"


def main() -> int:
    """Print a report of each file; a file that cannot be read does not hide the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="for programs: one list of objects")
    args = parser.parse_args()
    code, reports = 0, []
    for path in args.files:
        try:
            reports.append(report(path))
        except UserError as error:
            code = error.exit_code
            where = "" if str(path) in str(error) else f"{path}: "
            print(f"error: {where}{error}", file=sys.stderr)
    print(json.dumps(reports, indent=1) if args.json else "\n\n".join(map(as_text, reports)))
    return code


def report(path: Path) -> dict[str, Any]:
    """Everything that is said about a file. Raises `ModelError`."""
    from tqdm import tqdm

    from hn.network import anatomy, files, portability

    contents = files.read(path := files.locate(path))
    modules = anatomy.examine(contents) if not contents.spoilt else []
    return {
        "file": str(path),
        "config": asdict(contents.config) | {"reach": contents.config.reach},
        "provenance": asdict(contents.provenance),
        "dtypes": anatomy.dtypes(contents.tensors),
        "parameters": sum(tensor.numel() for tensor in contents.tensors.values()),
        "modules": [asdict(module) for module in tqdm(modules, desc=path.name, leave=False)],
        "hosts": portability.in_words(portability.judge(contents, path)),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    from hn.network.portability import as_lines

    config, provenance = report["config"], report["provenance"]
    flags = [flag for flag in ("is_layer_norm", "activate_output", "use_dropout") if config[flag]]
    structure = ", ".join(f"{multiplier:g}" for multiplier in config["layer_structure"])
    words = ", ".join(filter(None, [str(config["activation_func"]), *flags, config["reach"]]))
    lines = [
        f"{report['file']}: {report['parameters']:,} parameters in {', '.join(report['dtypes'])}",
        f"  structure  {structure}; {words}",
        "  trained    " + ", ".join(f"{key} {shown(it)}" for key, it in provenance.items() if it),
        "  width side   weight norm    change      rank  dead units",
    ]
    lines += [f"{ROW.format(**it)}  {it['block']}".rstrip() for it in report["modules"]]
    return "\n".join([*lines, as_lines(report["hosts"])])


if __name__ == "__main__":
    sys.exit(main())
