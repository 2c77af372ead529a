"""`report.html`: one file that needs nothing else, from an evaluation and what its run wrote."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from hn.evaluation.report.about import about
from hn.evaluation.report.advice import advice
from hn.evaluation.report.bands import bands
from hn.evaluation.report.curves import read_metrics
from hn.evaluation.report.findings import Findings
from hn.evaluation.report.images import grids, worst
from hn.evaluation.report.learning import learning
from hn.evaluation.report.markup import Markup, element
from hn.evaluation.report.ranking import ranking
from hn.evaluation.report.strengths import strengths
from hn.storage import write_bytes

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser holds us to it
PLACES = {
    "advice": "Recommendation",
    "ranking": "Checkpoints",
    "grids": "Pictures",
    "strengths": "Strengths",
    "learning": "Training",
    "bands": "Timesteps",
    "worst": "Worst pictures",
    "about": "Settings",
}


def write(evaluation: Mapping[str, Any], run: Path, output: Path) -> None:
    """Write the page of an `evaluation` (as in `report.json`) of the run in the folder `run`.

    The pictures that it names lie beside `output`. What is missing is said on the page. Raises
    `StorageError` if it cannot be written.
    """
    findings = Findings(evaluation, read_metrics(run / "metrics.jsonl"), run, output.parent)
    write_bytes(output, page(findings).encode())


def page(findings: Findings) -> str:
    """The whole document."""
    name = str(findings.evaluation.get("name", "Hypernetwork"))
    sections = (advice, ranking, grids, strengths, learning, bands, worst, about)
    return document(
        f"{name}: evaluation",
        element("a", "Skip to the recommendation", href="#advice", class_="skip"),
        _header(name, findings),
        element("main", [make(findings) for make in sections]),
        element("footer", element("p", "Made by hn. This page loads nothing from elsewhere.")),
    )


def document(title: str, *body: Markup) -> str:
    """A page of ours that needs nothing else."""
    whole = element("html", _head(title), element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def _head(title: str) -> Markup:
    style = (files("hn.evaluation.report") / "style.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(style)),
    )


def _header(name: str, findings: Findings) -> Markup:
    base = findings.evaluation.get("base_model")
    count = len(findings.checkpoints)
    words = f"{count} checkpoint{'s' * (count != 1)} evaluated"
    about_it = [f"Hypernetwork for {base}" if base else "Hypernetwork", words]
    places = [
        element("li", element("a", title, href=f"#{anchor}")) for anchor, title in PLACES.items()
    ]
    return element(
        "header",
        element("h1", name),
        element("p", ", ".join(about_it)),
        element("nav", element("ul", places), aria_label="Parts of this page"),
    )
