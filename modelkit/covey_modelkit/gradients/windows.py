"""Where the windows of convolutions and pools lie: kernel, stride, dilation and padding of each spatial axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from covey_modelkit.gradients.registry import attribute_of


@dataclass(frozen=True)
class Windows:
    """Windows over the spatial axes of a tensor.

    Args:
        sizes: Of the tensor.
        counts: Windows along each axis.
        kernel: Elements of a window.
        strides: From one window to the next.
        dilations: From one element of a window to the next.
        before: Elements that are added in front of the tensor.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @property
    def after(self) -> tuple[int, ...]:
        """Elements to be added behind the tensor so that the last window has all of its own; negative where some are
        in no window."""
        return tuple(
            (count - 1) * stride + (width - 1) * dilation + 1 - size - before
            for count, stride, width, dilation, size, before in zip(
                self.counts, self.strides, self.kernel, self.dilations, self.sizes, self.before, strict=True
            )
        )

    @property
    def apart(self) -> bool:
        """Whether no element is in two windows."""
        return all(
            (width - 1) * dilation < stride
            for width, dilation, stride in zip(self.kernel, self.dilations, self.strides, strict=True)
        )


def windows_of(node: onnx.NodeProto, sizes: Sequence[int], counts: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Read a node's windows over its larger tensor, ``auto_pad`` resolved.

    Args:
        node: A convolution or a pool.
        sizes: Spatial sizes of the larger tensor: of a pool's or convolution's input.
        counts: Spatial sizes of the smaller one.
        kernel: Sizes of a window.
    """
    ones = [1] * len(sizes)
    strides, dilations = attribute_of(node, "strides", ones), attribute_of(node, "dilations", ones)
    pads = list(attribute_of(node, "pads", [0] * (2 * len(sizes))))
    auto = attribute_of(node, "auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * (2 * len(sizes))
    elif auto.startswith("SAME"):
        for axis, size in enumerate(sizes):
            reach = (counts[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            total = max(0, reach - size)
            pads[axis] = total // 2 if auto == "SAME_UPPER" else total - total // 2
    parts = (sizes, counts, kernel, strides, dilations, pads[: len(sizes)])
    return Windows(*(tuple(int(number) for number in part) for part in parts))
