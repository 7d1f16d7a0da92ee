"""Globs over names that are no files here: keys of a bucket, paths of a repository. As in pathlib and glob."""

import re

_MAGIC = re.compile(r"[*?\[]")


def has_magic(pattern: str) -> bool:
    """Whether a pattern is more than a name."""
    return _MAGIC.search(pattern) is not None


def prefix_of(pattern: str) -> str:
    """What every match begins with."""
    return _MAGIC.split(pattern, maxsplit=1)[0]


def matches(pattern: str, name: str) -> bool:
    """Whether a name matches: * and ? stay within a step of the path, ** goes over any number of steps."""
    return re.fullmatch(_regex(pattern), name) is not None


def _regex(pattern: str) -> str:
    result, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            result, at = result + r"(?:[^/.][^/]*/)*", at + 3
            continue
        character = pattern[at]
        at += 1
        hidden = r"(?!\.)" if at == 1 or pattern[at - 2] == "/" else ""  # as in glob, a leading dot must be written
        if character == "*":
            result += hidden + r"[^/]*"
        elif character == "?":
            result += hidden + r"[^/]"
        elif character == "[" and (end := pattern.find("]", at + 1)) > 0:
            inside = pattern[at:end].replace("\\", r"\\").replace("[", r"\[")
            result += hidden + "[" + ("^" + inside[1:] if inside.startswith("!") else inside) + "]"
            at = end + 1
        else:
            result += re.escape(character)
    return result
