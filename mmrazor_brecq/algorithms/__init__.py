from .brecq import BRECQ

__all__ = ['BRECQ']
