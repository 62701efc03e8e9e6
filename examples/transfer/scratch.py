"""The same model without a backbone from elsewhere: what app.py is compared with."""

from model import from_scratch
from model import load_data as data_of
from model import load_test_data as test_data


def build_model():
    return from_scratch()


def load_data(participant_id):
    return data_of(participant_id)


def load_test_data():
    return test_data()
