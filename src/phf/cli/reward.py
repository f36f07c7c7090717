"""`phf reward`: what says how bad a text is."""

import typer

from phf.cli.options import SETTINGS

app = typer.Typer(help="Reward models.", epilog="Example: phf reward list", **SETTINGS)


@app.command("list", epilog="Example: phf reward list")
def reward_list() -> None:
    """The reward models that come with phf, with what they cannot see."""
    from phf.reward_models import list_reward_models

    for card in list_reward_models():
        print(f"{card.name}: {card.description}")
        print(f"  blind to: {card.blind_spots}\n  licence {card.licence}; {card.install}")
