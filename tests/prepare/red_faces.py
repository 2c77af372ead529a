"""An ONNX file with YuNet's inputs and outputs, written by hand: it takes a red square for a face.

YuNet gives, for strides 8, 16 and 32, of each cell: class and object scores (1, N, 1), box
(1, N, 4) and landmarks (1, N, 10). Here the scores are the mean of red minus
the mean of blue; boxes are all zeros: around the cell's corner, exp(0) strides wide.
Field numbers are those of onnx.proto3.
"""

from pathlib import Path

import numpy as np

STRIDES = (8, 16, 32)
WIDTHS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
FLOAT, INT64 = 1, 7


def write(path: Path) -> Path:
    nodes, weights = [], []
    for stride in STRIDES:
        for name, width in WIDTHS.items():
            kernel = np.zeros((width, 3, stride, stride), np.float32)
            if width == 1:  # channels come as blue, green, red from 0 to 255
                kernel[0, 2], kernel[0, 0] = 1 / (255 * stride**2), -1 / (255 * stride**2)
            key = f"{name}_{stride}"
            weights.append(_tensor(f"{key}_w", kernel))
            weights.append(_tensor(f"{key}_shape", np.array([1, -1, width], np.int64)))
            steps = [("strides", (stride, stride)), ("kernel_shape", (stride, stride))]
            nodes.append(_node("Conv", ["input", f"{key}_w"], f"{key}_map", steps))
            order = [("perm", (0, 2, 3, 1))]
            nodes.append(_node("Transpose", [f"{key}_map"], f"{key}_last", order))
            nodes.append(_node("Reshape", [f"{key}_last", f"{key}_shape"], key, []))
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"red")
    graph += b"".join(_field(5, weight) for weight in weights)
    graph += _field(11, _value("input", (1, 3, 64, 64)))
    graph += b"".join(
        _field(12, _value(f"{name}_{stride}", (1, (64 // stride) ** 2, width)))
        for name, width in WIDTHS.items()
        for stride in STRIDES
    )
    path.write_bytes(_number(1, 7) + _field(7, graph) + _field(8, _number(2, 12)))
    return path


def _varint(value: int) -> bytes:
    value %= 1 << 64
    parts = []
    while value >= 128:
        parts.append(value % 128 + 128)
        value //= 128
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field * 8) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field * 8 + 2) + _varint(len(content)) + content


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_number(1, side) for side in array.shape)
    kind = FLOAT if array.dtype == np.float32 else INT64
    return dims + _number(2, kind) + _field(8, name.encode()) + _field(9, array.tobytes())


def _node(kind: str, inputs: list[str], output: str, lists: list) -> bytes:
    attributes = [
        _field(1, name.encode()) + b"".join(_number(8, i) for i in values) + _number(20, 7)
        for name, values in lists
    ]
    content = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode())
    return content + _field(4, kind.encode()) + b"".join(_field(5, each) for each in attributes)


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _number(1, side)) for side in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, FLOAT) + _field(2, dims)))
