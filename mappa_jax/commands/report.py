"""Writes a run's report: one HTML page with its verdict, curves and conversations.

  python launch/report.py --workdir=runs/arithmetic
  python launch/report.py --workdir=runs/arithmetic --serve=8000
  python launch/report.py --workdir=runs/arithmetic --out=docs/arithmetic.png

The page, WORKDIR/report.html, needs no network. --serve shows the same page while the
run goes on, to this machine only, and refreshes it. A name that ends in .png gets a
picture of the curves instead. docs/report.md says what the page shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from mappa_jax.commands import common

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_OUT = flags.DEFINE_string(
    "out", None, "The page to write (.html), or a picture of the curves (.png)."
)
_SERVE = flags.DEFINE_integer(
    *("serve", None, "Serve the page on this port of 127.0.0.1 instead; 0: any."),
    lower_bound=0,
    upper_bound=65535,
)
_CACHE = flags.DEFINE_string(
    "cache_dir", common.CACHE, "Where the models lie whose tokenizers spell the tokens."
)
flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.config import ConfigError
    from mappa_jax.remote import is_remote

    if _SERVE.value is not None and (_OUT.value or is_remote(_WORKDIR.value)):
        raise ConfigError(
            "--serve: takes no --out, and a workdir on this machine; write the page of "
            "a remote one without --serve"
        )
    where = common.open_workdir(_WORKDIR.value, _CACHE.value)
    out = Path(_OUT.value or where.local / "report.html")
    if out.suffix == ".png":
        _picture(where.local, out)
    elif out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out={out}: a name that ends in .html or .png")
    elif _SERVE.value is not None:
        return _serve(where.local, _SERVE.value)
    else:
        _write(where.local, out)
        if not _OUT.value:
            where.push()
    print(out)


def _picture(workdir: Path, out: Path) -> None:
    from mappa_jax.config import ConfigError
    from mappa_jax.records import read_evaluations, read_rows
    from mappa_jax.report.picture import draw

    metrics = read_rows(workdir / "metrics.jsonl", ("step",))
    if not metrics:
        raise ConfigError(f"{workdir}/metrics.jsonl is missing: nothing to draw yet")
    draw(metrics, read_evaluations(workdir), out)


def _write(workdir: Path, out: Path) -> None:
    from mappa_jax.report.page import write_report

    report = _builder(workdir).build()
    write_report(report, workdir.resolve().name, out)


def _serve(workdir: Path, port: int) -> None:
    from mappa_jax.report.live import serve

    def started(address: str) -> None:
        print(f"{address} (Ctrl-C ends it)", flush=True)

    work = serve(_builder(workdir), port, started)
    common.run_until_interrupted(work, stopped="no longer served")


def _builder(workdir: Path) -> Any:
    from mappa_jax.report.build import Builder, no_pieces

    pieces, note = no_pieces, ""
    if any((workdir / "trajectories").glob("credit_*.jsonl")):
        pieces, note = _spelling(workdir)
    return Builder(workdir, pieces, note)


def _spelling(workdir: Path) -> tuple[Any, str]:
    """The text of the agents' tokens, and what is to be said where it cannot be had:
    nothing is fetched for it."""
    from mappa_jax.commands.spelling import Spelling
    from mappa_jax.models.config import ModelError

    config = common.read_config(workdir)
    models = {name: agent.model for name, agent in config.agents.items()}
    try:
        return Spelling(models, Path(_CACHE.value).expanduser()), ""
    except ModelError as e:
        return Spelling({}, Path()), f"Tokens are shown by their ids: {e}"


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
