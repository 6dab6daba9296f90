from .ptq_loop import PTQLoop

__all__ = ['PTQLoop']
