"""What draws the eye in a picture: faces, details, and the most mixed part, found with OpenCV.

After the web UI's focal point crop, with four differences: the bottom tenth is masked instead of
painted over (the paint had corners of its own); the 1-bit picture is cut at the mean brightness
instead of dithered (dithering makes flat grey the most mixed part of all); entropy is Shannon's;
and a picture in which nothing is found is cropped at its centre, not at its corner.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hn.errors import ModelError, OptionError
from hn.prepare.crops import Point, Size, centred
from hn.prepare.settings import Settings

CORNERS = 100  # at most
QUALITY = 0.04  # of a corner, against the best one
DISTANCE = 0.06  # between corners, as a share of the shorter side
WATERMARKS = 0.1  # share of the height, at the bottom, that corners are not looked for in
STRIDE = 4  # pixels between the windows whose entropy is compared
YUNET_SCORE, YUNET_OVERLAP, YUNET_CANDIDATES = 0.9, 0.3, 5000
CASCADES = (  # in this order, until one finds something; smallest size as a share of the short side
    ("frontalface_alt2", 0.05),
    ("frontalface_alt", 0.05),
    ("frontalface_default", 0.05),
    ("frontalface_alt_tree", 0.05),
    ("profileface", 0.05),
    ("eye_tree_eyeglasses", 0.05),
    ("eye", 0.01),
    ("upperbody", 0.05),
)


@dataclass(frozen=True)
class Evidence:
    """What one detector found: `points` in pixels of the source, one at least."""

    detector: str
    weight: float
    points: tuple[Point, ...]

    @property
    def centroid(self) -> Point:
        """The mean of the points."""
        return fmean(x for x, _ in self.points), fmean(y for _, y in self.points)


@dataclass(frozen=True)
class Focus:
    """Where to look, in pixels of the source, and why; no evidence means its centre."""

    point: Point
    evidence: tuple[Evidence, ...]

    @property
    def found(self) -> dict[str, int]:
        """How many points each detector found."""
        return {each.detector: len(each.points) for each in self.evidence}


class FocusFinder:
    """Looks for the focal point of pictures.

    Raises `OptionError` if OpenCV or its cascades are missing, `ModelError` for a face model that
    cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._cv2 = _import_opencv()
        self._size = settings.width, settings.height
        self._weights = {
            "faces": settings.face_weight,
            "edges": settings.edges_weight,
            "entropy": settings.entropy_weight,
        }
        self._yunet, self._face_model = None, settings.face_model
        if settings.face_weight and settings.face_model is not None:
            self._yunet = self._load_yunet(settings.face_model)
        elif settings.face_weight:
            _ = self._cascades  # what is missing is said now, not at the first picture

    def find(self, picture: Image.Image) -> Focus:
        """The mean of the detectors' centroids by weight, among those that found something."""
        small, scale = reduced(picture, self._size)
        detectors = {"faces": self._faces, "edges": self._corners, "entropy": self._most_mixed}
        evidence = []
        for detector, weight in self._weights.items():
            points = detectors[detector](small) if weight else []
            if points:
                at = tuple((x / scale, y / scale) for x, y in points)
                evidence.append(Evidence(detector, weight, at))
        return Focus(_weighted_mean(evidence, picture.size), tuple(evidence))

    def _faces(self, picture: Image.Image) -> list[Point]:
        if self._yunet is not None:
            return self._yunet_faces(picture)
        grey = np.asarray(picture.convert("L"))
        for classifier, share in self._cascades:
            side = max(1, round(min(picture.size) * share))
            found = classifier.detectMultiScale(
                grey, scaleFactor=1.1, minNeighbors=7, minSize=(side, side)
            )
            if len(found):
                return sorted((x + w / 2, y + h / 2) for x, y, w, h in np.asarray(found).tolist())
        return []

    def _yunet_faces(self, picture: Image.Image) -> list[Point]:
        """A third down each face: between the eyes."""
        assert self._yunet is not None
        self._yunet.setInputSize(picture.size)
        try:
            faces = self._yunet.detect(np.asarray(picture)[:, :, ::-1].copy())[1]  # it wants BGR
        except self._cv2.error as error:
            raise _not_yunet(str(self._face_model), error) from error
        boxes = [] if faces is None else faces[:, :4].tolist()
        return sorted((x + w / 2, y + h / 3) for x, y, w, h in boxes)

    def _corners(self, picture: Image.Image) -> list[Point]:
        width, height = picture.size
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[: round(height * (1 - WATERMARKS))] = 255
        corners = self._cv2.goodFeaturesToTrack(
            np.asarray(picture.convert("L")),
            maxCorners=CORNERS,
            qualityLevel=QUALITY,
            minDistance=min(width, height) * DISTANCE,
            mask=mask,
        )
        return [] if corners is None else [(x, y) for x, y in corners.reshape(-1, 2).tolist()]

    def _most_mixed(self, picture: Image.Image) -> list[Point]:
        """The middle of the window that is closest to half black, half white."""
        return most_mixed(picture, self._size)

    @cached_property
    def _cascades(self) -> list[tuple[Any, float]]:
        folder = Path(self._cv2.data.haarcascades)
        if not hasattr(self._cv2, "CascadeClassifier") or not any(folder.glob("haarcascade_*.xml")):
            raise OptionError(
                f"face_weight: OpenCV {self._cv2.__version__} brings no Haar cascades. Install a "
                "version below 5 (pip install 'hn[prepare]'), give a --face_model, or set "
                "--face_weight 0."
            )
        return [
            (self._cv2.CascadeClassifier(str(folder / f"haarcascade_{name}.xml")), share)
            for name, share in CASCADES
        ]

    def _load_yunet(self, file: str) -> Any:
        if not Path(file).is_file():
            raise ModelError(f"face_model '{file}' is not a file. Give YuNet's .onnx file.")
        try:
            return self._cv2.FaceDetectorYN.create(
                file, "", self._size, YUNET_SCORE, YUNET_OVERLAP, YUNET_CANDIDATES
            )
        except self._cv2.error as error:
            raise _not_yunet(file, error) from error


