"""Structures of arrays as Numba can pass them: one pointer each.

A named tuple of a hundred arrays would be a thousand arguments of every function, and a NumPy record has its sizes in
its type, so that every shape would be compiled anew. A `Struct` is a block of 64-bit words, of each member: the
address of its data and its sizes; for a structure within it, the address of its block. The blocks never change while
the kernel runs (`invariant.load`), so LLVM reads them once; what they refer to is the caller's memory.

Members are `ViewType`s: C order, no bounds, no negative indices, which cost three instructions a dimension; elements
are read as int64, so that no arithmetic mixes widths.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any
from zlib import crc32

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.core.imputils import lower_builtin, lower_getattr, lower_getattr_generic, lower_setattr_generic
from numba.core.typing import templates
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, signature
from numba.extending import NativeValue, typeof_impl, unbox
from numba.np.numpy_support import from_dtype

WORD_BYTES = 8
WORD = ir.IntType(64)
infer_global: Any = templates.infer_global


class ViewType(types.Type):
    """An array of the caller's. ndim >= 1."""

    def __init__(self, dtype: types.Type, ndim: int) -> None:
        super().__init__(name=f"View_{dtype}_{ndim}")
        self.dtype, self.ndim = dtype, ndim


class StructType(types.Type):
    """A `Struct`. title: what kind it is of; members: (name, type) each, a number of the lane has a number's type."""

    def __init__(self, title: str, members: tuple[tuple[str, types.Type], ...]) -> None:
        # The name is what Numba compares and mangles: short, and another one for other members.
        super().__init__(name=f"{title}_{crc32(repr(members).encode()):x}")
        self.title, self.types = title, dict(members)
        self.words = {}
        word = 0
        for name, kind in members:
            self.words[name] = word
            word += 1 + (kind.ndim if isinstance(kind, ViewType) else 0)


class Struct:
    """A tree of NumPy arrays of one lane ([..., 1], C order), by the names of its members. Keeps the arrays alive."""

    def __init__(self, tree: Any) -> None:
        self._kept: list[Any] = []
        members: list[tuple[str, types.Type]] = []
        words: list[int] = []
        for name, value in _members(tree):
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous, name
                sizes = value.shape[:-1]
                kind = from_dtype(value.dtype)
                members.append((name, ViewType(kind, len(sizes)) if sizes else kind))
                words += [value.ctypes.data, *sizes]
                self._kept.append(value)
            else:
                inner = Struct(value)
                members.append((name, inner.numba_type))
                words.append(inner.address)
                self._kept.append(inner)
        self._block = np.asarray(words, np.int64)
        self.address = self._block.ctypes.data
        self.numba_type = StructType(type(tree).__name__, tuple(members))


def _members(tree: Any) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(tree):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    names = getattr(tree, "_fields", [f"at{index}" for index in range(len(tree))])
    return list(zip(names, tree, strict=True))


@typeof_impl.register(Struct)
def _typeof(value: Struct, context: Any) -> StructType:
    return value.numba_type


@register_default(StructType)
class _StructModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: StructType) -> None:
        super().__init__(manager, kind, ir.IntType(8).as_pointer())


@register_default(ViewType)
class _ViewModel(models.StructModel):
    def __init__(self, manager: Any, kind: ViewType) -> None:
        members = [("data", types.CPointer(kind.dtype)), ("shape", types.UniTuple(types.intp, kind.ndim))]
        super().__init__(manager, kind, members)


@unbox(StructType)
def _unbox(kind: StructType, value: Any, c: Any) -> NativeValue:
    address = c.pyapi.object_getattr_string(value, "address")
    number = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(c.builder.inttoptr(number, ir.IntType(8).as_pointer()), is_error=c.pyapi.c_api_error())


def _number(kind: types.Type) -> types.Type:
    """What an element is read as."""
    return kind if kind == types.boolean else types.int64


@infer_getattr
class _Members(AttributeTemplate):
    key = StructType

    def generic_resolve(self, kind: StructType, name: str) -> types.Type | None:
        member = kind.types.get(name)
        return member if member is None or isinstance(member, StructType | ViewType) else _number(member)


@infer_getattr
class _Sizes(AttributeTemplate):
    key = ViewType

    def resolve_shape(self, kind: ViewType) -> types.Type:
        return types.UniTuple(types.intp, kind.ndim)

    def resolve_size(self, kind: ViewType) -> types.Type:
        return types.intp

    def resolve_flat(self, kind: ViewType) -> types.Type:
        return ViewType(kind.dtype, 1)


def _count(index: types.Type) -> int:
    """Dimensions that an index names."""
    return index.count if isinstance(index, types.BaseTuple) else 1  # pyright: ignore[reportAttributeAccessIssue]


