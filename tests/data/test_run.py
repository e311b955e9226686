"""The runner: one kept set for any workers, shards and kills; nothing lost, nothing done twice, faults by name."""

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from corpus_maker import kept, plan_for, write_corpus

from headwater import cli
from headwater.data import plan as plans
from headwater.data import shards as written
from headwater.data.inputs import plan_units
from headwater.data.plan import Plan
from headwater.data.pool import WorkerDied, run_tasks
from headwater.data.run import run
from headwater.data.semantic import Semantic
from headwater.data.steps import Text
from headwater.files import read_json

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "in")


@pytest.fixture(scope="module")
def wanted(corpus, tmp_path_factory):
    """The folder of a run in one process."""
    out = tmp_path_factory.mktemp("wanted") / "out"
    run(plan_for(corpus), out, workers=0)
    return out


def account(out):
    """The report of a run without its times and places."""
    report = read_json(out / "report.json")
    for entry in report["steps"]:
        entry.pop("seconds")
    return {key: report[key] for key in ("steps", "read", "kept", "faults", "documents")}


def start(plan, out, *options):
    """The run as a process group of its own."""
    (out.parent / "plan.json").write_text(json.dumps(plan.to_dict()))
    command = [sys.executable, "-m", "headwater.cli", "data", "run", "--plan", str(out.parent / "plan.json")]
    return subprocess.Popen(
        [*command, "--out", str(out), *options], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    try:
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, errors.decode()


def kill_in_the_middle(plan, out, seconds):
    process = start(plan, out, "--workers", "2", *(["--resume"] if out.exists() else []))
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)


def test_the_planted_copies_leave_and_the_rest_stays(wanted):
    report = read_json(wanted / "report.json")
    removed = {entry["name"]: entry["texts_in"] - entry["texts_out"] for entry in report["steps"]}
    assert report["read"]["texts"] == 600
    assert 108 < removed["exact"] + removed["near"] <= 115
    assert len(kept(wanted)) == 600 - sum(removed.values()) == report["documents"]
    lines = [json.loads(line) for line in (wanted / "removed.jsonl").read_text().splitlines()]
    assert len(lines) == sum(removed.values())
    assert {line["id"] for line in lines}.isdisjoint(id_ for id_, _ in kept(wanted))
    assert report["faults"]["not_json"]["count"] == 3
    skipped = [json.loads(line)["where"] for line in (wanted / "skipped.jsonl").read_text().splitlines()]
    assert [where.rsplit("/", 1)[1] for where in skipped] == ["0.jsonl:8", "1.jsonl:8", "2.jsonl:8"]
    assert not (wanted / "work").exists()


@pytest.mark.parametrize(("workers", "shards"), [(0, 3), (1, 8), (3, 1)])
def test_any_number_of_workers_and_shards_keeps_the_same(corpus, wanted, tmp_path, workers, shards):
    run(plan_for(corpus), tmp_path / "out", workers=workers, shards=shards)
    assert kept(tmp_path / "out") == kept(wanted)
    assert account(tmp_path / "out") == account(wanted)
    assert (tmp_path / "out/removed.jsonl").read_bytes() == (wanted / "removed.jsonl").read_bytes()
    sizes = [line["documents"] for line in read_json(tmp_path / "out/manifest.json")["files"]]
    assert len(sizes) == shards
    assert max(sizes) - min(sizes) <= 1


def test_killed_runs_go_on_and_keep_the_same(corpus, wanted, tmp_path):
    plan, out, rng = plan_for(corpus), tmp_path / "out", random.Random(1)
    for _ in range(2):
        kill_in_the_middle(plan, out, rng.uniform(0.5, 3))
    code, errors = finish(start(plan, out, "--workers", "1", "--shards", "2", "--resume"))
    assert code == 0, errors
    assert kept(out) == kept(wanted)
    assert account(out) == account(wanted)
    assert {p.name for p in out.iterdir()} >= {"manifest.json", "report.html", "shards"}
    assert not list(out.rglob("*.part"))


