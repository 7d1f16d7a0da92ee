"""Tool calls: what a request allows, which form binds the answer to it, and calls read out of text as it comes. Pure.

A function that has to be called (`tool_choice` required or named) is written under a JSON schema, so that its
arguments are always valid. With `auto` the model decides; its calls are read in the Hermes form

    <tool_call>{"name": "f", "arguments": {...}}</tool_call>

which Qwen, SmolLM and many others write, or as bare JSON at the beginning of an answer. If one of the functions is
`strict`, a grammar leaves text free but binds whatever follows a tag, and bare JSON is no call. One reader serves
whole and streamed answers, so both always say the same. What names no known function stays text.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kubeformer_runtime.server.errors import bad_request
from kubeformer_runtime.server.protocol import ChatRequest, Function, NamedTool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MOST_HEAD = 256  # characters in which a call has to name its function


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The functions of a request and how they may be used."""

    functions: tuple[Function, ...]
    named: str | None = None  # the function that has to be called
    required: bool = False  # at least one has to be called
    parallel: bool = True  # more than one call an answer

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answer where a call has to come: the arguments, or a list of calls; else None."""
        if self.named is not None:
            return _arguments(next(function for function in self.functions if function.name == self.named))
        if not self.required:
            return None
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": function.name}, "arguments": {"$ref": f"#/$defs/{place}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for place, function in enumerate(self.functions)
        ]
        schema: dict[str, Any] = {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": calls},
            "$defs": {
                str(place): _moved(_arguments(function), f"#/$defs/{place}")
                for place, function in enumerate(self.functions)
            },
        }
        return schema if self.parallel else schema | {"maxItems": 1}

    @property
    def grammar(self) -> str | None:
        """With `auto` and a strict function, the Lark grammar of the answer: text, in which calls are valid."""
        if self.schema is not None or not any(function.strict for function in self.functions):
            return None
        lines = [
            "start: call* REST",
            f'call: trigger SPACE object SPACE "{CLOSE}"',
            f"trigger[lazy]: /(?s:.*){OPEN}/",
            f"REST: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/",
            r"SPACE: /[ \n]{0,4}/",
            "object: " + " | ".join(f"call_{place}" for place in range(len(self.functions))),
        ]
        for place, function in enumerate(self.functions):
            head = json.dumps(f'{{"name": "{function.name}", "arguments": ')
            schema = _arguments(function) if function.strict else {"type": "object"}
            lines.append(f'call_{place}: {head} %json {json.dumps(schema)} "}}"')
        return "\n".join(lines)

    def reader(self, new_id: Callable[[], str]) -> "CallReader":
        """A reader of one choice's text."""
        return CallReader(self.names, new_id, named=self.named, bare=self.grammar is None, parallel=self.parallel)


def toolbox_of(body: ChatRequest) -> Toolbox | None:
    """The tools that an answer may use; None where there are none. Raises ApiError for contradictions."""
    if not body.tools:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(body, name) not in (None, "none"):
                raise bad_request(f"{name} needs tools; give some or leave it out.", name)
        return None
    functions = tuple(tool.function for tool in body.tools)
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise bad_request(f"tools has two functions called {twice}; give each a name of its own.", "tools")
    choice = body.tool_choice or "auto"
    if choice == "none":
        return None
    named = choice.function.name if isinstance(choice, NamedTool) else None
    if named is not None and named not in names:
        raise bad_request(f"tool_choice names {named}, but tools has only {', '.join(names)}.", "tool_choice")
    if body.response_format is not None and body.response_format.type != "text":
        raise bad_request(
            'response_format and tools exclude each other, unless tool_choice is "none"; leave one of them out.',
            "response_format",
        )
    if body.structured_outputs is not None:
        raise bad_request(
            'structured_outputs and tools exclude each other, unless tool_choice is "none"; leave one of them out.',
            "structured_outputs",
        )
    return Toolbox(functions, named, choice == "required", body.parallel_tool_calls is not False)


def _arguments(function: Function) -> dict[str, Any]:
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **function.parameters}


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references to itself still hold when it lies at `root` in a larger one."""
    if isinstance(schema, dict):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value[:1] == "#"
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the client."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; `index` counts the calls of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments: JSON, in pieces."""

    index: int
    text: str


Event = Content | CallStart | CallArguments


