"""Operations made of others: rules that act on the parts alone have them computed part by part.

Layer, group, instance and root-mean-square normalization, attention, recurrent layers, quotients, variances, norms
and maxima hide a handful of sums, products and elementwise functions. ``parts_of`` gives each as a Python function
of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operations import owners

Dims = int | Sequence[int] | None


def _centered(x: Tensor, dim: Dims) -> Tensor:
    return x - x.mean(_dims(x, dim), keepdim=True)


def _dims(x: Tensor, dim: Dims) -> tuple[int, ...]:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(x.dim()))
    return (dim,) if isinstance(dim, int) else tuple(dim)


def _scaled(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """x over the root of its mean square."""
    return x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_scaled(_centered(x, dims), dims, eps), weight, bias)


def _rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_scaled(x, dims, torch.finfo(x.dtype).eps if eps is None else eps), weight, None)


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    groups = x.reshape(len(x), num_groups, -1)
    y = _scaled(_centered(groups, -1), (-1,), eps).reshape(x.shape)
    return _affine(y, *(_of_channels(x, value) for value in (weight, bias)))


def _of_channels(x: Tensor, value: Tensor | None) -> Tensor | None:
    return None if value is None else value.view(-1, *[1] * (x.dim() - 2))


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    if use_input_stats:
        return _group_norm(x, x.shape[1], weight, bias, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """s x + t for each channel, where weights and statistics may depend on the image as x does."""
    if training and running_mean is not None:  # it also changes the running statistics
        return torch.batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps, False)
    shape = (-1, *[1] * (x.dim() - 2))
    if training or running_mean is None or running_var is None:
        dims = (0, *range(2, x.dim()))
        running_mean = x.mean(dims)
        running_var = (x - running_mean.view(shape)).square().mean(dims)
    # Each step is an operation that a rule may act at, since statistics of the image's own are activations.
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -(running_mean * scale) if bias is None else bias - running_mean * scale
    y = x * scale.view(shape) + shift.view(shape)
    return y.to(x.dtype)  # statistics may be more precise


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), -3) for t in (key, value))
    scores = query @ key.mT * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        # It is aligned at the upper left also where queries and keys differ in number, as in torch.
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1)
    if attn_mask is not None:  # a query that may look nowhere sees nothing
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0)
    return F.dropout(weights, dropout_p) @ value


def _var(
    x: Tensor,
    dim: Dims | bool = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    dims = _dims(x, dim)
    if correction is None:
        correction = 0 if unbiased is False else 1
    count = math.prod(x.shape[d] for d in dims)
    return _centered(x, dims).square().sum(dims, keepdim=keepdim) / max(count - correction, 0)


def _std(*args: Any, **kwargs: Any) -> Tensor:
    return _var(*args, **kwargs).sqrt()


def _with_mean(of: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = signature(_var).bind(*args, **kwargs).arguments
        dims = None if isinstance(given.get("dim"), bool) else given.get("dim")
        return of(*args, **kwargs), given["x"].mean(_dims(given["x"], dims), keepdim=given.get("keepdim", False))

    return both


def _vector_norm(
    x: Tensor,
    ord: float = 2,  # noqa: A002
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    x, dims = x.to(dtype or x.dtype), _dims(x, dim)
    if ord == math.inf:
        return x.abs().amax(dims, keepdim)
    if ord == -math.inf:
        return -(-x.abs()).amax(dims, keepdim)
    if ord == 0:  # how many are not 0, which has no slope
        return (x != 0).sum(dims, keepdim).to(x.dtype)
    if ord == 1:
        return x.abs().sum(dims, keepdim)
    if ord == 2:
        return x.square().sum(dims, keepdim).sqrt()
    return x.abs().pow(ord).sum(dims, keepdim).pow(1 / ord)


def _norm(
    x: Tensor,
    ord: Any = None,  # noqa: A002
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if ord is None or isinstance(dim, int) or x.dim() == 1:
        return _vector_norm(x, 2 if ord is None else ord, dim, keepdim, dtype=dtype)
    found: Tensor = torch.linalg.matrix_norm(x, ord, (-2, -1) if dim is None else dim, keepdim, dtype=dtype)
    return found


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    one, other = (x / _vector_norm(x, 2, dim, True).clamp_min(eps) for x in (x1, x2))
    return (one * other).sum(dim)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    return _vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def _prod(x: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """Products pair by pair, so that each is of two factors, which a rule shares between, in few rounds."""
    x, dim = (x.flatten(), 0) if dim is None else (x, dim)
    x = x.to(dtype or x.dtype)
    while (half := x.shape[dim] // 2) > 0:
        rest = x.narrow(dim, 2 * half, x.shape[dim] - 2 * half)
        x = torch.cat([x.narrow(dim, 0, half) * x.narrow(dim, half, half), rest], dim)
    return x if keepdim else x.squeeze(dim)


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return torch.where(mask, value, x)


def _logaddexp(x: Tensor, other: Tensor) -> Tensor:
    return _logsumexp(torch.stack(torch.broadcast_tensors(x, other)), 0)


def _quotient(x: Any, other: Any, *, rounding_mode: None = None) -> Any:
    # By the reciprocal a rule meets the divisor on its own: LRP takes it for a constant, DeepLIFT rescales it.
    return x * (other.reciprocal() if isinstance(other, Tensor) else 1 / other)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()


def _extreme(sign: int) -> Callable[..., Any]:
    """``max`` or ``min``: of everything, along a dimension, or of two tensors."""

    def extreme(x: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
        other = dim if isinstance(dim, Tensor) else other
        if other is not None:
            return sign * torch.stack(torch.broadcast_tensors(sign * x, sign * other)).amax(0)
        values = sign * (sign * x).amax(_dims(x, dim), keepdim)
        if dim is None:
            return values
        kind = torch.return_types.max if sign > 0 else torch.return_types.min
        return kind((values, (sign * x).argmax(dim, keepdim)))

    return extreme


def _amin(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    return -(-x).amax(_dims(x, dim), keepdim)


def _logsumexp(x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """x - log softmax(x) is the same at every place; the greatest stands for all, since others may be -inf."""
    # Every step is one that rules know: a logarithm of a softmax, and a choice that is linear.
    dims = sorted(d % x.dim() for d in _dims(x, dim))
    rows = x.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims))
    total = (rows - rows.log_softmax(-1)).gather(-1, rows.argmax(-1, keepdim=True)).squeeze(-1)
    for d in dims if keepdim else ():
        total = total.unsqueeze(d)
    return total


def _sum_and_product(
    x: Tensor,
    one: Tensor,
    two: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    return beta * x + alpha * (one @ two)


def _addcmul(x: Tensor, one: Tensor, two: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (one * two)


def _lerp(x: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return x + weight * (end - x)


def _addcdiv(x: Tensor, one: Tensor, two: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (one / two)


def _rnn_cell(bend: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Tensor:
        return bend(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))

    return cell


def _gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    reset, update, new = F.linear(x, w_ih, b_ih).chunk(3, -1)
    reset_h, update_h, new_h = F.linear(h, w_hh, b_hh).chunk(3, -1)
    # As in torch, the reset gate comes after the matrix product, not before it as in the paper (Cho et al. 2014).
    new = (new + (reset + reset_h).sigmoid() * new_h).tanh()
    # This is (1 - z) n + z h with one product instead of two.
    return new + (update + update_h).sigmoid() * (h - new)


def _lstm_cell(
    x: Tensor,
    state: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    h, c = state
    enter, keep, new, leave = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = keep.sigmoid() * c + enter.sigmoid() * new.tanh()
    h = leave.sigmoid() * c.tanh()
    return (h if w_hr is None else F.linear(h, w_hr)), c


def _recurrent(cell: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """Layers of recurrent cells, step by step, in one direction or in both."""

    def run(
        x: Tensor,
        state: Tensor | Sequence[Tensor],
        weights: Sequence[Tensor],
        has_biases: bool,
        layers: int,
        dropout: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if batch_first else x
        starts = [state.unbind(0)] if isinstance(state, Tensor) else [part.unbind(0) for part in state]
        # Weights and states come layer by layer, and within a layer forwards, then backwards.
        runs = layers * (1 + bidirectional)
        each, ends = len(weights) // runs, []
        for layer in range(layers):
            found = []
            for place in range(layer * runs // layers, (layer + 1) * runs // layers):
                given = list(weights[each * place : each * (place + 1)])
                # A cell takes its two biases after its two weights; what follows is the projection of an LSTM.
                given[2:2] = [] if has_biases else [None, None]  # type: ignore[list-item]
                start = tuple(part[place] for part in starts)
                y, end = _unrolled(cell, x, start, given, backwards=bidirectional and place % 2 == 1)
                found.append(y)
                ends.append(end)
            x = F.dropout(torch.cat(found, -1), dropout, training and layer < layers - 1)
        return (x.transpose(0, 1) if batch_first else x), *map(torch.stack, zip(*ends, strict=True))

    return run


def _unrolled(
    cell: Callable[..., Any], x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor], backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A cell's outputs for the steps of a sequence (N, B, C), and its last state."""
    steps, found = list(x.unbind(0)), []
    for step in reversed(steps) if backwards else steps:
        given = cell(step, state if len(state) > 1 else state[0], *weights)
        state = given if isinstance(given, tuple) else (given,)
        found.append(state[0])
    return torch.stack(found[::-1] if backwards else found), state


