"""The program, as ``python -m pellucid``."""

from .cli import main

if __name__ == "__main__":
    main()
