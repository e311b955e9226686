"""A jury inside a run: our own server, another HTTP server, one that does not answer; and our own engine."""

import json
import threading

import pytest
import torch
from judge_server import Server
from serve_running import MODEL, running

from headwater.chat import Chat
from headwater.config import Attention, Config, Ffn, Rope, ShortConv, stack
from headwater.data.judge import CRITERIA, Judge, LocalJudge
from headwater.data.plan import Plan
from headwater.data.run import kept_texts, run
from headwater.data.steps import Text
from headwater.engine.engine import Engine
from headwater.files import read_json
from headwater.model import Lfm2
from headwater.sampling import SamplingParams
from headwater.tokenizer import Tokenizer

TEXTS = [f"Text number {number} tells of a river, of its springs, and of the sea it runs to." for number in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights with room for the jury's question."""
    folder = tmp_path_factory.mktemp("jury") / "model"
    tokenizer = Tokenizer.train([*TEXTS, json.dumps(dict.fromkeys(CRITERIA, 1))], 400)
    mixers = {"C": ShortConv(width=3), "A": Attention(num_heads=2, num_kv_heads=1, head_dim=16, rope=Rope(theta=1e4))}
    config = Config(
        vocab_size=tokenizer.vocab_size, hidden_size=32, layers=stack("CA", mixers, Ffn(intermediate_size=32)),
        max_positions=4096, bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    Lfm2(config, generator=torch.Generator().manual_seed(1)).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def other():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_jury_of_two_servers_and_a_silent_one(model, other, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with running(model, slots=2) as own:
        judges = [
            {"url": f"{own.url}/v1", "model": MODEL, "name": "own", "json_schema": True, "max_tokens": 100,
             "timeout": 600},
            {"url": other.url, "model": "good", "timeout": 600},
            {"url": other.url, "model": "stall", "timeout": 1, "attempts": 1},
        ]  # fmt: skip
        step = {"step": "judge", "judges": judges, "least": 1, "cache": str(tmp_path / "votes.sqlite"), "parallel": 2}
        plan = Plan.from_dict({"sources": [str(tmp_path / "in.jsonl")], "steps": [step], "unit_bytes": 500})
        report = run(plan, tmp_path / "out", workers=2)
        assert report["documents"] == len(TEXTS)
        counts = report["steps"][0]["facts"]["votes"]
        assert counts["own: voted"] == counts["good: voted"] == len(TEXTS) and "no verdict" not in counts
        assert sum(counts.values()) == 3 * len(TEXTS) and counts["stall: timeout"] > 0
        votes = [row["facts"]["votes"] for row in kept_texts(tmp_path / "out", 99)]
        assert {vote["stall"]["failed"] for vote in votes} <= {"timeout", "skipped"}
        assert all(set(vote["own"]) == set(CRITERIA) and vote["good"]["accuracy"] == 5 for vote in votes)
        asked = other.asked["good"]
        assert asked == len(TEXTS)
        again = Plan.from_dict({**plan.to_dict(), "steps": [{**step, "least": 5}, "exact"]})
        other_run = run(again, tmp_path / "stricter", workers=0)
        assert other.asked["good"] == asked  # the votes are known, and the sample of `exact` is not asked about
    assert other_run["steps"][0]["removed"]["judged_low"]["count"] == len(TEXTS)
    lines = [json.loads(line) for line in (tmp_path / "stricter/removed.jsonl").read_text().splitlines()]
    assert all("votes" not in line and json.loads(line["detail"])["good"]["accuracy"] == 5 for line in lines)
    assert read_json(tmp_path / "out/report.json")["steps"][0]["texts_out"] == len(TEXTS)


def test_our_own_engine_is_a_judge(model):
    tokenizer = Tokenizer.from_pretrained(model)
    engine = Engine.from_pretrained(
        model, threads=1, max_sequences=1, weights="F32", chunk_size=256, tokenizer=tokenizer
    )
    chat = Chat(tokenizer, "lfm2.5")

    def ask(messages):
        ids = chat.render(list(messages), add_generation_prompt=True).encode()[0]
        return engine.generate([ids], SamplingParams(temperature=0, max_tokens=8))[0].text

    (verdict,) = Judge(judges=(LocalJudge("own", ask),), parallel=1)([Text("a", TEXTS[0])])
    assert verdict.facts["votes"] == {"own": {"failed": "invalid"}}  # random weights do not write JSON