_RECURRENT: dict[Any, Callable[..., Any]] = {
    torch.lstm: _recurrent(_lstm_cell),
    torch.gru: _recurrent(_gru_cell),
    torch.rnn_tanh: _recurrent(_rnn_cell(torch.tanh)),
    torch.rnn_relu: _recurrent(_rnn_cell(torch.relu)),
}
_PARTS: dict[str, Callable[..., Any]] = {
    "lstm_cell": _lstm_cell,
    "gru_cell": _gru_cell,
    "rnn_tanh_cell": _rnn_cell(torch.tanh),
    "rnn_relu_cell": _rnn_cell(torch.relu),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "scaled_dot_product_attention": _attention,
    "var": _var,
    "std": _std,
    "var_mean": _with_mean(_var),
    "std_mean": _with_mean(_std),
    "vector_norm": _vector_norm,
    **dict.fromkeys(("div", "divide", "true_divide", "__truediv__", "__itruediv__"), _quotient),
    "glu": _glu,
    "cosine_similarity": _cosine_similarity,
    "cdist": _cdist,
    "prod": _prod,
    "masked_fill": _masked_fill,
    "logaddexp": _logaddexp,
    "max": _extreme(1),
    "min": _extreme(-1),
    "maximum": _extreme(1),
    "minimum": _extreme(-1),
    "amin": _amin,
    "logsumexp": _logsumexp,
    "baddbmm": _sum_and_product,
    "addmm": _sum_and_product,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
}


