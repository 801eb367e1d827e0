"""Operators that work on each element by itself, with broadcasting where there are two."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from covey_modelkit.gradients.registry import Call, Gradients, gradient

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@gradient("Identity")
def _identity(call: Call) -> Gradients:
    return {0: call.gradient}


@gradient("Cast")
def _cast(call: Call) -> Gradients:
    if call.attribute("to", TensorProto.FLOAT) not in _FLOATS:
        return {}
    return {0: call.emit("Cast", call.gradient, to=TensorProto.FLOAT)}


@gradient("Add", "Sum")
def _add(call: Call) -> Gradients:
    return {position: call.unbroadcast(call.gradient, position) for position in call.wanted}


@gradient("Sub")
def _sub(call: Call) -> Gradients:
    whole = {0: call.gradient}
    if 1 in call.wanted:
        whole[1] = call.emit("Neg", call.gradient)
    return {position: call.unbroadcast(whole[position], position) for position in call.wanted}


@gradient("Mul")
def _mul(call: Call) -> Gradients:
    return {
        position: call.unbroadcast(call.emit("Mul", call.gradient, call.input(1 - position)), position)
        for position in call.wanted
    }


@gradient("Div")
def _div(call: Call) -> Gradients:
    share, found = call.emit("Div", call.gradient, call.input(1)), {}
    if 0 in call.wanted:
        found[0] = call.unbroadcast(share, 0)
    if 1 in call.wanted:
        found[1] = call.unbroadcast(call.emit("Neg", call.emit("Mul", share, call.output)), 1)
    return found


@gradient("Pow")
def _pow(call: Call) -> Gradients:
    if 1 in call.wanted:
        raise call.refuse("has an exponent that is itself learnt")
    if call.writer.value(call.input(1)) is not None and call.value(1, "exponent").size == 1:
        exponent = float(call.value(1, "exponent").item())
        lower = call.input(0) if exponent == 2 else call.emit("Pow", call.input(0), call.number(exponent - 1))
        slope = call.emit("Mul", lower, call.number(exponent))
    else:
        power = call.emit("Cast", call.input(1), to=TensorProto.FLOAT)
        lower = call.emit("Pow", call.input(0), call.emit("Sub", power, call.number(1)))
        slope = call.emit("Mul", lower, power)
    return {0: call.unbroadcast(call.emit("Mul", call.gradient, slope), 0)}


@gradient("Neg")
def _neg(call: Call) -> Gradients:
    return {0: call.emit("Neg", call.gradient)}


@gradient("Abs")
def _abs(call: Call) -> Gradients:
    return {0: call.emit("Mul", call.gradient, call.emit("Sign", call.input(0)))}


@gradient("Exp")
def _exp(call: Call) -> Gradients:
    return {0: call.emit("Mul", call.gradient, call.output)}


@gradient("Log")
def _log(call: Call) -> Gradients:
    return {0: call.emit("Div", call.gradient, call.input(0))}


@gradient("Sqrt")
def _sqrt(call: Call) -> Gradients:
    return {0: call.emit("Div", call.gradient, call.emit("Mul", call.output, call.number(2)))}


@gradient("Reciprocal")
def _reciprocal(call: Call) -> Gradients:
    square = call.emit("Mul", call.output, call.output)
    return {0: call.emit("Neg", call.emit("Mul", call.gradient, square))}


@gradient("Erf")
def _erf(call: Call) -> Gradients:
    bell = call.emit("Exp", call.emit("Neg", call.emit("Mul", call.input(0), call.input(0))))
    slope = call.emit("Mul", bell, call.number(2 / math.sqrt(math.pi)))
    return {0: call.emit("Mul", call.gradient, slope)}


@gradient("Relu")
def _relu(call: Call) -> Gradients:
    # The output is never negative, so its sign is 1 where the gradient passes and 0 where it does not.
    return {0: call.emit("Mul", call.gradient, call.emit("Sign", call.output))}


@gradient("LeakyRelu")
def _leaky_relu(call: Call) -> Gradients:
    up = call.emit("Greater", call.input(0), call.number(0))
    damped = call.emit("Mul", call.gradient, call.number(call.attribute("alpha", 0.01)))
    return {0: call.emit("Where", up, call.gradient, damped)}


@gradient("Elu")
def _elu(call: Call) -> Gradients:
    # Below zero the output is α·(exp(x) − 1), whose slope is the output + α.
    up = call.emit("Greater", call.input(0), call.number(0))
    slope = call.emit("Add", call.output, call.number(call.attribute("alpha", 1.0)))
    return {0: call.emit("Where", up, call.gradient, call.emit("Mul", call.gradient, slope))}


@gradient("Sigmoid")
def _sigmoid(call: Call) -> Gradients:
    rest = call.emit("Sub", call.number(1), call.output)
    return {0: call.emit("Mul", call.gradient, call.emit("Mul", call.output, rest))}


@gradient("HardSigmoid")
def _hard_sigmoid(call: Call) -> Gradients:
    # Between 0 and 1 the output rises by α, elsewhere it is level: y·(1 − y) is positive exactly between.
    between = call.emit("Mul", call.output, call.emit("Sub", call.number(1), call.output))
    slope = call.emit("Mul", call.emit("Sign", between), call.number(call.attribute("alpha", 0.2)))
    return {0: call.emit("Mul", call.gradient, slope)}


@gradient("Softplus")
def _softplus(call: Call) -> Gradients:
    return {0: call.emit("Mul", call.gradient, call.emit("Sigmoid", call.input(0)))}


@gradient("Tanh")
def _tanh(call: Call) -> Gradients:
    slope = call.emit("Sub", call.number(1), call.emit("Mul", call.output, call.output))
    return {0: call.emit("Mul", call.gradient, slope)}


@gradient("Clip")
def _clip(call: Call) -> Gradients:
    if call.wanted & {1, 2}:
        raise call.refuse("has bounds that are themselves learnt")
    found = call.gradient
    for position, beyond in ((1, "GreaterOrEqual"), (2, "LessOrEqual")):
        if call.input(position):
            within = call.emit(beyond, call.input(0), call.input(position))
            found = call.emit("Where", within, found, call.number(0))
    return {0: found}


@gradient("Max", "Min")
def _extreme(call: Call) -> Gradients:
    """Give the gradient to the input that is the extreme, in halves where two are."""
    if len(call.node.input) != 2:
        raise call.refuse("has other than two inputs; write it in steps of two")
    found = {}
    for position in call.wanted:
        mine = call.emit("Equal", call.input(position), call.output)
        other = call.emit("Equal", call.input(1 - position), call.output)
        halved = call.emit("Mul", call.gradient, call.number(0.5))
        share = call.emit("Where", other, halved, call.gradient)
        found[position] = call.unbroadcast(call.emit("Where", mine, share, call.number(0)), position)
    return found


@gradient("Where")
def _where(call: Call) -> Gradients:
    zero, found = call.writer.constant(0, np.float32), {}
    if 1 in call.wanted:
        found[1] = call.unbroadcast(call.emit("Where", call.input(0), call.gradient, zero), 1)
    if 2 in call.wanted:
        found[2] = call.unbroadcast(call.emit("Where", call.input(0), zero, call.gradient), 2)
    return found
