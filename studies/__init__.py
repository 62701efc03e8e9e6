"""Virtual time: populations of participants, the engine that drives the coordinator's own core, and lazy training.

`studies.problems.keras.cohort` imports TensorFlow, on demand.
"""

if __name__ != "fedmq.studies":
    raise ImportError(f"import fedmq.studies, not {__name__}: a module must not be loaded under two names")
