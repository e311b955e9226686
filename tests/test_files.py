"""Files that are written whole or not at all: what else of the older file stays."""

import pytest

from headwater import files


def mode(path):
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o644])
def test_who_may_read_a_file_stays_as_it_was(tmp_path, kept):
    """A conversation that only its owner may read is saved again."""
    path = tmp_path / "talk.json"
    files.write_json(path, {"a": 1})
    path.chmod(kept)
    files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 2}
    assert mode(path) == kept


def test_a_new_file_is_as_any_other(tmp_path):
    files.write_json(tmp_path / "ours.json", 1)
    (tmp_path / "other.json").write_text("1")
    assert mode(tmp_path / "ours.json") == mode(tmp_path / "other.json")