def reduced(picture: Image.Image, size: Size) -> tuple[Image.Image, float]:
    """The picture as small as filling `size` lets, as the detectors want it, and its scale.

    It is never enlarged: a sliver made as wide as `size` could fill the memory.
    """
    scale = min(1.0, max(size[0] / picture.width, size[1] / picture.height))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS), scale


def most_mixed(picture: Image.Image, size: Size) -> list[Point]:
    """The middle of the crop window with the highest entropy; none if all are of one shade.

    The picture is made 1-bit at its mean brightness; windows of `size`'s proportions slide along
    the side that is too long, `STRIDE` pixels at a time. Of equal windows, the middle one.
    """
    left, top, right, bottom = (round(side) for side in centred(picture.size, size))
    across = right - left < picture.width
    span = right - left if across else bottom - top
    grey = np.asarray(picture.convert("L"), dtype=np.float64)
    white = (grey > grey.mean()).mean(axis=0 if across else 1)  # (length,), share of each line
    sums = np.concatenate([[0.0], np.cumsum(white)])
    last = len(white) - span
    starts = np.unique([*range(0, last + 1, STRIDE), last])
    entropy = _binary_entropy((sums[starts + span] - sums[starts]) / span)
    if entropy.max() < 1e-9:
        return []
    best = np.flatnonzero(np.isclose(entropy, entropy.max()))
    middle = float(starts[best[len(best) // 2]] + span / 2)
    return [(middle, picture.height / 2) if across else (picture.width / 2, middle)]


def _not_yunet(file: str, error: Any) -> ModelError:
    return ModelError(
        f"face_model '{file}' is not usable as YuNet ({error.err}). Give the .onnx file of "
        "OpenCV's face detector YuNet."
    )


def _binary_entropy(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """In bits, 0 to 1, of pixels of which this share is white."""
    share = np.clip(share, 1e-12, 1 - 1e-12)
    return -share * np.log2(share) - (1 - share) * np.log2(1 - share)


def _weighted_mean(evidence: list[Evidence], source: Size) -> Point:
    total = sum(each.weight for each in evidence)
    if not total:
        return source[0] / 2, source[1] / 2
    shares = [(each.centroid, each.weight / total) for each in evidence]
    return sum(x * share for (x, _), share in shares), sum(y * share for (_, y), share in shares)


def _import_opencv() -> Any:
    try:
        import cv2
        import cv2.data
    except ImportError as error:
        raise OptionError(
            f"focal_crop needs OpenCV, which cannot be imported ({error}): pip install "
            "'hn[prepare]'"
        ) from error
    return cv2
