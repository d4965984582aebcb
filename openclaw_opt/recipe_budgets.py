"""`budgets:` of a recipe → budgets. What is wrong is a RecipeError whose `where` is the key inside the budget, if it is one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.metrics import Number
from openclaw_opt.presets import preset_named
from openclaw_opt.recipe_grammar import AMOUNT, RELATIVE_RULE, RULE, Amount, Budget, BudgetChoice

EXAMPLES = 'e.g. ">= 0.98", "<= 12", "> 2"'
NO_WORSE = {"higher": ">= 0", "lower": "<= 0"}


def choice_of(value: Any) -> BudgetChoice | Mapping[str, Any]:
    """The short form as a mapping's model; a mapping as it is, to be read by its model."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or RULE.fullmatch(value) is None:
        hint = EXAMPLES
        if isinstance(value, str) and RELATIVE_RULE.fullmatch(value):
            hint = f'{{rule: "{value.strip()}", against: baseline}}, or against: checkpoint'
        raise RecipeError(f"a budget is a comparison with a number; got {value!r}", fix=hint)
    return BudgetChoice(rule=value)


def budget_of(name: str, choice: BudgetChoice, numbers: Mapping[str, Number]) -> Budget:
    """One budget, checked against what the recipe measures."""
    number = _number(name, choice, numbers)
    if choice.margin is not None:
        return _equivalence(name, choice)
    rule = choice.rule if choice.rule is not None else _no_worse(choice, number)
    match = RELATIVE_RULE.fullmatch(rule)
    if match is None:
        raise RecipeError(f"a budget is a comparison with a number; got {rule!r}", where="rule", fix=EXAMPLES)
    if match[3] and choice.against == "nothing":
        raise RecipeError(
            f"{rule.strip()!r} is a percentage of nothing",
            where="rule",
            fix="add `against: checkpoint` or `against: baseline`",
        )
    return Budget(
        metric=name,
        op=match[1],
        bound=float(match[2]),
        text=" ".join(rule.split()),
        percent=bool(match[3]),
        against=choice.against,
        tolerance=_amount(choice.tolerance, "tolerance"),
        confidence=choice.confidence,
        undecided=choice.undecided,
    )


def preset_budgets(value: Any, numbers: Mapping[str, Number]) -> dict[str, Budget]:
    """The rules of one preset or several that the recipe's metrics measure; a later one replaces an earlier one's."""
    names = value if isinstance(value, list) else [value]
    found: dict[str, Budget] = {}
    for name in names:
        if not isinstance(name, str):
            raise RecipeError(f"`preset` wants a name or a list of names; got {value!r}", fix="preset: mlperf-99")
        rules = preset_named(name).rules
        measured = {metric: rule for metric, rule in rules.items() if metric in numbers}
        if not measured:
            raise RecipeError(
                f"no metric of this recipe measures what preset {name!r} is about: {', '.join(rules)}",
                fix="add the metric under `metrics:`",
            )
        found |= {metric: budget_of(metric, BudgetChoice(rule=rule), numbers) for metric, rule in measured.items()}
    return found


def _number(name: str, choice: BudgetChoice, numbers: Mapping[str, Number]) -> Number:
    if name not in numbers:
        known = nearest(name, numbers) if numbers else "the recipe measures nothing: add the metric under `metrics:`"
        raise RecipeError(f"no metric of this recipe measures {name!r}", fix=known)
    if choice.against == "checkpoint" and not numbers[name].of_checkpoint:
        own = [number.name for number in numbers.values() if number.of_checkpoint]
        raise RecipeError(
            f"the checkpoint has no {name!r} of its own to compare with",
            where="against",
            fix=f"an absolute rule; of the checkpoint are known: {', '.join(own) or 'none of this recipe'}",
        )
    return numbers[name]


def _no_worse(choice: BudgetChoice, number: Number) -> str:
    if choice.against == "nothing":
        raise RecipeError("a budget wants a rule", fix=f"rule: …, {EXAMPLES}")
    if number.better not in NO_WORSE:
        raise RecipeError(f"{number.name!r} is neither better higher nor lower: say which with `rule`")
    return NO_WORSE[number.better]


def _equivalence(name: str, choice: BudgetChoice) -> Budget:
    if choice.against == "nothing":
        raise RecipeError("a margin wants something to be equivalent to", where="margin", fix="against: baseline")
    for key in ("rule", "tolerance"):
        if getattr(choice, key) is not None:
            raise RecipeError(f"`margin` and `{key}` exclude each other", where=key, fix="keep one of them")
    margin = _amount(choice.margin, "margin")
    assert margin is not None
    if not margin.value:
        raise RecipeError("nothing is shown to be within a margin of 0", where="margin", fix='e.g. "1 %"')
    return Budget(
        metric=name,
        op="",
        bound=margin.value,
        text="",
        percent=margin.percent,
        against=choice.against,
        margin=margin,
        confidence=choice.confidence,
        undecided=choice.undecided,
    )


def _amount(value: float | str | None, key: str) -> Amount | None:
    if value is None:
        return None
    match = re.fullmatch(AMOUNT, value) if isinstance(value, str) else None
    amount = (
        Amount(float(match[1]), bool(match[2]))
        if match
        else Amount(float(value))
        if not isinstance(value, str)
        else None
    )
    if amount is None or amount.value < 0:
        raise RecipeError(
            f"`{key}` wants a number that is not negative, or a percentage; got {value!r}",
            where=key,
            fix='e.g. 0.005, "1 %"',
        )
    return amount
