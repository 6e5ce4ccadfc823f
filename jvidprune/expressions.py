"""Methods as they are written: "stop(base=flashvid(alpha=0.5), mu_s=0.03)", "visionzip + flashvid", and lists of these.

    method  = one, or several that run one after another, with "+" between them
    one     = name, or name(setting=value, setting=value)
    name    = a registry name, or a class of the user's own: "module:Class" or "./file.py:Class"
    value   = a Python literal, a bare word, or a method again; the last two reach the setting as text

Parts of transports, such as a cost, may also have settings without names: "./my.py:MyCost(0.5)".

"name:setting=value,setting=value" says the same as "name(setting=value, setting=value)"; in that form brackets around a
value make it a text. Nothing that is written here runs: it is parsed with `ast`, and all but the above is refused.
"""

import ast
import re
import warnings
from typing import Any, NamedTuple, NoReturn, Union

from jvidprune.errors import JvidpruneError, quoted, reason

_TRANSPORT = "Transport"
"""Inside of it settings may stand without names."""

_LONGEST = 1000
"""Of a method as it is typed; the parser of literals takes deep brackets badly."""

_TEXT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_OWN = r"(?<![^\s()\[\]{},+=])(?:[A-Za-z]:(?=[\\/]))?[^\s:()\[\]{},+='\"]+:[A-Za-z_]\w*(?=\s*(?:[(),+:]|$))"
_HYPHENS = r"(?<![\w.])[A-Za-z_]\w*(?:-[A-Za-z_]\w*)+"
_NAMES = re.compile(rf"(?P<text>{_TEXT})|(?P<name>{_OWN}|{_HYPHENS})")
_COLON = re.compile(r"\s*(\w+)\s*:")


class Call(NamedTuple):
    """One method with its settings.

    Attributes:
      name: as it was written.
      settings: literals; words and methods as texts.
      written: every setting as it was typed, for titles.
      places: settings without a name, which only parts of transports take.
    """

    name: str
    settings: dict[str, Any]
    written: tuple[str, ...]
    places: tuple[Any, ...] = ()


class Chain(NamedTuple):
    """Methods that run one after another."""

    stages: tuple["Written", ...]


Written = Union[Call, Chain]  # noqa: UP007 the name of a class that is defined by it cannot stand in a union of types


def parse(text: str) -> Written:
    """What a text says, without looking up any name.

    Raises:
      JvidpruneError: anything but the grammar of this module, with the part that is none of it.
    """
    return _read(text, places=False)


def _read(text: str, *, places: bool) -> Written:
    if len(text) > _LONGEST:
        raise JvidpruneError(f"a reducer is written in at most {_LONGEST} characters, got {len(text)}.")
    return _Reader(text, places).read()


def parse_call(text: str) -> Call:
    """The same for what cannot be chained and may have settings without names.

    Raises:
      JvidpruneError: as for `parse`, or a chain.
    """
    written = _read(text, places=True)
    if isinstance(written, Chain):
        raise JvidpruneError(f"one name with settings is wanted, got the chain {quoted(repr(text), 200)}.")
    return written


def split_list(text: str) -> list[str]:
    """Splits "a,b:x=1,y=2,c(x=1,y=2)" into ["a", "b:x=1,y=2", "c(x=1,y=2)"].

    Raises:
      JvidpruneError: brackets or quotation marks that do not match.
    """
    parts: list[str] = []
    for part in _pieces(text, ","):
        if parts and re.match(r"\w+\s*=", part):
            parts[-1] += "," + part
        elif part:
            parts.append(part)
    return parts


def own_reference(name: str) -> tuple[str, str] | None:
    """Module or file, and class, of a name such as "module:Class"; None for a registry name."""
    where, colon, cls = name.rpartition(":")
    return (where, cls) if colon else None


