"""Check a feature store: `python -m data_prep.verify` is `prefixcap verify`."""

from prefixcap.commands.verify import main

if __name__ == "__main__":
    main()
