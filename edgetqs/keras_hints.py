"""What to do about Keras layers that edgetqs does not read: the nearest rewrite, by class."""

from __future__ import annotations

_RELU = "Use ReLU or tanh."

HINTS = {
    "Conv2D": "Compute such features ahead of the model, and give it (window, features).",
    "ConvLSTM1D": "Use an LSTM on flattened samples.",
    "ConvLSTM2D": "Use an LSTM on flattened samples.",
    "Cropping1D": "Give the model the shorter window, and remove it.",
    "CuDNNGRU": "Load the weights into a GRU(reset_after=True) and save that.",
    "CuDNNLSTM": "Load the weights into an LSTM(recurrent_activation='sigmoid') and save that.",
    "Embedding": "Embed ahead of the model and feed it numbers.",
    "ELU": _RELU,
    "Functional": "A model inside the model: add its layers to the outer one.",
    "Lambda": "Its code is never run. Use Rescaling, Reshape or Activation, or compute it ahead of the model.",
    "LeakyReLU": _RELU,
    "Masking": "Feed windows without gaps, and remove it.",
    "Model": "A model inside the model: add its layers to the outer one.",
    "PReLU": _RELU,
    "Permute": "Give the model windows of (samples, features), and remove it.",
    "Sequential": "A model inside the model: add its layers to the outer one.",
    "SeparableConv1D": "Use Conv1D.",
    "StackedRNNCells": "Use one recurrent layer a cell, with return_sequences=True on all but the last.",
    "UpSampling1D": "Behind a last state RepeatVector repeats it; elsewhere use a Dense and a Reshape.",
    "ZeroPadding1D": "Use padding='causal' or 'same' on the Conv1D behind it, and remove it.",
}
