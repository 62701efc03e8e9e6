"""The Keras trainer. `backend` is the only module that imports Keras and TensorFlow."""
