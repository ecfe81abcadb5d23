"""Check feature stores: `python -m data_prep.verify` is `prefixcap verify`."""

from prefixcap.commands import main

if __name__ == "__main__":
    main("verify")
