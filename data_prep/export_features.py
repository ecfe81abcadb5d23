"""`python -m data_prep.export_features` is `prefixcap export-features`: a feature store as clip-retrieval's files."""

from prefixcap.commands.export_features import main

if __name__ == "__main__":
    main()
