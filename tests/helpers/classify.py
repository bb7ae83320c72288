"""A program of its own: the share of a test split that `pipeline("image-classification")` gets right.

`python classify.py SPLIT.parquet MODEL [hf_clars]` prints it. Without the last word, nothing of hf_clars is there; with
it, a model of one channel is loaded by its class.
"""

import importlib
import io
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from transformers import pipeline


def main(split: str, model: str, *packages: str) -> float:
    table = pq.read_table(split)
    images = [Image.open(io.BytesIO(image["bytes"])) for image in table["image"].to_pylist()]
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    labels = [names[number] for number in table["label"].to_pylist()]
    loaded = model
    for package in map(importlib.import_module, packages):
        if json.loads((Path(model) / "config.json").read_text())["pretrained_cfg"]["input_size"][0] == 1:
            loaded = package.TimmForImageClassification.from_pretrained(model)
    classify = pipeline("image-classification", model=loaded, image_processor=model)
    best = [answers[0]["label"] for answers in classify(images, top_k=1)]
    assert ("hf_clars" in sys.modules) == ("hf_clars" in packages)
    return sum(map(str.__eq__, best, labels)) / len(labels)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
