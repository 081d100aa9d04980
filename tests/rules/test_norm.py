"""A frozen batch normalisation is one multiplication and addition, and its gradient one multiplication."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pellucid as pl
from pellucid.rules.base import Rules
from pellucid.rules.norm import FrozenBatchNorm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_same_function_and_same_gradient(affine: bool, dims: int) -> None:
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1](4, affine=affine, eps=1e-3).double().eval()
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.1, 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, *[5] * dims, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    plain = norm(x)
    (expected,) = torch.autograd.grad(plain, x, cotangent)
    with Rules([FrozenBatchNorm()]) as rules:
        fast = norm(x)
    assert FrozenBatchNorm() in rules.met
    (found,) = torch.autograd.grad(fast, x, cotangent)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_batch_statistics_and_other_precisions_are_left_alone() -> None:
    x = torch.randn(6, 4, 3, 3)
    rules = Rules([FrozenBatchNorm()])
    with rules:
        untracked = F.batch_norm(x, None, None, training=True)
        half = F.batch_norm(x.bfloat16(), torch.zeros(4), torch.ones(4))
    assert not rules.met
    torch.testing.assert_close(untracked.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-6)
    assert half.dtype == torch.bfloat16


def test_torch_batch_norm_orders_its_arguments_otherwise() -> None:
    x, w, b, mean, var = torch.randn(2, 4, 3, 3), *torch.rand(4, 4).add(0.5).unbind()
    expected = F.batch_norm(x, mean, var, w, b)
    with Rules([FrozenBatchNorm()]):
        found = torch.batch_norm(x, w, b, mean, var, False, 0.1, 1e-5, False)
    torch.testing.assert_close(found, expected)


def test_a_module_of_it_may_be_explained_and_followed_in_place() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    found = pl.Gradient()(net, x, 0, ["input", "1"])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(found["input"], expected, rtol=1e-5, atol=1e-7)
