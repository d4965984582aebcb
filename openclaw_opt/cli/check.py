"""check: everything that can be known before work starts, in under half a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from openclaw_opt.cli.options import ModelChoice, RecipeFile, Settings, TargetName, needed

if TYPE_CHECKING:
    from openclaw_opt.models.spec import DecoderSpec, HfSpec
    from openclaw_opt.recipe import Recipe


def check(
    recipe: RecipeFile = None,
    set_: Settings = None,
    model: ModelChoice = None,
    target: TargetName = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the recipe with every default filled in.")
    ] = False,
) -> None:
    """Find every mistake of a recipe, before any work.

    Grammar, order of passes, legality on the target, checkpoint headers, data overlap.
    """
    from openclaw_opt.plan import check_recipe
    from openclaw_opt.recipe import load_recipe, resolved_yaml

    made = load_recipe(needed(recipe), settings=set_ or (), model=model, target=target)
    listing, spec = check_recipe(made)
    if resolved:
        typer.echo(resolved_yaml(made), nl=False)
        return
    passes = " → ".join(part.word for part in made.passes)
    typer.echo(
        f"{made.name}: {spec.family} {spec.task}, {len(listing.tensors)} tensors, for {', '.join(one.title for one in made.targets)} by {made.backend}"
    )
    typer.echo(f"passes: {passes}")
    typer.echo(f"budgets: {', '.join(f'{b.metric} {b}' for b in made.budgets) or 'none'}")
    for line in _advice(made, spec):
        typer.echo(line)
    typer.echo("no mistakes found")


def _advice(recipe: Recipe, spec: DecoderSpec | HfSpec) -> tuple[str, ...]:
    """What the engine does with zeros, and known traps of the compiler that this job meets, as the versions installed here have them."""
    from openclaw_opt.passes.quantize import Quantize

    asked = [part for one in recipe.passes if isinstance(one, Quantize) for part in one.parts(spec.task)]
    formats = {str(part.format) for part in asked}
    zeros = _zeros(recipe, formats)
    if recipe.backend != "tensorrt":
        return zeros
    from openclaw_opt.advisories import advisories, told
    from openclaw_opt.versions import version_of

    traits = {spec.task, *formats, *({"quantized"} if formats else ())}
    traits |= {"attention"} if spec.task != "vision" else set()
    traits |= {"softcap"} if getattr(spec, "attention_softcap", 0.0) else set()
    traits |= {"qk_norm"} if getattr(spec, "qk_norm", False) else set()
    version = version_of(recipe.target.module.replace("_", "-"))
    return (*zeros, *told(advisories(recipe.targets, "" if version == "not installed" else version, traits)))


def _zeros(recipe: Recipe, formats: set[str]) -> tuple[str, ...]:
    """What the engine does with zeros that a pass puts into weights."""
    from openclaw_opt.zeros import told

    patterns = [str(part.pattern) for part in recipe.passes if part.word == "sparsify"]  # type: ignore[attr-defined]
    floats = {str(part.dtype_for(recipe.backend)) for part in recipe.passes if part.word == "export"}  # type: ignore[attr-defined]
    return told(patterns, formats or floats, recipe.targets, recipe.backend)
