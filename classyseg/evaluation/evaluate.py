"""LOCAL, until the real one lands."""
import torch
from classyseg import distributed
from classyseg.inference import Wanted
from classyseg.tasks.checks import joined_files, joined_metrics

class Evaluation:
    def __init__(self, network, protocol, meters, loss=None, budget=None):
        self.network, self.protocol, self.meters, self.loss, self.main_head = network, protocol, meters, loss, network.model.main_head
        self.files, self.unseen_classes = {}, ()
    def begin(self):
        for m in self.meters: m.reset()
    def update(self, images, target):
        wanted = {Wanted(m.head or self.main_head, "labels") for m in self.meters}
        found = self.protocol(self.network, images, tuple(target.shape[1:]), wanted, None)
        for m in self.meters: m.update(found[Wanted(m.head or self.main_head, "labels")], target)
    def result(self):
        values = [m.compute() for m in self.meters]
        self.files = joined_files(self.meters, values, self.main_head)
        self.unseen_classes = {name for m in self.meters for name in m.unseen_classes}
        return joined_metrics(self.meters, values, self.main_head)
