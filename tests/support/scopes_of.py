"""What a profile will call the parts of a program."""

import re

import jax


def scopes(program: jax.stages.Lowered) -> set[str]:
    """Every name on the way to an operation, of `jax.named_scope` and of modules. Of a
    program that is not compiled: a cache may have it from before a name was given."""
    paths = re.findall(r'loc\("([^"]*)"', program.as_text(debug_info=True))
    return {name for path in paths for name in re.split(r"[/()]", path)}
