"""Does a checkpoint load in vLLM? Where vLLM is installed it is loaded there, and greedy tokens are compared with ours.

    python -m recipes.vllm_check DIR
    python -m recipes.vllm_check DIR --wheel vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl

Without it, from a wheel that is not installed (`pip download --no-deps vllm`): vLLM's own model code is built from the
checkpoint's config.json over layers that have shapes and nothing else, and every tensor must fill one place by vLLM's
own table of names, with no place left empty. That is not a run: what the layers compute is not looked at.
"""

import argparse
import importlib.util
import sys
import types
import zipfile
import zipimport
from collections.abc import Iterator, MutableSequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

_MODELS = {"Lfm2ForCausalLM": "lfm2"}
_REAL = ("vllm.model_executor.layers.mamba.short_conv", "vllm.model_executor.models.lfm2")
_PROMPT, _TOKENS = "The river runs", 16


class _Linear(nn.Module):
    """shards: rows of each matrix that is stacked here, by vLLM's name of the place; None: one matrix."""

    def __init__(self, inputs: int, shards: dict[Any, int], bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(shards.values()), inputs, device="meta"))
        self.bias = nn.Parameter(torch.empty(sum(shards.values()), device="meta")) if bias else None
        self.shards = shards


def _plain(input_size: int, output_size: int, *, bias: bool = True, **_: Any) -> _Linear:
    return _Linear(input_size, {None: output_size}, bias)


def _merged(input_size: int, output_sizes: list[int], *, bias: bool = True, **_: Any) -> _Linear:
    return _Linear(input_size, dict(enumerate(output_sizes)), bias)


def _qkv(
    *, hidden_size: int, head_size: int, total_num_heads: int, total_num_kv_heads: int, bias: bool = True, **_: Any
) -> _Linear:
    kv = head_size * total_num_kv_heads
    return _Linear(hidden_size, {"q": head_size * total_num_heads, "k": kv, "v": kv}, bias)


class _Embedding(_Linear):
    def __init__(self, rows: int, width: int, **_: Any) -> None:
        super().__init__(width, {None: rows}, bias=False)

    def tie_weights(self, other: "_Embedding") -> "_Embedding":
        return other


def _norm(size: int, **_: Any) -> _Linear:
    norm = _Linear(1, {None: size}, bias=False)
    norm.weight = nn.Parameter(torch.empty(size, device="meta"))
    return norm


class _Mapper(types.SimpleNamespace):
    """vLLM's WeightsMapper, of which the model uses two tables."""

    def place(self, name: str) -> tuple[str, Any]:
        """(parameter, place in it) of a tensor."""
        for old, new in self.orig_to_new_substr.items():
            name = name.replace(old, new, 1)
        shard = None
        for old, (new, found) in self.orig_to_new_stacked.items():
            if old in name:
                name, shard = name.replace(old, new, 1), found
        return name, shard


class _Layer(nn.Module):
    @classmethod
    def register(cls, _: str) -> Any:
        return lambda made: made


def _layers(count: int, make: Any, prefix: str) -> tuple[int, int, nn.ModuleList]:
    return 0, count, nn.ModuleList(make(prefix=f"{prefix}.{i}") for i in range(count))


def _decorator(*_: Any, **__: Any) -> Any:
    return lambda made: made


_FORWARD = types.SimpleNamespace(static_forward_context={})
_KNOWN: dict[str, Any] = {
    "ColumnParallelLinear": _plain, "RowParallelLinear": _plain, "MergedColumnParallelLinear": _merged,
    "QKVParallelLinear": _qkv, "RMSNorm": _norm, "VocabParallelEmbedding": _Embedding, "ParallelLMHead": _Embedding,
    "WeightsMapper": _Mapper, "PluggableLayer": _Layer, "support_torch_compile": lambda made: made,
    "attn_type": _decorator, "default_pooling_type": _decorator, "make_layers": _layers,
    "maybe_prefix": lambda prefix, name: f"{prefix}.{name}" if prefix else name,
    "extract_layer_index": lambda prefix: int(prefix.split(".")[2]),
    "get_tensor_model_parallel_world_size": lambda: 1, "init_logger": lambda name: None,
    "get_pp_group": lambda: types.SimpleNamespace(is_first_rank=True, is_last_rank=True),
    "get_current_vllm_config": lambda: types.SimpleNamespace(num_speculative_tokens=0, compilation_config=_FORWARD),
    "make_empty_intermediate_tensors_factory": lambda *_: None, "get_rope": lambda *_, **__: None,
    "direct_register_custom_op": lambda *_, **__: None, "eager_break_during_capture": lambda made: made,
    "MambaBase": type("MambaBase", (), {}), "current_platform": types.SimpleNamespace(dispatch_key="CPU"),
}  # fmt: skip


