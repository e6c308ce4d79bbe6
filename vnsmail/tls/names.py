"""Whether a certificate's name is one that is wanted (RFC 6125 section 6.4). Pure."""


def matches(shown: str, wanted: str) -> bool:
    """Say whether a name in a certificate is the wanted one.

    Args:
        shown: a DNS name, whose first label may be ``*`` and stands for one label then.
        wanted: a name, or ``.name`` for any name below that.
    """
    shown, wanted = shown.lower().rstrip("."), wanted.lower().rstrip(".")
    if wanted.startswith("."):
        return len(shown) > len(wanted) and shown.endswith(wanted)
    if shown.startswith("*."):
        first, _, rest = wanted.partition(".")
        return bool(first) and "." in rest and rest == shown[2:]
    return shown == wanted
