from .idx import IDXDataset

__all__ = ['IDXDataset']
