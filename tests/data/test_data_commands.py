"""`headwater data` as a user types it: settings of steps, mixtures, own evaluation sets, prompts by difficulty."""

import json
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from data.test_meaning import MANUALS, WIKI, swapped

from headwater import cli
from headwater.commands.data_prompts import _key
from headwater.data.difficulty import holds
from headwater.data.plan import USUAL, steps_of
from headwater.data.run import kept_texts
from headwater.files import read_json


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sizes(folder):
    """Kept bytes of English, of other languages and of code."""
    found = {"en": 0, "other": 0, "code": 0}
    for row in kept_texts(folder, 1 << 30):
        facts = row["facts"]
        group = "code" if facts.get("kind") == "code" else "en" if facts["language"] == "en" else "other"
        found[group] += len(row["text"].encode())
    whole = sum(found.values())
    return {group: size / whole for group, size in found.items()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    english = write(folder / "english.jsonl", [{"text": text} for text in WIKI[:1200]])
    others = write(folder / "others.jsonl", [{"text": row["text"]} for row in MANUALS if row["lang"] != "en"])
    source = "def f{0}(x):\n    return x * {0} + len('{0}')  # number {0}\n"
    code = write(folder / "code.jsonl", [{"text": source.format(n) * 8} for n in range(400)])
    return english, others, code


@pytest.mark.parametrize(("mix", "wanted"), [("75/20/5", (0.75, 0.2, 0.05)), ("60/25/15", (0.6, 0.25, 0.15))])
def test_a_mixture_from_the_command_line(sources, tmp_path, mix, wanted):
    english, others, code = sources
    out = str(tmp_path / "out")
    command = ["data", "run", english, others, "--code", code, "--out", out, "--workers", "0"]
    assert cli.run([*command, "--steps", "normalise,language", "--mix", mix]) == 0
    assert tuple(sizes(out).values()) == pytest.approx(wanted, abs=0.02)


def test_the_temperature_evens_out_languages(tmp_path):
    german, french = ([{"text": row["text"]} for row in MANUALS if row["lang"] == lang] for lang in ("de", "fr"))
    source = write(tmp_path / "in.jsonl", [*german, *french[: len(french) // 4]])
    shares = {}
    for temperature in ("0", "1"):
        out = tmp_path / temperature
        command = ["data", "run", source, "--out", str(out), "--workers", "0", "--steps", "normalise,language,mix"]
        settings = ['--set=mix.shares=[["multilingual", 1]]', "--set", "mix.preset=", "--temperature", temperature]
        assert cli.run([*command, *settings]) == 0
        groups = read_json(out / "report.json")["steps"][-1]["facts"]["groups"]
        shares[temperature] = groups["fr"]["share"] / groups["de"]["share"]
    assert shares["1"] == pytest.approx(1 / 4, rel=0.3)
    assert shares["0"] == pytest.approx(1, rel=0.35)


def test_settings_are_read_and_faults_named(sources, tmp_path, capsys):
    uses = {
        use.step: dict(use.options) for use in steps_of("", ["near.threshold=0.8", "language.keep=en,de"], "75/20/5")
    }
    assert [*uses] == [*USUAL, "mix"]
    assert uses["near"] == {"threshold": 0.8} and uses["language"] == {"keep": ["en", "de"]}
    assert dict(steps_of("mix", ["mix.salt=7"])[0].options) == {"salt": "7"}
    for arguments, words in (
        (["--set", "naer.threshold=1"], "there is no step 'naer' to set (did you mean 'near'"),
        (["--set", "near.treshold=1"], "no option 'treshold' (did you mean 'threshold'"),
        (["--set", "near"], "not STEP.OPTION=VALUE"),
        (["--set", "near.threshold=high"], "option 'threshold' is 'high'; a number is needed"),
        (["--set", "near.slots=1.5"], "option 'slots' is 1.5; a whole number is needed"),
        (["--set", "semantic.code=3"], "option 'code' is 3; true or false is needed"),
        (["--set", "decontaminate.files=none.npz"], "step 'decontaminate': cannot read none.npz: No such file"),
        (["--workers", "-1"], "workers is -1"),
        (["--mix", "75/20"], "did you mean '75/20/5'"),
        (["--temperature", "0.3"], "needs a mixture"),
    ):
        assert cli.run(["data", "run", sources[0], "--out", str(tmp_path / "x"), *arguments]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()
    assert cli.run(["data", "run", sources[0], "--out", sources[0]]) == 2
    assert "is a file; a run writes into a folder" in " ".join(capsys.readouterr().err.split())


def test_own_sets_leave_a_run_by_words_and_by_meaning(tmp_path, capsys):
    items, others = WIKI[100:140], WIKI[200:300]
    questions = write(tmp_path / "eval.jsonl", [{"question": text} for text in items])
    texts = [f"{a} {b} {c}" for a, b, c in zip(others[:40], items, others[40:80], strict=True)]
    texts += [f"{a} {swapped(b, 0.1)}" for a, b in zip(others[:40], items, strict=True)]
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in [*texts, *others[80:]]])
    own, bags, out = (str(tmp_path / name) for name in ("own.npz", "bags.npz", "out"))
    build = ["data", "fingerprint", questions, "--text", "question", "--name", "herons"]
    assert cli.run([*build, "--out", own]) == 0
    assert f"--set decontaminate.files={own}" in capsys.readouterr().out
    assert cli.run([*build, "--out", bags, "--meaning", "words"]) == 0
    steps = ["--steps", "decontaminate,decontaminate_meaning", "--set", f"decontaminate.files={own}"]
    steps += ["--set", f"decontaminate_meaning.files={bags}", "--set", "decontaminate_meaning.shipped=false"]
    assert cli.run(["data", "run", source, "--out", out, "--workers", "0", *steps]) == 0
    first, second = read_json(f"{out}/report.json")["steps"]
    assert first["removed"]["contaminated"]["count"] >= 36
    assert second["removed"]["contaminated_meaning"]["count"] >= 32
    assert re.match(r"herons: 0\.\d+ at words", second["removed"]["contaminated_meaning"]["samples"][0]["detail"])
    assert {row["text"] for row in kept_texts(out, 1000)} >= set(others[80:])
    capsys.readouterr()
    assert cli.run(["data", "show", out, "--removed", "decontaminate_meaning", "-n", "1"]) == 0
    assert "herons" in capsys.readouterr().out
    for wrong, words in ((["--meaning", "wrods"], "did you mean 'words'"), (["--threshold", "0.9"], "sentence model")):
        assert cli.run([*build, "--out", own, *wrong]) == 2
        assert words in " ".join(capsys.readouterr().err.split())


class Sums(BaseHTTPRequestHandler):
    """Answers "a + b" rightly the more often the smaller the numbers are; "dead" never."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        if body["model"] == "dead":
            self.send_response(400)
            self.end_headers()
            return
        assert body["temperature"] > 0
        prompt = body["messages"][0]["content"]
        a, b = map(int, re.findall(r"\d+", prompt))
        chance = random.Random(f"{prompt} {body['seed']} {body['model']}").random()
        right = chance < 1.1 - len(str(a + b)) * 0.17
        raw = json.dumps(
            {"choices": [{"message": {"content": f"That makes {a + b if right else a * b + 1}."}}]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def server():
    one = ThreadingHTTPServer(("127.0.0.1", 0), Sums)
    one.daemon_threads, one.asked = True, 0
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join()


def test_prompts_are_measured_predicted_and_ordered(server, tmp_path, capsys):
    rng = random.Random(4)
    numbers = [(rng.randrange(10 ** rng.randrange(1, 6)), rng.randrange(10 ** rng.randrange(1, 6))) for _ in range(160)]
    rows = [{"q": f"What is {a} + {b}?", "a": f"so many #### {a + b}", "id": n} for n, (a, b) in enumerate(numbers)]
    prompts, out = write(tmp_path / "p.jsonl", rows), tmp_path / "o.jsonl"
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    command = ["data", "difficulty", prompts, "--prompt", "q", "--answer", "a", "--out", str(out)]
    models = ["--model", f"one={url}", "--model", f"two={url}", "--measure", "100"]
    assert cli.run([*command, *models]) == 0
    assert server.asked == 100 * 2 * 4
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["id"] for row in found) == list(range(160))
    assert [row["success"] for row in found] == sorted((row["success"] for row in found), reverse=True)
    assert sum(row["measured"] for row in found) == 100
    guessed = [row for row in found if not row["measured"]]
    digits = [len(str(sum(numbers[row["id"]]))) for row in guessed]
    assert np.corrcoef([row["success"] for row in guessed], digits)[0, 1] < -0.5
    again = out.read_bytes()
    rates = Path(f"{out}.rates")
    rates.write_text(rates.read_text()[:-10])  # killed while a line was written
    assert cli.run([*command, *models]) == 0
    assert server.asked == 101 * 2 * 4 and out.read_bytes() == again
    fresh = [*command[:-1], str(tmp_path / "f.jsonl")]
    assert cli.run([*fresh, "--predictor", f"{out}.predictor.json"]) == 0
    assert server.asked == 101 * 2 * 4
    capsys.readouterr()
    assert cli.run([*fresh, "--model", f"dead={url}", "--measure", "9"]) == 2
    assert "none of 9 prompts could be measured" in capsys.readouterr().err
    assert cli.run(fresh) == 2
    assert cli.run(["data", "difficulty", prompts, "--out", str(out), "--model", f"one={url}", "--prompt", "qq"]) == 2
    assert "has no text 'qq' (did you mean 'q'" in " ".join(capsys.readouterr().err.split())


def test_a_free_answer_holds_the_right_one():
    assert holds("So it is 18.", "She makes 9 * 2 = <<9*2=18>>18\n#### 18")
    assert holds("The total is $1,234.", "#### 1234") and holds("12.0", "12")
    assert not holds("18, no, 19", "#### 18") and not holds("", "#### 18") and not holds("none", "3")
    assert holds("It is the Grey Heron, I think", "grey heron") and not holds("It is the heron", "grey heron")
    assert _key("a") != _key("b")
