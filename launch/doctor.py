"""The command `mappa-doctor`; mappa_jax/commands/doctor.py says what it does."""

from mappa_jax.commands.doctor import run

if __name__ == "__main__":
    run()
