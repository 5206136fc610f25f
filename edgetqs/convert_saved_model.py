"""Run as a program: a SavedModel folder -> ``.tflite`` by TensorFlow, as ``saved_model`` wants it.

``python -P convert_saved_model.py FOLDER FILE`` ends with 0, or prints what
is wrong in a line and ends with 2, or with 3 where TensorFlow cannot be
imported. Lists of tensors stay what they are: LiteRT cannot run them, but
they are what the reader knows best, and no batch size is needed for them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

#: Bytes of data; TensorFlow itself takes less than one GiB.
MOST_MEMORY = 8 << 30
#: What exporters call the signature that forecasts.
SERVING = ("serving_default", "serve", "call")


def convert(folder: str, tf: Any) -> bytes:
    """The serving signature, with its variables as constants. Raises ValueError where there is no one signature."""
    loaded = tf.saved_model.load(folder)
    signatures = dict(loaded.signatures)
    names = [name for name in SERVING if name in signatures] or list(signatures)
    if not names:
        raise ValueError("has no serving signature; save it with model.export() of Keras 3")
    if names[0] not in SERVING and len(names) > 1:
        raise ValueError(f"has several signatures and none of {', '.join(SERVING)}: {', '.join(sorted(names))[:200]}")
    converter = tf.lite.TFLiteConverter.from_concrete_functions([signatures[names[0]]], loaded)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    converter._experimental_lower_tensor_list_ops = False
    return bytes(converter.convert())


def main(folder: str, out: str) -> int:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    except (ImportError, OSError, ValueError):
        pass  # no such limit on this system, or a lower one is set
    try:
        import tensorflow as tf
    except Exception as error:  # an installation may be broken in any way
        print(f"{type(error).__name__}: {error}".splitlines()[0][:300])
        return 3
    try:
        Path(out).write_bytes(convert(folder, tf))
    except Exception as error:  # whatever TensorFlow raises is its verdict on the folder
        text = " ".join(str(error).split())[:300]
        print(text if type(error) is ValueError and text.startswith("has ") else f"{type(error).__name__}: {text}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
