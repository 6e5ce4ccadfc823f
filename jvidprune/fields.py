"""Values of settings checked against the annotations of a dataclass, in one place and in one sentence.

    class Thing:
        share: Share = 0.5
        layer: Count | None = None
        mode: Literal["official", "fixed"] = "official"

A range or a rule of another kind stands in `Annotated`; everything else is the type itself: numbers, True and False,
texts, None, `Literal`, `Union`, tuples (also given as lists), functions. Annotations of other kinds are left alone.
"""

import collections.abc
import dataclasses
import functools
import math
import numbers
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar, cast

import jax
import numpy as np
from jax.core import Tracer

from jvidprune.errors import JvidpruneError
from jvidprune.texts import shown, unknown

_LARGEST_INT, _LARGEST_FLOAT, _SMALLEST_FLOAT = 2**31 - 1, float(np.finfo(np.float32).max), 2.0**-126
"""Values end in int32 and float32 arrays, where what is smaller than 2**-126 counts as 0."""

NO_SETTING = types.MappingProxyType({"setting": False})
"""Metadata of a field that is no setting: nobody types, saves or compares runs by it."""

_UNIONS = (typing.Union, types.UnionType)
_PYTREES: set[type] = set()

_T = TypeVar("_T", bound=type)


class Rule(Protocol):
    """What an annotation may ask of a value besides its type.

    Attributes:
      words: what is allowed, as in "must be ...".
    """

    words: str

    def check(self, value: Any) -> Any:
        """The value, possibly in another form.

        Raises:
          JvidpruneError: it cannot be used, in a sentence of its own.
          ValueError: it cannot be used; the sentence is made from `words`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a number must lie.

    Attributes:
      low, high: ends, None for none.
      above: `low` itself is left out.
      below: `high` itself is left out.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a finite number lies inside."""
        over = self.low is None or value > self.low or (value == self.low and not self.above)
        under = self.high is None or value < self.high or (value == self.high and not self.below)
        return over and under

    @property
    def where(self) -> str:
        """As in "must lie in [0, 1]"."""
        if self.low is None:
            return f"be {'less than' if self.below else 'at most'} {self.high:g}" if self.high is not None else "be"
        if self.high is None:
            return "be positive" if self.above and self.low == 0 else f"be {_least(self)} {self.low:g}"
        low, high = (f"{end:.0f}" if end == round(end) else f"{end:g}" for end in (self.low, self.high))
        return f"lie in {'(' if self.above else '['}{low}, {high}{')' if self.below else ']'}"

    def of(self, noun: str) -> str:
        """As in "a number in [0, 1]"."""
        where = self.where
        if where == "be positive":
            return noun.replace("a ", "a positive ", 1)
        return f"{noun} {where.removeprefix('lie ')}" if where.startswith("lie") else f"{noun} of{where[2:]}"


def _least(limits: Range) -> str:
    return "more than" if limits.above else "at least"


_ANYWHERE = Range()

Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Ratio = Annotated[float, Range(0, 1, above=True)]
Temperature = Annotated[float, Range(1e-6)]
"""Something is divided by it in float32."""
Weight = Annotated[float, Range(-1e6, 1e6)]
"""Of one term in a sum of several."""
Exponent = Annotated[float, Range(0, 100, above=True)]
Iterations = Annotated[int, Range(1, 100_000)]
Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
Seed = Annotated[int, Range(-(2**31), 2**32 - 1)]


class _Wrong(Exception):
    """A value that an annotation refuses.

    Attributes:
      allowed: as in "must be {allowed}".
      where: as in "must {where}", for a number that is only out of range.
    """

    def __init__(self, allowed: str, where: str = ""):
        super().__init__(allowed)
        self.allowed, self.where = allowed, where


class _Field(NamedTuple):
    name: str
    default: Any
    hint: Any
    traced: bool


def check_fields(made: Any) -> None:
    """Checks every field of a frozen dataclass, for its `__post_init__`; numpy numbers become Python's, lists tuples.

    A default is not questioned, nor are values that are traced.

    Raises:
      JvidpruneError: one sentence with the field, the value and what is allowed.
    """
    for field in _fields_of(type(made)):
        value = getattr(made, field.name)
        if value is field.default:
            continue
        read = checked(value, field.hint, field.name, owner_of(made), traced=field.traced)
        if read is not value:
            settle(made, **{field.name: read})


