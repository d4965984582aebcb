"""What a report says of where its numbers were taken: the machine in a line, and the metrics with their options."""

from __future__ import annotations

from typing import Any

import yaml

from openclaw_opt.records import MachineRecord


def machine_line(machine: MachineRecord) -> str:
    """What decides how fast a machine is, as far as it is known: `AMD EPYC, 2 cores, GPU: none`."""
    return f"{machine.title}, {machine.cores} cores, GPU: {machine.gpu}"


def metrics_in(recipe: str) -> dict[str, dict[str, Any]]:
    """Metric to options, of a resolved recipe. A recipe that cannot be read has none."""
    try:
        data = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return {}
    items = data.get("metrics") if isinstance(data, dict) else None
    pairs = [item for item in items or () if isinstance(item, dict)]
    bare: list[dict[str, Any]] = [{item: {}} for item in items or () if isinstance(item, str)]
    return {str(word): options or {} for item in (*pairs, *bare) for word, options in item.items()}
