"""`python -m prefixcap`, where the `prefixcap` command is not on the PATH."""

from prefixcap.commands import main

if __name__ == "__main__":
    main()
