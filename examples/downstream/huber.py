"""An objective of one's own."""

from torch.nn import functional as F

from mmrazor_brecq.objectives import Objective
from mmrazor_brecq.registry import TASK_UTILS


@TASK_UTILS.register_module()
class Huber(Objective):
    """Errors beyond 1 count linearly, not squared."""

    def error(self, unit, i, output, target, index):
        return F.huber_loss(output, target)
