"""Who owns which micro-batches."""


def share(items, parts, part):
    """The contiguous share of `part`: sizes differ by one at most, and the first parts get more."""
    size, more = divmod(items, parts)
    start = part * size + min(part, more)
    return range(start, start + size + (part < more))
