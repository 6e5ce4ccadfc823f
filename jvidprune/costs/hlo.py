"""Bytes that a compiled program reads and writes, from XLA's optimised HLO text, with bodies of loops counted right.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs: the number of rounds stands
in the text, or the program says it in the name of a scope where the data decide (`ops.branch.mean_rounds`). Of the
branches of a conditional the most expensive one counts. A kernel counts what it is given and returns, once: how often
it reads a tile again is not in the text.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
    | {"opt-barrier", "domain", "add-dependency"}
)
_INSIDE = ("body", "to_apply", "calls", "branch_computations", "true_computation", "false_computation")
"""Attributes that name the computations an instruction runs."""
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
_ROUNDS = re.compile(r"mean_rounds_([0-9.]+?)(?=[/\"]|$)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes read and written.

    Attributes:
      main: of the device's main memory (HBM).
      near: of memory that the compiler placed beside the arithmetic (VMEM of a TPU).
      guessed: loops whose rounds are neither in the text nor named; they count once.
    """

    main: float = 0.0
    near: float = 0.0
    guessed: int = 0

    @property
    def total(self) -> float:
        """Bytes of both memories: what XLA's cost analysis calls bytes accessed."""
        return self.main + self.near

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.main + other.main, self.near + other.near, self.guessed + other.guessed)

    def times(self, rounds: float) -> "Traffic":
        """The traffic of so many rounds."""
        return Traffic(self.main * rounds, self.near * rounds, self.guessed)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shapes: tuple[tuple[float, bool], ...]
    """Bytes of each array, and whether it lies in near memory."""
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def size(self) -> Traffic:
        return _traffic(self.shapes)


def traffic(text: str, *, loops_once: bool = False) -> Traffic:
    """Bytes that a program moves, from `compiled.as_text()`.

    An instruction reads its operands and writes its results; a slice or gather, alone or inside a fusion, reads what it
    takes, and an update in place writes what it puts in.

    Args:
      text: optimised HLO.
      loops_once: count loop bodies once, as XLA does; to compare with its numbers.
    """
    computations, entry = _parse(text)
    return _Counter(computations, loops_once).computation(entry)


def arrays(text: str) -> list[tuple[float, str]]:
    """Bytes and opcode of every array that an instruction outside of fusions makes, largest first."""
    computations, _ = _parse(text)
    fused = {
        name
        for body in computations.values()
        for instruction in body.values()
        if instruction.opcode == "fusion"
        for name in _called(instruction, "calls")
    }
    made = [
        (size, instruction.opcode)
        for name, body in computations.items()
        if name not in fused
        for instruction in body.values()
        if instruction.opcode not in _FREE and instruction.opcode != "while"
        for size, _ in instruction.shapes
    ]
    return sorted(made, reverse=True)


COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""Kinds of messages between devices, as XLA names them."""


class Message(NamedTuple):
    """Collectives of one origin that a device takes part in.

    Attributes:
      kind: of `COLLECTIVES`.
      origin: what the program was doing, as XLA keeps it: "jit(f)/while/body/dot_general".
      among: devices that share it, 0 where the text does not tell.
      count: how many.
      put: bytes that one device puts into all of them.
      largest: bytes of the largest array that one of them makes.
    """

    kind: str
    origin: str
    among: int
    count: float
    put: float
    largest: float


def messages(text: str) -> list[Message]:
    """The messages of a program by kind, origin and number of devices, those of most bytes first.

    Those in loops count as often as the loops run, of a conditional all branches count.

    Args:
      text: optimised HLO.
    """
    computations, entry = _parse(text)
    counter = _Counter(computations, loops_once=False)
    found: dict[tuple[str, str, int], tuple[float, float, float]] = {}

    def walk(name: str, times: float) -> None:
        body = computations[name]
        for one in body.values():
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                key = kind, _named(one), _among(one)
                count, size, largest = found.get(key, (0.0, 0.0, 0.0))
                put = sum(body[operand].size.total for operand in one.operands if operand in body)
                most = max((made for made, _ in one.shapes), default=0.0)
                found[key] = count + times, size + times * put, max(largest, most)
            rounds = (counter.rounds(one) or 1.0) if one.opcode == "while" else 1.0
            for key in _INSIDE:
                for called in _called(one, key):
                    walk(called, times * rounds)

    walk(entry, 1.0)
    every = [Message(*key, *amounts) for key, amounts in found.items()]
    return sorted(every, key=lambda message: message.put, reverse=True)


def collectives(text: str) -> dict[str, tuple[float, float]]:
    """How many messages of each kind one device takes part in, and the bytes that it puts into them; see `messages`."""
    return by_kind(messages(text))


def by_kind(every: Iterable[Message]) -> dict[str, tuple[float, float]]:
    """Messages of all origins together: kind -> (how many, bytes that one device puts into them)."""
    found: dict[str, tuple[float, float]] = {}
    for message in every:
        count, size = found.get(message.kind, (0.0, 0.0))
        found[message.kind] = count + message.count, size + message.put
    return found


def _named(one: "_Instruction") -> str:
    found = re.search(r'op_name="([^"]*)"', one.rest)
    return found.group(1) if found else ""


def _among(one: "_Instruction") -> int:
    """Devices of a group: listed, as in [groups,devices]<=[all], or as axes of a mesh of their own."""
    listed = re.search(r"replica_groups=\{\{([0-9,]+)\}", one.rest)
    if listed:
        return listed.group(1).count(",") + 1
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", one.rest)
    if counted:
        return int(counted.group(1))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", one.rest)
    if not mesh:
        return 0
    sides = {name: int(side) for name, side in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
    return math.prod(sides.get(name, 0) for name in re.findall(r"'(\w+)'", mesh.group(2)))


def _traffic(shapes: Sequence[tuple[float, bool]]) -> Traffic:
    return Traffic(sum(size for size, near in shapes if not near), sum(size for size, near in shapes if near))


class _Counter:
    def __init__(self, computations: dict[str, dict[str, _Instruction]], loops_once: bool):
        self.computations, self.loops_once = computations, loops_once
        self.computation: Callable[[str], Traffic] = cache(self._computation)

    def _computation(self, name: str) -> Traffic:
        body = self.computations[name]
        return sum((self._instruction(instruction, body) for instruction in body.values()), Traffic())

    def _instruction(self, one: _Instruction, body: dict[str, _Instruction]) -> Traffic:
        op = one.opcode
        if op in _FREE or op.endswith("-done"):
            return Traffic()
        if op == "while":
            both = [self.computation(name) for key in ("body", "condition") for name in _called(one, key)]
            count = self.rounds(one)
            inside = sum(both, Traffic()).times(1 if count is None or self.loops_once else count)
            return inside + Traffic(guessed=int(count is None))
        if op in ("call", "conditional"):
            keys = ("to_apply", "branch_computations", "true_computation", "false_computation")
            found = [self.computation(name) for key in keys for name in _called(one, key)]
            return max(found, key=lambda moved: moved.total, default=Traffic())
        operands = [body[name] for name in one.operands if name in body]
        if op == "copy-start":
            return _traffic(one.shapes[:2])
        if op == "slice-start" and len(one.shapes) > 1:
            (_, near), made = one.shapes[0], one.shapes[1]
            return _traffic([(made[0], near), made])
        if op in ("fusion", "async-start"):
            names = _called(one, "calls")
            return self._fusion(one, operands, self.computations[names[0]]) if names else _plain(one, operands)
        return _one(op, one, operands)

    def rounds(self, one: _Instruction) -> float | None:
        named = _ROUNDS.findall(one.rest)
        if named:
            return float(named[-1])
        known = _TRIPS.search(one.rest)
        if known:
            return float(known.group(1))
        for name in _called(one, "condition"):
            return _bound(self.computations[name], self.computations)
        return None

    def _taken(self, inside: dict[str, _Instruction], name: str, whole: float) -> float:
        """Bytes that a fused computation reads of an array of its own, which has `whole`."""
        taken = 0.0
        for user in inside.values():
            for place in (number for number, operand in enumerate(user.operands) if operand == name):
                if user.opcode == "bitcast" or self._is_view(user):
                    taken += self._taken(inside, user.name, whole)
                elif user.opcode in _SLICES and place == 0:
                    taken += user.size.total
                elif user.opcode == "fusion":
                    nested = self.computations[_called(user, "calls")[0]]
                    taken += self._taken(nested, _parameters(nested)[place], whole)
                elif user.opcode != "dynamic-update-slice" or place > 0:
                    return whole
        return min(taken, whole)

    def _is_view(self, one: _Instruction) -> bool:
        """Whether a fusion inside a fusion is an array in another layout, of which nothing is made but what is read."""
        if one.opcode != "fusion" or "output_to_operand_aliasing" not in one.rest:
            return False
        nested = self.computations[_called(one, "calls")[0]]
        return {step.opcode for step in nested.values()} <= {"parameter", "copy", "bitcast"}

    def _fusion(self, one: _Instruction, operands: list[_Instruction], inside: dict[str, _Instruction]) -> Traffic:
        moved = Traffic()
        parameters = _parameters(inside)
        for place, operand in enumerate(operands):
            whole = operand.size
            if len(operand.shapes) == 1 and place in parameters and whole.total:
                taken = self._taken(inside, parameters[place], whole.total)
                moved = moved + whole.times(taken / whole.total)
            else:
                moved = moved + whole
        results = _results(inside)
        for (size, near), result in zip(one.shapes, results, strict=False):
            written = _traffic([(size, near)])
            if result is not None and written.total:
                written = written.times(min(1.0, result / written.total))
            moved = moved + written
        return moved + _traffic(one.shapes[len(results) :])


def _results(inside: dict[str, _Instruction]) -> list[float | None]:
    """Bytes of what each result of a fusion writes where that is an update in place, None for all of it."""
    root = next(instruction for instruction in inside.values() if instruction.root)
    ends = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    found: list[float | None] = []
    for end in ends:
        while end.opcode == "bitcast" and end.operands[0] in inside:
            end = inside[end.operands[0]]
        update = inside.get(end.operands[1]) if end.opcode == "dynamic-update-slice" else None
        found.append(None if update is None else update.size.total)
    return found


def _plain(one: _Instruction, operands: list[_Instruction]) -> Traffic:
    return sum((operand.size for operand in operands), one.size)


def _one(op: str, one: _Instruction, operands: list[_Instruction]) -> Traffic:
    if op in _SLICES and operands:
        taken, source = one.size.total, operands[0].size
        read = source.times(min(1.0, taken / source.total)) if source.total else Traffic()
        return sum((operand.size for operand in operands[1:]), read + one.size)
    if op == "dynamic-update-slice" and len(operands) > 1:
        put, whole = operands[1].size, one.size
        return put + whole.times(min(1.0, put.total / whole.total))
    if op == "scatter" and len(operands) == 3:
        put, whole = operands[2].size, one.size
        changed = whole.times(min(1.0, put.total / whole.total))
        return put + operands[1].size + changed.times(2)
    if op == "custom-call" and ("AllocateBuffer" in one.rest or "Allocate" in one.rest):
        return Traffic()
    return _plain(one, operands)


def _bound(condition: dict[str, _Instruction], computations: dict[str, dict[str, _Instruction]]) -> float | None:
    """Rounds of a loop from 0 up to a constant, from its condition alone."""
    constants = [
        int(found.group(1))
        for instruction in condition.values()
        if instruction.opcode == "constant"
        and (found := re.match(r"^(\d+)$", instruction.operands[0] if instruction.operands else ""))
    ]
    compares = [i for i in condition.values() if i.opcode == "compare" or i.opcode == "fusion"]
    simple = len(compares) == 1 and ("direction=LT" in compares[0].rest or compares[0].opcode == "fusion")
    return float(constants[0]) if simple and len(constants) == 1 else None


def _parameters(inside: dict[str, _Instruction]) -> dict[int, str]:
    return {int(one.operands[0]): one.name for one in inside.values() if one.opcode == "parameter"}


def _called(one: _Instruction, key: str) -> list[str]:
    found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", one.rest)
    return re.findall(r"%?([\w.\-]+)", found.group(1)) if found else []


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, body = "", None
    for line in _lines(text):
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", line.rstrip()) if line[:1] not in (" ", "}") else None
        if head and "=" not in line.split("(")[0]:
            body = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif body is not None and line.startswith("  ") and " = " in line:
            instruction = _instruction(line)
            body[instruction.name] = instruction
        elif line.startswith("}"):
            body = None
    return computations, entry


def _lines(text: str) -> Iterator[str]:
    """Lines of a program; an instruction that a kernel's settings break over several is one."""
    whole = ""
    for line in text.splitlines():
        goes_on = (
            whole.startswith("  ") and line[:1] not in ("", " ", "%") and not re.match(r"^(\}$|\}, |ENTRY )", line)
        )
        if goes_on:
            whole += line
            continue
        if whole:
            yield whole
        whole = line
    if whole:
        yield whole


