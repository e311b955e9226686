"""Fill-in-the-middle: no code is lost, the same for any batch, shares as asked, marks of a tokenizer."""

import json
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.data.fim import KNOWN, PSM, SPM, Fim, Marks, marks_of, restore, transform
from headwater.data.plan import Plan
from headwater.data.run import run
from headwater.data.steps import Text
from headwater.data.stream import open_shard
from headwater.data.tokens import Encoder
from headwater.tokenizer import Tokenizer

CODE = {"kind": "code"}
FILES = [p for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) if p.stat().st_size > 200]
TEXTS = [Text(f"stdlib/{p.name}", p.read_text("utf-8"), "stdlib", CODE) for p in FILES[:160]]


@settings(deadline=None)
@given(st.text(), st.integers(0, 50), st.integers(0, 50), st.sampled_from([PSM, SPM]))
def test_nothing_is_lost(code, a, b, form):
    start, end = sorted((min(a, len(code)), min(b, len(code))))
    for marks in KNOWN:
        if not any(mark in code for mark in (marks.prefix, marks.middle, marks.suffix)):
            assert restore(transform(code, start, end, form, marks), form, marks) == code


def test_real_files():
    step = Fim()
    out = step(TEXTS)
    changed = [(old, new) for old, new in zip(TEXTS, out, strict=True) if new is not old]
    assert 0.35 * len(TEXTS) < len(changed) < 0.65 * len(TEXTS)
    forms = [new.facts["fim"] for _, new in changed]
    assert 0.3 * len(changed) < forms.count(SPM) < 0.7 * len(changed)
    for old, new in changed:
        assert restore(new.text, new.facts["fim"], Marks()) == old.text
        assert new.text.count("<|fim_mid|>") == 1 and new.text.startswith("<|fim_pre|>")
    assert [step([text])[0] for text in TEXTS] == out
    assert Fim(salt="2")(TEXTS) != out
    assert all(new is not old for old, new in zip(TEXTS, Fim(share=1.0)(TEXTS), strict=True))


def test_prose_short_and_marked_texts_stay():
    texts = [Text("a", "prose " * 50), Text("b", "x = 1", "s", CODE), Text("c", "s = '<|fim_mid|>'" * 5, "s", CODE)]
    assert Fim(share=1.0)(texts) == texts


def test_the_marks_are_control_tokens(tmp_path):
    tokenizer = Tokenizer.train([text.text for text in TEXTS[:10]], vocab_size=1000)
    marks = marks_of(tokenizer)
    assert marks == Marks()
    (text,) = Fim(share=1.0, spm=0.0)(TEXTS[:1])
    ids = tokenizer.encode(text.text, special=True)
    assert ids[0] == 3 and ids.count(4) == ids.count(5) == 1
    assert 3 not in tokenizer.encode(text.text)


def test_options_are_checked():
    with pytest.raises(ValueError, match="share is 2"):
        Fim(share=2)
    with pytest.raises(ValueError, match="all must differ"):
        Fim(prefix="<a>", middle="<a>")


def test_a_run_writes_the_marks_as_control_tokens_and_nothing_else(tmp_path):
    """Code and prose through the pipeline to token shards, and back to the very texts."""
    tokenizer = Tokenizer.train([text.text for text in TEXTS[:10]], vocab_size=700)
    tokenizer.save(tmp_path / "tokenizer")
    code = [text.text for text in TEXTS if len(text.text) < 8000][:40] + ["mark = '<|fim_mid|>'  # only text " * 3]
    prose = [f"Chapter {i} of a long story about rivers, boats and the sea." for i in range(20)]
    for name, texts in (("code", code), ("prose", prose)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    sources = [
        {"path": str(tmp_path / "code.jsonl"), "add": {"kind": "code"}},
        {"path": str(tmp_path / "prose.jsonl")},
    ]
    output = {"form": "tokens", "tokenizer": str(tmp_path / "tokenizer")}
    plan = Plan.from_dict({"sources": sources, "steps": ["fim"], "output": output, "unit_bytes": 20_000})
    run(plan, tmp_path / "out", workers=0, shards=2)
    pre, mid, suf = (tokenizer.id_of(mark) for mark in (Marks().prefix, Marks().middle, Marks().suffix))
    forms = []
    back = []
    for file in sorted((tmp_path / "out/shards").iterdir()):
        shard = open_shard(file)
        for start, stop in pairwise(shard.offsets.tolist()):
            assert shard.ids[start] == tokenizer.bos_id and shard.ids[stop - 1] in tokenizer.eos_ids
            ids = shard.ids[start + 1 : stop - 1].tolist()
            if pre not in ids:
                assert mid not in ids and suf not in ids
                back.append(tokenizer.decode(ids))
                continue
            assert [ids.count(mark) for mark in (pre, mid, suf)] == [1, 1, 1] and ids[0] == pre
            at, end = ids.index(suf), ids.index(mid)
            before, after, middle = (tokenizer.decode(part) for part in (ids[1:at], ids[at + 1 : end], ids[end + 1 :]))
            forms.append(SPM if at == 1 else PSM)
            back.append(before + middle + after)
    assert back == code + prose
    assert 10 < len(forms) < 30 and forms.count(SPM) >= 4 and forms.count(PSM) >= 4


def test_marks_of_another_tokenizer_are_not_taken_for_text():
    tokenizer = Tokenizer.train([text.text for text in TEXTS[:10]], vocab_size=700)
    other = KNOWN[2]
    step = Fim(share=1.0, prefix=other.prefix, middle=other.middle, suffix=other.suffix)
    words = r"holds 0 marks of this tokenizer, not 3; cure: --set fim.prefix='<\|fim_pre\|>'"
    with pytest.raises(ValueError, match=words):
        Encoder(tokenizer, None, None).encode(step(TEXTS[:1]))


def test_another_tokenizer_at_the_same_place_makes_other_shards(tmp_path):
    texts = [text.text for text in TEXTS if len(text.text) < 8000][:10]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    output = {"form": "tokens", "tokenizer": str(tmp_path / "tokenizer")}
    plan = Plan.from_dict({"sources": [str(tmp_path / "a.jsonl")], "output": output})
    for size in (600, 700):
        Tokenizer.train([text.text for text in TEXTS[:10]], vocab_size=size).save(tmp_path / "tokenizer")
        tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
        run(plan, tmp_path / "out", workers=0, resume=size == 700, keep_work=True)
        (file,) = (tmp_path / "out/shards").iterdir()
        shard = open_shard(file)
        assert int(shard.header["vocab_size"]) == tokenizer.vocab_size
        assert shard.header["tokenizer"] == Encoder(tokenizer, None, None).fingerprint
        assert tokenizer.decode(shard.ids[1 : shard.offsets[1] - 1].tolist()) == texts[0]
