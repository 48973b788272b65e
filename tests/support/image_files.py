"""Image data sets in parquet files as Hugging Face writes them, made for a test."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def random_images(count, seed=0, side=32):
    """Images of noise, uint8 [count, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encoded(image, mode=None):
    """The bytes of a PNG file, which keeps every pixel."""
    stream = io.BytesIO()
    image = Image.fromarray(image)
    (image.convert(mode) if mode else image).save(stream, format="PNG")
    return stream.getvalue()


def write_parquet(path, images, labels, image="image", label="label", names=None, as_bytes=False):
    """Write images (uint8 [H, W, 3], or bytes as they are) and labels; `names` are those of the classes."""
    data = [one if one is None or isinstance(one, bytes) else encoded(one) for one in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(data, pa.binary()) if as_bytes else pa.array([{"bytes": one, "path": None} for one in data], struct)
    table = pa.table({image: column, label: labels})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path
