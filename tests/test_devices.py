"""TF32 is off where bits are compared, and as it was everywhere else."""

from __future__ import annotations

import pytest
import torch

from kiwi_cli.engine.devices import exact_fp32


def tf32_allowed() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def test_exact_fp32_switches_tf32_off_and_puts_back_what_it_found() -> None:
    before = tf32_allowed()
    try:
        for found in ((True, False), (False, True)):
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = found
            with pytest.raises(KeyboardInterrupt), exact_fp32():
                assert tf32_allowed() == (False, False)
                raise KeyboardInterrupt
            assert tf32_allowed() == found
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
def test_exact_fp32_convolves_without_tf32() -> None:
    x, weight = torch.randn(1, 32, 4, 16, 16), torch.randn(32, 32, 3, 3, 3)
    expected = torch.nn.functional.conv3d(x.double(), weight.double())
    with exact_fp32():
        found = torch.nn.functional.conv3d(x.cuda(), weight.cuda()).cpu().double()
    assert (found - expected).norm() / expected.norm() < 1e-6
