from .idx import IDXDataset
from .images import UnlabeledImages
from .watched import Unreadable, WatchedImages, watched

__all__ = [
    'IDXDataset',
    'UnlabeledImages',
    'Unreadable',
    'WatchedImages',
    'watched',
]
