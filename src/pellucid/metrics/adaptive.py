"""Where a curve is scored: everywhere on its grid, or coarsely first and then only where it bends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Steps of the adaptive grid at its finest. The nodes scored first are every 16th, and the eighth, since scores
# move most at the start.
FINEST = 224
_FIRST = (8, *range(16, FINEST, 16))
# Expected error of one area; benchmarks/README.md tells what it costs and what single images miss it by.
AREA_TOLERANCE = 0.001

_Score = Callable[[Tensor, Tensor], Tensor]


def everywhere(score: _Score, start: Tensor, finish: Tensor, fractions: Tensor) -> Tensor:
    """Scores (J, n+1) of J curves at all fractions (n+1,), of which the ends (J,) are known.

    ``score(curve, node)`` gives the score (m,) at pairs of a curve's number and a fraction's.
    """
    table = _with_ends(start, finish, len(fractions))
    curve, node = torch.ones_like(table[:, 1:-1]).nonzero(as_tuple=True)
    table[curve, node + 1] = score(curve, node + 1).to(table)
    return table


def where_it_bends(
    score: _Score, start: Tensor, finish: Tensor, fractions: Tensor, tolerance: float = AREA_TOLERANCE
) -> Tensor:
    """As ``everywhere``, scored at a few fractions and interpolated linearly at all others.

    Round by round, the intervals with the largest expected errors are halved, until the error expected of a
    curve's area, from the rest taken together, is at most ``tolerance``. What is scored of a curve depends on
    that curve alone.
    """
    table, last = _with_ends(start, finish, len(fractions)), len(fractions) - 1
    known = torch.zeros_like(table, dtype=torch.bool)
    known[:, [0, last]] = True
    wanted = torch.zeros_like(known)
    # A small image has fewer pixels than the finest grid has
    # steps; the first nodes then lie as far apart in proportion.
    wanted[:, [node * last // FINEST for node in _FIRST]] = True
    wanted &= ~known
    # Each round scores the wanted nodes of all curves together, in full batches.
    while bool(wanted.any()):
        curve, node = wanted.nonzero(as_tuple=True)
        table[curve, node] = score(curve, node).to(table)
        known |= wanted
        wanted = _midpoints(table, known, fractions, tolerance)
    return _interpolated(table, known, fractions)


def _with_ends(start: Tensor, finish: Tensor, nodes: int) -> Tensor:
    table = start.new_zeros(len(start), nodes)
    table[:, 0], table[:, -1] = start, finish
    return table


def _midpoints(table: Tensor, known: Tensor, fractions: Tensor, tolerance: float) -> Tensor:
    """The middles (J, n+1) of the fewest intervals without which a curve's expected error is in tolerance."""
    _, after = _neighbors(known)
    variances, intervals = _variances(table, known, fractions).sort(1)
    # Errors of intervals are independent, so their variances add up: the smallest may stay while their sum is in
    # tolerance, and all larger ones are halved.
    too_much = variances.cumsum(1) > tolerance**2
    chosen = torch.zeros_like(known).scatter(1, intervals, too_much & (variances > 0))
    curve, node = chosen.nonzero(as_tuple=True)
    middles = torch.zeros_like(known)
    middles[curve, (node + after[curve, node]) // 2] = True
    return middles


def _variances(table: Tensor, known: Tensor, fractions: Tensor) -> Tensor:
    """Expected squared error of the trapezoid over the interval that begins at each node (J, n+1).

    Between two known points a curve is taken for a random walk, whose trapezoid over a width h is off by a
    variance of r h^3 / 12. Its rate r shows in how much the slopes on the two sides of a point, over widths
    h1 and h2, differ: E[(difference of slopes)^2] = r (1/h1 + 1/h2). (A smooth curve would err by
    h^3 |f''| / 12, 2.4 times less for the same bend; the scores of a network are not smooth.) Being read off
    few points, rates chance to be low where halving stops: a true walk's error is up to twice the expected.
    """
    before, after = _neighbors(known)
    # Only at known nodes does this mean anything; the others are masked at the end.
    width = fractions[after] - fractions
    slope = (table.gather(1, after) - table) / width.clamp_min(torch.finfo(table.dtype).tiny)
    back = width.gather(1, before)
    # r = (difference of slopes)^2 / (1 / h1 + 1 / h2), with h1 = back and h2 = width.
    rate = (slope - slope.gather(1, before)).square() * width * back / (width + back)
    # No bend shows at the two ends of a curve, so each takes the rate of the point beside it.
    rate[:, :1] = rate.gather(1, after[:, :1])
    rate[:, -1:] = rate.gather(1, before[:, -1:])
    # An interval lies between two points, each with a rate of its own, of which it takes the mean.
    variances = (rate + rate.gather(1, after)) / 2 * width**3 / 12
    node = torch.arange(table.shape[1], device=table.device)
    # Neighbors on the grid have no node between them at which to score.
    return torch.where(known & (after - node >= 2), variances, 0)


def _interpolated(table: Tensor, known: Tensor, fractions: Tensor) -> Tensor:
    """Straight lines between the known points around each node; a known node is both of its own, and stays."""
    last, first = _at_or_before(known), _at_or_after(known)
    span = fractions[first] - fractions[last]
    share = (fractions - fractions[last]) / torch.where(span > 0, span, 1)
    return torch.lerp(table.gather(1, last), table.gather(1, first), share)


def _neighbors(known: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest known nodes (J, n+1) before and after each node; at the ends, which are known, themselves."""
    last, first = _at_or_before(known), _at_or_after(known)
    return torch.cat([last[:, :1], last[:, :-1]], 1), torch.cat([first[:, 1:], first[:, -1:]], 1)


def _at_or_before(known: Tensor) -> Tensor:
    # The greatest known number so far, running from the left.
    node = torch.arange(known.shape[1], device=known.device)
    return torch.where(known, node, 0).cummax(1).values


def _at_or_after(known: Tensor) -> Tensor:
    node = torch.arange(known.shape[1], device=known.device)
    return torch.where(known, node, known.shape[1] - 1).flip(1).cummin(1).values.flip(1)
