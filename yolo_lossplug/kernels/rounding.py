# SPDX-License-Identifier: AGPL-3.0-or-later
"""Elementary functions of float32, rounded as PyTorch's CUDA kernels round them.

Which anchors an object gets is decided by comparing metrics, so that a metric must have the bits of the host's. The
operations are those of PyTorch one by one: division and square root to the nearest, CUDA's own exponential, power and
arctangent, and no fused multiplication where kernels are launched with `EXACT`. But Triton links CUDA's functions so
that they flush numbers below 1e-38, where PyTorch's do not: overlaps whose power is as small as that count as none.
Triton's interpreter has none of these functions: there they are evaluated in float64.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from yolo_lossplug.kernels import is_interpreted

EXACT = {"enable_fp_fusion": False}
"""Options of a launch whose results are compared bit by bit."""
INTERPRETED = tl.constexpr(is_interpreted())
LARGEST = tl.constexpr(2147483647)
NO_NUMBER = tl.constexpr(0x7FC00000)
"""The bits of a NaN that is larger than every number where bits are compared."""
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """e^x."""
    if INTERPRETED:
        return tl.exp(x.to(tl.float64)).to(tl.float32)
    return libdevice.exp(x)


@triton.jit
def sigmoid(x):
    """1/(1 + e^−x), as `torch.sigmoid` has it."""
    return tl.div_rn(1.0, 1.0 + exp(-x))


@triton.jit
def arctan(x):
    """Angle in radians whose tangent is x."""
    if INTERPRETED:
        return _arctan(x.to(tl.float64)).to(tl.float32)
    return libdevice.atan(x)


@triton.jit
def power(base, EXPONENT: tl.constexpr):
    """base^EXPONENT for numbers >= 0, with the exponents that `torch.pow` has operations of their own for."""
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
    """Numbers >= 0 as integers in the same order; a NaN is the largest, as it is for `torch.topk` and `torch.max`."""
    return tl.where(value == value, value.to(tl.int32, bitcast=True), NO_NUMBER).to(tl.int64)


@triton.jit
def rounded(x, like):
    """A number rounded to the type that a pointer points to."""
    if INTERPRETED:
        if like.dtype.element_ty == tl.bfloat16:  # which the interpreter cuts off
            bits = x.to(tl.int32, bitcast=True)
            x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def fast_exp(x):
    """e^x within some last digits, by one instruction for 2^x."""
    x = x * LOG2_E
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def fast_reciprocal(x):
    """1/x within some last digits, by one instruction."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def fast_power(base, EXPONENT: tl.constexpr):
    """base^EXPONENT for numbers >= 0, within some last digits; 0 for a base of 0 unless the exponent is 0."""
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
    """Arctangent of float64: half the angle three times, and the series."""
    x = x / (1.0 + tl.sqrt(1.0 + x * x))
    x = x / (1.0 + tl.sqrt(1.0 + x * x))
    x = x / (1.0 + tl.sqrt(1.0 + x * x))
    s = x * x
    series = 1.0 / 3 - s * (1.0 / 5 - s * (1.0 / 7 - s * (1.0 / 9 - s * (1.0 / 11 - s * (1.0 / 13 - s / 15)))))
    return 8.0 * (x - x * s * series)
