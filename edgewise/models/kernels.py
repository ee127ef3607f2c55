"""Group norm, what is added to it and its ReLU in one pass over memory: compiled by Numba, for one CPU core.

Only imported where a run asks for it (`edgewise/models/groupnorm.py`). Activations are (N, P / R, R * C): P
places, channels last, R places side by side so that a row fills vector registers. A sample is read once for
its statistics and, by then in the core's cache, once more for the result. Activations are float32, float64 or
bf16, looked at as uint16 (numpy has none). Sums over places are float32, of float64 float64; what is
made of them is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Array = Any  # numpy's, of a type that Numba reads off the call
WORD, HALF, SINGLE = ir.IntType(32), ir.IntType(16), ir.FloatType()
PLAIN, RELU, ADDED = 0, 1, 2  # what follows the norm: nothing, a ReLU, an addition and a ReLU
ROWS = 16  # of which a sample's mean is estimated
NOT_A_NUMBER = 0x7FC0  # as PyTorch writes it in bf16


KEPT: bool = globals().get("KEPT", True)  # set to False and reloaded where what is kept cannot be read


def compiled(function: Any) -> Any:
    """The function, compiled at its first call, and kept on disk for the next process if there is a place.

    Products may be added without rounding between; NaN and infinity stay what they are.
    """
    options: Any = {"fastmath": {"contract", "nsz"}, "error_model": "numpy"}
    try:
        return njit(cache=KEPT, **options)(function)
    except RuntimeError:  # no folder that it may write to
        return njit(**options)(function)


# ---- bf16 ----


@intrinsic
def load(_: Any, value: Any) -> Any:
    """A value as one can calculate with it: bf16 as float32."""
    if value != types.uint16:
        return value(value), lambda _context, _builder, _signature, values: values[0]

    def widened(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(values[0], WORD), WORD(16)), SINGLE)

    return types.float32(value), widened


@intrinsic
def stored(_: Any, like: Any, value: Any) -> Any:
    """A value in the type of `like`; to bf16 it is rounded to the nearest, ties to even, as IEEE 754 does."""
    if like != types.uint16:
        return like(like, value), lambda context, builder, signature, values: context.cast(
            builder, values[1], signature.args[1], like
        )

    def rounded(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        bits = builder.bitcast(values[1], WORD)
        even = builder.and_(builder.lshr(bits, WORD(16)), WORD(1))
        near = builder.lshr(builder.add(builder.add(bits, WORD(0x7FFF)), even), WORD(16))
        nan = builder.fcmp_unordered("uno", values[1], values[1])
        return builder.trunc(builder.select(nan, WORD(NOT_A_NUMBER), near), HALF)

    return types.uint16(like, value), rounded


# ---- one sample ----


@compiled
def _scratch(size: int, like: Array) -> Array:
    """One array each: of slices of one array the compiler cannot tell that they do not overlap."""
    return np.empty(size, like.dtype)


@compiled
def _fold(sums: Array, channels: int) -> None:
    """Add up what stands side by side, into the first `channels`."""
    for start in range(channels, len(sums), channels):
        for c in range(channels):
            sums[c] += sums[start + c]


@compiled
def _repeat(values: Array, channels: int) -> None:
    for start in range(channels, len(values), channels):
        for c in range(channels):
            values[start + c] = values[c]


@compiled
def _estimate(x: Array, shift: Array, channels: int) -> None:
    """About the mean of each channel: of some rows all over the sample, since any one may lie far off."""
    shift[:] = 0
    apart = max(1, len(x) // ROWS)
    for p in range(0, len(x), apart):
        for j in range(len(shift)):
            shift[j] += load(x[p, j])
    _fold(shift, channels)
    count = (len(x) + apart - 1) // apart * (len(shift) // channels)
    for c in range(channels):
        shift[c] /= count
    _repeat(shift, channels)


@compiled
def _moments(x: Array, shift: Array, first: Array, second: Array) -> None:
    """Sums of x - shift and of its squares: near a shift that is near the mean nothing is cancelled."""
    first[:] = 0
    second[:] = 0
    fours = len(x) // 4 * 4
    for p in range(0, fours, 4):  # four rows at once: the sums are read and written a quarter as often
        x0, x1, x2, x3 = x[p], x[p + 1], x[p + 2], x[p + 3]
        for j in range(len(shift)):
            v0, v1 = load(x0[j]) - shift[j], load(x1[j]) - shift[j]
            v2, v3 = load(x2[j]) - shift[j], load(x3[j]) - shift[j]
            first[j] += (v0 + v1) + (v2 + v3)
            second[j] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)
    for p in range(fours, len(x)):
        for j in range(len(shift)):
            v = load(x[p, j]) - shift[j]
            first[j] += v
            second[j] += v * v


@compiled
def _scales(of: Array, norm: Array, made: Array, eps: float) -> None:
    """From a sample's moments to what its values are multiplied with and shifted by.

    of: (shift, first, second, places, scale, offset); norm: (weight, bias); made: (mean, rstd) of each group.
    """
    shift, first, second, places, scale, offset = of
    weight, bias = norm
    means, rstds = made
    share = len(weight) // len(means)
    for g in range(len(means)):
        mean = variance = 0.0
        for c in range(g * share, (g + 1) * share):
            mean += first[c] / places + shift[c]
        mean /= share
        for c in range(g * share, (g + 1) * share):
            away = first[c] / places
            variance += second[c] / places - away * away + (away + shift[c] - mean) ** 2
        rstd = 1 / np.sqrt(max(variance / share, 0.0) + eps)
        means[g], rstds[g] = mean, rstd
        for c in range(g * share, (g + 1) * share):
            scale[c] = rstd * weight[c]
            offset[c] = bias[c] - mean * rstd * weight[c]


@compiled
def _applied(x: Array, added: Array, y: Array, line: Array, then: int) -> None:
    scale, offset = line
    zero = scale.dtype.type(0)
    for p in range(len(x)):
        row, more, out = x[p], added[p], y[p]
        if then == ADDED:
            for j in range(len(scale)):
                v = load(row[j]) * scale[j] + offset[j] + load(more[j])
                out[j] = stored(row[j], zero if v <= 0 else v)  # NaN passes
        elif then == RELU:
            for j in range(len(scale)):
                v = load(row[j]) * scale[j] + offset[j]
                out[j] = stored(row[j], zero if v <= 0 else v)
        else:
            for j in range(len(scale)):
                out[j] = stored(row[j], load(row[j]) * scale[j] + offset[j])


@compiled
def _sums(of_y: Array, x: Array, y: Array, line: Array, then: int, into: Array) -> None:
    """Sums of what of a gradient passes the ReLU, and of that times x - middle."""
    scale, offset, middle = line
    first, second = into
    zero = scale.dtype.type(0)
    first[:] = 0
    second[:] = 0
    for p in range(len(x)):
        row, out, by = x[p], y[p], of_y[p]
        if then == ADDED:
            for j in range(len(scale)):
                g = zero if load(out[j]) <= 0 else load(by[j])
                first[j] += g
                second[j] += g * (load(row[j]) - middle[j])
        elif then == RELU:  # the same sum as on the way forward, so y need not be read
            for j in range(len(scale)):
                g = zero if load(row[j]) * scale[j] + offset[j] <= 0 else load(by[j])
                first[j] += g
                second[j] += g * (load(row[j]) - middle[j])
        else:
            for j in range(len(scale)):
                first[j] += load(by[j])
                second[j] += load(by[j]) * (load(row[j]) - middle[j])


@compiled
def _written(gradients: Array, x: Array, y: Array, line: Array, slopes: Array, then: int) -> None:
    """The gradients of a sample: a line in what passes the ReLU and x."""
    scale, offset, _ = line
    by_gradient, by_x, constant = slopes
    of_y, of_x, of_added = gradients
    zero = scale.dtype.type(0)
    for p in range(len(x)):
        row, out, by, to, more = x[p], y[p], of_y[p], of_x[p], of_added[p]
        if then == ADDED:
            for j in range(len(scale)):
                g = zero if load(out[j]) <= 0 else load(by[j])
                more[j] = stored(row[j], g)
                to[j] = stored(row[j], by_gradient[j] * g + (by_x[j] * load(row[j]) + constant[j]))
        elif then == RELU:
            for j in range(len(scale)):
                g = zero if load(row[j]) * scale[j] + offset[j] <= 0 else load(by[j])
                to[j] = stored(row[j], by_gradient[j] * g + (by_x[j] * load(row[j]) + constant[j]))
        else:
            for j in range(len(scale)):
                to[j] = stored(row[j], by_gradient[j] * load(by[j]) + (by_x[j] * load(row[j]) + constant[j]))


@compiled
def _slopes(of: Array, norm: Array, made: Array, into: Array) -> None:
    """From a sample's sums to its gradient, a line in gradient and x; and the layer's own gradients.

    of: (sums of the gradient, and of it times x - mean, values of a group, of gradient, of x, constant).
    """
    first, second, size, by_gradient, by_x, constant = of
    weight, _ = norm
    means, rstds = made
    of_weight, of_bias = into
    share = len(weight) // len(means)
    for g in range(len(means)):
        mean, rstd = means[g], rstds[g]
        plain = along = 0.0
        for c in range(g * share, (g + 1) * share):
            of_bias[c] += first[c]
            of_weight[c] += second[c] * rstd
            plain += weight[c] * first[c]
            along += weight[c] * second[c] * rstd
        slope = -rstd * rstd * along / size
        for c in range(g * share, (g + 1) * share):
            by_gradient[c] = rstd * weight[c]
            by_x[c] = slope
            constant[c] = -rstd * plain / size - slope * mean


# ---- a batch ----


@compiled
def normalise(x: Array, added: Array, y: Array, norm: Array, made: Array, how: Array) -> None:
    """y = norm(x), or relu(norm(x)), or relu(norm(x) + added).

    x, added, y: (N, P / R, R * C); norm: weight and bias (C); made: mean and rstd (N, G), float64, written
    here; how: (eps, what follows).
    """
    weight, _ = norm
    channels, wide, (eps, then) = len(weight), x.shape[2], how
    shift, first, second = _scratch(wide, weight), _scratch(wide, weight), _scratch(wide, weight)
    scale, offset = _scratch(wide, weight), _scratch(wide, weight)
    places = x.shape[1] * wide // channels
    for i in range(len(x)):
        _estimate(x[i], shift, channels)
        _moments(x[i], shift, first, second)
        _fold(first, channels)
        _fold(second, channels)
        _scales((shift, first, second, places, scale, offset), norm, (made[0][i], made[1][i]), eps)
        _repeat(scale, channels)
        _repeat(offset, channels)
        _applied(x[i], added[i], y[i], (scale, offset), then)


@compiled
def differentiate(kept: Array, gradients: Array, norm: Array, made: Array, into: Array, then: int) -> None:
    """Gradients of x and of what was added, written; of weight and bias (C), added to `into`, float64.

    kept: (x, y); gradients: (of y, of x, of what was added), all (N, P / R, R * C).
    """
    x, y = kept
    of_y, of_x, of_added = gradients
    weight, bias = norm
    channels, wide = len(weight), x.shape[2]
    first, second, middle = _scratch(wide, weight), _scratch(wide, weight), _scratch(wide, weight)
    scale, offset, by_gradient = _scratch(wide, weight), _scratch(wide, weight), _scratch(wide, weight)
    by_x, constant = _scratch(wide, weight), _scratch(wide, weight)
    size = x.shape[1] * wide // made[0].shape[1]
    share = channels // made[0].shape[1]
    for i in range(len(x)):
        means, rstds = made[0][i], made[1][i]
        for g in range(len(means)):
            for c in range(g * share, (g + 1) * share):
                middle[c], scale[c] = means[g], rstds[g] * weight[c]
                offset[c] = bias[c] - means[g] * rstds[g] * weight[c]
        for values in (middle, scale, offset):
            _repeat(values, channels)
        _sums(of_y[i], x[i], y[i], (scale, offset, middle), then, (first, second))
        _fold(first, channels)
        _fold(second, channels)
        _slopes((first, second, size, by_gradient, by_x, constant), norm, (means, rstds), into)
        for values in (by_gradient, by_x, constant):
            _repeat(values, channels)
        some = (of_y[i], of_x[i], of_added[i])
        _written(some, x[i], y[i], (scale, offset, middle), (by_gradient, by_x, constant), then)
