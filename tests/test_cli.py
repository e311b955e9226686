"""The command line as a person uses it: every verb, every kind of bad input, exit codes. Its start: test_cli_start.py.

Verbs that load torch run inside this process (`cli.run`, the function the installed command calls); a few run as real
processes, to hold the entry point, the pipes and the exit code.
"""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headwater import cli
from headwater.config import MODELS

ROOT = Path(__file__).parent.parent


def process(*arguments, stdin=b"", env=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "headwater.cli", *map(str, arguments)],
        input=stdin, capture_output=True, cwd=ROOT, env=os.environ | (env or {}), timeout=120, check=False, **options,
    )  # fmt: skip


@pytest.fixture
def headwater(capsys, monkeypatch):
    """Run one command line here; (exit code, stdout, stderr)."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = cli.run([str(a) for a in arguments])
        except SystemExit as e:  # argparse in a recipe
            code = e.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def one_line(result, *words):
    """Assert the form of every fault: exit code 2, nothing on stdout, one line on stderr that holds the words."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.startswith("headwater: "), err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(headwater, verb):
    code, out, err = headwater(verb, "--help")
    assert (code, err) == (0, "")
    assert "usage: headwater" in out.lower()


def test_no_arguments_shows_help_and_fails(headwater):
    code, out, _ = headwater()
    assert code == 2
    assert out.startswith("Usage: headwater VERB")


def test_version(headwater):
    code, out, _ = headwater("--version")
    assert code == 0
    assert out.startswith("headwater ")


# -- info --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_info_of_every_row(headwater, name):
    code, out, _ = headwater("info", name.lower(), "--json")
    facts, c = json.loads(out), MODELS[name]
    assert code == 0
    assert facts["model"] == name
    assert facts["parameters"] == c.num_parameters()
    assert facts["active_parameters"] == c.num_parameters(active=True)
    assert (facts["layers"], facts["pattern"]) == (len(c.layers), c.pattern())
    assert facts["kv_bytes_per_token"] == c.kv_bytes_per_token()
    assert facts["conv_state_bytes"] == c.conv_state_bytes()
    assert ("LFM Open License" in facts["licence"]) == name.startswith("LFM")


def test_info_counts_memory_with_windows_capped(headwater):
    _, out, _ = headwater("info", "LFM3-1.7B", "--ctx", 32768, "--json")
    facts = json.loads(out)
    full = 6 * 2 * 4 * 128 * 2  # layers, keys and values, heads, width, bytes
    sliding = 5 * 2 * 4 * 128 * 2
    assert facts["kv_bytes_per_token_past_windows"] == full
    assert facts["memory_bytes"]["kv"] == full * 32768 + sliding * 256
    assert facts["memory_bytes"]["total"] == sum(facts["memory_bytes"][k] for k in ("weights", "kv", "conv_state"))
    _, out, _ = headwater("info", "LFM3-1.7B", "--ctx", 32768, "--json", "--dtype", "fp32")
    assert json.loads(out)["memory_bytes"]["kv"] == 2 * facts["memory_bytes"]["kv"]


def test_info_of_a_directory(headwater, tiny_model):
    code, out, _ = headwater("info", tiny_model)
    assert code == 0
    assert "CACS" in out
    assert "4: 2 short convolution, 1 attention, 1 sliding-window attention" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["LFM2-351M"], ["did you mean 'LFM2-350M'"]),
        (["LFM2-350M", "--ctx", "0"], ["--ctx is 0", "128000"]),
        (["LFM2-350M", "--ctx", "many"], ["--ctx", "integer"]),
        (["LFM2-350M", "--dtype", "bf8"], ["bf8", "bf16, fp16, fp32"]),
        (["LFM2-350M", "--foo"], ["--foo", "headwater info --help"]),
        ([], ["model"]),
        (["no/such/dir"], ["no such file or directory"]),
    ],
)
def test_info_refuses(headwater, arguments, words):
    one_line(headwater("info", *arguments), *words)


