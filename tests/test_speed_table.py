"""The recipe of the speed table on tiny files: what is saved, what a second call leaves alone, and the tables."""

import json

import pytest
from bench_models import tiny

from headwater.bench import synthetic
from recipes import speed_table
from recipes.speed_table import Part, main

PARTS = {
    "350m": Part(model="LFM2-350M", threads=1, cases={"prefill_16": "2.5x", "first_token": "1 s"}),
    "shape": Part(model="LFM2-350M", threads=1, peer=False, cases=dict.fromkeys(("prefill_16", "decode_2@4"), "")),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The recipe on a tiny file, ours in llama.cpp's place."""
    path = tmp_path / "m.gguf"
    synthetic.write(path, tiny("lfm2"), "q4_0")
    monkeypatch.setattr(speed_table, "PARTS", PARTS)
    monkeypatch.setattr(speed_table, "RIVALS", {})
    monkeypatch.setattr(Part, "file", lambda self: path)
    monkeypatch.setattr(speed_table.peers, "llama_cpp", lambda model, binary: speed_table.peers.ours(model))
    return lambda **options: main(tmp_path / "out", rounds=1, retries=0, **options)


def test_units_are_saved_and_a_second_call_measures_the_rest(run, tmp_path, capsys):
    run(minutes=1e-9)
    units = tmp_path / "out" / "units"
    assert [p.name for p in units.iterdir()] == ["350m.prefill_16.json"]
    before = (units / "350m.prefill_16.json").read_bytes()
    run()
    assert (units / "350m.prefill_16.json").read_bytes() == before
    said = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert set(said) == {"350m.prefill_16", "350m.first_token", "shape.prefill_16", "shape.decode_2-4"}
    table = (tmp_path / "out" / "speed.md").read_text()
    speed = said["350m.prefill_16"]
    assert f"| {speed['ratios']['prefill_16']:.2f} | 2.5x |" in table
    assert "| LFM2-350M | " in table
    assert (tmp_path / "out" / "speed.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


def test_an_unknown_part_is_named(run):
    with pytest.raises(ValueError, match=r"no part 'shap'.*did you mean 'shape'"):
        run(only="shap")
