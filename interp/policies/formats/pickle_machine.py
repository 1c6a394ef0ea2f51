"""A pickle is a program. This machine runs it on inert values only: there is no way from here to an import or a call.

Python's unpickler looks up whatever a file names and calls it. Here a global stays a `Name`, and the object that a call
would have made is a `Stand` that remembers class, arguments and state. A closed table (`Rebuild`) turns the few calls
that only describe data (an ordered dict, a tensor's view of its storage) into that data. Work is counted, so a small
file cannot ask for much; every value that the machine holds was paid for by a step.
"""

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from interp.policies.formats.limits import MAX_NAME_CHARS, MAX_PICKLE_WORK

_REMEDY = "save a state_dict with torch.save, or as safetensors, in the environment that trained it"


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the file refers to. Never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        """In printable characters, since errors and cards show it."""
        return repr(f"{self.module[:200]}.{self.name[:200]}")[1:-1]


@dataclass(slots=True, eq=False, repr=False)
class Stand:
    """What stands in for an object of a class that is not ours to make. No repr: it may be endless."""

    of: Name
    args: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    """As given to __setstate__, if that is no dict of attributes."""
    items: list[Any] = field(default_factory=list)
    """What a list-like was extended by."""
    entries: dict[Any, Any] = field(default_factory=dict)
    """What a dict-like was given."""


Rebuild = Callable[[tuple[Any, ...]], Any]
"""Arguments of a call -> the data that it describes. Raises ValueError for arguments that it does not know."""


def run_pickle(
    stream: BytesIO,
    *,
    source: str,
    rebuild: Mapping[str, Rebuild],
    load_storage: Rebuild | None = None,
) -> Any:  # noqa: ANN401 - whatever the file describes
    """The value that one pickle describes; `stream` is left behind its end.

    Args:
        stream: at the first byte of the pickle.
        source: named in every error.
        rebuild: full name of a callable -> what its call amounts to, beyond the plain containers known here.
        load_storage: what a persistent id stands for; without it such an id is refused.

    Raises:
        ValueError: damaged, too much work, or it calls something that a policy has no need of.
    """
    machine = _Machine(source=source, rebuild=rebuild, load_storage=load_storage)
    return machine.run(stream)


class _Refusal(ValueError):
    """Said within the machine, which adds source and position."""


