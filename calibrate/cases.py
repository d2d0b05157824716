"""Which function predicts a catalogue case: every public function of the predictor files, by its name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import ModuleType

from ..scenarios.errors import BadInput, UnknownName
from ..scenarios.reference import Case
from . import case_formulas, case_serving, case_steps, case_technique

Predictor = Callable[[Case], float]


def _public(module: ModuleType) -> dict[str, Predictor]:
    """Functions of a module that it defines itself, does not hide, and that take a case alone."""
    found = inspect.getmembers(module, inspect.isfunction)
    mine = {name: f for name, f in found if f.__module__ == module.__name__ and not name.startswith("_")}
    return {name: f for name, f in mine.items() if list(inspect.signature(f).parameters) == ["case"]}


PREDICTORS: dict[str, Predictor] = {}
for _module in (case_formulas, case_steps, case_technique, case_serving):
    PREDICTORS |= _public(_module)


def predict(case: Case) -> float:
    """The prediction of the case's predictor; UnknownName if there is none, BadInput if it lacks a parameter or is not finite."""
    if case.predictor not in PREDICTORS:
        raise UnknownName("predictor", case.predictor, PREDICTORS)
    try:
        value = float(PREDICTORS[case.predictor](case))
    except KeyError as error:
        raise BadInput(f"case {case.name}: predictor {case.predictor} needs {error} in [numbers] or [words]") from None
    if not math.isfinite(value):
        raise BadInput(f"case {case.name}: predictor {case.predictor} gave {value}")
    return value