def test_what_is_done_is_not_done_again(corpus, tmp_path):
    out = tmp_path / "out"
    run(plan_for(corpus), out, workers=0, keep_work=True)
    before = {p: p.stat().st_mtime_ns for p in out.glob("work/*/units/*/report.json")}
    assert len(before) > 5
    run(plan_for(corpus), out, workers=0, resume=True, shards=4, keep_work=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(list((out / "shards").iterdir())) == 4
    assert run(plan_for(corpus), out, workers=0, resume=True, shards=4) == read_json(out / "report.json")


def test_units_that_a_loss_of_power_tore_are_done_again(corpus, wanted, tmp_path):
    out = tmp_path / "out"
    run(plan_for(corpus), out, workers=0, keep_work=True)
    first, second, third, *rest = sorted(out.glob("work/*/units/*"))
    before = {p: (p / "report.json").stat().st_mtime_ns for p in (first, second, third, *rest)}
    with (first / "texts.arrow").open("r+b") as f:
        f.truncate(100)
    (second / "report.json").write_bytes(b"")
    (third / "removed.jsonl").unlink()
    (out / "manifest.json").unlink()
    run(plan_for(corpus), out, workers=0, resume=True, keep_work=True)
    again = {p for p, time in before.items() if (p / "report.json").stat().st_mtime_ns != time}
    assert again == {first, second, third}
    assert kept(out) == kept(wanted) and account(out) == account(wanted)


def test_ctrl_c_stops_cleanly_and_the_run_goes_on(corpus, wanted, tmp_path):
    out = tmp_path / "out"
    process = start(plan_for(corpus), out, "--workers", "2")
    while not list(out.glob("work/*/units/0*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, errors = finish(process)
    assert code in (0, 130), errors
    assert "Traceback" not in errors
    assert finish(start(plan_for(corpus), out, "--workers", "0", "--resume"))[0] == 0
    assert kept(out) == kept(wanted)


def _small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_is_told_and_nothing_is_lost(corpus, wanted, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "plan.json").write_text(json.dumps(plan_for(corpus).to_dict()))
    command = [sys.executable, "-m", "headwater.cli", "data", "run", "--plan", str(tmp_path / "plan.json")]
    full = subprocess.run(
        [*command, "--out", str(out), "--workers", "0"], cwd=ROOT, preexec_fn=_small_files, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert full.returncode == 2
    assert "no space left" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list(out.rglob("*.part"))
    run(plan_for(corpus), out, workers=0, resume=True)
    assert kept(out) == kept(wanted)


def test_a_folder_in_use_changed_input_and_an_old_run_are_refused(corpus, tmp_path):
    out, own = tmp_path / "out", write_corpus(tmp_path / "in", texts=60)
    run(plan_for(own), out, workers=0)
    with pytest.raises(ValueError, match="holds a run already; cure: --resume"):
        run(plan_for(own), out, workers=0)
    with (own / "1.jsonl").open("a") as f:
        f.write('{"text": "late"}\n')
    with pytest.raises(ValueError, match=r"1\.jsonl has changed"):
        run(plan_for(own), out, workers=0, resume=True)

    def meanwhile(_):
        with pytest.raises(ValueError, match="another run works in"):
            run(plan_for(own), tmp_path / "other", workers=0)

    run(plan_for(own), tmp_path / "other", workers=0, progress=meanwhile)


@pytest.mark.parametrize("name", ["shards", "work", "manifest.json"])
def test_a_folder_of_something_else_is_not_written_over(tmp_path, name):
    own, out = write_corpus(tmp_path / "in", texts=60), tmp_path / "out"
    out.mkdir()
    mine, begun = out / name, out / "deeper" / ".model.x.part"
    if "." not in name:
        mine.mkdir()
        mine = mine / "mine.jsonl"
    mine.write_text("mine")
    begun.parent.mkdir()
    begun.write_text("being written by another program")
    with pytest.raises(ValueError, match=rf"holds {name}, which this run would write over; cure: a new or empty"):
        run(plan_for(own), out, workers=0)
    assert mine.read_text() == "mine"
    (mine if "." in name else mine.parent).rename(tmp_path / "elsewhere")
    run(plan_for(own), out, workers=0)
    assert begun.exists()


def test_shards_that_are_gone_are_made_again(corpus, wanted, tmp_path):
    out = tmp_path / "out"
    run(plan_for(corpus), out, workers=0, shards=2)
    for spoil in (Path.unlink, lambda file: file.write_bytes(b"torn")):
        spoil(sorted((out / "shards").iterdir())[1])
        run(plan_for(corpus), out, workers=0, shards=2, resume=True)
        assert kept(out) == kept(wanted)


def test_a_kill_while_the_work_is_removed_leaves_no_half_of_it(corpus, wanted, tmp_path, monkeypatch):
    out, remove = tmp_path / "out", shutil.rmtree

    def killed(path, *args, **kwargs):
        if "work" in Path(path).name:
            raise KeyboardInterrupt
        remove(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        run(plan_for(corpus), out, workers=0)
    assert not (out / "work").exists()
    run(plan_for(corpus), out, workers=0, resume=True)
    assert kept(out) == kept(wanted) and not list(out.rglob("*.part"))


def test_a_dead_worker_is_told_with_the_file_it_was_at(corpus, tmp_path):
    def dying(function, tasks, workers):
        yield 0, function(*tasks[0])
        raise WorkerDied("a worker process ended", 2)

    units = plan_units(plan_for(corpus).sources, unit_bytes=8 << 10).units
    words = rf"ended; it was at exact, near, semantic, in {units[2].files[0]} from {units[2].first}$"
    with pytest.raises(WorkerDied, match=words):
        run(plan_for(corpus), tmp_path / "out", workers=0, executor=dying)


def test_a_corpus_of_which_nothing_is_left(corpus, tmp_path):
    steps = [{"step": "length", "least": 10**6, "most": 10**7}, "exact", "near", "semantic", "mix"]
    report = run(plan_for(corpus, steps=steps), tmp_path / "out", workers=0)
    assert report["documents"] == 0 and kept(tmp_path / "out") == []
    assert report["steps"][0]["removed"]["too_short"]["count"] == 600
    assert (tmp_path / "out/report.html").exists()


def test_steps_learn_where_the_sample_itself_holds_nothing(tmp_path):
    """The sample of a packed file is its beginning, and all of that is too short here."""
    made = (write_corpus(tmp_path / "in", texts=60, files=1) / "0.jsonl").read_text().splitlines()
    long = [json.loads(line)["text"] for line in made if line != "{torn"]
    rows = [json.dumps({"text": text}) for text in ["short"] * 400 + long]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    steps = [{"step": "length", "least": 20}, {"step": "semantic", "cluster": 50}]
    report = run(plan_for(tmp_path / "a.jsonl.gz", steps=steps), tmp_path / "out", workers=0)
    assert report["steps"][0]["texts_out"] == report["steps"][1]["texts_in"] == len(long)
    assert report["documents"] > 0


def test_the_sample_does_not_grow_with_the_corpus(corpus, tmp_path, monkeypatch):
    seen = []

    def learn(step, sample, expected):
        seen.append(len(sample))
        return prepare(step, sample, expected)

    prepare = Semantic.prepare
    monkeypatch.setattr(Semantic, "prepare", learn)
    for number, size in enumerate((2 << 10, 8 << 10, 1 << 20)):
        plan = plan_for(corpus, unit_bytes=size, sample=100)
        assert (len(plan_units(plan.sources, unit_bytes=size).units) > 100) == (number == 0)
        run(plan, tmp_path / str(number), workers=0)
    assert len(seen) == 3 and all(40 < size <= 200 for size in seen)


def test_strict_stops_at_the_first_fault(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"0\.jsonl:8: not valid JSON"):
        run(plan_for(corpus, strict=True), tmp_path / "out", workers=1)


def test_parquet_out_is_the_same_texts(corpus, wanted, tmp_path):
    run(plan_for(corpus, output={"form": "parquet"}), tmp_path / "out", workers=0, shards=2)
    assert kept(tmp_path / "out") == kept(wanted)


def test_row_groups_of_long_texts_are_short_since_they_are_held_until_written(tmp_path, monkeypatch):
    texts = [Text(f"a:{n}", "x" * 400, "a", {"n": n}) for n in range(10)]
    monkeypatch.setattr(written, "_ROW_GROUP_CHARS", 1000)
    written._write_parquet(tmp_path / "a.parquet", iter([texts[at : at + 2] for at in range(0, 10, 2)]))
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    assert [row["id"] for row in written.read_shard(tmp_path / "a.parquet")] == [text.id for text in texts]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": ["nere"]}, "no step 'nere' .did you mean 'near'"),
        ({"steps": [{"step": "near", "treshold": 0.5}]}, "no option 'treshold' .did you mean 'threshold'"),
        ({"steps": [{"threshold": 0.5}]}, r"steps\[0\] has no field 'step'"),
        ({"stepz": []}, "no field 'stepz' .did you mean 'steps'"),
        ({"output": {"form": "csv"}}, "no output form 'csv'"),
        ({"output": {"form": "tokens"}}, "needs a tokenizer"),
        ({"output": {"tokenizer": "x"}}, "of no use"),
        ({"sources": []}, "no sources"),
        ({"sources": "a.jsonl"}, "sources is .a.jsonl.; a list is needed"),
        ({"sources": [{"path": "a", "nam": "x"}]}, "no field 'nam'"),
        ({"sources": [{"path": "a", "facts": "lang"}]}, r"sources\[0\]: facts is .lang.; a list is needed"),
        ({"strict": "false"}, "strict is .false.; true or false is needed"),
        ({"output": {"form": 3}}, "output: form is 3; a text is needed"),
        ({"steps": [3]}, r"steps\[0\] is 3; the name of a step"),
        ({"version": 99}, "version 99"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict({"sources": ["a.jsonl"], **values})


def test_plans_survive_json(corpus):
    plan = plan_for(corpus)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_every_step_of_the_table_can_be_built_and_cites_its_source():
    for name in plans.STEPS:
        step = plans.Use(name).build()
        assert step.name == name
        assert step.source


def _die(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _fail(number):
    raise OSError(28, "No space left on device", f"file {number}")


def test_a_dead_worker_is_told():
    with pytest.raises(WorkerDied, match="code -9 in task 2"):
        list(run_tasks(_die, [(n,) for n in range(4)], 2))


def test_an_error_of_a_task_keeps_its_type():
    with pytest.raises(OSError, match="file 0") as e:
        list(run_tasks(_fail, [(0,)], 1))
    assert e.value.errno == 28


def test_the_page_holds_everything_and_escapes_texts(tmp_path):
    text = "<script>alert(1)</script> and some more words to be long enough to count as a text"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(3)))
    run(plan_for(tmp_path / "a.jsonl"), tmp_path / "out", workers=0)
    page = (tmp_path / "out/report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page
    assert all(f">{name}<" in page for name in ("exact", "near", "semantic", "copy"))


def test_the_command_runs_reports_and_shows(corpus, wanted, tmp_path, capsys):
    out = str(tmp_path / "out")
    steps = "exact,near,semantic"
    assert cli.run(["data", "run", f"made={corpus}", "--out", out, "--workers", "0", "--steps", steps]) == 0
    assert "near_duplicate" in capsys.readouterr().out
    assert cli.run(["data", "show", out, "-n", "2"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [i for i, _ in kept(wanted)[:2]]
    assert cli.run(["data", "show", out, "--removed", "near", "-n", "1"]) == 0
    assert "like" in capsys.readouterr().out
    assert cli.run(["data", "show", out, "--removed", "naer"]) == 2
    assert "did you mean 'near'" in capsys.readouterr().err
    assert cli.run(["data", "report", str(tmp_path)]) == 2
    assert cli.run(["data", "steps"]) == 0


@pytest.mark.slow
def test_ten_kills_at_random_points_and_the_same_set(corpus, tmp_path):
    own = write_corpus(tmp_path / "in", texts=6000, files=5)
    plan, out, rng = plan_for(own), tmp_path / "out", random.Random(7)
    run(plan, tmp_path / "whole", workers=0)
    for _ in range(10):
        kill_in_the_middle(plan, out, rng.uniform(0.3, 4))
    for shards in (1, 3, 8):
        assert finish(start(plan, out, "--workers", "2", "--shards", str(shards), "--resume", "--keep-work"))[0] == 0
        assert kept(out) == kept(tmp_path / "whole")
        assert account(out) == account(tmp_path / "whole")
