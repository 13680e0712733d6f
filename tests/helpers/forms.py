"""Images of class folders in other forms, written by the libraries that people use."""

import warnings

from data.folder import read_folder


def write_shards(folders, to, per_shard=6):
    """The images of class folders as the library webdataset writes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

    to.mkdir(exist_ok=True)
    images = read_folder(folders)
    with webdataset.ShardWriter(str(to / "%03d.tar"), maxcount=per_shard, verbose=0) as writer:
        for i, label in enumerate(images.labels.tolist()):
            with open(images.path(i), "rb") as file:
                sample = {"__key__": f"{i:04}", "png": file.read(), "cls": label, "json": {"kind": f"k{label}"}}
            writer.write(sample)
    return to


def data_set(folders, labels=("cat", "dog"), **columns):
    """A data set of the images of class folders."""
    import datasets

    images = read_folder(folders)
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(labels)),
        "other": datasets.Value("string"),
    }
    content = []
    for i in range(len(images)):
        with open(images.path(i), "rb") as file:
            content.append({"bytes": file.read(), "path": None})
    rows = {"image": content, "label": images.labels.tolist(), "other": ["x"] * len(images)} | columns
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))
