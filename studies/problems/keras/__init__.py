"""Keras models in a study, trained in cohorts."""
