"""Embeddings that other tools made -> feature store, and back.

clip_retrieval.py   the output folder of clip-retrieval, and of tools that write the same files
arrays.py           .npy or .npz, with the captions in a JSON file
clipcap.py          the pickle of ClipCap's parse_coco.py and parse_conceptual.py; no pickled code runs
importing.py        any of them, in chunks, to the store
exporting.py        a store to the files of clip-retrieval
"""
