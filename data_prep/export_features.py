"""`python -m data_prep.export_features` is `prefixcap export-features`: a feature store in clip-retrieval's format."""

from prefixcap.commands import main

if __name__ == "__main__":
    main("export-features")
