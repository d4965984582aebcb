"""A sweep: one recipe at many points, each built and measured, one joint report and the best recipe.

axes.py what varies → points.py the points, all checked before any work → local.py or on_ray.py runs trial.py for each, in a process
of its own → state.py sweep.json after every one → decide.py the front and the best. search.py chooses points with Optuna.
"""
