"""`phf cache`: what phf keeps for itself outside the folders that it was told to make."""

from phf.cli.options import SETTINGS, AsJSON, Verbs, examples, print_json
from phf.terminal import printable

app = Verbs(help="What phf keeps in its cache folder.", epilog=examples("phf cache clear"), **SETTINGS)


@app.callback()
def _group() -> None:
    """Keeps `clear` a command of its own."""


@app.command("clear", epilog=examples("phf cache clear"))
def cache_clear(as_json: AsJSON = False) -> None:
    """Remove converted weights, measured speeds, checks of judges and texts of reference models; each can be made again."""
    from phf.reward_models.convert import cache_folder, clear_cache

    num_bytes, kept = clear_cache()
    if as_json:
        print_json({"path": str(cache_folder()), "num_bytes": num_bytes, "left_alone": kept})
        return
    print(f"{cache_folder()}: {num_bytes / 1e6:,.1f} MB removed")
    if kept:
        print(f"left alone, for phf did not make it: {printable(', '.join(kept))}")
