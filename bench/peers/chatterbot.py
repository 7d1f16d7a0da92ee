"""The English conversations of PyPI's chatterbot-corpus, as rows of the chat task."""

import json
from pathlib import Path

import yaml

from bench.peers.install import ensure, shown, uv

VERSION = "1.3.3"


def install() -> Path:
    """The directory that holds the package's files."""
    return ensure(f"chatterbot-corpus-{VERSION}", _build, 0.1)


def _build(directory: Path) -> None:
    command = [
        uv(),
        "pip",
        "install",
        "--no-deps",
        "--target",
        str(directory / "site"),
        f"chatterbot-corpus=={VERSION}",
    ]
    shown(command, directory / "install.log")


def conversations() -> list[list[dict[str, str]]]:
    """Lists of messages in which user and assistant take turns; each begins with the user and ends with an answer."""
    found = []
    for path in sorted((install() / "site" / "chatterbot_corpus" / "data" / "english").glob("*.yml")):
        for lines in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            texts = [str(line) for line in lines[: len(lines) // 2 * 2]]
            roles = ("user", "assistant") * (len(texts) // 2)
            if texts:
                found.append([{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)])
    return found


def write_rows(path: Path) -> Path:
    """All of them as JSON Lines with the field `messages`."""
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations()))
    return path
