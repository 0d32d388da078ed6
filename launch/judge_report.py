"""The command `mappa-judge-report`, of mappa_jax/commands/judge_report.py."""

from mappa_jax.commands.judge_report import run

if __name__ == "__main__":
    run()
