"""What MacCap's released code leaves of a caption that the language model wrote (Qiu et al. 2024; `clean_func` of
Artanic30/MacCap, models/BaseModel.py)."""

import re


def cleaned(caption: str) -> str:
    """A caption with only unaccented letters, digits, spaces, commas and full stops left.

    Several spaces or full stops become one, and runs of four digits, such as years, go.

    Examples:
        >>> cleaned("A café's sign, 1999: two  dogs...")
        'A cafs sign,  two dogs.'
    """
    caption = re.sub(r"[^a-zA-Z0-9 ,.]", "", caption)
    caption = re.sub(r" +", " ", caption)
    caption = re.sub(r"\.+", ".", caption)
    return re.sub(r"[0-9]{4}", "", caption).strip()
