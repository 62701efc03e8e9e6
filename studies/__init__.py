"""Virtual time: populations of participants, the engine that drives the coordinator's own core, and lazy training.

TensorFlow is imported on demand, with `studies.problems.keras.cohort`.
"""

if __name__ != "fedmq.studies":
    raise ImportError(f"import fedmq.studies, not {__name__}: a module must not be loaded under two names")
