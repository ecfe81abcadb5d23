"""The feature store: a folder of HDF5 files that any HDF5 tool opens.

    STORE/part-00000.h5 ...   up to 1,000 images each, in the reader's order; written whole or not at all
    STORE/skipped.csv         what was left out, and why
    STORE/index.json          the parts and their counts; written last: a store without it is unfinished

A part holds `images/{id,embedding,split,file,domain}`, one row an image; `captions/{text,image}`, where
`image` is the row in this part; and `skipped/{id,file,reason}`. Its attributes name the format, the encoder
and the source.
"""

from prefixcap.store.format import ImageRecord, Skipped
from prefixcap.store.reader import FeatureStore, StoreSplit
from prefixcap.store.writer import StoreWriter

__all__ = ["FeatureStore", "ImageRecord", "Skipped", "StoreSplit", "StoreWriter"]