def settle(made: Any, **values: Any) -> None:
    """Gives a frozen dataclass values in the form that they are kept in, while it is being made.

    This is the one place where such an object gets values that its `__init__` was not given in this form: numbers of
    numpy, lists and texts that stand for something else (`check_fields`, `BaseReducer.settled`), or the leaves of a
    pytree. Nothing calls it once an object is made, since hashes and compiled programs hang on its values.

    Args:
      made: a frozen dataclass without slots.
      **values: of its fields.
    """
    vars(made).update(values)


def checked(value: Any, hint: Any, name: str, owner: str = "", *, traced: bool = False) -> Any:
    """A value as its annotation wants it.

    Args:
      value: whatever was given.
      hint: the annotation.
      name: of the setting.
      owner: whose setting it is.
      traced: the setting is a leaf of a pytree, so that arrays of any shape may stand in it.

    Raises:
      JvidpruneError: it does not fit.
    """
    whose = f"{owner}'s {name}" if owner else name
    try:
        return _read(value, hint, traced)
    except _Wrong as wrong:
        names = _names(hint)
        if names:
            of = f" of {owner}" if owner else ""
            raise JvidpruneError(unknown(name, value, names, of)) from None
        must = wrong.where or f"be {wrong.allowed}"
        raise JvidpruneError(f"{whose} must {must}, got {shown(value)}.") from None
    except JvidpruneError as error:
        raise JvidpruneError(f"{whose}: {error}") from error


def settings_of(cls: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass, or of an object of one, that a user chooses."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.init and f.metadata.get("setting", True))


def owner_of(made: Any) -> str:
    """The name for people of what carries the fields."""
    title = getattr(getattr(made, "info", None), "title", None)
    return title if isinstance(title, str) else type(made).__name__


def pytree(cls: _T) -> _T:
    """Registers a frozen dataclass as a pytree; fields with metadata {"static": True} are part of its structure.

    Unlike `jax.tree_util.register_dataclass` it rebuilds without `__init__`: leaves are checked when a user makes the
    object, not when a transformation puts its own objects in their place.
    """
    fields = [field for field in dataclasses.fields(cls) if field.init]
    data = tuple(field.name for field in fields if not field.metadata.get("static"))
    meta = tuple(field.name for field in fields if field.metadata.get("static"))

    def flatten(made: Any) -> tuple[tuple, tuple]:
        return tuple(getattr(made, name) for name in data), tuple(getattr(made, name) for name in meta)

    def flatten_with_keys(made: Any) -> tuple[tuple, tuple]:
        leaves, structure = flatten(made)
        keys = (jax.tree_util.GetAttrKey(name) for name in data)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: Any, leaves: Any) -> Any:
        made = object.__new__(cls)
        settle(made, **dict(zip(data, leaves, strict=True)), **dict(zip(meta, structure, strict=True)))
        return made

    _PYTREES.add(cls)
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


@functools.cache
def _fields_of(cls: type) -> tuple[_Field, ...]:
    if not dataclasses.is_dataclass(cls):
        return ()
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception:  # annotations that only the module of a user's class could resolve
        return ()
    return tuple(
        _Field(field.name, field.default, hints[field.name], cls in _PYTREES and not field.metadata.get("static"))
        for field in dataclasses.fields(cls)
        if field.init
    )


def _read(value: Any, hint: Any, traced: bool) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(value, hint, traced)
    if origin in (typing.Union, types.UnionType):
        return _union(value, hint, traced)
    if origin is Literal:
        for arg in args:
            if isinstance(value, type(arg)) and isinstance(arg, type(value)) and value == arg:
                return arg
        raise _Wrong(_words(hint))
    if origin is tuple:
        return _tuple(value, hint, traced)
    if origin is collections.abc.Callable:
        return _test(callable(value) and not isinstance(value, type), value, hint)
    if hint in (int, float):
        return _number(value, hint, traced)
    if hint is bool:
        flag = value.item() if isinstance(value, np.bool_) else value
        return _test(isinstance(flag, bool) or _is_array(value, "b", traced), flag, hint)
    if hint is str:
        return _test(isinstance(value, str) and bool(value), value, hint)
    if hint in (None, types.NoneType):
        return _test(value is None, value, hint)
    return value


def _test(holds: bool, value: Any, hint: Any) -> Any:
    if not holds:
        raise _Wrong(_words(hint))
    return value


def _annotated(value: Any, hint: Any, traced: bool) -> Any:
    base, *rules = typing.get_args(hint)
    limits = next((rule for rule in rules if isinstance(rule, Range)), None)
    if limits is not None:
        try:
            return _number(value, base, traced, limits)
        except _Wrong as wrong:
            raise _Wrong(_words(hint), wrong.where) from None
    read = _read(value, base, traced)
    for rule in rules:
        if hasattr(rule, "check"):
            try:
                read = rule.check(read)
            except JvidpruneError:
                raise
            except ValueError:
                raise _Wrong(rule.words) from None
    return read


