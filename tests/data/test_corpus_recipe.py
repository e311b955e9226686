"""The recipe of the mixture, from what the repository ships: runs, goes on, holds documents out, writes its card."""

import json

import pytest

from headwater.files import read_json
from recipes import corpus
from recipes.corpus_sources import html_paragraphs, translated


def test_pages_become_paragraphs():
    page = "<html><head><title>x</title></head><body><p>One <b>two</b>.</p><script>no()</script><li>Three &amp; four"
    assert html_paragraphs(page) == ["One two.", "Three & four"]
    mixed = ["Dies ist ein deutscher Absatz über das Wetter.", "This paragraph was left in English by the translator."]
    assert translated(mixed, "de") == mixed[0] and translated(mixed, "en") == "\n\n".join(mixed)


def test_marks_inside_of_a_text_end_no_line_of_held_out_documents(tmp_path):
    text = "The boat\u2028is on the river, \x85and the river runs to the sea behind the hills where nobody lives."
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout" / "wiki.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", "utf-8")
    assert corpus.fingerprint_held(tmp_path).is_file()


@pytest.mark.slow
def test_the_small_mixture(tmp_path):
    corpus.main(tmp_path, True, 1, "")
    card = (tmp_path / "CARD.md").read_text()
    assert "| en |" in card and "| code |" in card and "CC-BY-SA-4.0" in card
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.count("|") > 12]
    whole = dict(zip(rows[0], next(row for row in rows if row[0] == "all"), strict=True))
    steps = read_json(tmp_path / "corpus" / "report.json")["steps"]
    assert [int(whole[step["name"]].replace(",", "")) for step in steps[:-1]] == [s["texts_out"] for s in steps[:-1]]
    held = [json.loads(line) for line in (tmp_path / "heldout" / "wiki.jsonl").read_text().splitlines()]
    assert 20 < len(held) < 80
    report = read_json(tmp_path / "corpus" / "report.json")
    assert [s["name"] for s in report["steps"]][-1] == "mix"
    corpus.main(tmp_path, True, 1, "")
    assert (tmp_path / "CARD.md").read_text() == card
