"""The command `phf`; `python -m phf`, as torchrun starts it, is the same."""

from phf.watch import watch


def main() -> None:
    """Run the command, watched over; what takes long to import comes after the fork."""
    watch()
    from phf.cli import main as run

    run()


if __name__ == "__main__":
    main()