def _union(value: Any, hint: Any, traced: bool) -> Any:
    where = ""
    for arm in typing.get_args(hint):
        try:
            return _read(value, arm, traced)
        except _Wrong as wrong:
            where = where or wrong.where
    optional = types.NoneType in typing.get_args(hint)
    none = (" or be None" if where.startswith("lie") else " or None") * optional
    raise _Wrong(_words(hint), where and where + none)


def _tuple(value: Any, hint: Any, traced: bool) -> Any:
    args = typing.get_args(hint)
    if not isinstance(value, tuple | list):
        raise _Wrong(_words(hint))
    hints = (args[0],) * len(value) if len(args) == 2 and args[1] is Ellipsis else args
    if len(hints) != len(value):
        raise _Wrong(_words(hint))
    try:
        read = tuple(_read(item, each, traced) for item, each in zip(value, hints, strict=True))
    except _Wrong:
        raise _Wrong(_words(hint)) from None
    same = isinstance(value, tuple) and all(old is new for old, new in zip(value, read, strict=True))
    return value if same else read


def _number(value: Any, kind: type, traced: bool, limits: Range = _ANYWHERE) -> Any:
    kinds = "iu" if kind is int else "fiuV"
    if isinstance(value, jax.Array) or (traced and isinstance(value, np.ndarray) and value.ndim):
        if not _is_array(value, kinds, traced):
            raise _Wrong(_words(kind))
        if isinstance(value, Tracer) or value.size != 1:
            return value
        _in_range(value.item(), kind, limits)
        return value
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0 and np.asarray(value).dtype.kind in kinds:
        value = value.item()
    wanted = numbers.Integral if kind is int else numbers.Real
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise _Wrong(_words(kind))
    _in_range(value, kind, limits)
    return value if type(value) is kind else cast(Any, kind)(value)


def _in_range(value: Any, kind: type, limits: Range) -> None:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
        if kind is float:
            raise _Wrong(_words(kind)) from None
    if kind is float and not math.isfinite(number):
        raise _Wrong(_words(kind))
    seen = 0.0 if kind is float and abs(number) < _SMALLEST_FLOAT else number
    if not (limits.holds(number) and limits.holds(seen)):
        raise _Wrong(_words(kind), limits.where)
    largest = _LARGEST_INT if kind is int else _LARGEST_FLOAT
    if limits.high is None and number > largest:
        raise _Wrong(_words(kind), f"be at most {largest:.10g}")
    if limits.low is None and number < -largest:
        raise _Wrong(_words(kind), f"be at least {-largest:.10g}")


def _is_array(value: Any, kinds: str, traced: bool) -> bool:
    """Whether a value is an array of jax, or in a leaf of numpy, that can stand for a number of this kind."""
    if not (isinstance(value, jax.Array) or (traced and isinstance(value, np.ndarray))):
        return False
    scalar = value.ndim == 0 or traced or isinstance(value, Tracer)
    return scalar and value.dtype.kind in kinds


def _names(hint: Any) -> tuple[str, ...]:
    """The names that an annotation of nothing but names, or None, allows."""
    args = [
        arg
        for part in (typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,))
        if part is not types.NoneType
        for arg in (typing.get_args(part) if typing.get_origin(part) is Literal else (None,))
    ]
    names = tuple(arg for arg in args if isinstance(arg, str))
    return names if len(names) == len(args) else ()


def _words(hint: Any) -> str:
    """What an annotation allows, as in "must be ..."."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for rule in args[1:]:
            if isinstance(rule, Range):
                return rule.of("a whole number" if args[0] is int else "a number")
            if hasattr(rule, "words"):
                return rule.words
        return _words(args[0])
    if origin in _UNIONS:
        return _either([_words(arg) for arg in args])
    if origin is Literal:
        return _either([repr(arg) for arg in args])
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list, each entry {_words(args[0])}"
        return f"a list of {len(args)}: {', '.join(map(_words, args))}"
    known = {float: "a finite number", int: "a whole number", bool: "True or False", str: "a name", None: "None"}
    known |= {types.NoneType: "None"}
    if origin is collections.abc.Callable:
        return "a function"
    return known.get(hint, getattr(hint, "__name__", str(hint)))


def _either(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
