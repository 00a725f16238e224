"""Pickles read as data: an interpreter of the few instructions that files of weights and numbers need.

Nothing that a file names is imported or called. A name stays a text; only constructors that the format's reader passes
are run.
"""

from __future__ import annotations

import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from torch import Tensor

from classyseg.console import shown

MAX_STEPS = 10_000_000
FREE_STEPS = 100_000
BYTES_A_STEP = 8
"""Instructions of a pickle: about 30 a tensor, and one for each number that a training script keeps with them. Each
may take some 80 bytes of memory, so a file may have 100000, and one more for each 8 bytes of it."""
SLACK = 2**16
MAX_KEY_PARTS = 8
MAX_DIMENSIONS = 64
MAX_SIZE = 2**63

Constructor = Callable[..., Any]


class UnreadableError(ValueError):
    """Why a file cannot be read; the message has no path yet."""


@dataclass(frozen=True)
class Named:
    """A name in a pickle, as `module.name`."""

    name: str


class LazyTensor(ABC):
    """A tensor in a file."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """The bytes of its values."""

    @abstractmethod
    def tensor(self) -> Tensor:
        """Reads and checks its values."""


class Buildable(ABC):
    """An object that a pickle makes first, and gives its state later."""

    @abstractmethod
    def build(self, state: Any) -> None: ...


class Ignored(Buildable):
    """What training scripts keep together with weights: numpy's numbers, options, configs. Read over, and dropped."""

    def __init__(self, *_arguments: Any) -> None: ...

    def build(self, state: Any) -> None: ...


def containers() -> dict[str, Constructor]:
    """The constructors of Python's own containers, under the names of Python 2 and 3. Sets become lists."""

    def pairs(items: Any = ()) -> dict[Any, Any]:
        return dict_of(items.items() if isinstance(items, dict) else items)

    def values(items: Any = ()) -> list[Any]:
        return list(items)

    found: dict[str, Constructor] = {f"collections.{name}": pairs for name in ("OrderedDict", "Counter")}
    found["collections.defaultdict"] = lambda _factory=None, items=(): pairs(items)
    for builtins in ("builtins", "__builtin__"):
        found |= {f"{builtins}.{name}": never for name in ("int", "float", "str", "bool", "object")}
        found |= {f"{builtins}.{name}": values for name in ("set", "frozenset", "list")}
        found[f"{builtins}.bytes"] = lambda: b""  # protocol 2 writes empty bytes so
        found |= {f"{builtins}.dict": pairs, f"{builtins}.tuple": lambda items=(): tuple(items)}
    return found


def never(*_arguments: Any) -> Any:
    """A constructor for names that a file may have but not call."""
    raise UnreadableError("it wants to call what is only a name")


