from .idx import IDXDataset
from .images import UnlabelledImages
from .watched import Unreadable, WatchedImages, watched

__all__ = [
    'IDXDataset',
    'UnlabelledImages',
    'Unreadable',
    'WatchedImages',
    'watched',
]
