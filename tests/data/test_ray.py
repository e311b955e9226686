"""The units of a run on a local Ray cluster: the same kept set as on this machine alone."""

import pytest
from corpus_maker import kept, plan_for, write_corpus

from headwater.data import on_ray
from headwater.data.run import run

pytest.importorskip("ray", reason="the extra [ray]")


@pytest.mark.slow
def test_ray_keeps_the_same(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "in")
    run(plan_for(corpus), tmp_path / "here", workers=0)
    run(plan_for(corpus), tmp_path / "ray", workers=2, shards=3, executor=on_ray.run_tasks)
    assert kept(tmp_path / "ray") == kept(tmp_path / "here")
