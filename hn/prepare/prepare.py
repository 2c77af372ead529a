"""The pass over a folder: plan the crops of each picture, make them, account for every source.

After the web UI's tab "Preprocess images": the same modes, names and captions. It differs where
the target is not square: split and focal crop look at the target's proportions, not at which side
of the source is longer.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from hn.data.pictures.decoding import Example, open_picture
from hn.data.pictures.images import examples, read_folder
from hn.errors import SHOWN_FAULTS, DataError, printable
from hn.prepare.captions import Blip, merge_order
from hn.prepare.crops import Crop, Size, around, best_size, centred, kept_share, split, whole
from hn.prepare.drawing import draw
from hn.prepare.focal import Focus, FocusFinder
from hn.prepare.output import OutputFolder, shortened
from hn.prepare.settings import Settings, auto_crop_sizes, check


@dataclass(frozen=True)
class Plan:
    """What becomes of one picture: its crops, why a mode makes none, and the focal point."""

    crops: list[Crop]
    skipped: list[str]
    focus: Focus | None


@dataclass
class Account:
    """What became of every source: one record for each output and for each skip."""

    sources: int
    outputs: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line of numbers."""
        enlarged = {output["source"] for output in self.outputs if output["scale"] > 1}
        bare = sum(not output["caption"] for output in self.outputs)
        return (
            f"pictures: {len(self.outputs)} of {self.sources} sources; without a caption: {bare}; "
            f"sources enlarged: {len(enlarged)}; skipped: {len(self.skipped)}"
        )


class Preparer:
    """Makes training pictures of the pictures of a folder."""

    def __init__(self, settings: Settings, output: OutputFolder | None) -> None:
        """Without an `output` everything is planned and printed, and nothing is written.

        Raises `OptionError`, and `ModelError` for a face or caption model that cannot be loaded.
        """
        check(settings)
        self._settings = settings
        self._output = output
        self._size = settings.width, settings.height
        self._finder = FocusFinder(settings) if settings.focal_crop else None
        self._blip = Blip(settings) if settings.blip_model is not None and output else None

    def run(self, source: Path) -> Account:
        """Go through the folder; the manifest is written last.

        Raises `DataError` if the folder or its captions cannot be used or nothing can be made of
        it, `StorageError` if the output cannot be written.
        """
        dataset = read_folder(source, "empty", setting="the input folder")
        account = Account(len(dataset))
        for index, example in enumerate(examples(dataset, "preparing")):
            try:
                picture = open_picture(example)
            except DataError as error:
                account.unreadable.append(example.name)
                account.skipped.append({"source": example.name, "reason": str(error)})
                continue
            self._prepare(index, example, picture, account)
        if not account.outputs:
            raise DataError(_nothing_made(account))
        if self._output is not None:
            self._output.write_manifest(self._manifest(account))
        return account

    def _prepare(
        self, index: int, example: Example, picture: Image.Image, account: Account
    ) -> None:
        """Make everything that becomes of one picture, and account for it."""
        plan = self._plan(picture)
        account.skipped += [
            {"source": example.name, "reason": printable(f"{example.name}: {reason}")}
            for reason in plan.skipped
        ]
        stem = shortened(Path(example.name).stem)
        for number, (crop, flipped) in enumerate(self._wanted(plan)):
            name = f"{index:05}-{number}-{stem}"
            record = _record(f"{name}.png", example, crop, flipped, plan.focus)
            record["caption"] = list(self._captions_of(example))
            if self._output is None:
                tqdm.write(_described(record))
            else:
                made = crop.cut(picture)
                made = ImageOps.mirror(made) if flipped else made
                caption = self._caption(example, made)
                record["caption"] = record["caption"] if caption else []
                self._output.write(name, made, caption)
            account.outputs.append(record)
        if self._output is not None and self._settings.debug_pictures:
            drawing = draw(picture, plan.crops, plan.focus)
            self._output.write_drawing(f"{index:05}-{stem}", drawing)

    def _plan(self, picture: Image.Image) -> Plan:
        """The crops of every mode that applies, in the web UI's order; of none, the centre."""
        wanted, size = self._settings, picture.size
        crops, skipped, focus = [], [], None
        share = kept_share(size, self._size)
        if wanted.split and share < 1 and share <= wanted.split_threshold:
            boxes = split(size, self._size, wanted.overlap)
            crops += [Crop("split", box, self._size) for box in boxes]
        if self._finder is not None and share < 1:
            focus = self._finder.find(picture)
            crops.append(Crop("focal", around(size, self._size, focus.point), self._size))
        if wanted.auto_crop:
            chosen = self._auto_size(size)
            if chosen is None:
                skipped.append(
                    f"no size that auto_crop may choose is within auto_crop_threshold "
                    f"{wanted.auto_crop_threshold:g} of the proportions of {size[0]} x {size[1]}"
                )
            else:
                crops.append(Crop("auto", centred(size, chosen), chosen))
        if wanted.keep_original_size:
            crops.append(Crop("original", whole(size), size))
        if not crops and not skipped:
            crops.append(Crop("fill", centred(size, self._size), self._size))
        return Plan(crops, skipped, focus)

    def _auto_size(self, source: Size) -> Size | None:
        return best_size(
            source,
            auto_crop_sizes(self._settings),
            threshold=self._settings.auto_crop_threshold,
            objective=self._settings.auto_crop_objective,
        )

    def _wanted(self, plan: Plan) -> Iterator[tuple[Crop, bool]]:
        """Every crop, followed by its mirrored twin if that is wanted."""
        for crop in plan.crops:
            yield crop, False
            if self._settings.flip:
                yield crop, True

    def _captions_of(self, example: Example) -> tuple[str, ...]:
        generates = self._settings.blip_model is not None
        return merge_order(self._settings.caption_action, _existing(example), generates)

    def _caption(self, example: Example, made: Image.Image) -> str:
        """The merged caption; BLIP looks at the picture made, so a twin is described by itself."""
        parts = []
        for origin in self._captions_of(example):
            if origin == "existing":
                parts.append(_existing(example))
            else:
                assert self._blip is not None
                parts.append(self._blip.describe(made))
        return " ".join(parts).strip()

    def _manifest(self, account: Account) -> dict[str, Any]:
        return {
            "settings": asdict(self._settings),
            "sources": account.sources,
            "outputs": account.outputs,
            "skipped": account.skipped,
        }


