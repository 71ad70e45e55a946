# SPDX-License-Identifier: AGPL-3.0-or-later
"""Elementary functions of float32.

The assignment compares metrics, which therefore must differ from those of Ultralytics by rounding only. Operations have
the order that PyTorch's have; division and square root are rounded to nearest, and exact launches fuse no
multiplication with an addition. Power and arctangent are those of the library that Triton brings, which is of another
release than PyTorch's: they differ from PyTorch's in the last place for many arguments, metrics by a few millionths,
and some releases flush numbers below 1e-38 to 0, which PyTorch does not. An assignment therefore is Ultralytics' own up
to ties within that rounding, as `engines.agreement` states them. Triton's interpreter lacks these functions; there they
are evaluated in float64.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from yolo_lossplug.boxes import EPS
from yolo_lossplug.kernels import is_interpreted

INTERPRETED = tl.constexpr(is_interpreted())
GUARD = tl.constexpr(EPS)
"""Smallest denominator, and base of a power below 1."""
MAX_INT32 = tl.constexpr(2147483647)
NAN_BITS = tl.constexpr(0x7FC00000)
"""Bits of a NaN; compared as integers they exceed those of every number."""
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """e^x."""
    if INTERPRETED:
        return tl.exp(x.to(tl.float64)).to(tl.float32)
    return libdevice.exp(x)


@triton.jit
def sigmoid(x):
    """1/(1 + e^−x), with the operations of `torch.sigmoid`."""
    return tl.div_rn(1.0, 1.0 + exp(-x))


@triton.jit
def arctan(x):
    """Arctangent in radians."""
    if INTERPRETED:
        return _arctan(x.to(tl.float64)).to(tl.float32)
    return libdevice.atan(x)


@triton.jit
def exact_power(base, EXPONENT: tl.constexpr):
    """base^EXPONENT for base >= 0, with the special cases of `torch.pow`."""
    if EXPONENT == 0:
        return tl.zeros_like(base) + 1.0
    if EXPONENT == 0.5:
        return tl.sqrt_rn(base)
    if EXPONENT == 1:
        return base
    if EXPONENT == 2:
        return base * base
    if EXPONENT == 3:
        return base * base * base
    if INTERPRETED:
        is_above = base > 0
        value = tl.exp(EXPONENT * tl.log(tl.where(is_above, base, 1.0).to(tl.float64))).to(tl.float32)
        return tl.where(is_above, value, base)
    return libdevice.pow(base, tl.zeros_like(base) + EXPONENT)


@triton.jit
def bits_of(value):
    """Order-preserving integers of values >= 0; NaN is the largest, as in `torch.topk` and `torch.max`."""
    return tl.where(value == value, value.to(tl.int32, bitcast=True), NAN_BITS).to(tl.int64)


@triton.jit
def rounded(x, like):
    """Round x to the element type of a pointer."""
    if INTERPRETED:
        if like.dtype.element_ty == tl.bfloat16:  # the interpreter truncates
            bits = x.to(tl.int32, bitcast=True)
            x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def fast_exp(x):
    """e^x with an error of a few ulp, by one instruction for 2^x."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def fast_reciprocal(x):
    """1/x with an error of a few ulp."""
    return 1.0 / x


@triton.jit
def fast_power(base, EXPONENT: tl.constexpr):
    """base^EXPONENT for base >= 0 with an error of a few ulp; 0 for base 0 unless the exponent is 0."""
    if EXPONENT == 0:
        return tl.zeros_like(base) + 1.0
    if EXPONENT == 1:
        return base
    if EXPONENT == 2:
        return base * base
    is_above = base > 0
    return tl.where(is_above, tl.exp2(EXPONENT * tl.log2(tl.where(is_above, base, 1.0))), 0.0)


@triton.jit
def log1p(x):
    """ln(1 + x) for x in [0, 1], relative error below 2e-7: a minimax polynomial of ln(1 + x)/x."""
    value = 0.01985146291553974 - 0.0032440251670777798 * x
    value = value * x - 0.05695953592658043
    value = value * x + 0.10603655129671097
    value = value * x - 0.15305592119693756
    value = value * x + 0.1967593878507614
    value = value * x - 0.24954134225845337
    value = value * x + 0.3332996368408203
    value = value * x - 0.4999990165233612
    return (value * x + 1.0) * x


@triton.jit
def log1p_of_any(x):
    """ln(1 + x) for x >= 0."""
    return tl.where(x < 1, log1p(tl.minimum(x, 1.0)), tl.log(1.0 + x))


@triton.jit
def _arctan(x):
    """Arctangent in float64: halve the angle three times, then evaluate the series."""
    x = x / (1.0 + tl.sqrt(1.0 + x * x))
    x = x / (1.0 + tl.sqrt(1.0 + x * x))
    x = x / (1.0 + tl.sqrt(1.0 + x * x))
    s = x * x
    series = 1.0 / 3 - s * (1.0 / 5 - s * (1.0 / 7 - s * (1.0 / 9 - s * (1.0 / 11 - s * (1.0 / 13 - s / 15)))))
    return 8.0 * (x - x * s * series)
