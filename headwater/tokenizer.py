"""Text to token ids and back: byte-level BPE, special tokens, a streaming decoder, training.

The merging is done by the `tokenizers` library, built when first needed, and for short plain text by bpe.py; what a
checkpoint's files mean, which text may become a control token, and how bytes become text again are decided here. Not
for chat turns (chat.py) or tool calls (tool_calls.py).

Two safety rules. Text is plain by default: `encode("<|im_end|>")` gives the ids of those ten characters, because text
comes from users; only `special=True` reads markup. And BOS is never added unless asked for (`bos=True`), then once.
"""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import bpe, files, hub, tokenizer_json
from headwater.gguf_file import Described, GgufFile
from headwater.vocabulary import Merges, Vocabulary

if TYPE_CHECKING:
    import tokenizers

LFM2_PATTERN = bpe.WORDS % r"\p{N}{1,3}"

# LFM2's control tokens, ids 0 to 13; the ids from 14 on are spare ("reserved"), used by the audio and image models.
LFM2_SPECIAL = (
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>", "<|im_start|>",
    "<|im_end|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>",
    "<|tool_response_start|>", "<|tool_response_end|>",
)  # fmt: skip
_LFM2_RESERVED = 487
_FIRST_RESERVED = 4  # id 14 is called <|reserved_4|>

# GGUF `tokenizer.ggml.pre` -> (split pattern or None for GPT-2's own, digits one by one first, whole words before
# merges, NFC first, BOS by default). The second and third follow llama.cpp, NFC follows Qwen's own tokenizer.json.
_GGUF_PRE: dict[str, tuple[str | None, bool, bool, bool, bool]] = {
    "gpt-2": (None, False, False, False, False),
    "lfm2": (LFM2_PATTERN, False, True, False, True),
    "llama-bpe": (LFM2_PATTERN, False, True, False, True),
    "qwen2": (bpe.WORDS % r"\p{N}", False, False, True, False),
    "smollm": (None, True, False, False, False),
}
_GGUF_NORMAL, _GGUF_CONTROL, _GGUF_USER, _GGUF_UNUSED = 1, 3, 4, 5
_GGUF_ENDS = ("eos", "eot", "eom")
# Texts that the pre-tokenizers above split differently, or that one of them would change.
_GGUF_PROBES = (
    "Hello world, it's 1234567 tests; WE'LL see", "  two  spaces\t\ttabs\n\n\nlines \r\n end   ",
    "e\u0301te\u0301 \ufb01ne caf\u00e9", "\u6f22\u5b57\u3068\u304b\u306a 12 \u0661\u0662\u0663\u0664",
    "\u0645\u0631\u062d\u0628\u0627 \U0001f44d\U0001f3fd #include <x.h> a+=b--;", "x" * 40, "3.14159e-10",
)  # fmt: skip
_GGUF_PROBED_TOKENS = 400

