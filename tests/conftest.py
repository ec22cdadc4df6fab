"""Set before Keras starts: float64 on JAX, and less talk from TensorFlow."""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