def dict_of(pairs: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        _set_item(found, key, value)
    return found


def sizes_of(sizes: Any) -> tuple[int, ...]:
    """`sizes` from a file: at most 64 numbers below 2^63, so that multiplying and printing them is fast."""
    if not isinstance(sizes, tuple | list) or len(sizes) > MAX_DIMENSIONS:
        raise UnreadableError(f"a tensor of it has more than {MAX_DIMENSIONS} sizes, or none")
    if any(type(number) is not int or not 0 <= number < MAX_SIZE for number in sizes):
        raise UnreadableError("a tensor of it has sizes that are no natural numbers below 2^63")
    return tuple(sizes)


def encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode` as pickles before protocol 3 use it, for bytes."""
    if not isinstance(text, str) or not isinstance(encoding, str):
        raise UnreadableError("it wants to encode what is no text")
    if encoding not in ("latin1", "latin-1"):
        raise UnreadableError(f"it wants the codec {shown(encoding)}")
    return text.encode("latin1")


def read_pickle(
    file: IO[bytes],
    constructors: Mapping[str, Constructor],
    persistent: Callable[[Any], Any] | None = None,
    max_steps: int = FREE_STEPS,
) -> Any:
    """The object of the pickle at the position of `file`, which is after the pickle then.

    `read(n)` of `file` must not allocate more than there is. `constructors` maps `module.name` to what is called in its
    place. `persistent` resolves persistent ids.

    Raises: `UnreadableError` for a name without a constructor, and for instructions that no file of weights has. A
    damaged pickle may raise anything.
    """
    machine = _Machine(constructors, persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if count > max_steps:
            raise UnreadableError(f"its pickle has more than {max_steps} instructions, too many for so small a file")
        machine.allowance += 1 + (len(argument) if isinstance(argument, str | bytes) else 0)
        if opcode.name in _VALUES:
            machine.stack.append(argument)
        elif opcode.name in _STEPS:
            _STEPS[opcode.name](machine, argument)
        else:
            raise UnreadableError(
                f"its pickle has the instruction {opcode.name}, which no weights of protocols 2 to 5 need"
            )
    raise UnreadableError("its pickle has no end")


def steps_of(size: int) -> int:
    """How many instructions the pickle of a file of `size` bytes may have."""
    return min(MAX_STEPS, FREE_STEPS + size // BYTES_A_STEP)


class _Machine:
    def __init__(self, constructors: Mapping[str, Constructor], persistent: Callable[[Any], Any] | None) -> None:
        self.constructors = constructors
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.allowance = SLACK
        """How many characters and items constructors may still make: no more than were read, so that nothing grows."""

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _argument: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("its pickle takes what is not there")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise UnreadableError("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise UnreadableError("its pickle sets items of what is no dict")
        for i in range(0, len(items), 2):
            _set_item(self.stack[-1], items[i], items[i + 1])

    def put(self, number: Any) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def named(self, module: Any, name: Any) -> None:
        text = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "what has no name"
        if text not in self.constructors:
            raise UnreadableError(f"it wants to run {text[:80]}, and data runs nothing; expected numbers by name")
        self.push(Named(text))

    def construct(self, _argument: Any) -> None:
        constructor, arguments = self.top(2)
        if not isinstance(constructor, Named) or not isinstance(arguments, tuple):
            raise UnreadableError("its pickle calls what is no name")
        self.spend(arguments)
        made = self.constructors[constructor.name](*arguments)
        self.spend(made)
        self.push(made)

    def build(self, _argument: Any) -> None:
        (state,) = self.top(1)
        self.spend(state)
        if isinstance(self.stack[-1], Buildable):
            self.stack[-1].build(state)
        elif type(self.stack[-1]) is not dict:  # an OrderedDict's attributes, such as torch's _metadata
            raise UnreadableError("its pickle gives a state to what has none")

    def load_persistent(self, _argument: Any) -> None:
        if self.persistent is None:
            raise UnreadableError("its pickle refers to data outside it")
        self.push(self.persistent(self.stack.pop()))

    def spend(self, value: Any) -> None:
        """Takes the size of what is copied from the allowance."""
        self.allowance -= len(value) if isinstance(value, bytes | list | tuple | dict) else 0
        if self.allowance < 0:
            raise UnreadableError("its pickle copies the same things again and again")


def _set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    parts = key if isinstance(key, tuple) and len(key) <= MAX_KEY_PARTS else (key,)
    if not all(isinstance(part, str | int | float | bytes | None) for part in parts):
        # other keys could nest without end, and are hashed in C
        raise UnreadableError(f"it has a {type(key).__name__} as a key; expected a text, a number, or a few of them")
    if key in target:
        raise UnreadableError(f"it has the key {shown(key)} twice")
    target[key] = value


_INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
_VALUES = frozenset((*_INTEGERS, *_TEXTS, "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"))
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    # integers of more than 255 bytes are slow to hash and to print
    "LONG4": lambda machine, _: machine.push(Ignored()),
    "BYTEARRAY8": lambda machine, _: machine.push(Ignored()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "FROZENSET": lambda machine, _: machine.push(machine.to_mark()),
    "TUPLE1": lambda machine, _: machine.push(machine.top(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.top(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.top(3)),
    "APPEND": lambda machine, _: machine.extend(list(machine.top(1))),
    "APPENDS": lambda machine, _: machine.extend(machine.to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.top(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "MEMOIZE": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": lambda machine, number: machine.push(machine.memo[number]),
    "LONG_BINGET": lambda machine, number: machine.push(machine.memo[number]),
    "GLOBAL": lambda machine, text: machine.named(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.named(*machine.top(2)),
    "REDUCE": _Machine.construct,
    "NEWOBJ": _Machine.construct,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load_persistent,
}
