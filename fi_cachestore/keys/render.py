"""Values in words, for people: short, one line, unambiguous enough to tell two values apart."""

from __future__ import annotations

from fi_cachestore.keys.canonical import Named, Value

_MAX_CHARS = 2000


def render(value: Value) -> str:
    """Return ``value`` in one line. Never raises; very long texts end in an ellipsis."""
    text = _render(value)
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "…"


def _render(value: Value) -> str:
    match value:
        case Named():
            return _named(value)
        case tuple():
            return "(" + ", ".join(map(_render, value)) + ("," if len(value) == 1 else "") + ")"
        case list():
            return "[" + ", ".join(map(_render, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{_name(key)}: {_render(item)}" for key, item in value.items()) + "}"
        case _:
            return repr(value)


def _name(key: Value) -> str:
    return key if isinstance(key, str) and key.isidentifier() else _render(key)


def _named(value: Named) -> str:
    match value:
        case Named("dtype", str(name)):
            return name.removeprefix("torch.")
        case Named("dim", str(symbol)):
            return symbol
        case Named("enum", (str(kind), str(member), number)):
            return f"{kind.rpartition(':')[2].rpartition('.')[2]}.{member}={_render(number)}"
        case Named("tensor", {"dtype": dtype, "shape": tuple(shape), "layout": layout, "device": device}):
            sizes = " x ".join(map(_render, shape))
            return f"tensor {_render(dtype)}[{sizes}] {_render(layout)} on {_render(device)}"
        case Named("layout", {"order": tuple(order), "strides": None}):
            return "row-major" if list(order) == sorted(order) else f"dense{_render(order)}"
    return f"{value.kind}({_render(value.content)})"
