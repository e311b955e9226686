"""What a run of the pipeline does, as data: sources, ordered steps with options, the form of the output.

A plan is a JSON object, checked by field and hashed; workers build the steps from it. It is cut into stages: some
per-text steps, then the steps that must see the whole corpus. Not for running (run.py).
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from headwater.data.corpus import CorpusStep
from headwater.data.inputs import UNIT_BYTES, Source
from headwater.data.steps import Step
from headwater.files import closest, read_json

STEPS = {
    "normalise": "headwater.data.normalise:Normalise",
    "language": "headwater.data.language:Language",
    "length": "headwater.data.rules:Length",
    "malformed": "headwater.data.rules:Malformed",
    "shares": "headwater.data.rules:Shares",
    "phrases": "headwater.data.rules:Phrases",
    "refusals": "headwater.data.rules:Refusals",
    "overused_phrases": "headwater.data.rules:OverusedPhrases",
    "boilerplate": "headwater.data.rules:Boilerplate",
    "repetition": "headwater.data.repetition:Repetition",
    "decontaminate": "headwater.data.decontaminate:Decontaminate",
    "decontaminate_meaning": "headwater.data.decontaminate:DecontaminateMeaning",
    "judge": "headwater.data.judge:Judge",
    "fim": "headwater.data.fim:Fim",
    "mix": "headwater.data.mix:Mix",
    "exact": "headwater.data.exact:Exact",
    "near": "headwater.data.near:Near",
    "semantic": "headwater.data.semantic:Semantic",
}
USUAL = [
    "normalise", "language", "length", "malformed", "shares", "repetition", "phrases", "decontaminate",
    "decontaminate_meaning", "exact", "near", "semantic",
]  # fmt: skip
FORMS = ("jsonl.zst", "parquet", "tokens")
_VOCABULARY = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json",
)  # fmt: skip
_HASHED_BYTES = 64 << 20
VERSION = 1  # a new one when units, columns or stored files change their meaning
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {  # of an option's default: what may be given, and its name
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    str: ((str,), "a text"),
    tuple: ((tuple,), "a list"),
}


@dataclass(frozen=True)
class Use:
    """One step of a plan: its name in STEPS and the options that differ from the defaults."""

    step: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Step | CorpusStep:
        """The step itself; ValueError names an unknown step or option and the closest one."""
        if self.step not in STEPS:
            raise ValueError(f"no step {self.step!r}{closest(self.step, list(STEPS))}; there are {', '.join(STEPS)}")
        module, _, name = STEPS[self.step].partition(":")
        made = getattr(importlib.import_module(module), name)
        defaults = {f.name: f.default for f in dataclasses.fields(made) if f.init}
        known = list(defaults)
        for option in self.options:
            if option not in known:
                raise ValueError(
                    f"step {self.step!r} has no option {option!r}{closest(option, known)}; "
                    f"it has {', '.join(known) or 'none'}"
                )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()}
        for option, value in values.items():
            for kind, (types, name) in _KINDS.items():
                if type(defaults[option]) is kind and (type(value) not in types):
                    raise ValueError(f"step {self.step!r}: option {option!r} is {value!r}; {name} is needed")
        try:
            return cast(Step | CorpusStep, made(**values))
        except TypeError as e:
            raise ValueError(f"step {self.step!r}: {e}") from e
        except OSError as e:
            raise ValueError(f"step {self.step!r}: cannot read {e.filename}: {e.strerror}") from e


@dataclass(frozen=True, kw_only=True)
class Output:
    """form: one of FORMS. tokenizer: model directory, tokenizer.json or .gguf for "tokens"; bos, eos: whether each
    document starts and ends with the tokenizer's own marks.
    """

    form: str = "jsonl.zst"
    tokenizer: str = ""
    bos: bool = True
    eos: bool = True

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"no output form {self.form!r}{closest(self.form, list(FORMS))}; {', '.join(FORMS)}")
        if (self.form == "tokens") != bool(self.tokenizer):
            raise ValueError(
                "the output form 'tokens' needs a tokenizer"
                if self.form == "tokens"
                else f"a tokenizer is of no use for the output form {self.form!r}; cure: form 'tokens'"
            )


@dataclass(frozen=True)
class Stage:
    """Steps that run in one pass over the texts, and the corpus steps that decide after it. `key` names everything
    that its result depends on.
    """

    key: str
    each: tuple[Use, ...]
    whole: tuple[Use, ...]
    tokens: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """strict: the first text that cannot be read stops the run, instead of being counted. sample: texts that
    `prepare` of the corpus steps learns from. unit_bytes: size of a unit of work.
    """

    sources: tuple[Source, ...]
    steps: tuple[Use, ...] = ()
    output: Output = Output()
    strict: bool = False
    sample: int = 6000
    unit_bytes: int = UNIT_BYTES

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("the plan has no sources; give at least one file or folder")
        for name in ("sample", "unit_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for use in self.steps:
            use.build()

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "steps": [{"step": use.step, **use.options} for use in self.steps],
            "output": dataclasses.asdict(self.output),
            "strict": self.strict, "sample": self.sample, "unit_bytes": self.unit_bytes,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """The inverse of to_dict; ValueError names the unknown or missing field."""
        values = dict(values)
        version = values.pop("version", VERSION)
        if version != VERSION:
            raise ValueError(f"the plan is of version {version}; this release runs version {VERSION}")
        _check(values, cls, "the plan")
        uses = []
        for number, given in enumerate(values.get("steps", ())):
            if not isinstance(given, str | Mapping):
                raise ValueError(f"steps[{number}] is {given!r}; the name of a step, or an object with it, is needed")
            step = {"step": given} if isinstance(given, str) else dict(given)
            if not isinstance(name := step.pop("step", None), str):
                raise ValueError(f"steps[{number}] has no field 'step' that names it; there are {', '.join(STEPS)}")
            uses.append(Use(name, step))
        given = values.pop("sources", ())
        if not isinstance(given, list | tuple):
            raise ValueError(f"the plan: sources is {given!r}; a list is needed")
        sources = [{"path": s} if isinstance(s, str) else s for s in given]
        for number, source in enumerate(sources):
            _check(source, Source, f"sources[{number}]")
        output = values.pop("output", {})
        _check(output, Output, "output")
        return cls(
            **{**values, "sources": tuple(Source(**s) for s in sources), "steps": tuple(uses),
               "output": Output(**output)}
        )  # fmt: skip

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """A plan file; relative paths in it are taken from the current directory."""
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a JSON {type(values).__name__}; a plan is an object")
        try:
            return cls.from_dict(values)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from e

    def stages(self, inputs_key: str) -> list[Stage]:
        """The passes over the texts. The key of each holds those before it, so an equal key means an equal result."""
        groups: list[tuple[list[Use], list[Use]]] = [([], [])]
        for use in self.steps:
            whole = is_corpus_step(use.build())
            if not whole and groups[-1][1]:
                groups.append(([], []))
            groups[-1][whole].append(use)
        tokens = self.output.form == "tokens"
        if tokens and groups[-1][1]:
            groups.append(([], []))  # what is dropped is not tokenised
        key, stages = f"{inputs_key} {VERSION} {self.sample} {self.strict}", []
        for number, (each, whole_steps) in enumerate(groups):
            last = tokens and number == len(groups) - 1
            spec: list[Any] = [[use.step, dict(use.options), *_contents(use)] for use in (*each, *whole_steps)]
            spec += [dataclasses.asdict(self.output), *_vocabulary(self.output.tokenizer)] if last else []
            key = digest(key + json.dumps(spec, sort_keys=True))
            stages.append(Stage(f"{number}-{key}", tuple(each), tuple(whole_steps), last))
        return stages


def options_of(step: Step | CorpusStep) -> dict[str, Any]:
    """The options of a step and their values."""
    fields = dataclasses.fields(cast(Any, step))
    return {f.name: getattr(step, f.name) for f in fields if f.init and f.repr}


def is_corpus_step(step: Step | CorpusStep) -> bool:
    return hasattr(step, "decide")


def digest(value: str | bytes) -> str:
    raw = value.encode() if isinstance(value, str) else value
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def _check(values: Any, made: type, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is a {type(values).__name__}; an object is needed")
    known = [f.name for f in dataclasses.fields(made)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where} has no field {name!r}{closest(name, known)}; it has {', '.join(known)}")
    defaults = {f.name: f.default for f in dataclasses.fields(made)}
    for name, value in values.items():
        for kind, (types, what) in _KINDS.items():
            fits = type(value) in types or (kind is tuple and type(value) is list)
            if type(defaults[name]) is kind and not fits:
                raise ValueError(f"{where}: {name} is {value!r}; {what} is needed")


def _contents(use: Use) -> list[str]:
    """A hash of every file that a step reads, so that another content is another result."""
    return [digest(Path(file).read_bytes()) for file in use.options.get("files", ())]


def _vocabulary(path: str) -> list[str]:
    """What tells the tokenizer at a path from another one that is put there later: a hash of every file that says what
    an id stands for; of one that holds weights too (.gguf) its size and the time of its last change.
    """
    place = Path(path)
    files = [place] if place.is_file() else [place / name for name in _VOCABULARY if (place / name).is_file()]
    stats = [file.stat() for file in files]
    return [
        digest(file.read_bytes()) if stat.st_size <= _HASHED_BYTES else f"{stat.st_size} {stat.st_mtime_ns}"
        for file, stat in zip(files, stats, strict=True)
    ]


def steps_of(
    names: str = "", settings: Sequence[str] = (), mix: str = "", temperature: float | None = None
) -> tuple[Use, ...]:
    """Steps as a command line says them. names: parted by commas (empty: USUAL); settings: "STEP.OPTION=VALUE", where
    several values are parted by commas; mix: preset of a mixture behind them, with the temperature over languages.
    ValueError names a setting that fits no step.
    """
    order = [name.strip() for name in names.split(",") if name.strip()] or list(USUAL)
    options: dict[str, dict[str, Any]] = {name: {} for name in order}
    if mix:
        options.setdefault("mix", {})["preset"] = mix
    if temperature is not None:
        if "mix" not in options:
            raise ValueError("a temperature over languages needs a mixture; cure: --mix 75/20/5, or the step mix")
        options["mix"]["temperature"] = temperature
    for setting in settings:
        where, sign, value = setting.partition("=")
        step, dot, option = where.partition(".")
        if not sign or not dot:
            raise ValueError(f"the setting {setting!r} is not STEP.OPTION=VALUE, as in near.threshold=0.7")
        if step not in options:
            raise ValueError(f"there is no step {step!r} to set{closest(step, list(options))}; {', '.join(options)}")
        options[step][option] = _value_of(step, option, value)
    return tuple(Use(name, options[name]) for name in [*order, *(["mix"] if mix and "mix" not in order else [])])


def _value_of(step: str, option: str, value: str) -> Any:
    """A written value: JSON where it is some, else text; as a list where the option is one."""
    given: Any
    try:
        given = json.loads(value)
    except ValueError:
        given = value
    now = options_of(Use(step).build()).get(option)
    if isinstance(now, str) and not isinstance(given, str):
        return value
    if isinstance(now, tuple) and not isinstance(given, list):
        return [part.strip() for part in value.split(",") if part.strip()]
    return given
