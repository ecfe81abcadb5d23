"""`python -m data_prep.import_features` is `prefixcap import-features`: other tools' embeddings as a feature store."""

from prefixcap.commands.import_features import main

if __name__ == "__main__":
    main()
