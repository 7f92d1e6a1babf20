"""A .tflite file on an inference server, for devices that gate in front of it."""
