"""Single checks of the doctor, each of one matter."""
