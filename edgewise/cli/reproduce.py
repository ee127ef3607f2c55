"""`edgewise reproduce`: a figure or table of the reference, from data to picture."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("figure", metavar="figure2|figure3|figure4|figure5|table1|all|...")
@click.option("--scale", default="demo", metavar="demo|laptop|paper", help="how much of it  [demo]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="[out/FIGURE-SCALE]")
@click.option("--resume", is_flag=True, help="go on from what --out holds already")
@click.option(
    "--data-dir", metavar="DIR", help="folder of the data's files (else EDGEWISE_DATA, else a download)"
)
@click.option("--seed", type=int, default=0, help="seed of every run  [0]")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="runs at a time, a process each  [cores]")
def reproduce(  # noqa: PLR0913  (click hands over one argument an option)
    figure: str, scale: str, out: Path | None, resume: bool, data_dir: str | None, seed: int, jobs: int | None
) -> None:
    """Reproduce a figure or table of the reference: figure2, figure3, figure4, figure5, table1, or all.

    Beyond the reference: compression, foresight, drift. Each run keeps its own records under DIR/runs; the
    figure, its numbers and a table beside what the reference says are written to DIR. `all` gives each a
    folder of its own in DIR, and plays what figure3, figure4 and table1 share once.
    """
    from edgewise import experiments  # here, because it imports PyTorch

    folder = out or Path("out") / f"{figure}-{scale}"
    names = experiments.REFERENCE if figure == experiments.ALL else (figure,)
    plans = [experiments.plan(name, scale, seed=seed, data_dir=data_dir) for name in names]
    if figure == experiments.ALL:
        for page in experiments.reproduce_all(plans, folder, resume=resume, jobs=jobs):
            click.echo(page)
    else:
        click.echo(experiments.reproduce(plans[0], folder, resume=resume, jobs=jobs))
