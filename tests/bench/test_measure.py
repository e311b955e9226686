"""Rounds on real worker processes, what becomes of their numbers, and the verb."""

import json

import pytest
from bench_models import tiny

from headwater import cli
from headwater.bench import cases, limits, measure, peers, show, synthetic
from headwater.bench.limits import Probe, Work
from headwater.bench.measure import Measured, Pair, Plan
from headwater.checkpoint.huggingface import config_dict
from headwater.engine import core

CASES = ("prefill_40", "decode_6@20", "first_token", "memory")
ROWS = {"prefill_40", "decode_6@20", "first_token", "load", "peak_memory", "peak_anonymous"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    synthetic.write(path, tiny("lfm2"), "q4_0")
    return path


@pytest.fixture(scope="module")
def result(model):
    """Ours against ours: both go through processes, probes and files."""
    work = limits.work_of(model)
    chosen = cases.chosen(CASES, work.config.max_positions)
    plan = Plan(threads=1, rounds=2, retries=0, probe_seconds=0.03)
    steps = []
    engines = [peers.ours(model), peers.ours(model)]
    measured = measure.measure(engines, chosen, work, plan, lambda *s: steps.append(s))
    assert [done for _, done, _ in steps] == [*range(8), 8]
    return json.loads(json.dumps(measure.report(measured, {"model": "tiny", "parameters": 50_000})))


def test_json_has_the_promised_shape(result):
    assert {"ratios", "ours", "peer", "limits"} <= result.keys()
    assert set(result["ratios"]) == set(result["pair_ratios"]) == set(result["ours"]) == set(result["peer"]) == ROWS
    for engine in ("ours", "peer"):
        for name, row in result[engine].items():
            assert len(row["runs"]) in (1, 2)
            assert 0 < row["min"] <= row["median"] <= row["max"]
            assert ("share_of_limit" in row) == (name in ("prefill_40", "decode_6@20"))
    ours, peer = result["ours"]["prefill_40"]["median"], result["peer"]["prefill_40"]["median"]
    assert result["ratios"]["prefill_40"] == pytest.approx(ours / peer)
    assert set(result["limits"]["read_bandwidth"]) == {str(n) for n in limits.thread_counts(1)}
    assert result["limits"]["peak_macs"]["median"] > 0
    assert result["noise"]["pairs"] == dict.fromkeys(CASES, 2)


def test_memory_is_bytes_of_a_whole_process(result):
    row = result["ours"]["peak_memory"]
    assert row["unit"] == "bytes"
    assert 2e6 < result["ours"]["peak_anonymous"]["median"] < row["median"] < 2e9
    assert result["ours"]["load"]["median"] < result["ours"]["first_token"]["median"]


def test_the_table_and_the_plot(result, tmp_path, capsys):
    from rich.console import Console

    show.table(result, Console(width=200))
    text = capsys.readouterr().out
    for name in ROWS:
        assert name in text
    for suffix, head in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        target = tmp_path / f"plot.{suffix}"
        show.plot(target, [result, result])
        assert target.read_bytes().startswith(head)
    with pytest.raises(ValueError, match="format 'gguf'"):
        show.plot(tmp_path / "plot.gguf", [result])


def pair(ours, peer, *, foreign=0.0, stolen=0.0, bandwidth=(100.0, 100.0), peak=(0.0, 0.0)):
    probes = [Probe({1: b}, i) for b, i in zip(bandwidth, peak, strict=True)]
    case = cases.named("decode_2@8")
    return Pair(case, ({case.name: ours}, {case.name: peer}), *probes, foreign, stolen)


def summary(*pairs):
    plan = Plan(threads=1)
    work = Work(tiny("lfm2"), 50.0, 10.0)
    return measure.report(Measured(("a", "b"), work, plan, {"decode_2@8": list(pairs)}), {})


def test_only_clean_pairs_count():
    said = summary(
        pair(4.0, 2.0),
        pair(900.0, 1.0, foreign=0.5),
        pair(6.0, 2.0),
        pair(0.1, 9.0, foreign=0.1, stolen=0.1),
        pair(5.0, 1.0),
    )
    assert said["ours"]["decode_2@8"]["runs"] == [4.0, 6.0, 5.0]
    assert said["ratios"]["decode_2@8"] == 2.5
    assert said["pair_ratios"]["decode_2@8"] == 3.0
    assert said["noise"]["clean"] is False
    assert said["noise"]["clean_pairs"] == {"decode_2@8": 3}


def test_without_a_clean_pair_the_noisy_ones_are_shown_and_marked():
    said = summary(pair(4.0, 2.0, foreign=0.2), pair(8.0, 2.0, foreign=0.2))
    assert said["ours"]["decode_2@8"]["median"] == 6.0
    assert said["noise"]["clean_pairs"] == {"decode_2@8": 0}


def test_shares_are_of_the_limit_around_the_same_pair():
    kv = tiny("lfm2").kv_bytes(9)
    half, whole = (50.0 + kv) * 10, (50.0 + kv) * 30  # bytes per second that allow 10 and 30 tokens per second
    said = summary(pair(10.0, 5.0, bandwidth=(half, whole)))
    assert said["ours"]["decode_2@8"]["share_of_limit"] == pytest.approx(0.5)
    assert said["peer"]["decode_2@8"]["share_of_limit"] == pytest.approx(0.25)
    prompt = Work(tiny("lfm2"), 50.0, 10.0).limit(cases.named("prefill_4"), 1.0, 500.0)
    assert prompt == 50.0


def test_a_plan_is_checked():
    with pytest.raises(ValueError, match="--rounds is 0"):
        Plan(threads=1, rounds=0)
    with pytest.raises(ValueError, match="--neighbours is -1"):
        Plan(threads=1, neighbours=-1)


def test_probes_measure_something_and_check_themselves():
    from headwater.engine import native

    probed = limits.probe(1, 0.02)
    assert all(v > 1e8 for v in probed.bandwidth.values())
    found = limits.roofline([1], seconds=0.03, sizes=[4 << 20])
    assert set(found["macs"]) == set(limits.KINDS)
    assert found["read"][str(4 << 20)]["1"] > 1e8
    with pytest.raises(ValueError, match="allowed: int8, bf16, fp32"):
        native.peak("int4", threads=1, seconds=0.1)
    with pytest.raises(ValueError, match="at least 1048576 per thread"):
        native.read_bandwidth(bytes=1000, threads=1, seconds=0.1)
    with pytest.raises(ValueError, match="processor 100000 is not allowed"):
        native.peak("fp32", threads=1, seconds=0.1, cpus=[100_000])
    with pytest.raises(ValueError, match="threads is 0"):
        native.read_bandwidth(bytes=1 << 20, threads=0, seconds=0.1)


def test_the_verb_prints_one_json_object_and_draws(model, tmp_path, capsys):
    target = tmp_path / "plot.png"
    line = ["bench", str(model), "--only", "prefill_8", "--rounds", "1", "--retries", "0", "--threads", "1"]
    assert cli.run([*line, "--json", "--plot", str(target)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["peer"] is None
    assert said["ratios"] == {}
    assert said["about"]["model"] == model.name
    assert target.stat().st_size > 1000
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps(said))
    assert cli.run(["bench", "--plot", str(target), "--result", str(saved)]) == 0


def test_a_packed_file_serves_as_well(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    line = ["bench", str(model), "--packed", "--only", "decode_3", "--rounds", "1", "--retries", "0", "--threads", "1"]
    assert cli.run([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ours"]["decode_3"]["median"] > 0
    assert (tmp_path / "headwater" / "bench" / f"tiny.gguf-v{core.PACKED_VERSION}.hwp").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give a MODEL, --synthetic NAME, --roofline"),
        (["{model}", "--synthetic", "LFM2-350M"], "not both"),
        (["{model}", "--peer", "llama"], "did you mean 'llama.cpp'"),
        (["{model}", "--peer", "transformers"], "reads model directories"),
        (["{model}", "--only", "prefil_8"], "did you mean"),
        (["{model}", "--only", "prefill_9999"], "context is 2048"),
        (["{model}", "--rounds", "0"], "--rounds is 0"),
        (["{model}", "--threads", "0"], "--threads is 0"),
        (["{model}.absent"], "absent"),
        (["--synthetic", "LFM2-349M"], "did you mean 'LFM2-350M'"),
        (["--synthetic", "LFM2-350M", "--type", "q5_0"], "allowed: q4_0, q8_0, f16"),
        (["--build-peer", "transformers"], "allowed: llama.cpp"),
        (["--result", "{model}"], "is not UTF-8 text|is not valid JSON"),
    ],
)
def test_bad_input_is_one_line(options, says, model, capsys):
    import re

    assert cli.run(["bench", *[o.format(model=model) for o in options]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(says, error), error


@pytest.mark.slow
def test_transformers_is_a_peer(model):
    work = limits.work_of(model)
    engines = [peers.ours(model), peers.transformers({"config": config_dict(work.config)[0]}, "float32")]
    chosen = cases.chosen(["prefill_8", "decode_3@4", "first_token"], 64)
    plan = Plan(threads=1, rounds=1, retries=0, probe_seconds=0.02)
    said = measure.report(measure.measure(engines, chosen, work, plan), {})
    assert all(r > 0 for r in said["ratios"].values())
    assert said["about"]["engines"] == ["headwater", "transformers"]
