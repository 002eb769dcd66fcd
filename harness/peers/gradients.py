"""Who owns which micro-batches, and the tree along which gradients and losses are added."""


def tree_sum(leaves, add=lambda left, right: left + right):
    """The sum along the fixed binary tree: neighbours in pairs, level by level; one left over rises alone."""
    while len(leaves) > 1:
        pairs = [add(left, right) for left, right in zip(leaves[::2], leaves[1::2])]
        leaves = pairs + leaves[len(pairs) * 2 :]
    return leaves[0]


def share(items, parts, part):
    """The contiguous share of `part`: sizes differ by one at most, and the first parts get more."""
    size, more = divmod(items, parts)
    start = part * size + min(part, more)
    return range(start, start + size + (part < more))
