"""A real server on a tiny random model, once a session."""

import pytest
from serve_running import running, wait


@pytest.fixture(scope="session")
def served(tiny_model):
    with running(tiny_model) as server:
        yield server


@pytest.fixture
def idle(served):
    """The server, which has nothing to do before the test and nothing after it."""
    wait(lambda: served.front.open == 0)
    yield served
    wait(lambda: served.front.open == 0)
