"""`python -m mixsup`."""

from mixsup.cli import main

if __name__ == "__main__":
    main()
