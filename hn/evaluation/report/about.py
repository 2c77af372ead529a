"""How it was measured and made: pictures, draws, settings, versions."""

from collections.abc import Mapping
from typing import Any

from hn.evaluation.report.findings import Findings, folded, missing, section, table
from hn.evaluation.report.markup import Markup, element
from hn.evaluation.report.wording import number

SOURCES = {
    "validation_data_dir": "a folder of their own (validation_data_dir)",
    "validation_split": "a share of the training pictures, kept apart (validation_split)",
}


def about(findings: Findings) -> Markup:
    """The method, the settings and the versions."""
    return section(
        "about",
        "How this was measured and made",
        _method(findings.heldout),
        _settings(findings.evaluation.get("settings") or {}),
        _versions(findings.evaluation.get("versions") or {}),
    )


def _method(heldout: Mapping[str, Any]) -> Markup:
    source = heldout.get("source", "none")
    if source == "none" or not heldout.get("pictures"):
        return missing(
            "There were no held-out pictures, so nothing here says how it does on unseen ones."
        )
    return element(
        "p",
        f"{heldout['pictures']} held-out pictures from {SOURCES.get(source, source)}, "
        f"{number(heldout.get('draws'))} draws of noise and timestep each; base model and "
        "hypernetwork got the same draws. Intervals hold 95\u202f% and count draws of one picture "
        "as belonging together.",
    )


def _settings(settings: Mapping[str, Any]) -> Markup:
    if not settings:
        return missing("The run's settings are not known: it has no config.toml.")
    folds = [
        folded(
            str(name),
            table(
                f"Settings of {name}",
                ["Setting", "Value"],
                [(str(key), element("code", _value(value))) for key, value in values.items()],
            ),
        )
        for name, values in settings.items()
        if isinstance(values, Mapping)
    ]
    return element("div", element("h3", "Settings"), folds)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value in (None, "") else str(value)


def _versions(versions: Mapping[str, Any]) -> Markup:
    if not versions:
        return missing("The versions are not known.")
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return element("div", element("h3", "Versions"), element("p", words))
