"""`python -m data_prep.import_features` is `prefixcap import-features`: a feature store from existing embeddings."""

from prefixcap.commands import main

if __name__ == "__main__":
    main("import-features")
