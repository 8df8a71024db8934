"""`python -m handful`, and `accelerate launch -m handful`."""

from handful.cli.main import main

if __name__ == "__main__":
    main()
