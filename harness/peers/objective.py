"""The loss that goes backward: the weighted sum of a model's losses, each the mean over its own targets in the global batch.

So the micro-batches' shares add up to the step's loss, however many ranks there are and however targets are spread over them.
"""

from dataclasses import dataclass

from record import real, tree_sum


@dataclass
class Share:
    """One micro-batch's share of the step's loss, and of the mean of each of several losses before its weight."""

    total: object
    means: list

    def numbers(self):
        return [self.total.item(), *(mean.item() for mean in self.means)]


class Objective:
    """What one step's losses are divided and multiplied by."""

    def __init__(self, terms, targets):
        """`terms` are pairs of name and weight; `targets` how many each has in the global batch."""
        self.terms, self.targets = terms, targets
        # A single loss is not recorded apart: it is the total.
        self.names = [name for name, _ in terms] if len(terms) > 1 else []

    def share(self, losses):
        """Joins a micro-batch's losses, each summed over its targets. What has no target in the whole batch is zero."""
        means = [loss / max(count, 1) for loss, count in zip(losses, self.targets, strict=True)]
        weighted = [mean if weight == 1 else mean * weight for mean, (_, weight) in zip(means, self.terms, strict=True)]
        return Share(sum(weighted[1:], weighted[0]), means if self.names else [])

    def recorded(self, shares):
        """The line's losses, from the numbers of all micro-batches' shares, in their order."""
        totals, *columns = (list(column) for column in zip(*shares, strict=True))
        losses = {"loss": real(tree_sum(totals)), "micro_batch_losses": [real(loss) for loss in totals]}
        terms = {
            name: {"loss": real(tree_sum(column)), "targets": count}
            for name, column, count in zip(self.names, columns, self.targets)
        }
        return losses | ({"loss_terms": terms} if terms else {})