def test_unknown_verb(headwater):
    one_line(headwater("generte", "x"), "generte", "did you mean 'generate'")


# -- damaged models ----------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_config(model):
    (model / "config.json").unlink()


def bad_json(model):
    cut(model / "config.json")


def not_utf8(model):
    (model / "config.json").write_bytes(b'{"model_type": "\xff"}')


def list_config(model):
    (model / "config.json").write_text("[1, 2]")


def unknown_key(model):
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(values | {"hiden_size": 24}))


def cut_weights(model):
    cut(model / "model.safetensors")


def no_weights(model):
    (model / "model.safetensors").unlink()


def cut_tokenizer(model):
    cut(model / "tokenizer.json")


def no_tokenizer(model):
    (model / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_config, ["config.json"]),
        (bad_json, ["config.json", "JSON"]),
        (not_utf8, ["config.json", "UTF-8"]),
        (list_config, ["config.json", "object"]),
        (unknown_key, ["hiden_size", "hidden_size"]),
        (cut_weights, ["model.safetensors", "download or copy it again"]),
        (no_weights, ["safetensors"]),
        (cut_tokenizer, ["tokenizer.json"]),
        (no_tokenizer, ["tokenizer.json"]),
    ],
)
def test_a_damaged_model_is_one_line(headwater, copy, damage, words):
    damage(copy)
    one_line(headwater("generate", copy, "Hello"), *words)


def test_debug_shows_the_traceback(headwater, copy, monkeypatch):
    no_config(copy)
    monkeypatch.setenv("HEADWATER_DEBUG", "1")
    with pytest.raises(ValueError, match=r"config\.json"):
        headwater("info", copy)


def test_without_torch_the_cure_is_named(tiny_model):
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom headwater import cli\n"
        f"sys.exit(cli.run(['generate', {str(tiny_model)!r}, 'Hello', '--engine', 'torch']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    one_line((result.returncode, result.stdout, result.stderr), "torch", "headwater[train]")


# -- generate ----------------------------------------------------------------------------------------------------


def test_generate_as_a_process_streams_text_to_stdout_and_speed_to_stderr(tiny_model):
    result = process("generate", tiny_model, "--max-tokens", 5, stdin="The river é".encode())
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode("utf-8").endswith("\n")
    assert result.stderr.startswith(b"[prompt ")
    assert b"answer 5 tokens" in result.stderr


def test_generate_json_holds_what_the_library_gives(headwater, tiny_model):
    from headwater import Lfm2, SamplingParams, Tokenizer
    from headwater.generate import generate

    tokenizer = Tokenizer.from_pretrained(tiny_model)
    prompt = tokenizer.encode("The river", bos=True)
    params = SamplingParams(max_tokens=7, temperature=0.9, top_k=20, seed=3, logprobs=2)
    (expected,) = generate(Lfm2.from_pretrained(tiny_model), [prompt], params, tokenizer=tokenizer)
    options = ["--max-tokens", 7, "--temperature", 0.9, "--top-k", 20, "--seed", 3, "--logprobs", 2, "--json"]
    options += ["--engine", "torch"]
    code, out, err = headwater("generate", tiny_model, "The river", *options)
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert (answer["ids"], answer["text"]) == (expected.ids, expected.text)
    assert answer["prompt_tokens"] == len(prompt)
    assert [p["logprob"] for p in answer["logprobs"]] == [p.logprob for p in expected.logprobs]
    assert all(len(p["top"]) == 2 for p in answer["logprobs"])
    _, out, _ = headwater("generate", tiny_model, "The river", *options, "--no-bos")
    assert json.loads(out)["prompt_tokens"] == len(prompt) - 1


