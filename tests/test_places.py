"""Laws 4 to 8 of CONTRIBUTING.md as far as a test can hold them: a new size is one row, a mixer is three places,
every fast operator has its plain twin, nothing outside checkpoint/ asks what family a model is of.
"""

import ast
import dataclasses
import json
import typing
from pathlib import Path

import pytest
import torch

from headwater import cli, config
from headwater import model as model_py
from headwater.cache import Cache
from headwater.checkpoint.huggingface import config_dict, parse_config
from headwater.config import MODELS, Layer
from headwater.model import FFNS, MIXERS, Lfm2

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "headwater").rglob("*.py"))
PLAIN = "_plain"
NO_TWIN = {"blocks", "fused"}  # no operators: how others walk over rows, and their native forms


def own_strings(file):
    """String constants of a file that are not docstrings, with their lines."""
    tree = ast.parse(file.read_text())
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value, node.lineno


def test_a_released_size_is_one_row(monkeypatch, capsys):
    """A row alone gives counts, a model, a cache, a config.json and a place in the command line."""
    row = dataclasses.replace(
        MODELS["LFM2-350M"], hidden_size=512, layers=config.stack(
            "CACACA",
            {
                "C": config.ShortConv(width=5),
                "A": config.Attention(num_heads=8, num_kv_heads=2, head_dim=64, rope=config.Rope(theta=1e6)),
            },
            config.Ffn(intermediate_size=1280),
        ),
    )  # fmt: skip
    monkeypatch.setitem(MODELS, "LFM9-50M", row)
    assert cli.run(["info", "lfm9-50m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == row.num_parameters()
    model = Lfm2(row, device="meta")
    assert sum(p.numel() for p in model.parameters()) == row.num_parameters()
    assert len(Cache(row).states) == 6
    values, _ = config_dict(row)
    assert values["model_type"] == MODELS_FAMILY["LFM2-350M"]
    assert parse_config(values)[0] == row


MODELS_FAMILY = {name: config_dict(c)[0]["model_type"] for name, c in MODELS.items()}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_row_is_written_in_its_familys_words(name):
    """No released size needs the project's own spelling, which other libraries do not read."""
    assert MODELS_FAMILY[name] != "headwater"
    assert parse_config(config_dict(MODELS[name])[0])[0] == MODELS[name]


@pytest.mark.parametrize("file", [f for f in LIBRARY if f.name != "config.py"], ids=str)
def test_names_of_sizes_stand_in_the_table_alone(file):
    for text, line in own_strings(file):
        assert text not in MODELS, f"{file}:{line} names {text}"


@pytest.mark.parametrize("file", [f for f in LIBRARY if f.parent.name != "checkpoint"], ids=str)
def test_only_checkpoints_know_families(file):
    for node in ast.walk(ast.parse(file.read_text())):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        assert name not in ("model_type", "architectures"), f"{file}:{node.lineno} asks for the family"
    for text, line in own_strings(file):
        assert text not in ("model_type", "architectures", "general.architecture"), f"{file}:{line} asks for the family"


def test_every_kind_of_layer_has_one_entry_in_each_table():
    kinds = typing.get_type_hints(Layer)
    assert set(typing.get_args(kinds["mixer"])) == MIXERS.keys()
    assert set(typing.get_args(kinds["ffn"])) == FFNS.keys()
    values = {cls: cls.__dataclass_fields__["kind"].default for cls in (*MIXERS, *FFNS)}
    assert {kind: cls for cls, kind in values.items()} == config._KINDS


def test_model_py_is_the_only_place_that_builds_mixers():
    assert {cls.__module__ for _, cls in MIXERS.values()} == {model_py.__name__}


@pytest.mark.parametrize("file", sorted((ROOT / "headwater" / "ops").glob("[!_]*.py")), ids=lambda f: f.stem)
def test_every_fast_operator_has_a_plain_twin_that_a_test_compares(file):
    names = [n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)]
    twins = [name for name in names if name.endswith(PLAIN)]
    assert twins or file.stem in NO_TWIN
    tests = "\n".join(f.read_text() for f in (ROOT / "tests").rglob("test_*.py") if f != Path(__file__))
    for twin in twins:
        fast = twin.removesuffix(PLAIN)
        assert fast in names
        assert twin in tests, f"no test calls {twin}"


def test_unknown_values_are_refused_by_name():
    values = MODELS["LFM2-350M"].to_dict()
    with pytest.raises(ValueError, match=r"hiden_size.*did you mean 'hidden_size'"):
        config.Config.from_dict(values | {"hiden_size": 3})


def test_the_model_has_no_state_of_its_own_making():
    """Device, dtype and generator are arguments: two models of one seed are equal, whatever was drawn in between."""
    c = dataclasses.replace(MODELS["LFM2-350M"], vocab_size=64, hidden_size=64, layers=config.stack(
        "C", {"C": config.ShortConv(width=3)}, config.Ffn(intermediate_size=32)))  # fmt: skip
    first = Lfm2(c, generator=torch.Generator().manual_seed(1))
    torch.rand(3)
    second = Lfm2(c, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
