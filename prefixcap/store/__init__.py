"""The feature store: a folder of HDF5 files that any HDF5 tool opens.

    STORE/part-00000.h5 ...   up to 1 GiB of features each, in the reader's order
    STORE/skipped.csv         what was left out, and why
    STORE/index.json          the parts and their counts; written last: a store without it is unfinished
    STORE/pieces/             while it is made: up to 1,000 images each, joined into parts at the end; what a killed run
                              leaves is removed by the next

Every file is written atomically. A part or piece holds

    images/{id,file,split,domain}   one row an image; `split` is an enumeration
    captions/text, text_end         the captions in UTF-8, one after the other, and where each ends
    captions/image                  the row of each caption's image in this file
    skipped/{id,file,reason}

and the features that were asked for, float16 or float32, as the encoder computed them (`prefixcap.features.Feature`):

    images/embedding                (images, dim)
    images/patches                  (images, patches, dim) of the last layer of a ViT or a CNN, in the joint space
    images/attention                (images, patches) the class token's attention in that layer; a CNN has none
    images/regions                  (images, 10, dim) sub-region features (MacCap, equations 10 to 13)
    images/hidden                   (images, 1 + patches, width) class token and patches of the last layer of a ViT
    captions/embedding              (captions, dim)

Each column is one contiguous run of bytes of its file, in the byte order and the types in which it was written: reading
maps it, and refuses anything else (chunks, compression, external and virtual storage, links).

Its attributes name the format, the encoder, how it was made, and the source. A corpus of sentences without images is a
store too: each sentence has an image row of its own, without file and without image features.
"""

from prefixcap.store.format import ImageRecord, Skipped
from prefixcap.store.reader import FeatureStore, StoreSplit
from prefixcap.store.writer import StoreWriter, join

__all__ = ["FeatureStore", "ImageRecord", "Skipped", "StoreSplit", "StoreWriter", "join"]
