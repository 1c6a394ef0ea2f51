"""Compiled loops over the few latents of each row that are active, and over the weights they belong to.

Rows of both weight matrices are latents, so whatever an active latent touches lies in one piece. Active latents come in
two orders: by row of the batch, `latent_BC[b, :count_B[b]]` ascending, and by latent, entries `start_F[f]` to
`start_F[f + 1]` ascending in row. Each output element is written by one iteration of the outermost loop, so splitting
that loop over threads, which `first` and `stop` are for, changes no bit.

Shapes: B rows, of which A at a time · C room for active latents · F latents · D input width · O output width · G nested
groups of latents · N active latents of the batch. All floats are float32.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, no_type_check

import numpy as np
import torch
from numba import njit

# Sums may be reordered, so that they use vector registers, but infinities and nans stay what they are: a run that
# diverges must be seen to.
_compiled: Any = njit(fastmath={"contract", "reassoc", "nsz", "arcp"}, nogil=True, cache=True)


@_compiled
@no_type_check
def _collect_row(z_F, low, latent_C, value_C):
    """Entries above `low`, as far as there is room, and how many there are."""
    room, count = latent_C.shape[0], 0
    whole = z_F.shape[0] - z_F.shape[0] % 16
    for start in range(0, whole, 16):
        any_above = False
        for f in range(start, start + 16):
            any_above |= z_F[f] > low
        if any_above:
            for f in range(start, start + 16):
                if z_F[f] > low:
                    if count < room:
                        latent_C[count] = f
                        value_C[count] = z_F[f]
                    count += 1
    for f in range(whole, z_F.shape[0]):
        if z_F[f] > low:
            if count < room:
                latent_C[count] = f
                value_C[count] = z_F[f]
            count += 1
    return count


@_compiled
@no_type_check
def collect(z_AF, low, at_least, latent_AC, value_AC, count_A, first, stop):
    """Entries of each row above `low`, or above a lower value where these are fewer than `at_least`.

    A count beyond C says how much room there should have been.
    """
    for a in range(first, stop):
        row_low = low
        count = _collect_row(z_AF[a], row_low, latent_AC[a], value_AC[a])
        while count < at_least and row_low > 0:
            row_low = row_low / 2 if row_low > low / 4 else np.float32(0)
            count = _collect_row(z_AF[a], row_low, latent_AC[a], value_AC[a])
        count_A[a] = count


@_compiled
@no_type_check
def values(value_BC, count_B, out_N):
    """All values, row after row; returns how many."""
    n = 0
    for b in range(count_B.shape[0]):
        for c in range(count_B[b]):
            out_N[n] = value_BC[b, c]
            n += 1
    return n


@_compiled
@no_type_check
def keep_above(latent_BC, value_BC, count_B, threshold, first, stop):
    """Drops what is not above one threshold."""
    for b in range(first, stop):
        count = 0
        for c in range(count_B[b]):
            if value_BC[b, c] > threshold:
                latent_BC[b, count] = latent_BC[b, c]
                value_BC[b, count] = value_BC[b, c]
                count += 1
        count_B[b] = count


@_compiled
@no_type_check
def keep_largest(latent_BC, value_BC, count_B, k, boundary_B, first, stop):
    """Drops all but the k largest of each row; the boundary is the largest dropped, 0 if nothing was."""
    largest_K = np.empty(k + 1, np.float32)
    for b in range(first, stop):
        boundary_B[b] = 0
        if count_B[b] <= k:
            continue
        largest_K[:] = 0  # descending; values are above 0
        for c in range(count_B[b]):
            value = value_BC[b, c]
            if value > largest_K[k]:
                place = k
                while place > 0 and largest_K[place - 1] < value:
                    largest_K[place] = largest_K[place - 1]
                    place -= 1
                largest_K[place] = value
        boundary_B[b] = largest_K[k]
        count = 0
        for c in range(count_B[b]):
            if value_BC[b, c] > boundary_B[b]:
                latent_BC[b, count] = latent_BC[b, c]
                value_BC[b, count] = value_BC[b, c]
                count += 1
        count_B[b] = count


@_compiled
@no_type_check
def decode(
    y_BO, W_FO, b_O, end_G, weight_G, latent_BC, value_BC, count_B, error_BGO, slope_BC, loss_B,
    first, stop,
):  # fmt: skip
    """Errors, losses, and the slope of the loss along each active latent, which is its gradient.

        x̂_g = b + sum over active f < end_g of h_f W_f        loss = sum_g weight_g |x̂_g - y|²

    What is left in error_BGO is what a latent of group g meets: sum over groups p >= g of 2 weight_p (x̂_p - y).
    """
    num_groups, width = error_BGO.shape[1], y_BO.shape[1]
    for b in range(first, stop):
        c = 0
        loss = np.float32(0)
        for g in range(num_groups):
            error_O = error_BGO[b, g]
            for o in range(width):
                error_O[o] = b_O[o] - y_BO[b, o] if g == 0 else error_BGO[b, g - 1, o]
            while c < count_B[b] and latent_BC[b, c] < end_G[g]:
                W_O = W_FO[latent_BC[b, c]]
                h = value_BC[b, c]
                for o in range(width):
                    error_O[o] += h * W_O[o]
                c += 1
            square = np.float32(0)
            for o in range(width):
                square += error_O[o] * error_O[o]
            loss += weight_G[g] * square
        loss_B[b] = loss
        for g in range(num_groups - 1, -1, -1):
            error_O = error_BGO[b, g]
            twice = np.float32(2) * weight_G[g]
            for o in range(width):
                error_O[o] *= twice
            if g < num_groups - 1:
                for o in range(width):
                    error_O[o] += error_BGO[b, g + 1, o]
        g = 0
        for c in range(count_B[b]):
            while latent_BC[b, c] >= end_G[g]:
                g += 1
            W_O = W_FO[latent_BC[b, c]]
            error_O = error_BGO[b, g]
            slope = np.float32(0)
            for o in range(width):
                slope += error_O[o] * W_O[o]
            slope_BC[b, c] = slope


@_compiled
@no_type_check
def by_latent(latent_BC, value_BC, slope_BC, count_B, start_F, row_N, value_N, slope_N):
    """The same entries ordered by latent; start_F has one element more than there are latents."""
    start_F[:] = 0
    for b in range(count_B.shape[0]):
        for c in range(count_B[b]):
            start_F[latent_BC[b, c] + 1] += 1
    for f in range(start_F.shape[0] - 1):
        start_F[f + 1] += start_F[f]
    next_F = start_F[:-1].copy()
    for b in range(count_B.shape[0]):
        for c in range(count_B[b]):
            f = latent_BC[b, c]
            n = next_F[f]
            next_F[f] = n + 1
            row_N[n] = b
            value_N[n] = value_BC[b, c]
            slope_N[n] = slope_BC[b, c]


@_compiled
@no_type_check
def gradients(
    x_BD, error_BGO, group_F, start_F, row_N, value_N, slope_N, dW_enc_FD, db_enc_F, dW_dec_FO,
    first, stop,
):  # fmt: skip
    """dW_dec_f = sum_b h_bf error_b      dW_enc_f = sum_b slope_bf x_b      db_enc_f = sum_b slope_bf"""
    width, out_width = x_BD.shape[1], error_BGO.shape[2]
    for f in range(first, stop):
        dW_dec_O, dW_enc_D = dW_dec_FO[f], dW_enc_FD[f]
        dW_dec_O[:] = 0
        dW_enc_D[:] = 0
        total = np.float32(0)
        g = group_F[f]
        for n in range(start_F[f], start_F[f + 1]):
            b, h, slope = row_N[n], value_N[n], slope_N[n]
            total += slope
            error_O, x_D = error_BGO[b, g], x_BD[b]
            for o in range(out_width):
                dW_dec_O[o] += h * error_O[o]
            for d in range(width):
                dW_enc_D[d] += slope * x_D[d]
        db_enc_F[f] = total


@_compiled
@no_type_check
def squared_norms(gradient_FD, W_FD, is_unit, out_F, first, stop):
    """|gradient|² of each row; where rows have norm 1, of its part at right angles to the row."""
    width = W_FD.shape[1]
    for f in range(first, stop):
        square = np.float32(0)
        along = np.float32(0)
        for d in range(width):
            square += gradient_FD[f, d] * gradient_FD[f, d]
            along += gradient_FD[f, d] * W_FD[f, d]
        out_F[f] = square - along * along if is_unit else square


@_compiled
@no_type_check
def adam(
    W_FD, gradient_FD, mean_FD, square_FD, is_unit, shrink, rate, beta1, beta2, unbias, epsilon,
    first, stop,
):  # fmt: skip
    """One step of Adam for each row, with its gradient times `shrink`; `rate` has the mean's bias taken out, `unbias`
    is the root of the square's. A row of norm 1 is moved at right angles to itself and keeps its norm.
    """
    width = W_FD.shape[1]
    for f in range(first, stop):
        W_D, gradient_D, mean_D, square_D = W_FD[f], gradient_FD[f], mean_FD[f], square_FD[f]
        along = np.float32(0)
        if is_unit:
            for d in range(width):
                along += gradient_D[d] * W_D[d]
        norm = np.float32(0)
        for d in range(width):
            g = shrink * (gradient_D[d] - along * W_D[d])
            mean_D[d] = beta1 * mean_D[d] + (np.float32(1) - beta1) * g
            square_D[d] = beta2 * square_D[d] + (np.float32(1) - beta2) * g * g
            W_D[d] -= rate * mean_D[d] / (np.sqrt(square_D[d]) / unbias + epsilon)
            norm += W_D[d] * W_D[d]
        if is_unit:
            inverse = np.float32(1) / np.sqrt(norm)
            for d in range(width):
                W_D[d] *= inverse


@_compiled
@no_type_check
def divide(latent_BC, value_BC, count_B, norm_F, first, stop):
    """Each value by the norm of its latent."""
    for b in range(first, stop):
        for c in range(count_B[b]):
            value_BC[b, c] /= max(norm_F[latent_BC[b, c]], np.float32(1e-12))


def spread(kernel: Callable[..., object], count: int, arguments: tuple[Any, ...]) -> None:
    """Runs a kernel over `count` items by as many threads as torch has."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        kernel(*arguments, 0, count)
        return
    edges = [count * part // threads for part in range(threads + 1)]
    pool = _threads(threads)
    for done in [pool.submit(kernel, *arguments, *part) for part in pairwise(edges)]:
        done.result()


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="dictionary")
