"""Convolutions of one, two and three dimensions, with stride, padding, dilation and groups.

The gradient of the kernel is a product of matrices: patches of the image (im2col, by slices) times the gradient of the
field that the convolution made of it. For small kernels that is two to three times faster on onnxruntime than a
convolution of image and gradient. The gradient of the image is a transposed convolution.
"""

from __future__ import annotations

import itertools

from covey_modelkit.gradients.registry import Call, Gradients, gradient
from covey_modelkit.gradients.windows import Windows, windows_of


@gradient("Conv")
def _conv(call: Call) -> Gradients:
    windows = _windows(call, call.shape(0), call.output_shape)
    found = {}
    if 0 in call.wanted:
        found[0] = _transposed(call, windows)
    field = _by_channel(call, call.gradient)
    if 1 in call.wanted:
        found[1] = _kernel_gradient(call, windows, call.input(0), field)
    if 2 in call.wanted:
        found[2] = _bias_gradient(call, field)
    return found


@gradient("ConvTranspose")
def _conv_transpose(call: Call) -> Gradients:
    """What a transposed convolution makes of its input is the image, and its input the field."""
    if call.attribute("output_shape", None) is not None:
        raise call.refuse("sets its output_shape instead of pads and output_padding")
    windows = _windows(call, call.output_shape, call.shape(0))
    found = {}
    if 0 in call.wanted:
        begin, end = windows.before, [max(0, width) for width in windows.after]
        found[0] = call.emit("Conv", call.gradient, call.input(1), pads=[*begin, *end], **_geometry(call, windows))
    if 1 in call.wanted:
        found[1] = _kernel_gradient(call, windows, call.gradient, _by_channel(call, call.input(0)))
    if 2 in call.wanted:
        found[2] = _bias_gradient(call, _by_channel(call, call.gradient))
    return found


def _windows(call: Call, image: tuple[int | str, ...], field: tuple[int | str, ...]) -> Windows:
    kernel = call.sizes(call.shape(1))[2:]
    sizes, counts = call.sizes(image, 1)[1:], call.sizes(field, 1)[1:]
    return windows_of(call.node, sizes, counts, kernel)


def _geometry(call: Call, windows: Windows) -> dict[str, object]:
    return {
        "kernel_shape": windows.kernel,
        "strides": windows.strides,
        "dilations": windows.dilations,
        "group": int(call.attribute("group", 1)),
    }


def _transposed(call: Call, windows: Windows) -> str:
    """Return the gradient of a convolution's input.

    Elements behind the last window, which a stride may leave, get zeros by way of output_padding.
    """
    rest = [max(0, -width) for width in windows.after]
    return call.emit(
        "ConvTranspose",
        call.gradient,
        call.input(1),
        pads=[*windows.before, *(max(0, width) for width in windows.after)],
        output_padding=rest,
        **_geometry(call, windows),
    )


def _by_channel(call: Call, tensor: str) -> str:
    """Bring channels to the front, so that those of all samples lie side by side."""
    rank = len(call.shape(0))
    return call.emit("Transpose", tensor, perm=[1, 0, *range(2, rank)])


def _bias_gradient(call: Call, by_channel: str) -> str:
    (channels,) = call.sizes(call.shape(2))
    return call.sum(call.reshape(by_channel, [channels, -1]), [1], keep=False)


def _kernel_gradient(call: Call, windows: Windows, image: str, field: str) -> str:
    """Return Σ over samples and windows of field ⊗ patch, in the shape of the kernel.

    Args:
        call: The node; its second input is the kernel, of field channels by image channels of a group.
        windows: Over the image.
        image: What patches are taken from, batch first.
        field: One number a window and channel, channels first.
    """
    outer, inner, *kernel = call.sizes(call.shape(1))
    groups, spatial = int(call.attribute("group", 1)), len(kernel)
    after = [max(0, width) for width in windows.after]
    if any(windows.before) or any(after):
        image = call.emit("Pad", image, call.integers([0, 0, *windows.before, 0, 0, *after]))
    image = _by_channel(call, image)
    if groups > 1:
        # groups, channels of a group, samples, space
        image = call.emit("Reshape", image, _grouped(call, image, groups, inner))
    first = 3 if groups > 1 else 2
    axes = call.integers(range(first, first + spatial))
    steps = call.integers(windows.strides)
    patches = []
    for offset in itertools.product(*(range(width) for width in kernel)):
        starts = [place * dilation for place, dilation in zip(offset, windows.dilations, strict=True)]
        ends = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(starts, windows.counts, windows.strides, strict=True)
        ]
        patches.append(call.emit("Slice", image, call.integers(starts), call.integers(ends), axes, steps))
    places = len(patches)
    if groups > 1:
        columns = call.reshape(call.emit("Concat", *patches, axis=1), [groups, places * inner, -1])
        rows = call.reshape(field, [groups, outer // groups, -1])
        product = call.emit("MatMul", rows, call.emit("Transpose", columns, perm=[0, 2, 1]))
    else:
        columns = call.reshape(call.emit("Concat", *patches, axis=0), [places * inner, -1])
        product = call.emit("Gemm", call.reshape(field, [outer, -1]), columns, transB=1)
    if inner > 1 and places > 1:
        product = call.emit("Transpose", call.reshape(product, [outer, places, inner]), perm=[0, 2, 1])
    return call.reshape(product, [outer, inner, *kernel])


def _grouped(call: Call, image: str, groups: int, inner: int) -> str:
    """Return the shape of an image of channels first, its channels cut into groups."""
    rest = call.emit("Slice", call.emit("Shape", image), call.integers([1]), call.integers([1 << 30]))
    return call.emit("Concat", call.integers([groups, inner]), rest, axis=0)
