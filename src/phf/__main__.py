"""`python -m phf`, as torchrun starts it."""

from phf.cli import main

if __name__ == "__main__":
    main()