def _nothing_made(account: Account) -> str:
    lines = [f"nothing can be made of the {account.sources} sources:"]
    lines += [skip["reason"] for skip in account.skipped[:SHOWN_FAULTS]]
    if len(account.skipped) > SHOWN_FAULTS:
        lines.append(f"... and {len(account.skipped) - SHOWN_FAULTS} more")
    return "\n  ".join(lines)


def _existing(example: Example) -> str:
    """The captions there are, each in a line, as `caption_lines` reads them."""
    return "\n".join(example.captions).strip()


def _record(
    file: str, example: Example, crop: Crop, flipped: bool, focus: Focus | None
) -> dict[str, Any]:
    """What the manifest says of an output; `box` is left, top, right, bottom in source pixels,
    after the EXIF turn and before the mirror.
    """
    record: dict[str, Any] = {
        "file": file,
        "source": example.name,
        "mode": crop.mode,
        "box": [round(side, 3) for side in crop.box],
        "size": list(crop.size),
        "scale": round(crop.scale, 6),
        "flipped": flipped,
    }
    if crop.mode == "focal" and focus is not None:
        record |= {"focus": [round(side, 3) for side in focus.point], "found": focus.found}
    return record


def _described(record: dict[str, Any]) -> str:
    """A record in one line."""
    words = [record["mode"]]
    if "found" in record:
        found = ", ".join(f"{what} {count}" for what, count in record["found"].items())
        words.append(f"found {found or 'nothing: the centre'}")
    left, top, right, bottom = record["box"]
    words.append(f"{left:g},{top:g} to {right:g},{bottom:g} at scale {record['scale']:.3g}")
    if record["flipped"]:
        words.append("mirrored")
    words.append(f"caption {' + '.join(record['caption']) or 'none'}")
    return printable(f"{record['source']} -> {record['file']}: {'; '.join(words)}")
