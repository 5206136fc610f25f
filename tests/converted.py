"""``.tflite`` files that TensorFlow makes of Keras layers, and LiteRT running files."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetqs.litert import interpreter, quiet

STEPS, FEATURES = 6, 3


def windows(shape: tuple[int, ...] = (4, STEPS, FEATURES), seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def litert(content: bytes, x: np.ndarray) -> np.ndarray:
    """One window after the other, each from reset."""
    with quiet():
        engine = interpreter(content)
        engine.allocate_tensors()
        (given,), found = engine.get_input_details(), []
        for one in x:
            engine.reset_all_variables()
            engine.set_tensor(given["index"], one[None].astype(given["dtype"]))
            engine.invoke()
            found.append(engine.get_tensor(engine.get_output_details()[0]["index"])[0])
    return np.array(found)


def converted(tf: Any, layers: list[Any], shape: tuple[int, ...], how: str) -> tuple[bytes, Any]:
    """(file, Keras model): ``how`` holds "flex" for lists of tensors, "int8", "hybrid" or "float16"."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2 as frozen_function

    model = tf.keras.Sequential([tf.keras.layers.Input(shape), *layers])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" not in weight.name:
            low = 0.5 if "variance" in weight.name else None
            weight.assign(rng.normal(0, 0.4, weight.shape) if low is None else rng.uniform(low, 2, weight.shape))
    function = tf.function(lambda x: model(x, training=False))
    concrete = frozen_function(function.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    if how == "flex":
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
        converter._experimental_lower_tensor_list_ops = False
    elif how:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if how == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if how == "int8":
        converter.representative_dataset = lambda: ([windows((1, *shape), seed)] for seed in range(20))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert(), model
