"""The standard protocol: EleutherAI's lm-evaluation-harness (package lm-eval) over any of our sessions.

`tasks` finds what a recipe names, without importing lm-eval; `adapter` is the model that lm-eval asks; `run` joins them.
"""