class _Reader:
    """One text on its way: names that Python has not are exchanged for words that it has."""

    def __init__(self, text: str, places: bool = False):
        self.text, self._places = text, places
        self._words: dict[str, str] = {}
        prefix = "own"
        while prefix in text:
            prefix += "_"

        def word(match: re.Match[str]) -> str:
            if match["text"]:
                return match["text"]
            made = f"{prefix}{len(self._words)}"
            self._words[made] = match["name"]
            return made

        self._masked = _NAMES.sub(word, text)
        self._word = re.compile(rf"\b{prefix}\d+\b")

    def read(self) -> Written:
        try:
            # Every text is split, so that the sentence about brackets comes before the parser's.
            stages = _pieces(self._masked, "+", self.text)
            if not any(_COLON.match(stage) for stage in stages):
                return self._method(self._parsed(self._masked))
            read = tuple(self._colon(one) if _COLON.match(one) else self._method(self._parsed(one)) for one in stages)
            return read[0] if len(read) == 1 else Chain(read)
        except (RecursionError, MemoryError):
            self._refuse("nests too deeply")

    def _parsed(self, masked: str) -> ast.expr:
        self._source = masked.strip()
        if not self._source:
            self._refuse("lacks a name")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self._source, mode="eval").body
        except (SyntaxError, ValueError) as error:
            said = error.msg if isinstance(error, SyntaxError) else reason(error)
            self._refuse(f"cannot be read ({said})")

    def _method(self, node: ast.expr) -> Written:
        if isinstance(node, ast.Name):
            return Call(self._plain(node.id), {}, ())
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self._method(node.left), self._method(node.right)
            return Chain((*(left.stages if isinstance(left, Chain) else (left,)), right))
        if not isinstance(node, ast.Call):
            self._refuse("has a part that is neither a name nor name(setting=value)", node)
        if not isinstance(node.func, ast.Name):
            self._refuse("calls what is no name", node.func)
        known, name = self._places, self._plain(node.func.id)
        self._places |= name == _TRANSPORT
        if node.args and not self._places:
            self._refuse("has a setting without a name: write name(setting=value)", node.args[0])
        settings: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self._refuse("has settings without names: write name(setting=value)", keyword.value)
            self._note(settings, self._plain(keyword.arg), self._value(keyword.value))
        written = tuple(f"{self._plain(one.arg or '')}={self._shown(one.value)}" for one in node.keywords)
        places = tuple(self._value(one) for one in node.args)
        self._places = known
        return Call(name, settings, written, places)

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name | ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
            self._method(node)
            return self._shown(node)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            self._refuse("has a value that is no literal, no word and no method", node)

    def _colon(self, masked: str) -> Call:
        name, _, rest = masked.partition(":")
        settings: dict[str, Any] = {}
        written = []
        for part in filter(None, _pieces(rest, ",")):
            key, equals, value = (self._plain(piece.strip()) for piece in part.partition("="))
            if not equals:
                raise _unnamed(self.text)
            self._note(settings, key, _literal_or_text(value))
            written.append(self._plain(part))
        return Call(self._plain(name.strip()), settings, tuple(written))

    def _note(self, settings: dict[str, Any], key: str, value: Any) -> None:
        if key in settings:
            raise JvidpruneError(f"{key} is given twice in {quoted(repr(self.text), 200)}.")
        settings[key] = value

    def _plain(self, masked: str) -> str:
        return self._word.sub(lambda match: self._words.get(match[0], match[0]), masked)

    def _shown(self, node: ast.expr) -> str:
        return self._plain(ast.get_source_segment(self._source, node) or "")

    def _refuse(self, why: str, node: ast.expr | None = None) -> NoReturn:
        part = "" if node is None else f", here {quoted(repr(self._shown(node)))}"
        raise JvidpruneError(f"the method {quoted(repr(self.text), 200)} {why}{part}.")


def _unnamed(text: str) -> JvidpruneError:
    return JvidpruneError(
        "a reducer's settings are written name(key=value, key=value) or name:key=value,key=value, got "
        f"{quoted(repr(text), 200)}."
    )


def check_colon(name: str, known: tuple[str, ...]) -> None:
    """Refuses "flashvid:fast", which has the form of a class in a module, where the module is a method.

    Raises:
      JvidpruneError: says how settings are written.
    """
    if name.partition(":")[0].strip() in known:
        raise _unnamed(name)


def _literal_or_text(value: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value


def _pieces(text: str, separator: str, shown: str = "") -> list[str]:
    """Splits at a separator outside of brackets and quotation marks, a plus only in front of a name (not in "1e+3").

    Raises:
      JvidpruneError: brackets or quotation marks that do not match; the sentence has `shown`, by default the text.
    """
    parts, depth, place = [""], 0, 0
    while place < len(text):
        mark = text[place]
        if mark in "'\"":
            match = re.compile(_TEXT).match(text, place)
            if match is None:
                raise JvidpruneError(f"the quotation marks of {quoted(repr(shown or text), 200)} do not match.")
            parts[-1] += match[0]
            place = match.end()
            continue
        depth += (mark in "([{") - (mark in ")]}")
        if depth < 0:
            break
        between = mark == separator and depth == 0
        if between and separator == "+":
            between = not re.match(r"\s*[\d.]", text[place + 1 :])
        if between:
            parts.append("")
        else:
            parts[-1] += mark
        place += 1
    if depth:
        raise JvidpruneError(f"the brackets of {quoted(repr(shown or text), 200)} do not match.")
    return [part.strip() for part in parts]
