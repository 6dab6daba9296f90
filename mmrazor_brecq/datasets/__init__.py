from .idx import IDXDataset
from .images import UnlabelledImages

__all__ = ['IDXDataset', 'UnlabelledImages']
