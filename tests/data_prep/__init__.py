from data_prep.records import Dataset, ImageRecord


def records(dataset: Dataset) -> list[ImageRecord]:
    """All records of a data set, in order."""
    return [sample.record for shard in dataset.shards for sample in shard.read()[0]]