def test_generate_stops_at_a_stop_text(headwater, tiny_model):
    _, out, _ = headwater("generate", tiny_model, "The", "--max-tokens", 20, "--json")
    whole = json.loads(out)["text"]
    middle = whole[len(whole) // 2 :][:2]
    _, out, _ = headwater("generate", tiny_model, "The", "--max-tokens", 20, "--stop", middle, "--json")
    answer = json.loads(out)
    assert answer["text"] == whole[: whole.index(middle)]
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ([], b"caf\xe9", ["stdin", "UTF-8", "byte 3"]),
        (["--no-bos"], b"", ["empty"]),
        (["Hello " * 300], b"", ["context is 512"]),
        (["Hello \udce9"], b"", ["surrogate"]),
        (["Hi", "--temperature", "-1"], b"", ["temperature is -1"]),
        (["Hi", "--top-p", "0"], b"", ["top_p"]),
        (["Hi", "--max-tokens", "0"], b"", ["max_tokens is 0"]),
        (["Hi", "--logprobs", "2"], b"", ["--json"]),
        (["Hi", "--dtype", "int4"], b"", ["int4", "bf16"]),
        (["Hi", "--engine", "natve"], b"", ["did you mean 'native'"]),
        (["Hi", "--threads", "0"], b"", ["--threads is 0"]),
        (["Hi", "--stop", ""], b"", ["stop"]),
    ],
)
def test_generate_refuses(headwater, tiny_model, arguments, stdin, words):
    one_line(headwater("generate", tiny_model, *arguments, stdin=stdin), *words)


def test_ctrl_c_ends_quietly_with_130(tiny_model, monkeypatch, capsys):
    class Interrupted(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, _):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Interrupted())))
    assert cli.run(["generate", str(tiny_model)]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_no_fault():
    run = f"{sys.executable} -m headwater.cli info LFM2-350M"
    result = subprocess.run(
        ["bash", "-c", f"{run} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stderr == ""
    assert result.stdout.strip() in ("0", "1")


# -- tokenize, hub, recipe ---------------------------------------------------------------------------------------


def test_tokenize_there_and_back(headwater, tiny_model):
    text = "The river é ☃ <|im_end|>"
    code, out, _ = headwater("tokenize", tiny_model, text, "--json")
    tokens = json.loads(out)
    assert code == 0
    assert tokens["text"] == text
    assert tokens["num_tokens"] == len(tokens["ids"]) == len(tokens["tokens"])
    ids = ",".join(map(str, tokens["ids"]))
    assert headwater("tokenize", tiny_model, "--decode", ids)[1] == text + "\n"
    _, out, _ = headwater("tokenize", tiny_model, text, "--special", "--bos", "--json")
    special = json.loads(out)
    assert special["ids"][0] == 1
    assert special["ids"][-1] == 7
    _, out, _ = headwater("tokenize", tiny_model, stdin=b"The river")
    assert out.splitlines()[0].replace("|", "") == "The river"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--decode", "1,x"], ["'x'"]),
        (["--decode", "99999"], ["99999"]),
        (["--decode", "1", "text"], ["--decode"]),
    ],
)
def test_tokenize_refuses(headwater, tiny_model, arguments, words):
    one_line(headwater("tokenize", tiny_model, *arguments), *words)


def snapshot(home, owner, name):
    """A model in the hub's cache layout, as a download leaves it."""
    repo = home / "hub" / f"models--{owner}--{name}"
    commit = "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}" + " " * 1000)


def test_downloaded_models_are_listed_and_removed(tmp_path):
    snapshot(tmp_path, "someone", "small-model")
    env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    listed = json.loads(process("list", "--json", env=env).stdout)
    assert [(m["model"], m["bytes"] > 1000) for m in listed] == [("someone/small-model", True)]
    assert process("pull", "someone/small-model", env=env).stdout.decode().strip().startswith(str(tmp_path))
    assert process("rm", "someone/small-model", env=env).returncode == 0
    assert process("list", "--json", env=env).stdout == b"[]\n"
    gone = process("rm", "someone/small-model", env=env)
    one_line((gone.returncode, gone.stdout.decode(), gone.stderr.decode()), "not in the cache")