@dataclass(slots=True)
class Call:
    """A whole call."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Message:
    """What a choice says, put together from events."""

    content: str = ""
    calls: list[Call] = field(default_factory=list)

    def take(self, events: Iterable[Event]) -> None:
        """Add what is new."""
        for event in events:
            match event:
                case Content(text):
                    self.content += text
                case CallStart(_, id, name):
                    self.calls.append(Call(id, name))
                case CallArguments(index, text):
                    self.calls[index].arguments += text


class _State(Enum):
    START = "nothing but space so far: bare JSON may follow"
    TEXT = "text, in which a tag may follow"
    HEAD = "a call may have begun; its name is not known yet"
    ARGUMENTS = "the arguments of a call"
    TAIL = "the rest of a call's object"
    BETWEEN = "after a call's object"


_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_BEGINNING = '{"name":"'
_MARKS = re.compile(r'[{}\[\]"\\]')


class _Nesting:
    """Follows JSON to where its brackets close."""

    def __init__(self, depth: int) -> None:
        self._depth, self._in_string, self._escaped = depth, False, False

    def end(self, text: str) -> int | None:
        """How many characters of `text` belong to it, or None where it goes on."""
        place = 0
        while place < len(text):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            if (mark := _MARKS.search(text, place)) is None:
                return None
            place = mark.end()
            match mark[0]:
                case "\\":
                    self._escaped = self._in_string
                case '"':
                    self._in_string = not self._in_string
                case "{" | "[" if not self._in_string:
                    self._depth += 1
                case "}" | "]" if not self._in_string:
                    self._depth -= 1
                    if self._depth == 0:
                        return place
        return None


class CallReader:
    """Reads calls out of one choice's text, in whatever pieces it comes."""

    def __init__(
        self,
        names: frozenset[str],
        new_id: Callable[[], str],
        *,
        named: str | None = None,
        bare: bool = True,
        parallel: bool = True,
    ) -> None:
        """`named`: the whole text is this function's arguments; `bare`: calls may come without tags.

        Without `parallel` nothing after a call counts.
        """
        self._names, self._new_id, self._named, self._parallel = names, new_id, named, parallel
        self._state = _State.START if bare else _State.TEXT
        self._held = ""  # text that is not decided yet
        self._opening = ""  # what led to HEAD; text again if there is no call
        self._in_list = False
        self._nesting = _Nesting(0)
        self.num_calls = 0

    def push(self, text: str, *, last: bool = False) -> list[Event]:
        """What this text adds; `last`: nothing follows."""
        if self._named is not None:
            start: list[Event] = [] if self.num_calls else [self._begin(self._named)]
            return [*start, CallArguments(0, text)] if text else start
        self._held += text
        events: list[Event] = []
        while self._advance(events, last):
            pass
        return _joined(events)

    def _begin(self, name: str) -> CallStart:
        self.num_calls += 1
        return CallStart(self.num_calls - 1, self._new_id(), name)

    def _advance(self, events: list[Event], last: bool) -> bool:
        """One transition; False where more text is needed."""
        match self._state:
            case _State.START:
                return self._start(last)
            case _State.TEXT:
                return self._text(events, last)
            case _State.HEAD:
                return self._head(events, last)
            case _State.ARGUMENTS | _State.TAIL:
                return self._inside(events)
            case _State.BETWEEN:
                return self._between(last)

    def _start(self, last: bool) -> bool:
        bare = self._held.lstrip()
        if not bare and not last:
            return False
        if bare.startswith(("{", "[")):
            self._in_list = bare[0] == "["
            length = len(self._held) - len(bare) + self._in_list
            self._opening, self._held = self._held[:length], self._held[length:]
            self._state = _State.HEAD
        else:
            self._state = _State.TEXT
        return True

    def _text(self, events: list[Event], last: bool) -> bool:
        if self.num_calls and not self._parallel:
            self._held = ""
            return False
        before, tag, after = self._held.partition(OPEN)
        if tag:
            self._say(events, before.rstrip())
            self._opening, self._held, self._in_list = tag, after, False
            self._state = _State.HEAD
            return True
        keep = 0 if last else _undecided(self._held)
        give, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._say(events, give.rstrip() if last and self.num_calls else give)
        return False

    def _head(self, events: list[Event], last: bool) -> bool:
        found = _HEAD.match(self._held)
        if found is not None and (name := _string(found[1])) in self._names:
            events.append(self._begin(name))
            self._held = self._held[found.end() :]
            self._nesting, self._state = _Nesting(0), _State.ARGUMENTS
            return True
        compact = "".join(self._held[:MOST_HEAD].split())
        possible = compact.startswith(_BEGINNING) or _BEGINNING.startswith(compact)
        if found is None and possible and len(self._held) < MOST_HEAD and not last and CLOSE not in self._held:
            return False
        self._say(events, self._opening)
        self._state = _State.TEXT
        return True

    def _inside(self, events: list[Event]) -> bool:
        end = self._nesting.end(self._held)
        piece, self._held = (self._held, "") if end is None else (self._held[:end], self._held[end:])
        if self._state is _State.ARGUMENTS and piece:
            events.append(CallArguments(self.num_calls - 1, piece))
        if end is None:
            return False
        if self._state is _State.ARGUMENTS:
            self._nesting, self._state = _Nesting(1), _State.TAIL
        else:
            self._state = _State.BETWEEN
        return True

    def _between(self, last: bool) -> bool:
        """After a call: its closing tag, or the next of a list."""
        rest = self._held.lstrip()
        if self._opening == OPEN:
            if rest != CLOSE and CLOSE.startswith(rest) and not last:
                return False
            self._held, self._state = rest.removeprefix(CLOSE), _State.TEXT
        elif not rest and not last:
            return False
        elif self._in_list and rest.startswith(","):
            self._held, self._opening = rest[1:], ""
            self._state = _State.HEAD if self._parallel else _State.TEXT
        else:
            self._held = rest.removeprefix("]") if self._in_list else rest
            self._state = _State.START if self._parallel and not self._in_list else _State.TEXT
        return True

    def _say(self, events: list[Event], text: str) -> None:
        if text:
            events.append(Content(text))


def _undecided(text: str) -> int:
    """Length of the end of `text` that may lead to a tag: space, and the beginning of the tag itself."""
    place = text.rfind("<")
    head = text[:place] if place >= 0 and OPEN.startswith(text[place:]) else text
    return len(text) - len(head.rstrip())


def _string(quoted: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return ""


def _joined(events: Sequence[Event]) -> list[Event]:
    """Neighbouring texts as one."""
    out: list[Event] = []
    for event in events:
        if isinstance(event, Content) and out and isinstance(out[-1], Content):
            out[-1] = Content(out[-1].text + event.text)
        else:
            out.append(event)
    return out
