"""Values from outside against a schema: one line that names the place, whatever the value is."""

import pytest
from pydantic import BaseModel

from prefixcap.errors import InputError
from prefixcap.utils.validation import validate


class Entry(BaseModel):
    file: str
    bytes: int


def test_what_fits_is_given_back_as_the_schema():
    assert validate(list[Entry], [{"file": "a", "bytes": 3}], "x", "y") == [Entry(file="a", bytes=3)]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (None, "index.json: "),
        ([{"file": "a"}], "0.bytes: "),
        ([{"file": "a", "bytes": "3"}], "0.bytes: "),  # nothing is converted
        ([{"file": "a", "bytes": True}], "0.bytes: "),
        ([{"file": "a", "bytes": 3}, {"file": [[]] * 99, "bytes": 3}], "1.file: "),
        ([{"file": "a" * 10**6, "bytes": 10**5000}, {"file": 10**5000, "bytes": 1}], "1.file: "),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(value, place):
    with pytest.raises(InputError) as caught:
        validate(list[Entry], value, "index.json", "embed again")
    message = str(caught.value)
    assert place in message and message.endswith("; embed again")
    assert "\n" not in message and len(message) < 300