def test_offline_pull_names_the_licence_and_the_cure(tmp_path):
    result = process("pull", "LiquidAI/LFM2-350M", env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    licence, fault = result.stderr.decode().splitlines()
    assert "LFM Open License v1.0" in licence
    one_line((result.returncode, result.stdout.decode(), fault + "\n"), "HF_HUB_OFFLINE", "headwater pull")


def test_pull_wants_a_hub_id(headwater):
    one_line(headwater("pull", "LFM2-350M"), "owner/name")


@pytest.mark.parametrize("verb", ["recipe", "train"])
def test_recipes_are_listed_and_bring_their_options(headwater, verb):
    code, out, _ = headwater(verb)
    assert code == 0
    assert "  smoke  The whole life of a tiny LFM2" in out
    code, out, _ = headwater(verb, "smoke", "--help")
    assert code == 0
    assert "--steps" in out
    one_line(headwater(verb, "smok"), "did you mean 'smoke'")
    code, _, err = headwater(verb, "smoke", "--stepps", "3")
    assert code == 2
    assert "--stepps" in err


# -- chat --------------------------------------------------------------------------------------------------------


def test_chat_as_a_process_answers_line_by_line(tiny_model, tmp_path):
    lines = f"Hello!\n\n/system Be brief.\nWho are you?\n/save {tmp_path / 'talk.json'}\n/exit\nnever read\n"
    result = process("chat", tiny_model, "--greedy", "--max-tokens", 4, stdin=lines.encode())
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(b"tokens/s") >= 2
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    answers = [m["content"] for m in saved["messages"] if m["role"] == "assistant"]
    assert result.stdout.decode() == "".join(a + "\n" for a in answers)


def talk(headwater, model, *lines, options=()):
    text = "".join(line + "\n" for line in lines)
    return headwater("chat", model, "--greedy", "--max-tokens", 4, *options, stdin=text.encode())


def test_chat_commands(headwater, tiny_model, tmp_path):
    file = tmp_path / "talk.json"
    commands = [
        "/help", "/system Be kind.", "/system", "/multi", "one", "two", "/end", "/tool 21 degrees", f"/save {file}",
        "/reset", "/regen",
    ]  # fmt: skip
    code, _, err = talk(headwater, tiny_model, *commands)
    assert code == 2
    assert "there is no message to answer yet" in err.splitlines()[-1]
    assert "Be kind." in err
    messages = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[1]["content"] == "one\ntwo"
    code, _, _ = talk(headwater, tiny_model, f"/load {file}", "And you?", "/regen", f"/save {file}")
    assert code == 0
    assert len(json.loads(file.read_text())["messages"]) == 7


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["/sav x"], ["did you mean '/save'"]),
        (["/save"], ["/save FILE"]),
        (["/load nowhere.json"], ["nowhere.json"]),
        (["Hello " * 300], ["context is 512"]),
    ],
)
def test_chat_refuses(headwater, tiny_model, lines, words):
    code, _, err = talk(headwater, tiny_model, *lines)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("headwater: ")
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not valid JSON"]),
        ("[]", ["not a saved conversation"]),
        ('{"messages": [{"role": "usr", "content": "x"}]}', ["usr", "did you mean 'user'"]),
        ('{"messages": [], "tools": 3}', ["tools is a int"]),
    ],
)
def test_a_damaged_conversation_changes_nothing(tiny_model, tmp_path, text, words):
    session = new_session(tiny_model)
    session.say("Hello!")
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(ValueError, match=words[0]) as fault:
        session.load(tmp_path / "talk.json")
    for word in words:
        assert word in str(fault.value)
    assert session.messages == [{"role": "user", "content": "Hello!"}]


