"""The command line of the project."""

import free_ml_stack


def main() -> None:
    """Run a command."""
    free_ml_stack.main(str(__package__))


if __name__ == "__main__":
    main()
