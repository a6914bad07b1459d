"""All steps, by name."""

from __future__ import annotations

from collections.abc import Mapping

from model_handlers.steps.answers import ANSWER_STEPS
from model_handlers.steps.categories import CATEGORY_STEPS
from model_handlers.steps.general import GENERAL_STEPS
from model_handlers.steps.lists import LIST_STEPS
from model_handlers.steps.numeric import NUMBER_STEPS
from model_handlers.steps.own_function import OWN_STEPS
from model_handlers.steps.step import Step
from model_handlers.steps.times import TIME_STEPS

STEPS: Mapping[str, type[Step]] = {
    step.NAME: step
    for step in (
        *GENERAL_STEPS,
        *NUMBER_STEPS,
        *CATEGORY_STEPS,
        *TIME_STEPS,
        *LIST_STEPS,
        *ANSWER_STEPS,
        *OWN_STEPS,
    )
}
