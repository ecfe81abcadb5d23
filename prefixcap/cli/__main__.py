"""`python -m prefixcap.cli`, where the `prefixcap` command is not on the PATH."""

from prefixcap.cli import main

if __name__ == "__main__":
    main()
