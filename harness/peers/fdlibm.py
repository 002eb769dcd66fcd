"""log, sine and cosine as fdlibm computes them: the same basic operations in the same order as in the Rust crate `libm`, so
the trainer's bits. A C library's, and numpy's, differ in the last one.

Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved. Developed at SunSoft, a Sun Microsystems, Inc. business.
Permission to use, copy, modify, and distribute this software is freely granted, provided that this notice is preserved.
"""

import numpy

LN2_HI, LN2_LO = 6.93147180369123816490e-01, 1.90821492927058770002e-10
LG1, LG2, LG3 = 6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01
LG4, LG5, LG6 = 2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01
LG7 = 1.479819860511658591e-01

S1, S2, S3 = -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04
S4, S5, S6 = 2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10
C1, C2, C3 = 4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05
C4, C5, C6 = -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11

# pi/2 in pieces of 33 bits, each with the rest that is left after it.
PIO2_1, PIO2_1T = 1.57079632673412561417e00, 6.07710050650619224932e-11
PIO2_2, PIO2_2T = 6.07710050630396597660e-11, 2.02226624879595063154e-21
PIO2_3, PIO2_3T = 2.02226624871116645580e-21, 8.47842766036889956997e-32
# High words of pi/4, 3pi/4, 5pi/4, 7pi/4 and 9pi/4: as far as each quadrant goes.
QUADRANTS = (0x3FE921FB, 0x4002D97C, 0x400F6A7A, 0x4015FDBC, 0x401C463B)
# Those of pi/2, pi, 3pi/2 and 2pi, where subtracting cancels so much that more pieces are needed.
MULTIPLES = (0x3FF921FB, 0x400921FB, 0x4012D97C, 0x401921FB)


def high_word(x):
    """Sign, exponent and the first 20 bits of each double."""
    return (numpy.ascontiguousarray(x).view(numpy.uint64) >> numpy.uint64(32)).astype(numpy.int64)


def log(x):
    """Natural logarithms of positive, normal doubles."""
    # x = 2^k (1 + f), and 1 + f lies between √½ and √2.
    high = high_word(x) + (0x3FF00000 - 0x3FE6A09E)
    k = ((high >> 20) - 0x3FF).astype(numpy.float64)
    high = ((high & 0xFFFFF) + 0x3FE6A09E).astype(numpy.uint64) << numpy.uint64(32)
    low = numpy.ascontiguousarray(x).view(numpy.uint64) & numpy.uint64(0xFFFFFFFF)
    f = (high | low).view(numpy.float64) - 1.0
    hfsq = 0.5 * f * f
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t1 = w * (LG2 + w * (LG4 + w * LG6))
    t2 = z * (LG1 + w * (LG3 + w * (LG5 + w * LG7)))
    r = t2 + t1
    return s * (hfsq + r) + k * LN2_LO - hfsq + f + k * LN2_HI


def remainder(x):
    """(n, y, tail): x less the n-th multiple of pi/2 that is nearest to it, as y and what rounding took from y."""
    size = high_word(x) & 0x7FFFFFFF
    if (size > QUADRANTS[-1]).any():
        raise ValueError("angles beyond 9pi/4 need another reduction")
    n = sum((size > end).astype(numpy.int64) for end in QUADRANTS)
    n = numpy.where(x < 0, -n, n)
    r, w = x - n * PIO2_1, n * PIO2_1T
    y = r - w
    for lost, piece, rest in ((16, PIO2_2, PIO2_2T), (49, PIO2_3, PIO2_3T)):
        cancelled = (size >> 20) - (high_word(y) >> 20 & 0x7FF) > lost
        again = numpy.isin(size, MULTIPLES) & cancelled
        t, w_again = r, n * piece
        r_again = t - w_again
        w_again = n * rest - ((t - r_again) - w_again)
        r, w = numpy.where(again, r_again, r), numpy.where(again, w_again, w)
        y = r - w
    return n, y, (r - y) - w


def sincos(x):
    """Sines and cosines of doubles between -9pi/4 and 9pi/4."""
    n, y, tail = remainder(x)
    z = y * y
    w = z * z
    r = S2 + z * (S3 + z * S4) + z * w * (S5 + z * S6)
    v = z * y
    reduced = y - ((z * (0.5 * tail - v * r) - tail) - v * S1)
    sin = numpy.where(n == 0, y + v * (S1 + z * r), reduced)
    r = z * (C1 + z * (C2 + z * C3)) + w * w * (C4 + z * (C5 + z * C6))
    hz = 0.5 * z
    w = 1.0 - hz
    cos = w + (((1.0 - w) - hz) + (z * r - y * tail))
    quadrants = [n & 3 == index for index in range(4)]
    return numpy.select(quadrants, [sin, cos, -sin, -cos]), numpy.select(quadrants, [cos, -sin, -cos, sin])