class _Stand(types.ModuleType):
    """A module of vLLM that is not loaded: what is known above, and an empty layer for any other name."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 (as ModuleType has it)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in _KNOWN:
            _KNOWN[name] = type(name, (), {"__init__": lambda self, *_, **__: None})
            if name in ("Attention", "EncoderOnlyAttention", "LogitsProcessor", "SiluAndMul"):
                _KNOWN[name] = type(name, (nn.Module,), {"__init__": lambda self, *_, **__: nn.Module.__init__(self)})
        return _KNOWN[name]


class _Finder:
    """Finds vllm and all below it in a wheel: the files of _REAL as they are, stand-ins for the rest."""

    def __init__(self, wheel: Path) -> None:
        self._wheel = wheel

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "vllm":
            return None
        if name in _REAL:
            folder = "/".join(name.split(".")[:-1])
            return zipimport.zipimporter(f"{self._wheel}/{folder}").find_spec(name)
        return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stand(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def fits(directory: Path, wheel: Path) -> int:
    """How many tensors of the checkpoint found their places. ValueError says which did not, or what stayed empty."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    (architecture,) = config.architectures
    with zipfile.ZipFile(wheel) as files:
        registry = files.read("vllm/model_executor/models/registry.py").decode()
    if architecture not in _MODELS or f'"{architecture}"' not in registry:
        raise ValueError(f"{directory} is a {architecture}; looked at here: {', '.join(_MODELS)}")
    sys.meta_path.insert(0, _Finder(wheel))  # type: ignore[arg-type]
    module = importlib.import_module(f"vllm.model_executor.models.{_MODELS[architecture]}")
    settings = types.SimpleNamespace(
        model_config=types.SimpleNamespace(hf_config=config), cache_config=None, quant_config=None
    )
    model = getattr(module, architecture)(vllm_config=settings)
    places = {
        (f"{name}.{kind}", shard): (rows, *tensor.shape[1:])
        for name, layer in model.named_modules() if isinstance(layer, _Linear)
        for kind, tensor in layer.named_parameters(recurse=False) for shard, rows in layer.shards.items()
    }  # fmt: skip
    filled = set()
    for name, shape in _shapes(directory):
        parameter, shard = model.hf_to_vllm_mapper.place(name)
        found = _place(places, parameter, shard, name)
        if shape != found:
            raise ValueError(f"{name} has the shape {shape}; vLLM's {parameter} wants {found}")
        filled |= {p for p in places if p[0] == parameter and shard in (None, p[1])}
    if empty := set(places) - filled:
        raise ValueError(f"nothing fills {sorted(map(str, empty))[:5]}, {len(empty)} places in all")
    return len(filled)


def _shapes(directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a checkpoint by the name in its file."""
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            yield from ((name, tuple(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


def _place(places: dict[Any, tuple[int, ...]], parameter: str, shard: Any, name: str) -> tuple[int, ...]:
    """The shape that a tensor must have: of its part of a parameter, or of the whole of it."""
    mine = [shape for (p, s), shape in places.items() if p == parameter and shard in (None, s)]
    if not mine:
        raise ValueError(f"{name} has no place in vLLM's model: it has no {parameter} with the part {shard}")
    return (sum(shape[0] for shape in mine), *mine[0][1:])


def runs(directory: Path) -> None:
    """Load it in vLLM and compare greedy tokens with the engine's. ValueError where they differ."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    from headwater.engine.engine import Engine
    from headwater.sampling import SamplingParams as Ours

    engine = Engine.from_pretrained(directory, weights="F32", max_sequences=1, context=128)
    (ours,) = engine.generate([_PROMPT], Ours(max_tokens=_TOKENS, ignore_eos=True))
    llm = LLM(model=str(directory), dtype="float32", enforce_eager=True, max_model_len=128)
    asked = SamplingParams(temperature=0, max_tokens=_TOKENS, ignore_eos=True)
    (theirs,) = llm.generate([{"prompt_token_ids": engine.encode(_PROMPT)}], asked)
    if list(theirs.outputs[0].token_ids) != ours.ids:
        raise ValueError(f"vLLM wrote {list(theirs.outputs[0].token_ids)}, and our engine {ours.ids}")


def main(directory: Path, wheel: Path | None) -> None:
    if wheel is None:
        runs(directory)
        print(f"{directory}: vLLM and our engine wrote the same {_TOKENS} tokens")
    else:
        print(f"{directory}: {fits(directory, wheel)} places of {wheel.name}'s model are filled, none is empty")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="a checkpoint as `save_pretrained` writes it")
    parser.add_argument("--wheel", type=Path, help="of vLLM, where it is not installed")
    main(**vars(parser.parse_args()))
