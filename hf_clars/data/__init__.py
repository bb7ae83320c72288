import torch
class TrainStream(torch.utils.data.IterableDataset): pass