def _instruction(line: str) -> _Instruction:
    left, _, right = line.strip().partition(" = ")
    root = left.startswith("ROOT ")
    end = _closing(right, 0) + 1 if right[0] == "(" else _outside(right, 0)
    opcode, _, after = right[end:].strip().partition("(")
    close = _closing("(" + after, 0)
    inner, rest = after[: close - 1], after[close:]
    # A parameter's and a constant's argument is a number.
    names = re.findall(r"%([\w.\-]+)", inner) or ([inner] if opcode in ("parameter", "constant") else [])
    return _Instruction(left.removeprefix("ROOT ").lstrip("%"), _shapes(right[:end]), opcode, tuple(names), rest, root)


def _closing(text: str, at: int) -> int:
    depth = 0
    for place in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1


def _outside(text: str, at: int) -> int:
    depth = 0
    for place in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0 and text[place] == " ":
            return place
    return len(text)


def _shapes(text: str) -> tuple[tuple[float, bool], ...]:
    found = []
    for kind, sides, layout in re.findall(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?", text):
        bits = _BITS.get(kind)
        if bits is None:
            digits = re.search(r"\d+", kind)
            bits = int(digits.group()) if digits else 32
        count = math.prod(int(side) for side in sides.split(",") if side)
        found.append((count * bits / 8, "S(1)" in layout))
    return tuple(found)
