"""What users add: passes of their own, and spellings of activations.

What is registered takes part in every run from then on, that of the backend included.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import TypeVar

from .activations import RECOGNIZERS, Activation, Product
from .errors import PassError
from .manager import PASSES, Pass, PassFunction

Recognize = Callable[[Product], "Activation | None"]
_Function = TypeVar("_Function", bound=Callable[..., object])


def register_pass(*, before: str) -> Callable[[PassFunction], PassFunction]:
    """Put a pass into the list, in front of the one called `before`; a decorator.

    It is called as `run(gm, context)` and returns how often it did what it is for. `Context.skip` leaves it out.

    Raises:
        PassError: no pass has the name `before`, or one has the name of the function already.
    """

    def register(run: PassFunction) -> PassFunction:
        names = [item.name for item in PASSES]
        if before not in names:
            raise PassError(f"there is no pass {before!r}; the list is {', '.join(names)}")
        if run.__name__ in names:
            raise PassError(f"there is a pass {run.__name__!r} already; unregister it first")
        PASSES.insert(names.index(before), Pass(run, optional=True, registered=True))
        return run

    return register


def register_activation(recognize: Recognize) -> Recognize:
    """Ask a function for the activation that a product of factors is, after all others; a decorator.

    It returns an `Activation` with a name that `zigpass.gated_mlp` knows, or None.
    """
    RECOGNIZERS.append(recognize)
    return recognize


def unregister(function: _Function) -> None:
    """Take out what was registered.

    Raises:
        PassError: it was not.
    """
    added = [item for item in PASSES if item.registered and item.run is function]
    if added:
        PASSES.remove(added[0])
    elif function in RECOGNIZERS[_NUM_OWN:]:
        RECOGNIZERS.remove(function)
    else:
        raise PassError(f"{getattr(function, '__name__', function)!r} is not registered")


def registered_digest() -> str:
    """A hash of the sources of everything registered, for caches of what the passes made."""
    functions = [item.run for item in PASSES if item.registered] + list(RECOGNIZERS[_NUM_OWN:])
    order = ",".join(item.name for item in PASSES)
    return hashlib.sha256("\0".join([order, *map(_source, functions)]).encode()).hexdigest()


def _source(function: Callable[..., object]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed into a prompt, or not a function: its code is all there is
        code = getattr(function, "__code__", None)
        return repr((code.co_code, code.co_consts, code.co_names)) if code else f"{function!r}"


_NUM_OWN = len(RECOGNIZERS)
