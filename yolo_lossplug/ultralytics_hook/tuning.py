# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our keys in Ultralytics' tuner: what they start from, and that integers stay integers.

Imported while Ultralytics is, and so this module imports nothing of it before a function is called.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import CLAIMED, COMMON, NUMBERS, keys, numeric_keys
from yolo_lossplug.sparse.candidates import HOST_MIN_SIDE
from yolo_lossplug.ultralytics_hook.config import check_merged


def check_tuner(stock: Callable[..., None], tuner: Any, *args: Any, **kwargs: Any) -> None:
    """Make a tuner, and give the keys that it varies the values they start from: it cannot vary what is not given.

    Raises:
        LossPlugError: If a key has no effect with the losses that are chosen, takes a name, or takes integers where
            the space holds none.
    """
    stock(tuner, *args, **kwargs)
    given, unset = vars(tuner.args), keys()
    for key in (key for key in tuner.space if key in unset):
        if key in COMMON and key not in NUMBERS:
            raise LossPlugError(f"{key} cannot be tuned: it is not a number. Train once with each value instead.")
        if given.get(key) == unset[key]:
            given[key] = _start_of(key, unset[key])
    check_merged(given)
    _keep_integers(tuner)


def _keep_integers(tuner: Any) -> None:
    """Let a tuner vary keys that take integers by integers."""
    whole = {key for key, parameter in numeric_keys().items() if parameter.type is int} - CLAIMED
    integers = {key: integer_bounds(key, *tuner.space[key][:2]) for key in tuner.space if key in whole}
    for method in ("_constrain", "_mutate"):  # newer releases look for values that are not tried yet after the former
        stock = getattr(tuner, method, None) if integers else None
        if stock is not None:
            setattr(tuner, method, functools.partial(with_integers, stock, integers))


def _start_of(key: str, unset: Any) -> Any:
    """Return the value that a tuner starts from where a key is unset."""
    if (parameter := numeric_keys().get(key)) is None:
        return unset
    is_hosts = parameter.default is None and not parameter.nullable
    return HOST_MIN_SIDE if is_hosts else parameter.default


def integer_bounds(key: str, low: float, high: float) -> tuple[int, int]:
    """Return the smallest and the largest integer between the bounds of a key.

    Raises:
        LossPlugError: If there is none.
    """
    lower, upper = math.ceil(low), math.floor(high)
    if lower > upper:
        raise LossPlugError(
            f"{key} cannot be tuned in ({low:g}, {high:g}): it takes integers, and there is none. Widen the bounds."
        )
    return lower, upper


def with_integers(
    stock: Callable[..., dict[str, Any]], integers: dict[str, tuple[int, int]], *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Return the values that a tuner's method returns, with integers within bounds for the keys that take them."""
    values = stock(*args, **kwargs)
    rounded = {key: min(max(round(values[key]), low), high) for key, (low, high) in integers.items()}
    return {**values, **rounded}