@infer_global(operator.getitem)
class _Read(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        view, index = args
        if not isinstance(view, ViewType):
            return None
        left = view.ndim - _count(index)
        return signature(ViewType(view.dtype, left) if left else _number(view.dtype), view, index)


@infer_global(operator.setitem)
class _Write(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        view, index, _ = args
        if not isinstance(view, ViewType) or view.ndim != _count(index):
            return None
        return signature(types.none, view, index, _number(view.dtype))


def _word(builder: Any, block: Any, index: int, kind: Any) -> Any:
    """A word of a block, as a value of an LLVM type."""
    at = builder.gep(block, [ir.Constant(WORD, index * WORD_BYTES)])
    word = builder.load(builder.bitcast(at, kind.as_pointer()))
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return word


def _pointer_to(context: Any, kind: types.Type) -> Any:
    return context.get_data_type(kind).as_pointer()


def _load(context: Any, builder: Any, kind: types.Type, address: Any) -> Any:
    return context.cast(builder, context.unpack_value(builder, kind, address), kind, _number(kind))


def _store(context: Any, builder: Any, kind: types.Type, value: Any, address: Any) -> None:
    context.pack_value(builder, kind, context.cast(builder, value, _number(kind), kind), address)


@lower_getattr_generic(StructType)
def _get(context: Any, builder: Any, kind: StructType, block: Any, name: str) -> Any:
    member, first = kind.types[name], kind.words[name]
    if isinstance(member, StructType):
        return _word(builder, block, first, ir.IntType(8).as_pointer())
    if not isinstance(member, ViewType):
        return _load(context, builder, member, _word(builder, block, first, _pointer_to(context, member)))
    sizes = [_word(builder, block, first + 1 + axis, WORD) for axis in range(member.ndim)]
    return _view(context, builder, member, _word(builder, block, first, _pointer_to(context, member.dtype)), sizes)


@lower_setattr_generic(StructType)
def _set(context: Any, builder: Any, of_call: Any, arguments: Any, name: str) -> None:
    kind, given = of_call.args
    block, value = arguments
    member = kind.types[name]
    value = context.cast(builder, value, given, _number(member))
    _store(context, builder, member, value, _word(builder, block, kind.words[name], _pointer_to(context, member)))


def _view(context: Any, builder: Any, kind: ViewType, data: Any, sizes: list[Any]) -> Any:
    made: Any = cgutils.create_struct_proxy(kind)(context, builder)
    made.data, made.shape = data, cgutils.pack_array(builder, sizes)
    return made._getvalue()


def _parts(context: Any, builder: Any, kind: ViewType, view: Any) -> tuple[Any, list[Any]]:
    of_view: Any = cgutils.create_struct_proxy(kind)(context, builder, view)
    return of_view.data, cgutils.unpack_tuple(builder, of_view.shape)


def _element(context: Any, builder: Any, kind: ViewType, view: Any, of_index: Any, index: Any) -> tuple[Any, list[Any]]:
    """Address of the first element that the index names, and the sizes of what it leaves open."""
    data, sizes = _parts(context, builder, kind, view)
    given = [(of_index, index)]
    if isinstance(of_index, types.BaseTuple):
        given = zip(list(of_index), cgutils.unpack_tuple(builder, index), strict=True)  # pyright: ignore[reportArgumentType]
    numbers = [context.cast(builder, value, number, types.intp) for number, value in given]
    offset = numbers[0]
    for axis in range(1, len(sizes)):
        offset = builder.mul(offset, sizes[axis])
        offset = builder.add(offset, numbers[axis]) if axis < len(numbers) else offset
    return builder.gep(data, [offset]), sizes[len(numbers) :]


@lower_builtin(operator.getitem, ViewType, types.Integer)
@lower_builtin(operator.getitem, ViewType, types.BaseTuple)
def _getitem(context: Any, builder: Any, of_call: Any, arguments: Any) -> Any:
    kind, of_index = of_call.args
    address, left = _element(context, builder, kind, arguments[0], of_index, arguments[1])
    if left:
        return _view(context, builder, of_call.return_type, address, left)
    return _load(context, builder, kind.dtype, address)


@lower_builtin(operator.setitem, ViewType, types.Integer, types.Any)
@lower_builtin(operator.setitem, ViewType, types.BaseTuple, types.Any)
def _setitem(context: Any, builder: Any, of_call: Any, arguments: Any) -> Any:
    kind, of_index, _ = of_call.args
    address, _ = _element(context, builder, kind, arguments[0], of_index, arguments[1])
    _store(context, builder, kind.dtype, arguments[2], address)
    return context.get_dummy_value()


@lower_getattr(ViewType, "shape")
def _shape(context: Any, builder: Any, kind: ViewType, view: Any) -> Any:
    return cgutils.pack_array(builder, _parts(context, builder, kind, view)[1])


@lower_getattr(ViewType, "size")
def _size(context: Any, builder: Any, kind: ViewType, view: Any) -> Any:
    size, *others = _parts(context, builder, kind, view)[1]
    for other in others:
        size = builder.mul(size, other)
    return size


@lower_getattr(ViewType, "flat")
def _flat(context: Any, builder: Any, kind: ViewType, view: Any) -> Any:
    data, _ = _parts(context, builder, kind, view)
    return _view(context, builder, ViewType(kind.dtype, 1), data, [_size(context, builder, kind, view)])