def test_a_conversation_is_saved_whole_or_not_at_all(headwater, tiny_model, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text("precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))  # the disk is full after 16 bytes
    try:
        code, _, err = talk(headwater, tiny_model, "Hello!", f"/save {file}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert err.splitlines()[-1].startswith("headwater: ")
    assert file.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]
    code, _, err = talk(headwater, tiny_model, f"/save {file}/inside.json")
    assert code == 2
    assert "talk.json" in err.splitlines()[-1]


def test_the_home_folder_in_names_of_files(headwater, tiny_model, tmp_path, monkeypatch):
    """Completion writes ~/; a folder of that name was made instead."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    code, _, err = talk(headwater, tiny_model, "Hello!", "/save ~/talk.json", "/load ~/talk.json")
    assert code == 0, err
    assert "2 messages from" in err
    assert (home / "talk.json").is_file()
    assert not list(here.iterdir())
    code, _, err = talk(headwater, tiny_model, "/load ~no-such-person/talk.json")
    assert code == 2 and "whole path" in err.splitlines()[-1]


def test_chat_wants_utf8_and_known_tools(headwater, tiny_model, tmp_path):
    code, _, err = headwater("chat", tiny_model, stdin=b"caf\xe9\n")
    assert code == 2
    assert "line 1 of stdin is not UTF-8" in err.splitlines()[-1]
    (tmp_path / "tools.json").write_text('{"name": "f"}')
    one_line(headwater("chat", tiny_model, "--tools", tmp_path / "tools.json"), "list of tool schemas")
    one_line(headwater("chat", tiny_model, "--greedy", "--temperature", "1"), "--greedy")
    one_line(headwater("chat", tiny_model, "--style", "lfm"), "did you mean 'lfm2'")
    one_line(headwater("chat", tiny_model, "--max-tokens", "0"), "max_tokens is 0")


def new_session(model, engine="torch", **options):
    from headwater import Chat, SamplingParams
    from headwater.commands.engines import open_talk
    from headwater.commands.options import Running
    from headwater.commands.session import Session

    params = SamplingParams(max_tokens=6, repetition_penalty=1.3)  # the penalty must see what the cache holds
    chat = Chat.from_pretrained(model, style="lfm2")
    talker = open_talk(str(model), chat.tokenizer, Running(engine=engine, threads=1))
    return Session(talker, chat, params, **options)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_later_turns_reuse_the_cache_and_answer_as_without_it(tiny_model, engine):
    session = new_session(tiny_model, engine, system="Be brief.")
    for turn, text in enumerate(("Hello!", "Who are you?", "Bye")):
        session.say(text)
        fresh = new_session(tiny_model, engine)
        fresh.messages = list(session.messages)
        speed, plain = session.answer(lambda _: None), fresh.answer(lambda _: None)
        assert session.messages == fresh.messages
        assert plain.reused_tokens == 0
        assert (speed.reused_tokens > 0) == (turn > 0)
    session.set_system("Be long.")
    session.say("Hello again!")
    fresh = new_session(tiny_model, engine)
    fresh.messages = list(session.messages)
    session.answer(lambda _: None)
    fresh.answer(lambda _: None)
    assert session.messages == fresh.messages


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_stopped_answer_stays_and_the_chat_goes_on(tiny_model, engine):
    session = new_session(tiny_model, engine)
    session.say("Hello!")
    shown = []

    def stop(event):
        shown.append(event.text)
        if len(shown) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.answer(stop)
    assert session.messages[-1]["role"] == "assistant"
    assert session.messages[-1]["content"].startswith(shown[0])
    session.say("Go on")
    fresh = new_session(tiny_model, engine)
    fresh.messages = list(session.messages)
    session.answer(lambda _: None)
    fresh.answer(lambda _: None)
    assert session.messages == fresh.messages


def test_calls_become_messages():
    from headwater.commands.session import _Collector
    from headwater.tool_calls import OutputSplitter

    events = []
    collected = _Collector(OutputSplitter(tools=["weather"]), events.append)
    for piece in ("Let me see. <|tool_call_", "start|>[weather(city='Pa", "ris', days=2)]<|tool_call_end|>", " Done"):
        collected.push(piece)
    message = collected.message()
    assert message["content"] == "Let me see.  Done"
    call = message["tool_calls"][0]["function"]
    assert call == {"name": "weather", "arguments": {"city": "Paris", "days": 2}}
    broken = _Collector(OutputSplitter(tools=["weather"]), events.append)
    broken.push("<|tool_call_start|>[weather(<|tool_call_end|>")
    assert broken.message()["content"] == "[weather("
