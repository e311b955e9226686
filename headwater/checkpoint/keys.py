"""Reading a config.json so that no key goes unnoticed: each is taken, expected at one value, or ignored by name."""

from collections.abc import Mapping
from typing import Any

from headwater.config import Rope, RopeScaling
from headwater.files import closest

_REQUIRED = object()

_HARMLESS = frozenset({
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "name_or_path",
    "use_cache", "initializer_range", "auto_map", "return_dict", "output_hidden_states", "output_attentions",
    "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "is_encoder_decoder", "torchscript",
    "transformers.js_config", "_attn_implementation", "attn_implementation", "license", "unsloth_version",
    "unsloth_fixed", "cache_implementation", "sep_token_id", "task_specific_params",
})  # fmt: skip


class Keys:
    """A config.json being read. `finish` raises ValueError for keys that nobody took."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = {str(k): v for k, v in values.items() if k not in _HARMLESS}
        self._asked: set[str] = set()
        self.model_type = values.get("model_type")
        self.expect("attention_dropout", 0)

    def fault(self, name: str, came: object, allowed: str) -> ValueError:
        """The error for a value that cannot be used."""
        return ValueError(f"config.json: {name} is {came!r}; allowed: {allowed}")

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of `name`, of the type of a non-None default. ValueError when a required key is absent."""
        self._asked.add(name)
        if name not in self._left:
            if default is _REQUIRED:
                raise ValueError(f"config.json: the key {name!r} is missing{closest(name, list(self._left))}")
            return default
        value = self._left.pop(name)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise self.fault(name, value, "true or false")
        if isinstance(default, int | float) and not isinstance(value, int | float):
            raise self.fault(name, value, "a number")
        return value

    def take_alias(self, names: tuple[str, ...], default: Any) -> Any:
        """One value that goes by several names; ValueError when two of them disagree."""
        found = {name: self.take(name, default) for name in names if name in self._left}
        self._asked.update(names)
        values = list(found.values())
        if any(v != values[0] for v in values):
            raise ValueError(
                f"config.json: {' and '.join(f'{k} = {v!r}' for k, v in found.items())} contradict each other"
            )
        return values[0] if values else default

    def expect(self, name: str, value: Any) -> None:
        """Accept the key only at the one value that this implementation computes."""
        came = self.take(name, None)
        if came is not None and came != value:
            raise self.fault(name, came, f"{value!r} (nothing else is implemented for {self.model_type})")

    def ignore(self, *names: str) -> None:
        """Keys that do not change the computation in this family."""
        for name in names:
            self._asked.add(name)
            self._left.pop(name, None)

    def rest(self) -> dict[str, Any]:
        """Everything that is left, taken."""
        left, self._left = self._left, {}
        return left

    def finish(self) -> None:
        for name, value in self._left.items():
            hint = closest(name, sorted(self._asked))
            raise ValueError(
                f"config.json: the key {name!r} = {value!r} is not understood for model_type {self.model_type!r}{hint}"
                "; it may change what the model computes, so it is not ignored"
            )


def read_ids(keys: Keys) -> dict[str, Any]:
    """bos_id, eos_ids, pad_id; eos may be one id or several (C4.15)."""
    eos = keys.take("eos_token_id", None)
    return {
        "bos_id": keys.take("bos_token_id", None),
        "eos_ids": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
        "pad_id": keys.take("pad_token_id", None),
    }


def read_ropes(
    keys: Keys, *, default_theta: float, local_theta: float | None = None, partial_default_is_proportional: bool = False
) -> dict[str, Rope]:
    """The Rope of full and of sliding attention from every spelling: nested or flat `rope_parameters`, top-level
    `rope_theta` with `rope_scaling`, `rope_local_base_freq` (C4.8).

    partial_default_is_proportional: read LFM3's published label `default` with a partial factor as proportional (C4.9).
    """
    theta = keys.take("rope_theta", None)
    local = keys.take("rope_local_base_freq", None)
    scaling = keys.take("rope_scaling", None)
    stated = keys.take("rope_parameters", None) or {}
    if not isinstance(stated, Mapping):
        raise keys.fault("rope_parameters", stated, "an object")
    nested = any(isinstance(v, Mapping) for v in stated.values())
    if nested and (strange := set(stated) - {"full_attention", "sliding_attention", "conv"}):
        raise keys.fault("rope_parameters", sorted(strange), "full_attention and sliding_attention")
    full = dict((stated.get("full_attention") or {}) if nested else stated) or dict(scaling or {})
    sliding = dict((stated.get("sliding_attention") or {}) if nested else {})
    if theta is not None and full.setdefault("rope_theta", theta) != theta:
        raise keys.fault("rope_theta", theta, f"{full['rope_theta']}, as rope_parameters says")
    if local is not None:
        sliding.setdefault("rope_theta", local)
    full.setdefault("rope_theta", default_theta)
    sliding.setdefault("rope_theta", default_theta if local_theta is None else local_theta)
    return {
        "full_attention": _rope(keys, full, partial_default_is_proportional),
        "sliding_attention": _rope(keys, sliding, partial_default_is_proportional),
    }


def _rope(keys: Keys, values: dict[str, Any], partial_default_is_proportional: bool) -> Rope:
    kind = values.pop("rope_type", values.pop("type", "default"))
    theta, fraction = float(values.pop("rope_theta")), values.pop("partial_rotary_factor", 1.0)
    if kind == "default" and fraction != 1.0 and not partial_default_is_proportional:
        raise keys.fault("partial_rotary_factor", fraction, "1.0 with rope_type default in this family")
    scaling = None
    if kind in ("linear", "llama3"):
        spelled = {
            "factor": values.pop("factor"),
            "low_freq_factor": values.pop("low_freq_factor", 1.0),
            "high_freq_factor": values.pop("high_freq_factor", 4.0),
            "original_max_positions": values.pop("original_max_position_embeddings", 8192),
        }
        scaling = RopeScaling(kind=kind, **(spelled if kind == "llama3" else {"factor": spelled["factor"]}))
    elif kind not in ("default", "proportional"):
        raise keys.fault("rope_type", kind, "default, linear, llama3 or proportional")
    if values.pop("attention_factor", 1.0) not in (None, 1.0) or values:
        raise keys.fault(
            "rope_parameters", sorted(values), "rope_type, rope_theta, partial_rotary_factor and scaling factors"
        )
    return Rope(theta=theta, fraction=fraction, scaling=scaling)


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """The flat `rope_parameters` object of one Rope."""
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        values |= {"rope_type": "proportional", "partial_rotary_factor": rope.fraction}
    if (s := rope.scaling) is not None:
        values |= {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            values |= {
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_positions,
            }
    return values
