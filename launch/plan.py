"""The command `mappa-plan`; mappa_jax/commands/plan.py says what it does."""

from mappa_jax.commands.plan import run

if __name__ == "__main__":
    run()