# Calls into these packages can do anything, so only names that describe data may be called. Any other class belongs to
# the policy's own code: its call is a stand.
_DATA_OF_PYTHON = {
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"),
        *("object", "range", "set", "slice", "str", "tuple"),
    },
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
    "_codecs": {"encode"},
}
_DATA_OF_NUMPY = {
    *("dtype", "ndarray"),
    *("bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
}
_DATA_OF_NUMPY_CORE = {"_reconstruct", "scalar", "_frombuffer"}
_CODE_CARRIERS = {"cloudpickle", "dill", "joblib", "pip", "setuptools"}


def _may_be_called(name: Name) -> bool:
    package = name.module.partition(".")[0]
    if package in sys.stdlib_module_names or package in sys.builtin_module_names:
        return name.name in _DATA_OF_PYTHON.get(name.module, ())
    match package:
        case "numpy":
            return (
                (name.module == "numpy" and name.name in _DATA_OF_NUMPY)
                or (
                    name.module.endswith((".multiarray", ".numeric"))
                    and name.name in _DATA_OF_NUMPY_CORE
                )
                or name.module.startswith("numpy.random.")
            )
        case "torch":
            # Classes of modules, optimisers and distributions; functions live in lower case.
            return (
                name.module.startswith(("torch.nn.", "torch.optim.", "torch.distributions."))
                and name.name[:1].isupper()
            ) or (name.module == "torch" and name.name in {"device", "Size"})
    return package not in _CODE_CARRIERS


class _Machine:
    def __init__(
        self, *, source: str, rebuild: Mapping[str, Rebuild], load_storage: Rebuild | None
    ) -> None:
        self._source = source
        self._load_storage = load_storage
        self._rebuild: dict[str, Rebuild] = {
            "builtins.bytearray": self._bytes,
            "builtins.bytes": self._bytes,
            "builtins.frozenset": self._set,
            "builtins.getattr": self._attribute,
            "builtins.set": self._set,
            "collections.OrderedDict": self._dict,
            "collections.defaultdict": lambda _: {},
            "copyreg._reconstructor": self._reconstructed,
            "_codecs.encode": self._bytes,
            **rebuild,
        }
        self._work = 0
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        """The stacks under the open marks."""
        self._memo: dict[int, Any] = {}

    def run(self, stream: BytesIO) -> Any:  # noqa: ANN401 - whatever the file describes
        position = 0
        try:
            # pickletools reads arguments from the stream: it allocates nothing that is not there.
            for opcode, argument, at in pickletools.genops(stream):
                position = at or 0
                self._spend(1)
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except _Refusal as error:
            raise ValueError(f"{self._source}, byte {position}: {error}; {_REMEDY}") from error
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise ValueError(
                f"{self._source}, byte {position}: not a readable pickle ({error}); "
                "fetch or save the file again"
            ) from error
        raise ValueError(f"{self._source}: a pickle without an end; fetch or save the file again")

    def _step(self, operation: str, argument: Any) -> None:  # noqa: ANN401 - as pickletools reads it
        stack = self._stack
        if operation in _LITERALS:
            stack.append(argument)
            return
        match operation:
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "POP_MARK":
                self._since_mark()
            case "POP":
                if stack:
                    stack.pop()
                else:
                    self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(operation[-1])
                if len(stack) < size:
                    raise IndexError("a tuple of more than there is")
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                self._push(tuple(self._since_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                self._push(self._since_mark())
            case "APPEND":
                item = stack.pop()
                self._extend(stack[-1], [item])
            case "APPENDS":
                items = self._since_mark()
                self._extend(self._stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self._since_mark()
                self._push({})
                self._set_items(self._stack[-1], items)
            case "SETITEM":
                pair = [stack.pop(), stack.pop()][::-1]
                self._set_items(stack[-1], pair)
            case "SETITEMS":
                items = self._since_mark()
                self._set_items(self._stack[-1], items)
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = self._since_mark()
                if not isinstance(self._stack[-1], set):
                    raise _Refusal(f"adds elements to a {_kind(self._stack[-1])}, wanted a set")
                self._stack[-1].update(self._key(item) for item in items)
            case "FROZENSET":
                self._push({self._key(item) for item in self._since_mark()})
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                stack.append(_name(module, name))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not (isinstance(module, str) and isinstance(name, str)):
                    raise _Refusal("names a global by something that is no text")
                stack.append(_name(module, name))
            case "REDUCE" | "NEWOBJ":
                args, of = stack.pop(), stack.pop()
                stack.append(self._call(of, args))
            case "NEWOBJ_EX":
                keywords, args, of = stack.pop(), stack.pop(), stack.pop()
                made = self._call(of, args)
                self._build(made, keywords)
                stack.append(made)
            case "OBJ":
                of, *args = self._since_mark()
                self._push(self._call(of, tuple(args)))
            case "INST":
                module, _, name = argument.partition(" ")
                args = self._since_mark()
                self._push(self._call(_name(module, name), tuple(args)))
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case "PERSID" | "BINPERSID":
                key = argument if operation == "PERSID" else stack.pop()
                if self._load_storage is None or not isinstance(key, tuple):
                    raise _Refusal("refers to something outside the file")
                self._push(self._load(key))
            case _:
                # EXT1, EXT2, EXT4 (the copyreg registry of this process) and out-of-band buffers.
                raise _Refusal(f"uses {operation}, which no policy file needs")

    def _push(self, value: Any) -> None:  # noqa: ANN401 - any inert value
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_PICKLE_WORK:
            raise _Refusal(f"takes more than {MAX_PICKLE_WORK} steps to read")

    def _extend(self, target: Any, items: list[Any]) -> None:  # noqa: ANN401 - any inert value
        match target:
            case list():
                target.extend(items)
            case Stand():
                target.items.extend(items)
            case _:
                raise _Refusal(f"appends to a {_kind(target)}, wanted a list")

    def _set_items(self, target: Any, items: list[Any]) -> None:  # noqa: ANN401 - any inert value
        match target:
            case dict():
                entries = target
            case Stand():
                entries = target.entries
            case _:
                raise _Refusal(f"sets items of a {_kind(target)}, wanted a dict")
        if len(items) % 2:
            raise IndexError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[self._key(key)] = value

    def _key(self, key: Any, depth: int = 0) -> Any:  # noqa: ANN401 - any inert value
        """The key itself, if its hash is cheap: a tuple of the same tuple twice, and so on, hashes in 2^depth steps."""
        match key:
            case None | bool() | int() | float() | str() | bytes() | Name():
                return key
            case tuple() if depth < 4:
                self._spend(len(key))
                for part in key:
                    self._key(part, depth + 1)
                return key
            case _ if type(key).__hash__ is object.__hash__:
                return key
        raise _Refusal(f"has a {_kind(key)} as a dict key or set element, wanted text or a number")

    def _call(self, of: Any, args: Any) -> Any:  # noqa: ANN401 - any inert value
        if not isinstance(of, Name):
            raise _Refusal(f"calls a {_kind(of)}, wanted the name of a class")
        if not isinstance(args, tuple):
            raise _Refusal(f"calls {of} with a {_kind(args)}, wanted a tuple")
        rebuild = self._rebuild.get(f"{of.module}.{of.name}")
        if rebuild is None:
            if of.module == "torch._utils" and of.name.startswith("_rebuild"):
                raise _Refusal(
                    f"holds a tensor of a kind that is not read ({of}), wanted a dense one; convert it"
                )
            if not _may_be_called(of):
                raise _Refusal(
                    f"asks to call {of}, which no policy needs: nothing was run, and the file may be an attack"
                )
            return Stand(of=of, args=args)
        try:
            return rebuild(args)
        except ValueError as error:
            raise _Refusal(f"{of}: {error}") from error

    def _build(self, target: Any, state: Any) -> None:  # noqa: ANN401 - any inert value
        match target:
            case Stand():
                # Objects with __slots__ give (dict or None, dict of slots).
                parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
                if all(part is None or isinstance(part, dict) for part in parts):
                    for part in parts:
                        self._spend(len(part or ()))
                        target.attributes.update(part or {})
                else:
                    target.state = state
            case dict():
                pass  # attributes of an ordered dict: the versions of the modules in a state_dict
            case _:
                raise _Refusal(f"sets the state of a {_kind(target)}, wanted that of an object")

    def _load(self, key: tuple[Any, ...]) -> Any:  # noqa: ANN401 - any inert value
        assert self._load_storage is not None
        try:
            return self._load_storage(key)
        except ValueError as error:
            raise _Refusal(str(error)) from error

    def _dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        match args:
            case ():
                return {}
            case (list() as pairs,) if all(
                isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
            ):
                self._spend(len(pairs))
                return {self._key(key): value for key, value in pairs}
        raise ValueError("arguments other than a list of pairs")

    def _set(self, args: tuple[Any, ...]) -> set[Any]:
        match args:
            case ():
                return set()
            case ((list() | tuple()) as elements,):
                self._spend(len(elements))
                return {self._key(element) for element in elements}
        raise ValueError("arguments other than a list")

    def _bytes(self, args: tuple[Any, ...]) -> bytes:
        """Python 3 spells bytes as `_codecs.encode(text, "latin1")` in the protocol that torch writes."""
        match args:
            case ():
                return b""
            case (bytes() as content,):
                return content
            case (str() as text, "latin1" | "latin-1"):
                self._spend(len(text) // 16)
                return text.encode("latin-1")
        raise ValueError("arguments other than bytes, or text in latin1")

    def _attribute(self, args: tuple[Any, ...]) -> Name | Stand:
        """A method that a module keeps, or a function such as torch.relu: a longer name, not a value."""
        match args:
            case (Name() as of, str() as attribute):
                return Name(of.module, f"{of.name}.{attribute}"[:MAX_NAME_CHARS])
            case (Stand(), str()):
                return Stand(of=Name("builtins", "getattr"), args=args)
        raise ValueError("arguments other than a name or an object, and the name of an attribute")

    def _reconstructed(self, args: tuple[Any, ...]) -> Stand:
        """Protocols 0 and 1 make an object by `copyreg._reconstructor(class, base, state of the base)`."""
        match args:
            case (Name() as of, Name(), _):
                made = self._call(of, ())
                if isinstance(made, Stand):
                    return made
        raise ValueError("arguments other than two classes and a state")


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _name(module: str, name: str) -> Name:
    """Protocol 2, which torch writes, spells the standard library as Python 2 did: subprocess is "commands"."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return Name(IMPORT_MAPPING.get(module, module), name)


def _kind(value: object) -> str:
    return f"call of {value.of}" if isinstance(value, Stand) else type(value).__name__.lower()
