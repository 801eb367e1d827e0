"""Sums and means along axes."""

from __future__ import annotations

from covey_modelkit.gradients.registry import Call, Gradients, gradient


@gradient("ReduceSum", "ReduceMean")
def _reduce(call: Call) -> Gradients:
    shape = call.shape(0)
    if call.input(1):
        axes = [int(axis) % len(shape) for axis in call.value(1, "axes")]
    elif call.attribute("noop_with_empty_axes", 0):
        return {0: call.gradient}
    else:
        axes = list(range(len(shape)))
    found = call.gradient
    if not call.attribute("keepdims", 1):
        found = call.emit("Unsqueeze", found, call.integers(sorted(axes)))
    if call.node.op_type == "ReduceMean":
        # How many were averaged is known at run time alone where the batch is among them.
        wide, narrow = (call.emit("Size", tensor) for tensor in (call.input(0), call.output))
        count = call.emit("Cast", call.emit("Div", wide, narrow), to=1)
        if all(isinstance(shape[axis], int) for axis in axes):
            count = call.number(
                float(_product([size for size in (shape[axis] for axis in axes) if isinstance(size, int)]))
            )
        found = call.emit("Div", found, count)
    return {0: call.emit("Expand", found, call.emit("Shape", call.input(0)))}


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