_JSON = "tokenizer.json"
_FILES = (
    _JSON, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable alphabet: each of the 256 bytes as one character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    visible = frozenset(printable)
    rest = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTE_OF_CHAR = _byte_of_char()


class Tokenizer:
    """A byte-level BPE vocabulary with its control tokens.

    vocab_size: number of ids in use (largest id + 1); padded_vocab_size: rows of the model's embedding, at least that.
    bos_id, pad_id: int or None; eos_ids: every id that ends generation; add_bos: whether the checkpoint's model expects
    BOS before raw text; chat_template: the Jinja text that came with the checkpoint, or None.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        bos_id: int | None = None,
        eos_ids: Sequence[int] = (),
        pad_id: int | None = None,
        add_bos: bool | None = None,
        padded_vocab_size: int | None = None,
        chat_template: str | None = None,
        config: dict[str, Any] | None = None,
        source: str = "tokenizer.json",
    ):
        """`spec` is the parsed tokenizer.json (its vocabulary and merges may be those of vocabulary.py); `config` the
        parsed tokenizer_config.json, kept for save()."""
        _check_byte_level(spec, source)
        self._source, self._spec, self._config = source, spec, dict(config or {})
        added = spec.get("added_tokens", [])
        self._added = frozenset(t["content"] for t in added)
        self._special_ids = frozenset(t["id"] for t in added if t.get("special"))
        # Markup that the file calls "not special" (such as <think>) must not be typed by a user either.
        self._shut = [t | {"special": t.get("special") or _looks_like_markup(t["content"])} for t in added]
        ids = tokenizer_json.ids_of(spec)
        self._ids: Mapping[str, int] = self._plain.get_vocab(with_added_tokens=True) if ids is None else ids
        if isinstance(self._ids, Vocabulary):
            self.vocab_size = self._ids.size
        else:
            self.vocab_size = max(self._ids.values(), default=-1) + 1
        self._bytes: dict[int, bytes] = {}
        self.bos_id = self._known(bos_id, "bos_id")
        self.eos_ids = tuple(dict.fromkeys(self._known(i, "eos_ids") for i in eos_ids))
        self.pad_id = self._known(pad_id, "pad_id")
        if add_bos is None:
            add_bos = bos_id is not None and tokenizer_json.puts_first(spec.get("post_processor"), bos_id)
        if add_bos is None:
            add_bos = self._plain.encode("a", add_special_tokens=True).ids[:1] == [bos_id]
        self.add_bos = add_bos
        self.padded_vocab_size = padded_vocab_size or self.vocab_size
        if not isinstance(self.padded_vocab_size, int) or self.padded_vocab_size < self.vocab_size:
            raise ValueError(
                f"padded vocabulary size is {self.padded_vocab_size!r}, but {source} uses {self.vocab_size} ids;"
                f" it must be at least {self.vocab_size}"
            )
        self.chat_template = chat_template

    # -- where it comes from -------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path) -> "Tokenizer":
        """Read a model directory, a tokenizer.json file or a .gguf file. ValueError if a file is missing or damaged."""
        path = hub.resolve(path_or_id, files=_FILES)
        if path.suffix == ".gguf":
            return cls.from_gguf(path)
        if path.is_file():
            return cls._from_files(path, {})
        if not (path / _JSON).is_file():
            raise ValueError(
                f"{path} has no {_JSON}; only fast (`tokenizers`) vocabularies are read:"
                " save one with AutoTokenizer(...).save_pretrained, or give a .gguf file"
            )
        beside = {name: files.read_json(path / name) for name in _FILES[1:5] if (path / name).is_file()}
        for name, value in beside.items():
            if not isinstance(value, dict):
                raise ValueError(f"{path / name} holds a JSON {type(value).__name__}, not an object")
        return cls._from_files(path / _JSON, beside, template=_read_template(path, beside))

    @classmethod
    def _from_files(cls, json_path: Path, beside: dict[str, dict], template: str | None = None) -> "Tokenizer":
        spec = files.read_json(json_path)
        _check_byte_level(spec, str(json_path))
        config = beside.get("tokenizer_config.json", {})
        names = beside.get("special_tokens_map.json", {}) | config
        generation, model = beside.get("generation_config.json", {}), beside.get("config.json", {})
        model = model | model.get("text_config", {}) if isinstance(model.get("text_config"), dict) else model
        ids = {t["content"]: t["id"] for t in spec.get("added_tokens", [])}
        vocab = spec["model"]["vocab"]
        if not tokenizer_json.merges_fit(spec["model"]):
            _build(spec, str(json_path))  # says what is wrong

        def by_name(key: str) -> int | None:
            value = names.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if text is None:
                return None
            if not isinstance(text, str) or (text not in ids and text not in vocab):
                raise ValueError(f"{key} is {text!r}, which is not a token of {json_path}")
            return ids.get(text, vocab.get(text))

        def by_id(key: str) -> Any:
            return next((c[key] for c in (generation, model) if c.get(key) is not None), None)

        eos = by_id("eos_token_id")
        eos = names.get("eos_token_ids", by_name("eos_token")) if eos is None else eos
        bos, pad = by_name("bos_token"), by_name("pad_token")
        return cls(
            spec,
            bos_id=by_id("bos_token_id") if bos is None else bos,
            eos_ids=() if eos is None else eos if isinstance(eos, list) else (eos,),
            pad_id=by_id("pad_token_id") if pad is None else pad,
            add_bos=True if names.get("add_bos_token") is True else None,
            padded_vocab_size=model.get("vocab_size", names.get("padded_vocab_size")),
            chat_template=template,
            config=config,
            source=str(json_path),
        )

    @classmethod
    def from_gguf(cls, path: str | Path, file: Described | None = None) -> "Tokenizer":
        """Read the vocabulary in a GGUF file's metadata (model `gpt2`, the pre-tokenizers of this module's table).

        file: the metadata, where it is open already.
        """
        file = GgufFile(path) if file is None else file
        get = file.find
        model, pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre", "gpt-2")
        if model != "gpt2" or pre not in _GGUF_PRE:
            raise ValueError(
                f"{path} has tokenizer model {model!r} with pre-tokenizer {pre!r}; readable are model 'gpt2' with "
                f"{', '.join(map(repr, sorted(_GGUF_PRE)))}{files.closest(str(pre), list(_GGUF_PRE))}; "
                "cure: use the checkpoint's tokenizer.json"
            )
        keys = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
        tokens, merges = (file.texts(key) or get(key) for key in keys)
        if not tokens or merges is None:
            raise ValueError(f"{path} has no {' or '.join(keys)}: it carries no vocabulary")
        num_kinds, odd = file.unusual("tokenizer.ggml.token_type", _GGUF_NORMAL) or (len(tokens), [])
        if num_kinds != len(tokens):
            raise ValueError(f"GGUF vocabulary has {len(tokens)} tokens but {num_kinds} token types")
        bos, pad = (get(f"tokenizer.ggml.{k}_token_id") for k in ("bos", "padding"))
        ends = [get(f"tokenizer.ggml.{k}_token_id") for k in _GGUF_ENDS]
        spec = _gguf_spec(tokens, odd, merges, pre)
        add_bos = bool(get("tokenizer.ggml.add_bos_token", _GGUF_PRE[pre][4]))
        if add_bos and isinstance(bos, int) and bos < len(tokens):  # __init__ refuses other values
            spec["post_processor"] = tokenizer_json.bos_first(tokens[bos], bos)
        return cls(
            spec,
            bos_id=bos,
            eos_ids=[i for i in ends if i is not None],
            pad_id=pad,
            add_bos=add_bos and bos is not None,
            padded_vocab_size=len(tokens),
            chat_template=get("tokenizer.chat_template"),
            source=str(path),
        )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pad_to: int | None = None,
        reserved: int | None = None,
        extra_special: Sequence[str] = (),
    ) -> "Tokenizer":
        """Learn a vocabulary in LFM2's form: its split pattern, control tokens 0-13, all 256 bytes, then merges.

        vocab_size: most ids to use (fewer if the texts run out of pairs). pad_to: padded_vocab_size, default the number
        in use. reserved: spare control tokens from id 14 on, default 1/32 of the free room and at most LFM2's 487;
        extra_special take the first of these ids under their own names. Same texts, same result.
        """
        base = len(LFM2_SPECIAL) + len(_BYTE_OF_CHAR)
        if reserved is None:
            reserved = max(len(extra_special), min(_LFM2_RESERVED, (vocab_size - base) // 32))
        if not len(extra_special) <= reserved <= vocab_size - base:
            raise ValueError(
                f"vocab_size {vocab_size} with {reserved} reserved tokens ({len(extra_special)} of them named) does not"
                f" fit: {len(extra_special)} <= reserved <= vocab_size - {base} must hold"
            )
        spare = [f"<|reserved_{_FIRST_RESERVED + i}|>" for i in range(len(extra_special), reserved)]
        special = [*LFM2_SPECIAL, *extra_special, *spare]
        if len(set(special)) < len(special):
            raise ValueError(f"extra_special repeats a token: {list(extra_special)}")
        from tokenizers import AddedToken, trainers

        learner = _build(tokenizer_json.spec({}, [], [], LFM2_PATTERN), "the trained vocabulary")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in special],
            initial_alphabet=sorted(_BYTE_OF_CHAR),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        spec = json.loads(learner.to_str())
        bos, eos = special.index("<|startoftext|>"), special.index("<|im_end|>")
        spec["post_processor"] = tokenizer_json.bos_first("<|startoftext|>", bos)
        return cls(
            spec, bos_id=bos, eos_ids=(eos,), pad_id=0, padded_vocab_size=pad_to, source="the trained vocabulary"
        )

    # -- text to ids ---------------------------------------------------------------------------------------------

    @cached_property
    def _marked(self) -> "tokenizers.Tokenizer":
        return _build(self._spec, self._source)

    @cached_property
    def _plain(self) -> "tokenizers.Tokenizer":
        built = _build(self._spec | {"added_tokens": self._shut}, self._source)
        built.encode_special_tokens = True
        return built

    @cached_property
    def _direct(self) -> bpe.Direct | None:
        return bpe.direct(self._spec, [t for t in self._shut if not t["special"]])

    def _short(self, text: Any) -> list[int] | None:
        """The ids of plain text that needs no library, unless it is there already."""
        if "_plain" in self.__dict__ or not isinstance(text, str) or self._direct is None:
            return None
        return self._direct.encode(text)

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`.

        special: read control-token text as control tokens; never set it for text from outside. bos: begin with BOS,
        not doubled if special text already begins with it. ValueError for a lone surrogate, or bos without a BOS token.
        """
        return self.encode_batch([text], bos=bos, special=special)[0]

    def encode_batch(self, texts: Sequence[str], *, bos: bool = False, special: bool = False) -> list[list[int]]:
        """encode() of every text, in parallel."""
        if len(texts) == 1 and not special and (ids := self._short(texts[0])) is not None:
            return [self._with_bos(ids, bos)]
        return [self._with_bos(e.ids, bos) for e in self._encode(texts, special)]

    def encode_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the span of characters of `text` it came from; tokens of one split character share it."""
        (encoding,) = self._encode([text], special)
        return encoding.ids, encoding.offsets

    def _encode(self, texts: Sequence[str], special: bool) -> "list[tokenizers.Encoding]":
        coder = self._marked if special else self._plain
        try:
            if len(texts) == 1:  # the batch call would wake the thread pool
                return [coder.encode(texts[0], add_special_tokens=False)]
            return coder.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as e:  # the library's word for a str that is not Unicode text
            raise ValueError(_why_not_text(texts)) from e

    def _with_bos(self, ids: list[int], bos: bool) -> list[int]:
        if not bos:
            return ids
        if self.bos_id is None:
            raise ValueError(f"bos=True, but {self._source} has no BOS token; pass bos=tokenizer.add_bos")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def id_of(self, token: str) -> int:
        """The id of a token by its name in the vocabulary, e.g. "<|im_end|>"; ValueError if there is none."""
        if token not in self._ids:
            raise ValueError(f"{token!r} is not a token of {self._source}{files.closest(token, self.special_tokens)}")
        return self._ids[token]

    def markup_id(self, token: str) -> int | None:
        """The id of an added token (control token or other markup such as <think>); None if it is ordinary text."""
        return self._ids[token] if token in self._added else None

    @property
    def special_tokens(self) -> list[str]:
        """Names of the control tokens, in order of their ids."""
        return [name for i in sorted(self._special_ids) if (name := self._name(i)) is not None]

    # -- ids to text ---------------------------------------------------------------------------------------------

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for, perhaps a part of a character; control tokens give their names."""
        value = self._bytes.get(token_id)
        if value is None:
            name = self._name(token_id)
            if name is None:
                raise ValueError(f"token id is {token_id}; {self._source} uses 0 to {self.vocab_size - 1}")
            value = self._bytes[token_id] = _bytes_of(name, name in self._added)
        return value

    def _name(self, token_id: int) -> str | None:
        if isinstance(self._ids, Vocabulary):
            return self._ids.name(token_id)
        return self._names[token_id] if 0 <= token_id < self.vocab_size else None

    @cached_property
    def _names(self) -> list[str | None]:
        names: list[str | None] = [None] * self.vocab_size
        for token, token_id in self._ids.items():
            names[token_id] = token
        return names

    def is_special(self, token_id: int) -> bool:
        """Whether this id is a control token."""
        return token_id in self._special_ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. ValueError for an id that is not in use."""
        stream = self.stream(skip_special=skip_special)
        return "".join(stream.push(i) for i in ids) + stream.finish()

    def stream(self, *, skip_special: bool = True) -> "DecodeStream":
        """A decoder for ids that come one by one; its pieces joined are decode() of all of them."""
        return DecodeStream(self, skip_special)

    # -- to disk -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (and the chat template) that `transformers` reads alike."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | self._config
        names = {i: t for t, i in self._ids.items()}
        for key, token_id in (("bos_token", self.bos_id), ("pad_token", self.pad_id)):
            config[key] = None if token_id is None else names[token_id]
        config["eos_token"] = names[self.eos_ids[0]] if self.eos_ids else None
        config["eos_token_ids"], config["padded_vocab_size"] = list(self.eos_ids), self.padded_vocab_size
        config.pop("chat_template", None)
        with files.atomic_dir(path) as part:
            (part / _JSON).write_text(
                json.dumps(tokenizer_json.plain(self._spec), ensure_ascii=False, indent=1), encoding="utf-8"
            )
            files.write_json(part / "tokenizer_config.json", config)
            if self.chat_template is not None:
                (part / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8", newline="")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values from which `Tokenizer(**values)` is the same again."""
        return {
            "spec": tokenizer_json.plain(self._spec), "bos_id": self.bos_id, "eos_ids": list(self.eos_ids),
            "pad_id": self.pad_id, "add_bos": self.add_bos, "padded_vocab_size": self.padded_vocab_size,
            "chat_template": self.chat_template, "config": self._config,
        }  # fmt: skip

    def gguf_metadata(self, *, rows: int, pre: str | None = None) -> dict[str, Any]:
        """What a GGUF file says of this vocabulary, for an embedding of `rows` rows; `from_gguf` reads it back.

        pre: the pre-tokenizer's name in GGUF; default: the first known one that splits texts as this vocabulary does.
        ValueError when none does, or there are more ids than rows.
        """
        if rows < self.vocab_size:
            raise ValueError(f"{self._source} uses {self.vocab_size} ids, but the model's embedding has {rows} rows")
        names: list[str | None] = [None] * rows
        for token, i in self._ids.items():
            names[i] = token
        tokens = [f"[PAD{i}]" if t is None else t for i, t in enumerate(names)]
        kinds = [_GGUF_UNUSED if t is None else self._gguf_kind(i, t) for i, t in enumerate(names)]
        merges = [m if isinstance(m, str) else " ".join(m) for m in self._spec["model"].get("merges", [])]
        if pre is None:
            pre = self._gguf_pre(tokens, kinds, merges)
        elif pre not in _GGUF_PRE:
            raise ValueError(f"pre-tokenizer is {pre!r}{files.closest(pre, list(_GGUF_PRE))}; known: {[*_GGUF_PRE]}")
        ids = dict(zip(_GGUF_ENDS, self.eos_ids, strict=False)) | {"bos": self.bos_id, "padding": self.pad_id}
        values = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.chat_template": self.chat_template,
        }
        values |= {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items()}
        return {key: value for key, value in values.items() if value is not None}

    def _gguf_kind(self, token_id: int, token: str) -> int:
        if token_id in self._special_ids:
            return _GGUF_CONTROL
        return _GGUF_USER if token in self._added else _GGUF_NORMAL

    def _gguf_pre(self, tokens: list[str], kinds: list[int], merges: list[str]) -> str:
        """The name of the pre-tokenizer under which the file's vocabulary gives the ids that this one gives."""
        step = max(1, self.vocab_size // _GGUF_PROBED_TOKENS)
        odd = [(i, kind) for i, kind in enumerate(kinds) if kind != _GGUF_NORMAL]
        used = [i for i in range(0, self.vocab_size, step) if kinds[i] == _GGUF_NORMAL]
        texts = [*_GGUF_PROBES, *(self.token_bytes(i).decode("utf-8", "ignore") for i in used)]
        expected = self.encode_batch(texts)
        lfm2 = LFM2_SPECIAL[1] in self._added
        for pre in sorted(_GGUF_PRE, key=lambda name: (name == "lfm2") != lfm2):
            built = _build(_gguf_spec(tokens, odd, merges, pre), self._source)
            built.encode_special_tokens = True
            if [e.ids for e in built.encode_batch(texts, add_special_tokens=False)] == expected:
                return pre
        raise ValueError(
            f"{self._source} splits text as none of GGUF's pre-tokenizers known here ({', '.join(_GGUF_PRE)}) does;"
            " cure: name the nearest one yourself (--pre), knowing that some texts will get other ids"
        )

    def _known(self, token_id: Any, field: str) -> Any:
        if token_id is None or (isinstance(token_id, int) and self.token_bytes(token_id) is not None):
            return token_id
        raise ValueError(f"{field} is {token_id!r}; an id (0 to {self.vocab_size - 1}) is needed")


class DecodeStream:
    """Turns ids into text as they come, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool):
        self._tokenizer, self._skip = tokenizer, skip_special
        # CPython's incremental decoder gives U+FFFD as soon as a sequence cannot become a character, and no earlier.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is certain now, often ""."""
        data = self._tokenizer.token_bytes(token_id)
        return "" if self._skip and self._tokenizer.is_special(token_id) else self._decoder.decode(data)

    def finish(self) -> str:
        """The rest: U+FFFD if the last character never ended. The stream is then as new."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _check_byte_level(spec: Any, source: str) -> None:
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise ValueError(f"{source} is not a tokenizer.json: it has no 'model' object")
    if spec["model"].get("type", "BPE") != "BPE" or "ByteLevel" not in json.dumps(spec.get("decoder")):
        raise ValueError(
            f"{source} holds a {spec['model'].get('type')!r} model with decoder {spec.get('decoder')!r:.80};"
            " only byte-level BPE (model BPE, decoder ByteLevel) is read"
        )
    if not isinstance(spec["model"].get("vocab"), dict | Vocabulary):
        raise ValueError(f"{source} is not a tokenizer.json: its model has no 'vocab' object")
    added = spec.get("added_tokens", [])
    if not isinstance(added, list) or not all(map(_is_added, added)):
        raise ValueError(f"{source} is not a tokenizer.json: 'added_tokens' must be objects with 'id' and 'content'")


def _is_added(token: Any) -> bool:
    return isinstance(token, dict) and type(token.get("id")) is int and isinstance(token.get("content"), str)


def _build(spec: dict[str, Any], source: str) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json.plain(spec)))
    except Exception as e:  # the library raises bare Exception for every fault of the file
        raise ValueError(f"{source} is not a readable tokenizer.json: {e}") from e
    built.no_truncation()  # a saved max_length would silently cut long texts
    built.no_padding()
    return built


def _why_not_text(texts: Sequence[Any]) -> str:
    for text in texts:
        if not isinstance(text, str):
            return f"text is a {type(text).__name__}, not a str"
        at = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
        if at is not None:
            return (
                f"text holds a lone surrogate (U+{ord(text[at]):04X} at {at}), which is no character;"
                " cure: decode its bytes with errors='replace'"
            )
    return "text is not encodable"


def _looks_like_markup(token: str) -> bool:
    return len(token) > 2 and token[0] in "<[" and token[-1] in ">]"


def _bytes_of(token: str, added: bool) -> bytes:
    if added or any(c not in _BYTE_OF_CHAR for c in token):
        return token.encode("utf-8", "surrogatepass")
    return bytes(map(_BYTE_OF_CHAR.__getitem__, token))


def _read_template(path: Path, beside: dict[str, dict]) -> str | None:
    """A checkpoint's chat template: its own file, or a field of tokenizer_config.json (one text, or named ones)."""
    if (path / "chat_template.jinja").is_file():
        with (path / "chat_template.jinja").open(encoding="utf-8", newline="") as f:
            return f.read()
    value = beside.get("tokenizer_config.json", {}).get("chat_template")
    if value is None and (path / "chat_template.json").is_file():
        holder = files.read_json(path / "chat_template.json")
        value = holder.get("chat_template") if isinstance(holder, dict) else holder
    if isinstance(value, list):
        value = next((t.get("template") for t in value if isinstance(t, dict) and t.get("name") == "default"), None)
    if not isinstance(value, str | None):
        raise ValueError(f"{path}: the chat template is a {type(value).__name__}; allowed: text, or named texts")
    return value


def _gguf_spec(tokens: Any, odd: list[tuple[int, int]], merges: Any, pre: str) -> dict[str, Any]:
    """A tokenizer.json object from GGUF metadata, lists or Texts. odd: (id, type) of the tokens that are not normal."""
    pattern, digits, whole_words, nfc, _ = _GGUF_PRE[pre]
    unused = frozenset(i for i, kind in odd if kind == _GGUF_UNUSED)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": tokens[i], **plain, "special": kind == _GGUF_CONTROL}
        for i, kind in odd
        if kind in (_GGUF_CONTROL, _GGUF_USER)
    ]
    vocab: Mapping[str, int]
    if isinstance(tokens, list) or isinstance(merges, list):
        if not set(map(type, tokens)) | set(map(type, merges)) <= {str}:
            raise ValueError("GGUF vocabulary is damaged: a token or a merge is no text")
        names = {t: i for i, t in enumerate(tokens)}
        vocab = {t: i for t, i in names.items() if i not in unused}
        merges = list(merges)
    else:
        vocab, merges = Vocabulary(tokens, unused), Merges(merges)
    return tokenizer_json.spec(vocab, merges, added, pattern, digits=digits, whole_words=whole_words, nfc=nfc)
