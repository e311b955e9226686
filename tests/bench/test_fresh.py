"""Processes watched from outside: memory, lines, failures, and what others did meanwhile."""

import sys

import pytest

from headwater.bench import fresh


def python(code, **options):
    return fresh.run([sys.executable, "-c", code], **{"timeout": 60.0} | options)


def test_lines_and_memory_are_seen():
    code = "import time; a = bytearray(200 << 20); print('one', flush=True); time.sleep(0.3); print('two')"
    run = python(code)
    assert run.lines == ["one\n", "two\n"]
    assert run.line_seconds[1] - run.line_seconds[0] > 0.2
    assert 200e6 < run.peak_anonymous <= run.peak_memory < 400e6
    assert run.seconds > 0.3


def test_a_working_child_is_not_a_foreigner_but_another_process_is():
    with fresh.busy_neighbours(1):
        assert python("import time; time.sleep(1.0)").foreign > 0.15


def test_busy_neighbours_run_beside_and_end():
    with fresh.busy_neighbours(2) as burning:
        assert all(fresh._cpu_seconds(pid) >= 0 for pid in burning)
    for pid in burning:
        with pytest.raises(OSError):
            fresh._cpu_seconds(pid)


def test_failures_say_what_happened():
    with pytest.raises(ValueError, match=r"ended with 3: the last word"):
        python("import sys; print('first', file=sys.stderr); print('the last word', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ValueError, match="ended with 4: it printed no error"):
        python("import sys; sys.exit(4)")
    with pytest.raises(ValueError, match="cannot start /nowhere/at/all"):
        fresh.run(["/nowhere/at/all"], timeout=1.0)
    with pytest.raises(ValueError, match=r"ran longer than 0 s"):
        python("import time; time.sleep(60)", timeout=0.2)
