"""A real server on a tiny random model, once a session."""

import anthropic
import openai
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


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as c:
        yield c


@pytest.fixture(scope="module")
def claude(served):
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as c:
        yield c
