"""Where the detectors look, in pictures of which we know it."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hn.errors import ModelError, OptionError
from hn.prepare.crops import around
from hn.prepare.focal import Evidence, Focus, FocusFinder, most_mixed, reduced
from hn.prepare.settings import Settings
from tests.prepare import drawn, red_faces

SMALL = {"width": 256, "height": 256}
NO_FACES = Settings(**SMALL, face_weight=0.0)


@pytest.fixture(scope="module")
def finder():
    return FocusFinder(Settings(**SMALL))


@pytest.mark.parametrize(
    ("size", "middle"),
    [((800, 400), (650, 200)), ((800, 400), (150, 160)), ((400, 800), (200, 620))],
)
def test_the_crop_moves_to_a_detailed_subject(size, middle):
    picture = drawn.with_subject(size, middle, reach=70)
    focus = FocusFinder(NO_FACES).find(picture)
    left, top, right, bottom = around(size, (256, 256), focus.point)
    assert left <= middle[0] - 70 < middle[0] + 70 <= right
    assert top <= middle[1] - 70 < middle[1] + 70 <= bottom
    edges = focus.evidence[0]
    assert edges.detector == "edges"
    assert np.abs(np.subtract(edges.centroid, middle)).max() < 30


def test_corners_in_the_bottom_tenth_are_not_seen():
    """Where watermarks are."""
    picture = drawn.plain((800, 400))
    ImageDraw.Draw(picture).text((20, 375), "(c) SOMEBODY 2020", "black", font_size=16)
    finder = FocusFinder(Settings(**SMALL, face_weight=0.0, entropy_weight=0.0))
    assert finder.find(picture) == Focus((400, 200), ())
    ImageDraw.Draw(picture).text((20, 300), "(c) SOMEBODY 2020", "black", font_size=16)
    found = finder.find(picture)
    assert found.point[0] < 200
    assert all(y < 360 for _, y in found.evidence[0].points)


def test_a_picture_in_which_nothing_is_found_is_cropped_at_its_centre(finder):
    assert finder.find(drawn.plain((600, 300))) == Focus((300, 150), ())


def test_a_face_is_found_by_the_cascades(finder):
    """The face is drawn at 560..760 across and 60..260 down, its middle at 660, 160."""
    found = finder.find(drawn.with_face((800, 400), (560, 60)))
    faces = next(each for each in found.evidence if each.detector == "faces")
    assert len(faces.points) == 1
    assert faces.centroid == pytest.approx((660, 180), abs=25)


def test_a_face_counts_more_than_a_crowd_of_edges():
    picture = drawn.with_subject((1200, 400), (200, 200), reach=80)
    picture.paste(drawn.face(), (960, 60))
    middle_of_face = 1060
    with_faces = FocusFinder(Settings(**SMALL, entropy_weight=0.0)).find(picture)
    without = FocusFinder(Settings(**SMALL, entropy_weight=0.0, face_weight=0.0)).find(picture)
    assert without.point[0] < with_faces.point[0]
    assert abs(with_faces.point[0] - middle_of_face) < abs(with_faces.point[0] - 200)


def test_the_weights_are_shared_among_what_was_found(finder):
    """No face: edges and entropy count 0.5 : 0.15, whatever faces would have counted."""
    found = finder.find(drawn.with_subject((800, 400), (650, 200), reach=70))
    (edges, entropy) = found.evidence
    assert (edges.weight, entropy.weight) == (0.5, 0.15)
    for axis in (0, 1):
        mean = (0.5 * edges.centroid[axis] + 0.15 * entropy.centroid[axis]) / 0.65
        assert found.point[axis] == pytest.approx(mean)


def test_points_are_in_pixels_of_the_source():
    """A picture twice as large, of the same content, has its focus twice as far."""
    small = drawn.with_subject((800, 400), (650, 200), reach=70)
    large = small.resize((1600, 800), Image.Resampling.NEAREST)
    first, second = (FocusFinder(NO_FACES).find(picture).point for picture in (small, large))
    assert np.abs(np.multiply(first, 2) - second).max() < 20


@pytest.mark.parametrize("turned", [False, True])
def test_the_most_mixed_window_is_the_half_black_one(turned):
    """Windows 100 wide: black and white stripes at 300..400, else flat, with a white end."""
    grey = np.full((100, 800), 90, np.uint8)
    grey[:, 300:400:2] = 255
    grey[:, 700:] = 255
    picture = Image.fromarray(grey.T if turned else grey)
    # 350 has 50 white columns of 100: 1 bit. So has the edge of the white end, at 700 +- 50: the
    # window that starts at 648 has 48 of 100, which is less; 652 has 52.
    (point,) = most_mixed(picture, (64, 64))
    assert point == ((50, 350) if turned else (350, 50))


def test_flat_grey_is_not_mixed():
    assert most_mixed(drawn.plain((300, 100)), (64, 64)) == []


@pytest.mark.parametrize(
    ("size", "small"),
    [((1024, 512), (512, 256)), ((600, 256), (600, 256)), ((10_000, 3), (10_000, 3))],
)
def test_detectors_get_the_picture_small_but_never_enlarged(size, small):
    picture, scale = reduced(drawn.plain(size), (256, 256))
    assert picture.size == small
    assert scale == small[0] / size[0]


def test_a_sliver_has_a_focus():
    assert FocusFinder(NO_FACES).find(drawn.plain((10_000, 3))).point == (5000, 1.5)


def test_yunet_gives_the_point_between_the_eyes(tmp_path):
    """The tested file takes the red square for a face; its boxes start half a cell off."""
    picture = drawn.plain((512, 256))
    ImageDraw.Draw(picture).rectangle((384, 128, 415, 159), fill=(255, 0, 0))
    model = red_faces.write(tmp_path / "red.onnx")
    weights = {"entropy_weight": 0.0, "edges_weight": 0.0}
    found = FocusFinder(Settings(**SMALL, **weights, face_model=str(model))).find(picture)
    assert found.evidence[0].detector == "faces"
    # one box of the stride 32 at 368..400 x 112..144; what overlaps it less than 0.3 stays too
    assert (384, 112 + 32 / 3) in [pytest.approx(point) for point in found.evidence[0].points]
    assert found.point == pytest.approx((396, 138), abs=16)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "is not a file"), (b"x" * 100, "not usable as YuNet")]
)
def test_a_face_model_that_is_none_is_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "faces.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=rf"face_model '.*faces\.onnx' {reason}|{reason}"):
        FocusFinder(Settings(face_model=str(tmp_path / "faces.onnx")))


def test_cascades_that_are_missing_are_said_before_the_first_picture(tmp_path, monkeypatch):
    """OpenCV 5 has the folder without them."""
    monkeypatch.setattr("cv2.data.haarcascades", str(tmp_path))
    with pytest.raises(OptionError, match=r"brings no Haar cascades.*--face_weight 0"):
        FocusFinder(Settings(**SMALL))
    FocusFinder(NO_FACES)


def test_a_centroid_is_the_mean():
    assert Evidence("edges", 1.0, ((0, 0), (10, 4), (20, 2))).centroid == (10, 2)
