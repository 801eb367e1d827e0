"""Products of matrices."""

from __future__ import annotations

from covey_modelkit.gradients.registry import Call, Gradients, gradient


@gradient("Gemm")
def _gemm(call: Call) -> Gradients:
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    flip_a, flip_b = int(call.attribute("transA", 0)), int(call.attribute("transB", 0))
    dy, wanted = call.gradient, {}
    if 0 in call.wanted:
        pair = (call.input(1), dy) if flip_a else (dy, call.input(1))
        flips = (flip_b, 1) if flip_a else (0, 1 - flip_b)
        wanted[0] = call.emit("Gemm", *pair, alpha=alpha, transA=flips[0], transB=flips[1])
    if 1 in call.wanted:
        pair = (dy, call.input(0)) if flip_b else (call.input(0), dy)
        flips = (1, flip_a) if flip_b else (1 - flip_a, 0)
        wanted[1] = call.emit("Gemm", *pair, alpha=alpha, transA=flips[0], transB=flips[1])
    if 2 in call.wanted:
        scaled = dy if beta == 1.0 else call.emit("Mul", dy, call.number(beta))
        wanted[2] = call.unbroadcast(scaled, 2)
    return wanted


@gradient("MatMul")
def _matmul(call: Call) -> Gradients:
    left, right = call.shape(0), call.shape(1)
    if min(len(left), len(right)) < 2:
        raise call.refuse("multiplies by a vector; reshape it to a matrix")
    dy, wanted = call.gradient, {}
    if len(right) == 2:
        if 0 in call.wanted:
            flat = len(left) == 2
            wanted[0] = (
                call.emit("Gemm", dy, call.input(1), transB=1) if flat else call.emit("MatMul", dy, _flipped(call, 1))
            )
        if 1 in call.wanted:
            # All rows of all matrices are rows of one: no gradient for each matrix is made and then summed.
            rows, slopes = (_rows(call, tensor, shape[-1]) for tensor, shape in ((call.input(0), left), (dy, right)))
            wanted[1] = call.emit("Gemm", rows, slopes, transA=1)
        return wanted
    batch = call.output_shape[:-2]
    if 0 in call.wanted:
        wanted[0] = call.unbroadcast(call.emit("MatMul", dy, _flipped(call, 1)), 0, batch + left[-2:])
    if 1 in call.wanted:
        wanted[1] = call.unbroadcast(call.emit("MatMul", _flipped(call, 0), dy), 1, batch + right[-2:])
    return wanted


def _rows(call: Call, tensor: str, width: int | str) -> str:
    if len(call.shape(0)) == 2:
        return tensor
    return call.reshape(tensor, [-1, *call.sizes((width,))])


def _flipped(call: Call, position: int) -> str:
    """Transpose the last two axes of an input."""
    axes = list(range(len(call.shape(position))))
    axes[-2:] = [axes[-1], axes[-2]]
    return call.emit("Transpose", call.input(position), perm=axes)
