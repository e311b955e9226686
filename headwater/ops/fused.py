"""Native forms of a training step's elementwise work, one pass over memory each (native/src/train).

Operators take them where `usable` says so: tensors of float32 or bfloat16 on a CPU. Everywhere else, and where the
module is not built, they have forms of torch's own, which say what is computed. Nothing here knows gradients.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from headwater.ops import _fused
except ImportError:  # torch's forms do it
    _fused = None  # type: ignore[assignment]


def _openmp() -> str:
    """File of the OpenMP library that torch brings and has loaded; "" where it brings none, or not GNU's."""
    maps, home = Path("/proc/self/maps"), Path(torch.__file__).parent
    files = {Path(line.split(maxsplit=5)[-1]) for line in maps.read_text().splitlines()} if maps.exists() else set()
    ours = (f for f in files if f.parent in (home / "lib", home.parent / "torch.libs") and f.name.startswith("libgomp"))
    return str(next(ours, ""))


if _fused is not None and (path := _openmp()):
    _fused.join(path)  # two pools on the same cores wait for each other: 7 % of a step

TYPES = (torch.float32, torch.bfloat16)
MOST_TAPS, MOST_PLACES = 64, 512
"""What the kernels have room for: of a convolution, of picked ids in a row."""


def usable(*tensors: Tensor) -> bool:
    """Whether the native forms can read these as they lie."""
    return _fused is not None and all(
        t.device.type == "cpu" and t.dtype in TYPES and t.is_contiguous() and type(t) in (Tensor, torch.nn.Parameter)
        for t in tensors
    )


def _call(name: str, *arguments: Any) -> None:
    plain = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    getattr(_fused, name)(*plain, threads=torch.get_num_threads())


def _wide(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach().float().contiguous()


def norm(x_nd: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm of rows, 1 / root mean square of each (n, 1))."""
    y_nd = torch.empty(x_nd.shape, dtype=torch.promote_types(x_nd.dtype, weight.dtype))
    inverse_n1 = torch.empty((len(x_nd), 1))
    _call("norm", x_nd, _wide(weight), eps, y_nd, inverse_n1)
    return y_nd, inverse_n1


def norm_back(
    grad_nd: Tensor, x_nd: Tensor, weight: Tensor, inverse_n1: Tensor, *, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `norm`: to x in its dtype, to the weight in fp32."""
    d_x = torch.empty_like(x_nd) if for_x else None
    d_weight = torch.empty(weight.shape) if for_weight else None
    _call("norm_back", grad_nd, x_nd, _wide(weight), inverse_n1, d_x, d_weight)
    return d_x, d_weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    y = torch.empty_like(gate)
    _call("swiglu", gate, up, y)
    return y


def swiglu_back(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients to gate and up."""
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_back", grad, gate, up, d_gate, d_up)
    return d_gate, d_up


def conv(mixed_btc: Tensor, weight_dk: Tensor, bias_d: Tensor | None, segments_bt: Tensor | None) -> Tensor:
    """gated_short_conv in the dtype of `mixed`."""
    y_btd = mixed_btc.new_empty((*mixed_btc.shape[:2], len(weight_dk)))
    _call("conv", mixed_btc, _wide(weight_dk.t()), _wide(bias_d), segments_bt, y_btd)
    return y_btd


def conv_back(
    grad_btd: Tensor, mixed_btc: Tensor, weight_dk: Tensor, bias_d: Tensor | None, segments_bt: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `conv`: to mixed in its dtype, to taps and bias in fp32."""
    d_mixed, d_taps_kd = torch.empty_like(mixed_btc), torch.empty(tuple(reversed(weight_dk.shape)))
    d_bias = None if bias_d is None else torch.empty(bias_d.shape)
    _call(
        "conv_back", grad_btd, mixed_btc, _wide(weight_dk.t()), _wide(bias_d), segments_bt, d_mixed, d_taps_kd, d_bias
    )
    return d_mixed, d_taps_kd.t(), d_bias


def attends(q_bhtn: Tensor, k_bgsn: Tensor, v_bgsn: Tensor) -> bool:
    """Whether `attention` can read these: as many keys as queries, values of a head side by side, multiples of 16."""
    kinds = {(t.device.type, t.dtype, type(t)) for t in (q_bhtn, k_bgsn, v_bgsn)}
    return (
        _fused is not None
        and len(kinds) == 1
        and kinds <= {("cpu", dtype, Tensor) for dtype in TYPES}
        and q_bhtn.shape[2:] == k_bgsn.shape[2:] == v_bgsn.shape[2:]
        and q_bhtn.shape[3] % 16 == 0
        and all(t.stride(3) == 1 for t in (q_bhtn, k_bgsn, v_bgsn))
    )


def attention(q_bhtn: Tensor, k_bgtn: Tensor, v_bgtn: Tensor, scale: float, starts_bt: Tensor) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp of each query's scores (b, h, t)); query i looks at the keys from its start to i."""
    o_bhtn, lse_bht = _like(q_bhtn), torch.empty(q_bhtn.shape[:3])
    _call("attention", q_bhtn, k_bgtn, v_bgtn, scale, starts_bt, o_bhtn, lse_bht)
    return o_bhtn, lse_bht


def attention_back(
    grad_bhtn: Tensor, q_bhtn: Tensor, k_bgtn: Tensor, v_bgtn: Tensor, scale: float, starts_bt: Tensor,
    o_bhtn: Tensor, lse_bht: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `attention` to q, k and v in their dtype."""
    d_q, d_k, d_v = _like(q_bhtn), _like(k_bgtn), _like(v_bgtn)
    _call("attention_back", grad_bhtn, q_bhtn, k_bgtn, v_bgtn, scale, starts_bt, o_bhtn, lse_bht, d_q, d_k, d_v)
    return d_q, d_k, d_v


def _like(x_bhtn: Tensor) -> Tensor:
    """Room for the same, the heads of a token side by side as its projections have them."""
    b, h, t, n = x_bhtn.shape
    return torch.empty((b, t, h, n), dtype=x_bhtn.dtype).transpose(1, 2)


def partition(logits_nv: Tensor) -> Tensor:
    """log-sum-exp of each row, (n) in fp32."""
    out_n = torch.empty(len(logits_nv))
    _call("partition", logits_nv, out_n)
    return out_n


def slope_(logits_nv: Tensor, partition_n: Tensor, factor_n: Tensor, ids_nk: Tensor, add_nk: Tensor) -> None:
    """In place: factor * softmax, with `add` added at `ids` (an id may come twice in a row), rounded once."""
    _call("slope", logits_nv, partition_n, factor_n.contiguous(), ids_nk.contiguous(), add_nk.contiguous())
