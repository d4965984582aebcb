"""Ray."""

from __future__ import annotations
from openclaw_opt.errors import MachineError


class OnRay:
    def __init__(self, note):
        raise MachineError("no")
