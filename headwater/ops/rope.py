"""Rotary position embedding (Su et al. 2021), half-split pairs, angles in fp32. Frequencies come from config.Rope."""

import torch


def cos_sin(positions_bt: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables (b, 1, t, n / 2) in fp32 for integer positions (b, t) and radians per position (n / 2,)."""
    angles = positions_bt[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate_plain(x_bhtn: torch.Tensor, positions_bt: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """The meaning of `rotate`: each pair as a complex number times e^(i angle)."""
    half = x_bhtn.shape[-1] // 2
    pairs = torch.complex(x_bhtn[..., :half].double(), x_bhtn[..., half:].double())
    angles = positions_bt[:, None, :, None].double() * frequencies.double()
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).to(x_bhtn.dtype)


def rotate(x_bhtn: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn pair i = dimensions (i, i + n / 2) of x (b, h, t, n) by its angle; fp32 inside, x's dtype outside."""
    first, second = x_bhtn.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x_bhtn.dtype)