def _table() -> dict[Any, Callable[..., Any]]:
    table = {owner: parts for name, parts in _PARTS.items() for owner in owners(name)}
    return (
        table
        | _RECURRENT
        | {
            torch.instance_norm: _instance_norm,
            torch.linalg.norm: _norm,
            F.batch_norm: _batch_norm,
        }
    )


_TABLE = _table()
_ASK = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def is_recurrent(function: Callable[..., Any]) -> bool:
    """Whether a call runs recurrent layers as a whole."""
    return function in _RECURRENT


def parts_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[..., Any] | None:
    """The function of sums, products and elementwise functions that a call is; None if it has no parts.

    Of a function that torch wrote in Python, such as ``F.multi_head_attention_forward``, it is its own body.
    """
    # A packed sequence has its batch sizes, whole numbers, in the second place, where others have the state.
    is_packed = is_recurrent(function) and isinstance(args[1], Tensor) and not args[1].is_floating_point()
    known = None if kwargs.get("rounding_mode") or is_packed else _TABLE.get(function)
    if known is not None or not isinstance(function, FunctionType):
        return known
    hides = function.__module__ in ("torch.nn.functional", "torch.functional") or function is Tensor.norm
    # What only chooses between two functions, with indices or without, would come here again.
    return _body(function) if hides and "if_false" not in function.__code__.co_freevars else None


def is_quotient(function: Callable[..., Any]) -> bool:
    """Whether a call divides: x / (1 + exp(-x)) is a product, too."""
    return _TABLE.get(function) is _quotient


@cache
def _body(function: FunctionType) -> FunctionType:
    """The function without its first lines, which hand the call over as a whole."""
    # Such a function first asks whether a mode wants the whole call, and hands it over;
    # told no, it runs its own lines, whose calls then come to the mode one by one.
    names = {**function.__globals__, **dict.fromkeys(_ASK, lambda *_: False)}
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
