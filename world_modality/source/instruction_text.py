"""What a text has to be to serve as an instruction."""

MAX_TEXT_CHARS = 2_000


def text_fault(text: object) -> str | None:
    """Say what keeps a text from being an instruction; None where nothing does."""
    if not isinstance(text, str):
        return f"is {text!r}, which is no text"
    if not text.strip():
        return "is blank"
    if len(text) > MAX_TEXT_CHARS:
        return f"has {len(text)} characters, more than {MAX_TEXT_CHARS}"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half a surrogate pair, which is no character"
    return None
