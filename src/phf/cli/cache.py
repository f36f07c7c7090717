"""`phf cache`: what phf keeps for itself outside the folders that it was told to make."""

import typer

from phf.cli.options import SETTINGS, examples
from phf.terminal import printable

app = typer.Typer(help="What phf keeps in its cache folder.", epilog=examples("phf cache clear"), **SETTINGS)


@app.callback()
def _group() -> None:
    """Keeps `clear` a command of its own."""


@app.command("clear", epilog=examples("phf cache clear"))
def cache_clear() -> None:
    """Remove converted weights, measured speeds and texts of reference models; each is made again when it is needed."""
    from phf.reward_models.convert import cache_folder, clear_cache

    num_bytes, kept = clear_cache()
    print(f"{cache_folder()}: {num_bytes / 1e6:,.1f} MB removed")
    if kept:
        print(f"left alone, for phf did not make it: {printable(', '.join(kept))}")
